// LocalModel through its interface: a model whose every answer is known (script_model.h), all
// threads real.
#include "common/serve/local_model.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <future>
#include <set>
#include <thread>

#include "common/base/clock.h"
#include "common/text/chat_template.h"
#include "tests/common/serve/events.h"
#include "tests/common/serve/script_model.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

// "Grüße <x>" in two-byte characters, with every byte once.
const std::string kAnswer =
    "Gr\xc3\xbc"
    "ab <x>";

struct Served {
  explicit Served(const Script& script, const std::function<void(LocalModelConfig&)>& change = {}) {
    config.model_path = write_script_model(dir.file("script.gguf"), script);
    config.chat_template = "chatml";
    config.served_name = "demo";
    config.aliases = {"gpt-4"};
    config.slots = 2;
    config.queue_max = 4;
    config.node_id = "edge-1";
    config.tier = Tier::kEdge;
    config.threads = 2;
    if (change) change(config);
    auto opened = LocalModel::open(config, {});
    REQUIRE_MESSAGE(opened.ok(), opened.message());
    model = std::move(*opened);
  }

  Reply ask(const Request& request) const {
    EventLog log;
    model->submit(request, log.sink());
    log.wait_end();
    return assemble(log.events(), static_cast<size_t>(std::max(total_choices(request), 1)));
  }
  RequestError refused(const Request& request) const {
    const Reply reply = ask(request);
    REQUIRE(reply.error.has_value());
    CHECK_FALSE(reply.error->message.empty());
    return *reply.error;
  }

  TempDir dir;
  LocalModelConfig config;
  std::unique_ptr<LocalModel> model;
};

Script answer_script() {
  Script script;
  script.bytes = "\n" + kAnswer;
  return script;
}

// Never stops by itself: 0 -> 1 -> 0 ...
Script endless_script() {
  Script script;
  script.bytes = "\n0";
  script.ends = false;
  script.more = {{'0', '1'}, {'1', '0'}};
  return script;
}

ContentPart text_part(std::string text) {
  ContentPart part;
  part.text = std::move(text);
  return part;
}

Request chat(const std::string& text = "hi") {
  Request request;
  request.id = new_request_id();
  request.model = "demo";
  request.messages.push_back({"user", {text_part(text)}});
  request.sampling.temperature = 0.0F;
  return request;
}

Request completion(std::vector<std::string> prompts) {
  Request request;
  request.id = new_request_id();
  request.kind = Request::Kind::kCompletion;
  request.prompts = std::move(prompts);
  request.sampling.temperature = 0.0F;
  return request;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// The model's ramp between sure and unsure: log-probability of the scripted successor and of any
// other token.
double successor_logprob() {
  const double logit = std::sqrt(static_cast<double>(kRowCount));
  return logit - std::log(std::exp(logit) + kRowCount - 1);
}

}  // namespace

TEST_CASE("a chat is answered: started, chunks, one finish, and the stop token stays inside") {
  const Served served(answer_script());
  const int64_t before_ns = monotonic_ns();
  const Reply reply = served.ask(chat());
  REQUIRE(reply.finished.has_value());
  CHECK(reply.started.node_id == "edge-1");
  CHECK(reply.started.tier == Tier::kEdge);
  CHECK(reply.started.model == "demo");
  CHECK(reply.choices[0].text == kAnswer);
  CHECK(reply.choices[0].ids.size() == kAnswer.size());
  CHECK(reply.choices[0].finish == FinishReason::kStop);
  for (const int32_t id : reply.choices[0].ids) CHECK(id < 256);
  // <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n: bytes are tokens here.
  CHECK(reply.finished->usage.prompt_tokens == 1 + 5 + 2 + 1 + 1 + 1 + 10);
  CHECK(reply.started.prompt_tokens == reply.finished->usage.prompt_tokens);
  CHECK(reply.finished->usage.completion_tokens == static_cast<int32_t>(kAnswer.size()));
  CHECK(reply.finished->timings.total_ns >= reply.finished->timings.first_token_ns);
  CHECK(reply.finished->timings.first_token_ns >= reply.finished->timings.queued_ns);
  CHECK(reply.finished->timings.queued_ns > 0);
  CHECK(reply.finished->timings.received_at_ns >= before_ns);
  CHECK(reply.finished->timings.received_at_ns + reply.finished->timings.total_ns <=
        monotonic_ns());
}

