// Speculation in the running engine: it changes how many tokens a step gives and nothing else. Each
// answer is compared, token by token with its log-probabilities, with that of an engine that never
// guesses.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/engine/engine.h"
#include "common/engine/random.h"
#include "tests/common/engine/engine_runner.h"
#include "tests/common/engine/memory_model.h"
#include "tests/common/engine/scripted_backend.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

struct Answer {
  std::vector<SampledToken> tokens;
  std::vector<SampledToken> prompt_tokens;
  SequenceEnd end = SequenceEnd::kStop;
};

// The bits of the log-probabilities, too.
bool same(const std::vector<SampledToken>& a, const std::vector<SampledToken>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return x.id == y.id && x.logprob == y.logprob && x.top == y.top;
  });
}

std::unique_ptr<Backend> fast_cpu() {
  CpuConfig config;
  config.thread_count = 2;
  config.pin = false;
  auto backend = open_cpu_backend(config);
  REQUIRE_MESSAGE(backend.ok(), backend.message());
  return std::move(*backend);
}

constexpr int64_t kStepNs = 400'000;

// Every step seems to take as long as any other, so drafts cost nothing: as many of them as there
// can be.
EngineConfig eager(EngineConfig config) {
  config.step_clock = [now = int64_t{0}]() mutable { return now += kStepNs; };
  return config;
}

std::unique_ptr<Backend> scripted(std::vector<int32_t> script) {
  return std::make_unique<ScriptedBackend>(exact_cpu(), std::move(script));
}

// A request of any kind: prompts that repeat themselves, greedy or not, penalties, stops, bias.
SequenceRequest any_request(std::mt19937& random, uint64_t id, int32_t vocab, int32_t context) {
  const auto below = [&](int32_t bound) {
    return static_cast<int32_t>(random() % static_cast<uint32_t>(bound));
  };
  SequenceRequest request;
  request.id = id;
  const int32_t period = 2 + below(12);
  const int32_t length = 1 + below(context / 2);
  for (int32_t i = 0; i < length; ++i) {
    const bool repeat = i >= period && below(10) > 0;
    request.prompt.push_back(repeat ? request.prompt[static_cast<size_t>(i - period)]
                                    : below(vocab));
  }
  request.seed = random();
  Sampling& sampling = request.sampling;
  sampling.temperature = std::vector<float>{0.0F, 0.0F, 0.2F, 0.7F, 1.3F}[random() % 5];
  if (below(3) == 0) sampling.top_p = 0.9F;
  if (below(3) == 0) sampling.top_k = 5;
  if (below(3) == 0) sampling.frequency_penalty = 0.3F;
  if (below(4) == 0) sampling.presence_penalty = 0.5F;
  if (below(3) == 0) sampling.repetition_penalty = 1.2F;
  if (below(4) == 0) sampling.logit_bias = {{below(vocab), 3.0F}};
  if (below(2) == 0) {
    sampling.logprobs = true;
    sampling.top_logprobs = below(4);
    request.prompt_logprobs = below(2) == 0;
  }
  if (below(3) > 0) sampling.max_tokens = 1 + below(context);  // else to the context's end
  if (below(2) == 0) request.stop_ids = {below(vocab), below(vocab)};
  if (below(4) == 0) request.banned_ids = {below(vocab)};
  return request;
}

std::vector<Answer> answers(Engine& engine, const std::vector<SequenceRequest>& requests) {
  std::vector<std::shared_ptr<Recorder>> recorders;
  for (const SequenceRequest& request : requests) {
    recorders.push_back(std::make_shared<Recorder>());
    REQUIRE(engine.submit(request, recorders.back()));
  }
  std::vector<Answer> out;
  for (const auto& recorder : recorders) {
    REQUIRE(recorder->wait_end());
    CHECK(recorder->ends == 1);
    out.push_back({recorder->tokens, recorder->prompt_tokens, recorder->end});
  }
  REQUIRE(wait_idle(engine));
  CHECK(engine.load().kv_pages_free == engine.load().kv_pages_total);
  return out;
}

struct Drafts {
  int64_t ran = 0, accepted = 0;
};