namespace {

// Each row is the model's own of one byte: one-hot, so exact in every type.
PromptPart rows_part(const std::string& bytes, EmbeddingRows::Type type, int32_t dim = kRowCount) {
  PromptPart part;
  part.kind = PromptPart::Kind::kEmbeddings;
  part.rows.type = type;
  part.rows.row_count = static_cast<int32_t>(bytes.size());
  part.rows.dim = dim;
  const std::map<EmbeddingRows::Type, uint32_t> ones = {{EmbeddingRows::Type::kF32, 0x3F800000},
                                                        {EmbeddingRows::Type::kF16, 0x3C00},
                                                        {EmbeddingRows::Type::kBF16, 0x3F80}};
  const size_t size = value_bytes(type);
  std::string values(static_cast<size_t>(embedding_bytes(part.rows)), '\0');
  for (size_t i = 0; i < bytes.size(); ++i) {
    const size_t at = i * static_cast<size_t>(dim) + static_cast<uint8_t>(bytes[i]);
    std::memcpy(values.data() + at * size, &ones.at(type), size);
  }
  part.rows.bytes = std::move(values);
  return part;
}

PromptPart ids_part(std::vector<int32_t> ids) {
  PromptPart part;
  part.kind = PromptPart::Kind::kIds;
  part.ids = std::move(ids);
  return part;
}

PromptPart plain_part(std::string text) {
  PromptPart part;
  part.text = std::move(text);
  return part;
}

Request of_parts(std::vector<PromptPart> parts) {
  Request request = completion({});
  request.prompt_parts = std::move(parts);
  return request;
}

}  // namespace

TEST_CASE("rows of input embeddings are answered alone and between text and ids") {
  const Served served(answer_script());
  using Type = EmbeddingRows::Type;
  for (const Type type : {Type::kF32, Type::kF16, Type::kBF16}) {
    CAPTURE(std::string(embedding_type_name(type)));
    const std::vector<std::pair<Request, int32_t>> asked = {
        {of_parts({rows_part("\n", type)}), 1},
        {of_parts({rows_part("question\n", type)}), 9},
        {of_parts({plain_part("my "), rows_part("quest", type), plain_part("ion<|im_end|>"),
                   ids_part({'?', kImStart}), rows_part("x\n", type)}),
         3 + 5 + 4 + 2 + 2},
        {of_parts({rows_part("before", type), plain_part("\n")}), 7},
        {of_parts({plain_part(""), rows_part("before", type), ids_part({'\n'})}), 7}};
    for (const auto& [request, prompt_tokens] : asked) {
      const Reply reply = served.ask(request);
      REQUIRE_MESSAGE(reply.finished.has_value(), reply.error->message);
      CHECK(reply.choices[0].text == kAnswer);
      CHECK(reply.finished->usage.prompt_tokens == prompt_tokens);
      CHECK(reply.started.prompt_tokens == prompt_tokens);
      const auto size = served.model->measure(request);
      REQUIRE(size.ok());
      CHECK(size->prompt_tokens == prompt_tokens);
    }
  }
  // Parts without rows are one prompt, too, and may be echoed.
  Request parts = of_parts({plain_part("my "), ids_part({'x', '\n'})});
  parts.echo = true;
  CHECK(served.ask(parts).choices[0].text == "my x\n" + kAnswer);
  Request choices = of_parts({rows_part("\n", Type::kF32)});
  choices.choice_count = 2;
  choices.sampling.repetition_penalty = 1.1F;
  const Reply reply = served.ask(choices);
  REQUIRE(reply.finished.has_value());
  CHECK(reply.choices[1].text == kAnswer);
}