// Runs the requests with and without and compares.
Drafts compare(const std::shared_ptr<const Model>& model, EngineConfig config,
               const std::vector<SequenceRequest>& requests, bool exact) {
  const auto backend = [&] { return exact ? exact_cpu() : fast_cpu(); };
  EngineConfig plain_config = config;
  plain_config.draft_tokens_max = 0;
  const auto plain = open_engine(plain_config, model, backend());
  const auto expected = answers(*plain, requests);
  CHECK(plain->load().draft_tokens == 0);
  const auto guessing = open_engine(eager(config), model, backend());
  const auto found = answers(*guessing, requests);
  for (size_t i = 0; i < requests.size(); ++i) {
    CAPTURE(i);
    CHECK(found[i].end == expected[i].end);
    CHECK(same(found[i].tokens, expected[i].tokens));
    CHECK(same(found[i].prompt_tokens, expected[i].prompt_tokens));
  }
  return {guessing->load().draft_tokens, guessing->load().draft_tokens_accepted};
}

// 40 tokens that do not repeat, and a text that says them twice.
std::vector<int32_t> echo_script() {
  std::vector<int32_t> script;
  for (int32_t i = 0; i < 40; ++i) script.push_back(7 + 2 * i);
  for (int32_t i = 0; i < 40; ++i) script.push_back(7 + 2 * i);
  return script;
}

SequenceRequest echo_request(uint64_t id, const std::vector<int32_t>& script, int32_t max_tokens) {
  // The first two of the answer are the prompt's last, so that there is something to go on.
  return greedy_request(id, {script.begin(), script.begin() + 42}, max_tokens);
}

}  // namespace

TEST_CASE("every kind of request in mixed batches gets the same answer with and without drafts") {
  Drafts all;
  for (uint32_t seed = 1; seed <= 12; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    const Architecture architectures[] = {Architecture::kLlama, Architecture::kQwen2,
                                          Architecture::kQwen3, Architecture::kGlm4};
    const auto model = random_model(small_hyperparameters(architectures[seed % 4]), seed);
    std::vector<SequenceRequest> requests;
    while (requests.size() < 9) {
      requests.push_back(any_request(random, requests.size() + 1, 96, 256));
      // n = 3: one prompt, three seeds.
      if (requests.size() % 4 == 1) {
        for (uint32_t choice = 1; choice < 3; ++choice) {
          SequenceRequest other = requests[requests.size() - choice];
          other.id = requests.size() + 1;
          other.seed = choice_seed(other.seed, choice);
          requests.push_back(std::move(other));
        }
      }
    }
    EngineConfig config = small_engine();
    config.slots = 1 + static_cast<int32_t>(random() % 6);
    config.draft_tokens_max = std::vector<int32_t>{1, 3, 16, 40}[random() % 4];
    config.step_tokens_max = std::vector<int32_t>{6, 20, 64, 256}[random() % 4];
    if (random() % 2 == 0) config.kv_tokens = 256;  // one context: preemptions
    config.kv_type = std::vector<DType>{DType::kF32, DType::kF16, DType::kBF16}[random() % 3];
    const Drafts drafts = compare(model, config, requests, random() % 2 == 0);
    all.ran += drafts.ran;
    all.accepted += drafts.accepted;
  }
  // Guesses of both kinds were there to be told apart.
  CHECK(all.accepted > 300);
  CHECK(all.ran - all.accepted > 100);
}

TEST_CASE("a trained model tells the same stories with and without drafts") {
  const auto path = shared_data("weights/stories260K-f32.gguf");
  if (!path) return;
  const auto model = open_model(*path);
  REQUIRE_MESSAGE(model.ok(), model.message());
  std::mt19937 random(5);
  std::vector<SequenceRequest> requests;
  for (uint64_t id = 1; id <= 6; ++id) {
    requests.push_back(any_request(random, id, 512, 200));
    requests.back().sampling.max_tokens = 120;
  }
  requests.push_back(greedy_request(7, {1}, 400));
  EngineConfig config = small_engine();
  config.kv_type = DType::kF16;
  const Drafts drafts = compare(*model, config, requests, false);
  CHECK(drafts.accepted > 0);
}

TEST_CASE("an echo takes far fewer steps than tokens, in order, from first to last") {
  const auto script = echo_script();
  const auto model = random_model(small_hyperparameters(), 3);
  const auto engine = open_engine(eager(small_engine()), model, scripted(script));
  const auto answer = run_all(*engine, {echo_request(1, script, 38)})[0];
  CHECK(answer == std::vector<int32_t>(script.begin() + 42, script.end()));
  REQUIRE(wait_idle(*engine));  // the last step is in the load
  const EngineLoad load = engine->load();
  CHECK(load.steps <= 12);
  CHECK(load.draft_tokens_accepted >= 26);
  // A rate of one sequence counts what it got, not how often it was its turn.
  CHECK(load.decode_tokens_per_s > 3.0F / (static_cast<float>(kStepNs) * 1e-9F) / 2.0F);
}