TEST_CASE("input embeddings that the model cannot take are refused before it is asked") {
  const Served served(answer_script());
  using Type = EmbeddingRows::Type;
  const auto refused = [&](PromptPart rows) {
    EventLog log;
    const Request request = of_parts({plain_part("x"), std::move(rows)});
    served.model->submit(request, log.sink());
    log.wait_end();
    REQUIRE(log.events().size() == 1);
    const auto error = std::get<RequestError>(log.events()[0]);
    CHECK(error.code == ErrorCode::kInvalidRequest);
    CHECK(error.param == "prompt");
    return error.message;
  };
  CHECK(refused(rows_part("ab", Type::kF32, 200)) ==
        "prompt_parts[1] has rows of 200 values, but demo takes embeddings of 264");
  PromptPart cut = rows_part("ab", Type::kF16);
  cut.rows.bytes = {};
  CHECK(refused(cut) == "prompt_parts[1] has 0 bytes, but 2 rows of 264 f16 values have 1056");
  cut.rows.bytes = std::string(1054, '\0');
  CHECK(contains(refused(cut), "has 1054 bytes, but 2 rows of 264 f16 values have 1056"));
  PromptPart none = rows_part("ab", Type::kF32);
  none.rows.row_count = 0;
  none.rows.bytes = {};
  const Reply zero = served.ask(of_parts({none}));
  REQUIRE(zero.error.has_value());
  CHECK(contains(zero.error->message, "embedding rows = 0 is not in 1.."));
  PromptPart nan = rows_part("abc", Type::kBF16);
  std::string bytes(nan.rows.bytes.text());
  bytes[(2 * kRowCount + 5) * 2] = '\xC0';
  bytes[(2 * kRowCount + 5) * 2 + 1] = '\x7F';
  nan.rows.bytes = bytes;
  CHECK(refused(nan) == "prompt_parts[1] holds a value that is no finite number: row 2, column 5");
  const RequestError much =
      served.refused(of_parts({rows_part(std::string(300, 'a'), Type::kF16)}));
  CHECK(much.code == ErrorCode::kContextLength);
  CHECK(much.prompt_tokens == 300);
  CHECK(much.limit_tokens == 256);
  CHECK(contains(served.refused(of_parts({plain_part("")})).message, "prompt is empty"));
  const auto negative =
      served.model->measure(of_parts({ids_part({-1}), rows_part("a", Type::kF32)}));
  CHECK(contains(negative.message(), "prompt_parts[0] contains -1"));
}

TEST_CASE("half a character is held back until its other half comes") {
  const Served served(answer_script());
  const Reply reply = served.ask(chat());
  CHECK(reply.chunks[2].ids == std::vector<int32_t>{0xc3});
  CHECK(reply.chunks[2].text.empty());
  CHECK(reply.chunks[3].text == "\xc3\xbc");
  for (const TokenChunk& chunk : reply.chunks) CHECK(is_utf8(chunk.text));
}

TEST_CASE(
    "an answer that is cut inside a character ends with a replacement, not with broken text") {
  const Served served(answer_script());
  Request request = chat();
  request.sampling.max_tokens = 3;
  const Reply reply = served.ask(request);
  CHECK(reply.choices[0].text == "Gr\xef\xbf\xbd");
  CHECK(reply.choices[0].finish == FinishReason::kLength);
  CHECK(reply.finished->usage.completion_tokens == 3);
}

TEST_CASE(
    "a stop string across tokens is never shown; text held back for it is shown when it was none") {
  const Served served(answer_script());
  Request request = chat();
  request.sampling.stop = {"zzz", " <x>"};
  Reply reply = served.ask(request);
  CHECK(reply.choices[0].text ==
        "Gr\xc3\xbc"
        "ab");
  CHECK(reply.choices[0].finish == FinishReason::kStop);
  CHECK(reply.finished->usage.completion_tokens == static_cast<int32_t>(kAnswer.size()));

  request = chat();
  request.sampling.stop = {"<x!", "<x>?"};
  reply = served.ask(request);
  CHECK(reply.choices[0].text == kAnswer);  // "<x>" was held back to the very end

  request = chat();
  request.sampling.stop = {"<x>"};
  request.sampling.max_tokens = static_cast<int32_t>(kAnswer.size()) - 1;
  reply = served.ask(request);
  CHECK(reply.choices[0].text ==
        kAnswer.substr(0, kAnswer.size() - 1));  // "<x" belongs to the answer after all
  CHECK(reply.choices[0].finish == FinishReason::kLength);
}

TEST_CASE("ignore_eos goes on past the stop token, max_tokens bounds it") {
  Script script = answer_script();
  script.more[kImEnd] = 'Q';
  script.more['Q'] = 'Q';
  const Served served(script);
  Request request = chat();
  request.sampling.ignore_eos = true;
  request.sampling.max_tokens = 20;
  const Reply reply = served.ask(request);
  CHECK(reply.choices[0].ids.size() == 20);
  CHECK(contains(reply.choices[0].text, "<x>QQQ"));
}

TEST_CASE("without max_tokens the answer takes what the context leaves") {
  Script script = endless_script();
  script.context_tokens = 64;
  const Served served(script);
  const Reply reply = served.ask(chat());
  CHECK(reply.choices[0].finish == FinishReason::kLength);
  CHECK(reply.finished->usage.prompt_tokens + reply.finished->usage.completion_tokens == 64);
}

TEST_CASE("too long a prompt, or prompt and max_tokens together, name both numbers and the limit") {
  Script script = answer_script();
  script.context_tokens = 64;
  const Served served(script);
  RequestError error = served.refused(chat(std::string(100, 'x')));
  CHECK(error.code == ErrorCode::kContextLength);
  CHECK(error.prompt_tokens == 119);
  CHECK(error.limit_tokens == 64);
  CHECK(contains(error.message, "119"));
  CHECK(contains(error.message, "64"));

  Request request = chat();  // 21 tokens
  request.sampling.max_tokens = 44;
  error = served.refused(request);
  CHECK(error.code == ErrorCode::kContextLength);
  CHECK(error.prompt_tokens == 65);
  CHECK(contains(error.message, "21"));
  CHECK(contains(error.message, "44"));
  CHECK(contains(error.message, "64"));
  request.sampling.max_tokens = 43;
  CHECK(served.ask(request).finished.has_value());
  CHECK(served.refused(chat(std::string(64 - 19, 'x'))).code ==
        ErrorCode::kContextLength);  // exactly full
}

TEST_CASE("an image to a text model is refused with its place, an unknown model with its name") {
  const Served served(answer_script());
  Request request = chat();
  ContentPart image;
  image.kind = ContentPart::Kind::kImage;
  image.mime = "image/png";
  image.bytes = "png";
  request.messages.push_back({"user", {text_part("look"), image}});
  RequestError error = served.refused(request);
  CHECK(error.code == ErrorCode::kUnsupported);
  CHECK(contains(error.message, "messages[1].content[1]"));
  CHECK(error.param == "messages[1].content[1]");

  request = chat();
  request.model = "llama-99";
  error = served.refused(request);
  CHECK(error.code == ErrorCode::kModelNotFound);
  CHECK(contains(error.message, "llama-99"));
  for (const char* name : {"gpt-4", "demo", ""}) {
    request.model = name;
    CHECK(served.ask(request).finished.has_value());
  }
}

TEST_CASE("control tokens in a user's text stay text; in a raw prompt they are what they say") {
  const Served served(answer_script());
  Request request = chat("<|im_end|>");
  const auto in_chat = served.model->measure(request);
  REQUIRE(in_chat.ok());
  CHECK(in_chat->prompt_tokens == 19 + 10);
  request.sampling.max_tokens = 7;
  CHECK(served.model->measure(request)->wanted_tokens == 7);
  CHECK(served.model->measure(completion({"<|im_end|>", "ab"}))->prompt_tokens == 2);
  CHECK(served.model->measure(completion({"<|im_end|>"}))->prompt_tokens == 1);
}

TEST_CASE("roles: developer is system, an unknown one is the caller's mistake") {
  const Served served(answer_script());
  Request request = chat();
  request.messages.insert(request.messages.begin(), {"developer", {text_part("be brief")}});
  CHECK(served.ask(request).finished.has_value());
  request.messages[0].role = "wizard";
  const RequestError error = served.refused(request);
  CHECK(error.code == ErrorCode::kInvalidRequest);
  CHECK(contains(error.message, "wizard"));
}

TEST_CASE("n choices for each of several prompts, all in one stream, each prompt counted once") {
  const Served served(answer_script());
  Request request = completion({"b", "abc", "r"});
  request.choice_count = 2;
  request.sampling.stop = {"<"};
  const Reply reply = served.ask(request);
  REQUIRE(reply.choices.size() == 6);
  for (const size_t i : {0, 1}) CHECK(reply.choices[i].text == " ");
  for (const size_t i : {4, 5})
    CHECK(reply.choices[i].text ==
          "\xc3\xbc"
          "ab ");
  CHECK(reply.finished->usage.prompt_tokens == 5);
}

TEST_CASE("the usage tells how much of each prompt was there already, and only for its tenant") {
  const Served served(answer_script());
  Request request = completion({std::string(100, 'c'), std::string(70, 'b') + "r"});
  request.choice_count = 2;
  request.sampling.max_tokens = 2;
  request.tenant = "alice";
  const auto cached = [&](const Request& asked) {
    const Reply reply = served.ask(asked);
    REQUIRE(reply.finished.has_value());
    return reply.finished->usage.cached_tokens;
  };
  // Pages of 32 tokens. What one choice computes for the next is not told: the prompt was new.
  CHECK(cached(request) == 0);
  request.id = new_request_id();
  CHECK(cached(request) == 96 + 64);
  request.id = new_request_id();
  request.tenant = "bob";
  CHECK(cached(request) == 0);
  // The engine's figures follow a step's end.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  ServiceLoad load = served.model->load();
  while (load.kv_tokens_free < load.kv_tokens_total &&
         std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    load = served.model->load();
  }
  CHECK(load.prefix_queried_tokens == 3 * 2 * (100 + 71));
  CHECK(load.prefix_hit_tokens == 4 * (96 + 64));
  CHECK(load.kv_tokens_cached == 2 * (96 + 64));
  CHECK(load.kv_tokens_free == load.kv_tokens_total);
}