TEST_CASE("the limit, a stop id, the sink and the context end an answer inside a run of drafts") {
  const auto script = echo_script();
  Hyperparameters h = small_hyperparameters();
  h.context_tokens = 64;
  const auto model = random_model(h, 3);
  const auto engine = open_engine(eager(small_engine()), model, scripted(script));
  uint64_t id = 1;
  const auto ask = [&](SequenceRequest request, size_t sink_stops_at) {
    auto recorder = std::make_shared<Recorder>();
    if (sink_stops_at > 0) {
      recorder->keep_going = [=](const Recorder& r) { return r.tokens.size() < sink_stops_at; };
    }
    request.id = id++;
    REQUIRE(engine->submit(request, recorder));
    REQUIRE(recorder->wait_end());
    return recorder;
  };
  for (int32_t cut = 1; cut <= 22; ++cut) {
    CAPTURE(cut);
    const auto expected = [&](int32_t count) {
      return std::vector<int32_t>(script.begin() + 42, script.begin() + 42 + count);
    };
    const auto by_limit = ask(echo_request(0, script, cut), 0);
    CHECK(by_limit->ids() == expected(cut));
    CHECK(by_limit->end == SequenceEnd::kLength);

    SequenceRequest stopping = echo_request(0, script, 38);
    stopping.stop_ids = {script[static_cast<size_t>(42 + cut - 1)]};
    const auto by_id = ask(stopping, 0);
    CHECK(by_id->ids() == expected(cut - 1));
    CHECK(by_id->end == SequenceEnd::kStop);

    const auto by_sink = ask(echo_request(0, script, 38), static_cast<size_t>(cut));
    CHECK(by_sink->ids() == expected(cut));
    CHECK(by_sink->end == SequenceEnd::kStop);
  }
  SequenceRequest open_ended = echo_request(0, script, 1);
  open_ended.sampling.max_tokens.reset();
  const auto by_context = ask(open_ended, 0);
  CHECK(by_context->ids() == std::vector<int32_t>(script.begin() + 42, script.begin() + 64));
  CHECK(by_context->end == SequenceEnd::kLength);
  REQUIRE(wait_idle(*engine));
  CHECK(engine->load().kv_pages_free == engine->load().kv_pages_total);
  CHECK(engine->load().draft_tokens_accepted > 400);
}

TEST_CASE("a cancel from inside a run of drafts ends the sequence once and frees its pages") {
  const auto script = echo_script();
  const auto model = random_model(small_hyperparameters(), 3);
  const auto engine = open_engine(eager(small_engine()), model, scripted(script));
  for (uint64_t cut = 1; cut <= 30; ++cut) {
    CAPTURE(cut);
    auto recorder = std::make_shared<Recorder>();
    recorder->keep_going = [&, cut](const Recorder& r) {
      if (r.tokens.size() == cut) engine->cancel(cut);
      return true;
    };
    REQUIRE(engine->submit(echo_request(cut, script, 200), recorder));
    REQUIRE(recorder->wait_end());
    CHECK(recorder->ends == 1);
    CHECK(recorder->end == SequenceEnd::kCancelled);
    // The step that was running still counts.
    CHECK(recorder->tokens.size() >= cut);
    CHECK(recorder->tokens.size() <= cut + 16);
  }
  REQUIRE(wait_idle(*engine));
  CHECK(engine->load().kv_pages_free == engine->load().kv_pages_total);
}

TEST_CASE("guesses that keep being wrong stop being tried") {
  // Pairs come again and again, never followed by what followed them before.
  std::vector<int32_t> script;
  for (int32_t i = 0; script.size() < 240; ++i) {
    script.insert(script.end(), {1, 2, 5 + i % 90});
  }
  const auto model = random_model(small_hyperparameters(), 3);
  const auto engine = open_engine(eager(small_engine()), model, scripted(script));
  const auto answer =
      run_all(*engine, {greedy_request(1, {script.begin(), script.begin() + 30}, 200)})[0];
  CHECK(answer == std::vector<int32_t>(script.begin() + 30, script.begin() + 230));
  REQUIRE(wait_idle(*engine));
  // "2" after "x 1" is never a guess, "x" after "1 2" always one and always wrong: 67 of them.
  CHECK(engine->load().draft_tokens < 60);
}