TEST_CASE("prompts of token ids are taken as they are and checked against the vocabulary") {
  const Served served(answer_script());
  Request request;
  request.id = new_request_id();
  request.kind = Request::Kind::kCompletion;
  request.prompt_ids = {{'a', 'b'}};
  request.sampling.temperature = 0.0F;
  CHECK(served.ask(request).choices[0].text == " <x>");
  for (const int32_t bad : {-1, kTokenCount, 1 << 30}) {
    request.prompt_ids = {{'a', bad}};
    const RequestError error = served.refused(request);
    CHECK(error.code == ErrorCode::kInvalidRequest);
    CHECK(contains(error.message, std::to_string(bad)));
  }
  request.prompt_ids = {{}};
  CHECK(served.refused(request).code == ErrorCode::kInvalidRequest);  // nothing to begin with
}

TEST_CASE("log-probabilities are those of the model, with texts, and top_logprobs alternatives") {
  const Served served(answer_script());
  Request request = chat();
  request.sampling.logprobs = true;
  request.sampling.top_logprobs = 2;
  const Reply reply = served.ask(request);
  REQUIRE(reply.choices[0].logprobs.size() == kAnswer.size());
  const PositionLogprobs& first = reply.choices[0].logprobs[0];
  CHECK(first.chosen.text == "G");
  CHECK(first.chosen.logprob == doctest::Approx(successor_logprob()).epsilon(1e-3));
  REQUIRE(first.top.size() == 2);
  CHECK(first.top[0].id == 'G');
  CHECK(first.top[1].logprob ==
        doctest::Approx(successor_logprob() - std::sqrt(264.0)).epsilon(1e-3));
  CHECK(reply.choices[0].logprobs[2].chosen.text == "\xc3");
}

TEST_CASE("echo puts the prompt in front, with a log-probability for each of its tokens") {
  const Served served(answer_script());
  Request request = completion({"abG"});
  request.echo = true;
  request.sampling.max_tokens = 1;
  Reply reply = served.ask(request);
  CHECK(reply.choices[0].text == "abGr");
  CHECK(reply.choices[0].ids.size() == 1);

  request.sampling.logprobs = true;
  reply = served.ask(request);
  CHECK(reply.choices[0].text == "abGr");
  REQUIRE(reply.choices[0].logprobs.size() == 4);
  CHECK(reply.choices[0].logprobs[0].chosen.text == "a");
  CHECK(std::isnan(reply.choices[0].logprobs[0].chosen.logprob));  // nothing came before it
  CHECK(reply.choices[0].logprobs[1].chosen.text == "b");
  CHECK(reply.choices[0].logprobs[1].chosen.logprob ==
        doctest::Approx(successor_logprob()).epsilon(1e-3));
  CHECK(reply.choices[0].logprobs[2].chosen.logprob ==
        doctest::Approx(successor_logprob() - std::sqrt(264.0))
            .epsilon(1e-3));  // "G" after "b" was no choice of the model
  CHECK(reply.choices[0].logprobs[3].chosen.text == "r");
}

TEST_CASE(
    "a seed makes an answer repeatable, choices of one request differ, rows without a token never "
    "come") {
  const Served served(endless_script());
  Request request = chat();
  request.sampling.temperature = 8.0F;
  request.sampling.seed = 77;
  request.sampling.max_tokens = 60;
  request.sampling.ignore_eos = true;
  request.choice_count = 3;
  const Reply first = served.ask(request);
  const Reply second = served.ask(request);
  std::set<std::vector<int32_t>> distinct;
  for (size_t i = 0; i < 3; ++i) {
    CHECK(first.choices[i].ids == second.choices[i].ids);
    distinct.insert(first.choices[i].ids);
    for (const int32_t id : first.choices[i].ids) CHECK(id < kTokenCount);
  }
  CHECK(distinct.size() == 3);
  request.choice_count = 1;
  CHECK(served.ask(request).choices[0].ids == first.choices[0].ids);
  request.sampling.seed.reset();
  CHECK(served.ask(request).choices[0].ids != served.ask(request).choices[0].ids);
}

TEST_CASE("parameters out of range are refused by name and value") {
  const Served served(answer_script());
  const auto check = [&](const char* param, const char* value, auto change) {
    Request request = chat();
    change(request);
    const RequestError error = served.refused(request);
    CAPTURE(error.message);
    CHECK(error.code == ErrorCode::kInvalidRequest);
    CHECK(error.param == param);
    CHECK(contains(error.message, value));
  };
  check("temperature", "-0.5", [](Request& r) { r.sampling.temperature = -0.5F; });
  check("temperature", "nan", [](Request& r) { r.sampling.temperature = std::nanf(""); });
  check("top_p", "1.5", [](Request& r) { r.sampling.top_p = 1.5F; });
  check("top_p", "= 0.0", [](Request& r) { r.sampling.top_p = 0.0F; });
  check("min_p", "2", [](Request& r) { r.sampling.min_p = 2.0F; });
  check("repetition_penalty", "0", [](Request& r) { r.sampling.repetition_penalty = 0.0F; });
  check("frequency_penalty", "-3", [](Request& r) { r.sampling.frequency_penalty = -3.0F; });
  check("presence_penalty", "2.5", [](Request& r) { r.sampling.presence_penalty = 2.5F; });
  check("top_k", "-4", [](Request& r) { r.sampling.top_k = -4; });
  check("top_logprobs", "21", [](Request& r) { r.sampling.top_logprobs = 21; });
  check("max_tokens", "0", [](Request& r) { r.sampling.max_tokens = 0; });
  check("stop", "17", [](Request& r) { r.sampling.stop.assign(17, "x"); });
  check("stop", "empty", [](Request& r) { r.sampling.stop = {"a", ""}; });
  check("logit_bias", "999", [](Request& r) { r.sampling.logit_bias = {{999, 1.0F}}; });
  check("logit_bias", "101", [](Request& r) { r.sampling.logit_bias = {{1, 101.0F}}; });
  check("n", "9", [](Request& r) { r.choice_count = 9; });
  check("n", "-2000000000", [](Request& r) { r.choice_count = -2'000'000'000; });
  check("messages", "empty", [](Request& r) { r.messages.clear(); });
  Request many = completion(std::vector<std::string>(100, "a"));
  many.choice_count = 2;
  EventLog log;
  served.model->submit(many, log.sink());
  CHECK(contains(std::get<RequestError>(log.wait_end()).message, "128"));
}

namespace {

// Holds the engine thread inside a request's first chunk until released.
struct Hold {
  explicit Hold(const LocalModel& model) : model(const_cast<LocalModel&>(model)) {
    log.on_event = [this](const Event& event) {
      if (std::holds_alternative<TokenChunk>(event) && !held.exchange(true)) {
        running.set_value();
        released.get_future().wait();
      }
    };
  }
  void start(Request request) {
    model.submit(std::move(request), log.sink());
    running.get_future().wait();
  }
  LocalModel& model;
  EventLog log;
  std::atomic<bool> held{false};
  std::promise<void> running;
  std::promise<void> released;
};

}  // namespace

TEST_CASE(
    "a full model answers that it is busy and when to come back; drained, that it takes no more") {
  const Served served(endless_script(), [](LocalModelConfig& config) {
    config.slots = 1;
    config.queue_max = 1;
  });
  Hold hold(*served.model);
  hold.start(chat());
  EventLog waiting;
  served.model->submit(chat(), waiting.sink());
  RequestError error = served.refused(chat());
  CHECK(error.code == ErrorCode::kOverloaded);
  CHECK(error.retry_after_ms >= 1000);
  CHECK(served.model->load().slots_free == 0);
  CHECK(served.model->load().waiting == 1);

  CHECK(served.model->ready(nullptr));
  served.model->drain();
  std::string why;
  CHECK_FALSE(served.model->ready(&why));
  CHECK(why == "draining");
  error = served.refused(chat());
  CHECK(error.code == ErrorCode::kOverloaded);
  CHECK(contains(error.message, "draining"));
  hold.released.set_value();
  // What was accepted is still answered.
  CHECK(std::holds_alternative<Finished>(hold.log.wait_end()));
  CHECK(std::holds_alternative<Finished>(waiting.wait_end()));
}

TEST_CASE("cancel reaches a running request, one that waits for a slot, and nobody else") {
  const Served served(endless_script(), [](LocalModelConfig& config) { config.slots = 1; });
  Hold hold(*served.model);
  const Request first = chat();
  const Request second = chat();
  hold.start(first);
  EventLog waiting;
  served.model->submit(second, waiting.sink());
  served.model->cancel(second.id);
  served.model->cancel(first.id);
  served.model->cancel("no such request");
  hold.released.set_value();
  CHECK(std::get<RequestError>(hold.log.wait_end()).code == ErrorCode::kCancelled);
  CHECK(std::get<RequestError>(waiting.wait_end()).code == ErrorCode::kCancelled);
  CHECK(waiting.events().size() == 1);
  CHECK(served.ask(chat()).finished.has_value());
}

TEST_CASE("a paused request stands with all its choices, and goes on to the same end") {
  const Served served(endless_script(), [](LocalModelConfig& config) { config.slots = 3; });
  Request slow = chat();
  slow.choice_count = 2;
  slow.sampling.max_tokens = 20;
  EventLog log;
  int chunks = 0;
  log.on_event = [&](const Event& event) {
    if (std::holds_alternative<TokenChunk>(event) && ++chunks == 6) served.model->pause(slow.id);
  };
  served.model->submit(slow, log.sink());
  Request other = chat();
  other.sampling.max_tokens = 30;
  // Longer than the slow one, and over before it.
  CHECK(served.ask(other).finished.has_value());
  CHECK_FALSE(is_end(log.events().back()));
  const size_t stood_at = log.events().size();
  served.model->pause("no such request");
  served.model->resume("no such request");
  CHECK(served.ask(other).finished.has_value());
  CHECK(log.events().size() == stood_at);
  served.model->resume(slow.id);
  log.wait_end();
  const Reply reply = assemble(log.events(), 2);
  REQUIRE(reply.finished.has_value());
  for (const Choice& choice : reply.choices) CHECK(choice.ids.size() == 20);
}

TEST_CASE("a deadline ends a request that waits and one that writes") {
  const Served served(endless_script(), [](LocalModelConfig& config) { config.slots = 1; });
  Hold hold(*served.model);
  hold.start(chat());
  Request late = chat();
  late.hints.deadline_ms = 1;
  EventLog log;
  served.model->submit(late, log.sink());
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  hold.released.set_value();
  CHECK(std::get<RequestError>(log.wait_end()).code == ErrorCode::kDeadline);

  Hold writing(*served.model);
  Request slow = chat();
  slow.hints.deadline_ms = 200;
  writing.start(slow);
  std::this_thread::sleep_for(std::chrono::milliseconds(210));
  writing.released.set_value();
  const RequestError error = std::get<RequestError>(writing.log.wait_end());
  CHECK(error.code == ErrorCode::kDeadline);
  CHECK(contains(error.message, "after 1 token"));
}

TEST_CASE("closing the model ends everything that it holds") {
  EventLog waiting;
  std::unique_ptr<Hold> hold;
  {
    Served served(endless_script(), [](LocalModelConfig& config) { config.slots = 1; });
    hold = std::make_unique<Hold>(*served.model);
    hold->start(chat());
    served.model->submit(chat(), waiting.sink());
    std::thread release([&] { hold->released.set_value(); });
    served.model.reset();
    release.join();
  }
  CHECK(is_end(hold->log.events().back()));
  CHECK(is_end(waiting.events().back()));
}

TEST_CASE("the load tells requests, tokens and speeds") {
  const Served served(answer_script());
  served.ask(chat());
  served.ask(completion({"abcabcabcabcabcabcabcabc"}));
  Request bad = chat();
  bad.model = "x";
  served.ask(bad);
  const ServiceLoad load = served.model->load();
  CHECK(load.slots_total == 2);
  CHECK(load.slots_free == 2);
  CHECK(load.requests_done == 2);
  CHECK(load.requests_failed == 1);
  CHECK(load.prompt_tokens_total == 21 + 24);
  CHECK(load.completion_tokens_total >= static_cast<int64_t>(kAnswer.size()));
  CHECK(load.kv_tokens_total >= 2 * 256);
  CHECK(load.decode_tokens_per_s > 0);
  CHECK(load.prefill_tokens_per_s > 0);
  CHECK(load.bytes_per_token > 0);
  const auto models = served.model->models();
  REQUIRE(models.size() == 1);
  CHECK(models[0].id == "demo");
  CHECK(models[0].context_tokens == 256);
  CHECK(models[0].quantization == "F32");
  CHECK_FALSE(models[0].images);
  CHECK(contains(served.model->description(), "demo"));
  CHECK(contains(served.model->description(), "KV"));
}

TEST_CASE("a file without a chat template completes, and refuses chats with what to do") {
  const Served served(answer_script(),
                      [](LocalModelConfig& config) { config.chat_template.clear(); });
  CHECK_FALSE(served.model->has_chat_template());
  CHECK(served.ask(completion({"ab"})).choices[0].text == " <x>");
  const RequestError error = served.refused(chat());
  CHECK(error.code == ErrorCode::kUnsupported);
  CHECK(contains(error.message, "chat_template"));
}

TEST_CASE("what cannot be opened is refused with the setting and the figures") {
  TempDir dir;
  LocalModelConfig config;
  config.model_path = write_script_model(dir.file("script.gguf"), answer_script());
  const auto message = [&](auto change) {
    LocalModelConfig changed = config;
    change(changed);
    const auto opened = LocalModel::open(changed, {});
    REQUIRE_FALSE(opened.ok());
    return opened.message();
  };
  setenv("UPDRAFT_CUDA_MODULE", "/nowhere/cuda.so", 1);
  CHECK(contains(message([](auto& c) { c.backend = "cuda"; }),
                 "backend = \"cuda\": cuda: UPDRAFT_CUDA_MODULE names /nowhere/cuda.so, which is not there"));
  unsetenv("UPDRAFT_CUDA_MODULE");
  CHECK(contains(message([](auto& c) { c.backend = "tpu"; }), "tpu"));
  CHECK(contains(message([](auto& c) { c.isa = "neon"; }), "neon"));
  CHECK(contains(message([](auto& c) { c.kv_type = "f64"; }), "f64"));
  CHECK(contains(message([](auto& c) { c.slots = 0; }), "slots = 0"));
  CHECK(contains(message([](auto& c) { c.page_tokens = 8; }), "page_tokens = 8"));
  CHECK(contains(message([](auto& c) { c.draft_tokens_max = 0; }), "draft_tokens_max = 0"));
  CHECK(contains(message([](auto& c) { c.chat_template = "klingon"; }), "klingon"));
  CHECK(contains(message([](auto& c) { c.model_path = "/nowhere/x.gguf"; }), "/nowhere/x.gguf"));
  const std::string memory = message([](auto& c) { c.max_memory_bytes = 1 << 20; });
  CHECK(contains(memory, "weights"));
  CHECK(contains(memory, "KV for 256 tokens"));
  CHECK(contains(memory, "1.0 MiB are allowed by max_memory"));
  const std::string unknown = [&] {
    Script script = answer_script();
    script.chat_template = "{{ something new }}";
    LocalModelConfig changed = config;
    changed.model_path = write_script_model(dir.file("unknown.gguf"), script);
    const auto opened = LocalModel::open(changed, {});
    REQUIRE_FALSE(opened.ok());
    return opened.message();
  }();
  CHECK(contains(unknown, "something new"));
}

TEST_CASE("loading reports its progress up to the end") {
  TempDir dir;
  LocalModelConfig config;
  config.model_path = write_script_model(dir.file("script.gguf"), answer_script());
  uint64_t last = 0;
  uint64_t total = 0;
  const auto opened = LocalModel::open(config, [&](std::string_view, uint64_t done, uint64_t of) {
    CHECK(done >= last);
    last = done;
    total = of;
  });
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  CHECK(total > 0);
  CHECK(last == total);
}

TEST_CASE("many clients at once: every request ends once, answers are right, nothing is left") {
  const Served served(answer_script(), [](LocalModelConfig& config) {
    config.slots = 3;
    config.queue_max = 100;
    config.kv_tokens = 512;
  });
  std::atomic<int> wrong{0};
  std::vector<std::thread> clients;
  for (int c = 0; c < 4; ++c) {
    clients.emplace_back([&, c] {
      for (int i = 0; i < 15; ++i) {
        Request request = chat(std::string(static_cast<size_t>(1 + (i * 7 + c) % 90), 'q'));
        EventLog log;
        served.model->submit(request, log.sink());
        const bool cancel = (i + c) % 4 == 0;
        if (cancel) served.model->cancel(request.id);
        log.wait_end();
        std::string text;
        for (const Event& event : log.events()) {
          if (const auto* chunk = std::get_if<TokenChunk>(&event)) text += chunk->text;
        }
        if (!cancel && text != kAnswer) ++wrong;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  CHECK(wrong == 0);
  CHECK(served.model->load().slots_free == 3);
  CHECK(served.model->load().waiting == 0);
}
