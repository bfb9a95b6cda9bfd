// From OpenAI bodies to Request. Ranges are those of OpenAI's API reference; base64 vectors are RFC
// 4648 section 10.
#include "common/http/openai_request.h"

#include <doctest/doctest.h>

#include <fstream>
#include <sstream>

#include "common/http/data_url.h"
#include "common/http/json_body.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using updraft::testing::shared_data;

namespace {

constexpr auto kChat = Request::Kind::kChat;
constexpr auto kCompletion = Request::Kind::kCompletion;

// A chat body with one user message and `more` members.
std::string chat_body(const std::string& more) {
  return R"({"model":"m","messages":[{"role":"user","content":"Hi"}])" +
         (more.empty() ? "" : "," + more) + "}";
}
std::string completion_body(const std::string& more) { return R"({"model":"m",)" + more + "}"; }

OpenAiCall accepted(Request::Kind kind, const std::string& body,
                    const RequestHeaders& headers = {}) {
  auto result = read_openai_call(kind, body, headers);
  if (const auto* error = std::get_if<RequestError>(&result))
    FAIL(error->message << " for " << body.substr(0, 200));
  return std::get<OpenAiCall>(result);
}
RequestError refused(Request::Kind kind, const std::string& body,
                     const RequestHeaders& headers = {}) {
  auto result = read_openai_call(kind, body, headers);
  if (std::holds_alternative<OpenAiCall>(result)) FAIL("accepted: " << body.substr(0, 200));
  return std::get<RequestError>(result);
}
RequestError refused_chat(const std::string& more) { return refused(kChat, chat_body(more)); }
OpenAiCall accepted_chat(const std::string& more) { return accepted(kChat, chat_body(more)); }

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// 2x2 pixels, by PIL.
const std::string kPng =
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR4nGNkZGJmYGBgYmBgYGBgAAAAcAAKM8X3iAAA"
    "AABJRU5ErkJggg==";

}  // namespace

TEST_CASE("a chat body with everything set becomes the request it says") {
  const OpenAiCall call = accepted_chat(
      R"("max_tokens":30,"temperature":0.5,"top_p":0.9,"top_k":40,"min_p":0.1,"repetition_penalty":1.1,)"
      R"("frequency_penalty":0.2,"presence_penalty":-0.3,"logit_bias":{"15":-100,"7":2.5},"seed":42,)"
      R"("stop":["a","b"],"n":2,"logprobs":true,"top_logprobs":3,"stream":true,)"
      R"("stream_options":{"include_usage":true},"ignore_eos":true,"user":"u",)"
      R"("chat_template_kwargs":{"enable_thinking":false},"response_format":{"type":"text"})");
  const Request& request = call.request;
  const Sampling& sampling = request.sampling;
  CHECK(request.kind == kChat);
  CHECK(request.id.size() == 32);
  CHECK(request.model == "m");
  REQUIRE(request.messages.size() == 1);
  CHECK(request.messages[0].role == "user");
  CHECK(request.messages[0].parts[0].text == "Hi");
  CHECK(sampling.max_tokens == 30);
  CHECK(sampling.temperature == 0.5F);
  CHECK(sampling.top_p == 0.9F);
  CHECK(sampling.top_k == 40);
  CHECK(sampling.min_p == 0.1F);
  CHECK(sampling.repetition_penalty == 1.1F);
  CHECK(sampling.frequency_penalty == 0.2F);
  CHECK(sampling.presence_penalty == -0.3F);
  CHECK(sampling.logit_bias == std::vector<std::pair<int32_t, float>>{{15, -100.0F}, {7, 2.5F}});
  CHECK(sampling.seed == 42);
  CHECK(sampling.stop == std::vector<std::string>{"a", "b"});
  CHECK(sampling.logprobs);
  CHECK(sampling.top_logprobs == 3);
  CHECK(sampling.ignore_eos);
  CHECK(request.choice_count == 2);
  CHECK_FALSE(request.enable_thinking);
  CHECK(call.stream);
  CHECK(call.include_usage);
}

TEST_CASE("defaults are OpenAI's") {
  const OpenAiCall chat = accepted_chat("");
  CHECK(chat.request.sampling.temperature == 1.0F);
  CHECK(chat.request.sampling.top_p == 1.0F);
  CHECK_FALSE(chat.request.sampling.max_tokens.has_value());
  CHECK_FALSE(chat.request.sampling.seed.has_value());
  CHECK(chat.request.choice_count == 1);
  CHECK_FALSE(chat.stream);
  CHECK(accepted(kCompletion, completion_body(R"("prompt":"x")")).request.sampling.max_tokens ==
        16);
}

TEST_CASE("null means absent, unknown fields are tolerated, one name may stand for the other") {
  const OpenAiCall call = accepted_chat(
      R"("temperature":null,"max_tokens":null,"stop":null,"n":null,"stream_options":null,"tools":null,)"
      R"("tool_choice":"none","functions":[],"response_format":null,"metadata":{"a":[1,{"b":null}]},"service_tier":"auto",)"
      R"("max_completion_tokens":9,"parallel_tool_calls":true,"store":false)");
  CHECK(call.request.sampling.max_tokens == 9);
  CHECK(accepted_chat(R"("max_tokens":5,"max_completion_tokens":5)").request.sampling.max_tokens ==
        5);
  CHECK(refused_chat(R"("max_tokens":5,"max_completion_tokens":6)").param ==
        "max_completion_tokens");
  CHECK(accepted_chat(R"("top_k":-1)").request.sampling.top_k == 0);  // vLLM's way to say "off"
  CHECK(accepted_chat(R"("stop":"x")").request.sampling.stop == std::vector<std::string>{"x"});
  CHECK(accepted_chat(R"("max_tokens":8.0)").request.sampling.max_tokens == 8);
}

TEST_CASE("every integer field refuses what does not fit, naming field and value") {
  for (const char* field : {"max_tokens", "max_completion_tokens", "n", "seed", "top_k",
                            "top_logprobs", "best_of", "min_tokens"}) {
    for (const char* value : {"-2", "9223372036854775808", "18446744073709551615", "1e30", "1.5",
                              "\"1\"", "true", "[]", "{}"}) {
      const RequestError error = refused_chat("\"" + std::string(field) + "\":" + value);
      CHECK_MESSAGE(error.code == ErrorCode::kInvalidRequest, field << "=" << value);
      CHECK_MESSAGE(error.param == field, field << "=" << value << ": " << error.message);
      CHECK_MESSAGE(contains(error.message, field), error.message);
    }
    const RequestError huge = refused_chat("\"" + std::string(field) + "\":1e400");
    CHECK_MESSAGE(huge.param == field, huge.message);
    CHECK_MESSAGE(contains(huge.message, "1e400"), huge.message);
    const RequestError nan = refused_chat("\"" + std::string(field) + "\":NaN");
    CHECK_MESSAGE(nan.param == field, nan.message);
    CHECK_MESSAGE(contains(nan.message, "NaN"), nan.message);
  }
  for (const char* field :
       {"max_tokens", "max_completion_tokens", "n", "top_k", "top_logprobs", "best_of"}) {
    const RequestError error = refused_chat("\"" + std::string(field) + "\":2147483648");
    CHECK(error.param == field);
    CHECK(contains(error.message, "2147483648"));
  }
  for (const char* field :
       {"max_tokens", "max_completion_tokens", "n", "seed", "top_logprobs", "best_of"}) {
    const RequestError error = refused_chat("\"" + std::string(field) + "\":-1");
    CHECK(error.param == field);
    CHECK(contains(error.message, "got -1"));
  }
  for (const char* field : {"max_tokens", "n"})
    CHECK(refused_chat("\"" + std::string(field) + "\":0").param == field);
  CHECK(refused_chat(R"("n":9)").param == "n");
  CHECK(refused_chat(R"("logprobs":true,"top_logprobs":21)").param == "top_logprobs");
  CHECK(accepted_chat(R"("seed":9223372036854775807)").request.sampling.seed ==
        9223372036854775807ULL);
}

TEST_CASE("every real field refuses what is out of its range") {
  const std::vector<std::pair<std::string, std::vector<std::string>>> cases = {
      {"temperature",
       {"-0.1", "2.1", "1e400", "NaN", "\"1\"", "-1", "2147483648", "9223372036854775808"}},
      {"top_p", {"0", "-1", "1.01", "1e400", "true"}},
      {"min_p", {"-1", "1", "1e400"}},
      {"repetition_penalty", {"0", "-1", "101", "1e400"}},
      {"frequency_penalty", {"-2.1", "2.1", "-1e400", "NaN"}},
      {"presence_penalty", {"-2.1", "2.1", "1e400", "null1"}},
  };
  for (const auto& [field, values] : cases) {
    for (const std::string& value : values) {
      const RequestError error = refused_chat("\"" + field + "\":" + value);
      CHECK_MESSAGE(error.code == ErrorCode::kInvalidRequest, field << "=" << value);
      CHECK_MESSAGE(error.param == field, field << "=" << value << ": " << error.message);
    }
  }
  CHECK(refused_chat(R"("top_p":1e-60)").code == ErrorCode::kInvalidRequest);  // 0 as a float
  CHECK(accepted_chat(R"("temperature":0)").request.sampling.temperature == 0.0F);
  CHECK(accepted_chat(R"("temperature":2,"top_p":1,"frequency_penalty":-2)")
            .request.sampling.frequency_penalty == -2.0F);
}

TEST_CASE("what is not supported is refused by name") {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"("tools":[{"type":"function"}])", "tools"},
      {R"("tool_choice":"auto")", "tool_choice"},
      {R"("tool_choice":{"type":"function"})", "tool_choice"},
      {R"("functions":[{}])", "functions"},
      {R"("function_call":"auto")", "function_call"},
      {R"("response_format":{"type":"json_object"})", "response_format.type"},
      {R"("response_format":{"type":"json_schema","json_schema":{}})", "response_format.type"},
      {R"("modalities":["text","audio"])", "modalities"},
      {R"("guided_json":{"a":1})", "guided_json"},
      {R"("grammar":"root ::= x")", "grammar"},
      {R"("best_of":2)", "best_of"},
      {R"("min_tokens":1)", "min_tokens"},
      {R"("stop_token_ids":[1])", "stop_token_ids"},
      {R"("use_beam_search":true)", "use_beam_search"},
  };
  for (const auto& [more, param] : cases) {
    const RequestError error = refused_chat(more);
    CHECK_MESSAGE(error.code == ErrorCode::kUnsupported, more);
    CHECK_MESSAGE(error.param == param, more);
    CHECK(http_status(error.code) == 400);
  }
  CHECK(refused(kCompletion, completion_body(R"("prompt":"a","suffix":"b")")).param == "suffix");
  CHECK(refused_chat(R"("response_format":"json")").code == ErrorCode::kInvalidRequest);
  CHECK(accepted_chat(R"("best_of":1,"modalities":["text"])").request.choice_count == 1);
}

TEST_CASE("messages: roles, contents and their limits") {
  const auto with = [](const std::string& messages) {
    return R"({"model":"m","messages":)" + messages + "}";
  };
  const Request all =
      accepted(
          kChat,
          with(
              R"([{"role":"system","content":"s"},{"role":"developer","content":"d"},)"
              R"({"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},)"
              R"({"role":"assistant","content":null},{"role":"tool","content":"t","tool_call_id":"1"}])"))
          .request;
  REQUIRE(all.messages.size() == 5);
  CHECK(all.messages[2].parts.size() == 2);
  CHECK(all.messages[2].parts[1].text == "b");
  CHECK(all.messages[3].parts.empty());

  CHECK(refused(kChat, with("[]")).param == "messages");
  CHECK(refused(kChat, with("{}")).param == "messages");
  CHECK(refused(kChat, R"({"model":"m"})").param == "messages");
  CHECK(refused(kChat, with(R"([{"role":"robot","content":"x"}])")).param == "messages[0].role");
  CHECK(refused(kChat, with(R"([{"content":"x"}])")).param == "messages[0].role");
  CHECK(refused(kChat, with(R"([{"role":"user"}])")).param == "messages[0].content");
  CHECK(refused(kChat, with(R"([{"role":"user","content":[]}])")).param == "messages[0].content");
  CHECK(refused(kChat, with(R"([{"role":"user","content":7}])")).param == "messages[0].content");
  CHECK(refused(kChat, with(R"([{"role":"user","content":["x"]}])")).param ==
        "messages[0].content[0]");
  CHECK(refused(kChat, with(R"([{"role":"user","content":[{"type":"text"}]}])")).param ==
        "messages[0].content[0].text");
  CHECK(refused(kChat, with(R"([{"role":"user","content":[{"type":"input_audio"}]}])")).code ==
        ErrorCode::kUnsupported);
  CHECK(refused(kChat, with(R"([{"role":"assistant","content":"x","tool_calls":[{}]}])")).param ==
        "messages[0].tool_calls");

  std::string many = "[";
  for (int i = 0; i < 1025; ++i)
    many += std::string(i > 0 ? "," : "") + R"({"role":"user","content":"x"})";
  CHECK(refused(kChat, with(many + "]")).param == "messages");
  CHECK(accepted(kChat, with(many.substr(0, many.rfind(",{")) + "]")).request.messages.size() ==
        1024);
}

TEST_CASE("images come as data URLs, checked") {
  const auto with = [](const std::string& url) {
    return R"({"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":")" +
           url + R"("}},{"type":"text","text":"what"}]}]})";
  };
  const Request request = accepted(kChat, with("data:image/png;base64," + kPng)).request;
  const ContentPart& image = request.messages[0].parts[0];
  CHECK(image.kind == ContentPart::Kind::kImage);
  CHECK(image.mime == "image/png");
  CHECK(image.bytes.size() == 79);
  CHECK(image.bytes.text().starts_with(std::string("\x89PNG\r\n\x1a\n", 8)));
  CHECK(request.messages[0].parts[1].text == "what");
  // The content knows better than the label.
  CHECK(accepted(kChat, with("data:image/png;base64,/9j/wAALCAABAAEBAREA"))
            .request.messages[0]
            .parts[0]
            .mime == "image/jpeg");

  const std::string param = "messages[0].content[0].image_url.url";
  for (const char* url :
       {"http://example.com/a.png", "HTTPS://example.com/a.png", "file:///etc/passwd", "",
        "data:image/png,abc", "data:image/gif;base64,R0lGOD", "data:text/html;base64,AAAA",
        "data:image/png;base64", "data:image/png;base64,", "data:image/png;base64,AAAA",
        "data:image/png;base64,iVBORw0KGgo", "data:image/png;base64,iVBORw0KG*o=",
        "data:image/png;base64,iVBORw0KGgo=",  // the signature and nothing else
        "data:image/png;base64,/9j/"}) {
    const RequestError error = refused(kChat, with(url));
    CHECK_MESSAGE(error.param == param, url);
    CHECK_MESSAGE(error.code == ErrorCode::kInvalidRequest, url);
  }
  std::string many;
  for (int i = 0; i < 17; ++i) {
    many += std::string(i > 0 ? "," : "") +
            R"({"type":"image_url","image_url":{"url":"data:image/png;base64,)" + kPng + "\"}}";
  }
  CHECK(contains(
      refused(kChat, R"({"model":"m","messages":[{"role":"user","content":[)" + many + "]}]}")
          .message,
      "at most 16"));
}

TEST_CASE("an Open-AutoGLM request is accepted as its client sends it") {
  const auto path = shared_data("autoglm/sample_messages.json");
  if (!path) return;
  std::ifstream file(*path, std::ios::binary);
  std::stringstream messages;
  messages << file.rdbuf();
  const std::string body =
      R"({"messages":)" + messages.str() +
      R"(,"model":"autoglm-phone-9b","max_tokens":3000,"temperature":0.0,"top_p":0.85,)"
      R"("frequency_penalty":0.2,"stream":true})";
  CHECK(body.size() > 1'200'000);
  const OpenAiCall call = accepted(kChat, body);
  CHECK(call.stream);
  CHECK(call.request.sampling.temperature == 0.0F);
  CHECK(call.request.sampling.max_tokens == 3000);
  REQUIRE(call.request.messages.size() >= 2);
  CHECK(call.request.messages[0].role == "system");
  const ContentPart& image = call.request.messages[1].parts[0];
  CHECK(image.kind == ContentPart::Kind::kImage);
  CHECK(image.mime == "image/png");
  CHECK(image.bytes.size() == 913'728);
  CHECK(call.request.messages[1].parts[1].kind == ContentPart::Kind::kText);
}

TEST_CASE("prompts: a string, strings, ids, lists of ids") {
  const auto prompt = [](const std::string& value) {
    return completion_body("\"prompt\":" + value);
  };
  CHECK(accepted(kCompletion, prompt("\"a\"")).request.prompts == std::vector<std::string>{"a"});
  CHECK(accepted(kCompletion, prompt(R"(["a","b"])")).request.prompts ==
        std::vector<std::string>{"a", "b"});
  CHECK(accepted(kCompletion, prompt("[1,2]")).request.prompt_ids ==
        std::vector<std::vector<int32_t>>{{1, 2}});
  CHECK(accepted(kCompletion, prompt("[[1],[2,3]]")).request.prompt_ids ==
        std::vector<std::vector<int32_t>>{{1}, {2, 3}});
  CHECK(accepted(kCompletion, completion_body(R"("prompt":"a","echo":true,"logprobs":2)"))
            .request.echo);
  CHECK(accepted(kCompletion, completion_body(R"("prompt":"a","logprobs":2)"))
            .request.sampling.top_logprobs == 2);

  CHECK(refused(kCompletion, completion_body("\"n\":1")).param == "prompt");
  CHECK(refused(kCompletion, prompt("[]")).param == "prompt");
  CHECK(refused(kCompletion, prompt("7")).param == "prompt");
  CHECK(refused(kCompletion, prompt("[[]]")).param == "prompt[0]");
  CHECK(refused(kCompletion, prompt(R"(["a",1])")).param == "prompt[1]");
  CHECK(refused(kCompletion, prompt(R"([1,"a"])")).param == "prompt[1]");
  CHECK(refused(kCompletion, prompt("[[1],[-1]]")).param == "prompt[1][0]");
  CHECK(refused(kCompletion, prompt("[2147483648]")).param == "prompt[0]");
  CHECK(refused(kCompletion, prompt("[1.5]")).param == "prompt[0]");
  std::string many = "[\"a\"";
  for (int i = 0; i < 128; ++i) many += ",\"a\"";
  CHECK(refused(kCompletion, prompt(many + "]")).param == "prompt");
}

TEST_CASE("stop, logit_bias and switches are checked") {
  CHECK(refused_chat(R"("stop":"")").param == "stop");
  CHECK(refused_chat(R"("stop":["a",""])").param == "stop[1]");
  CHECK(refused_chat(R"("stop":[1])").param == "stop[0]");
  CHECK(refused_chat(
            R"("stop":["1","2","3","4","5","6","7","8","9","a","b","c","d","e","f","g","h"])")
            .param == "stop");
  CHECK(refused_chat(R"("logit_bias":[1])").param == "logit_bias");
  CHECK(refused_chat(R"("logit_bias":{"a":1})").param == "logit_bias");
  CHECK(refused_chat(R"("logit_bias":{"-1":1})").param == "logit_bias");
  CHECK(refused_chat(R"("logit_bias":{"2147483648":1})").param == "logit_bias");
  CHECK(refused_chat(R"("logit_bias":{"1":101})").param == "logit_bias.1");
  CHECK(refused_chat(R"("logit_bias":{"1":"x"})").param == "logit_bias.1");
  CHECK(refused_chat(R"("stream":1)").param == "stream");
  CHECK(refused_chat(R"("stream_options":{"include_usage":true})").param == "stream_options");
  CHECK(refused_chat(R"("logprobs":1)").param == "logprobs");
  CHECK(refused_chat(R"("top_logprobs":2)").param == "top_logprobs");
  CHECK(refused_chat(R"("chat_template_kwargs":{"enable_thinking":"no"})").param ==
        "chat_template_kwargs.enable_thinking");
  const RequestError none = refused(kChat, R"({"messages":[{"role":"user","content":"x"}]})");
  CHECK(none.param == "model");
  CHECK(none.message == "'model' is missing: name one that is served, GET /v1/models lists them");
  CHECK(refused(kChat, R"({"model":"","messages":[{"role":"user","content":"x"}]})").param ==
        "model");
  CHECK(refused(kChat, R"({"model":7,"messages":[{"role":"user","content":"x"}]})").param ==
        "model");
}

TEST_CASE("headers narrow the placement and are checked like the body") {
  RequestHeaders headers;
  headers.tier = "edge";
  headers.residency = "local-only";
  headers.priority = "interactive";
  headers.session = "chat_1";
  headers.deadline_ms = "1000";
  headers.traceparent = "not a trace";
  const Request request = accepted(kChat, chat_body(""), headers).request;
  CHECK(request.hints.tier == Tier::kEdge);
  CHECK(request.hints.local_only);
  CHECK(request.hints.priority == Priority::kInteractive);
  CHECK(request.hints.session == "chat_1");
  CHECK(request.hints.deadline_ms == 1000);
  CHECK(request.trace.empty());

  const auto with = [&](auto member, std::string_view value) {
    RequestHeaders bad;
    bad.*member = value;
    return refused(kChat, chat_body(""), bad).param;
  };
  CHECK(with(&RequestHeaders::tier, "moon") == "x-updraft-tier");
  CHECK(with(&RequestHeaders::residency, "here") == "x-updraft-residency");
  CHECK(with(&RequestHeaders::priority, "urgent") == "x-updraft-priority");
  CHECK(with(&RequestHeaders::session, "a b") == "x-updraft-session");
  for (const char* value :
       {"0", "-1", "1.5", "1e3", "soon", "86400001", "9223372036854775808", "1 "}) {
    CHECK_MESSAGE(with(&RequestHeaders::deadline_ms, value) == "x-updraft-deadline-ms", value);
  }
}

TEST_CASE("bodies that are not JSON say where") {
  const auto message = [](const std::string& body) { return refused(kChat, body).message; };
  CHECK(contains(message("{\"model\":\"\xff\"}"), "not UTF-8 at byte 10"));
  CHECK(contains(message("{\"model\":\"\xed\xa0\x80\"}"), "not UTF-8 at byte 10"));  // a surrogate
  CHECK(contains(message(R"({"model":"a","model":"b"})"), "twice"));
  CHECK(contains(message(R"({"a":{"b":1,"b":2}})"), "(a.b)"));
  CHECK(contains(message(R"({"a":[1,2,{"b":x}]})"), "(a[2].b)"));
  CHECK(contains(message(R"({"model":"m")"), "ends in the middle"));
  CHECK(contains(message(R"({"model":"m"} x)"), "after the end"));
  CHECK(contains(message(""), "byte 0"));
  CHECK(contains(message("[]"), "must be a JSON object"));
  CHECK(contains(message("7"), "must be a JSON object"));
  CHECK(contains(message(R"({"a":01})"), "byte"));
  CHECK(contains(message("{\"a\":\"\x01\"}"), "byte"));
  CHECK(contains(message(R"({'a':1})"), "byte"));
  CHECK(contains(message(R"({"a":1,})"), "byte"));
  CHECK(contains(message("{\"a\":1} // x"), "byte"));
  CHECK(contains(message(R"({"a":"\ud800"})"), "byte"));
}

TEST_CASE("depth, values and keys of a body are limited") {
  const auto nested = [](int levels) {
    return R"({"a":)" + std::string(levels - 1, '[') + std::string(levels - 1, ']') + "}";
  };
  CHECK(std::holds_alternative<boost::json::value>(read_json(nested(64))));
  const auto deep = read_json(nested(65));
  REQUIRE(std::holds_alternative<RequestError>(deep));
  CHECK(contains(std::get<RequestError>(deep).message, "64 levels"));
  CHECK(std::holds_alternative<RequestError>(read_json(std::string(1'000'000, '['))));
  std::string zeros = "[0";
  for (size_t i = 0; i < kJsonValuesMax; ++i) zeros += ",0";
  const auto wide = read_json(zeros + "]");
  REQUIRE(std::holds_alternative<RequestError>(wide));
  CHECK(contains(std::get<RequestError>(wide).message, "1000000 values"));
  std::string keys = "{\"k\":0";
  for (size_t i = 0; i < kJsonObjectKeysMax; ++i) keys += ",\"" + std::to_string(i) + "\":0";
  CHECK(std::holds_alternative<RequestError>(read_json(keys + "}")));
  CHECK(std::holds_alternative<RequestError>(read_json("{\"" + std::string(1025, 'k') + "\":0}")));
}

TEST_CASE("base64 is RFC 4648's, strictly") {
  const std::vector<std::pair<std::string, std::string>> vectors = {{"", ""},
                                                                    {"Zg==", "f"},
                                                                    {"Zm8=", "fo"},
                                                                    {"Zm9v", "foo"},
                                                                    {"Zm9vYg==", "foob"},
                                                                    {"Zm9vYmE=", "fooba"},
                                                                    {"Zm9vYmFy", "foobar"}};
  for (const auto& [text, bytes] : vectors) {
    const auto decoded = decode_base64(text);
    REQUIRE(decoded);
    CHECK(*decoded == bytes);
  }
  for (const char* bad : {"Zg", "Zg=", "Z", "Zg==Zg==", "Zm9v\nZm9v\n\n\n", "Zm9-", "Zm9_",
                          "====", "Zh==", "Zm9=", "=Zm9", "Z=m9"}) {
    CHECK_MESSAGE(!decode_base64(bad).ok(), bad);
  }
  CHECK(contains(decode_base64("Zm9vZm*v").message(), "offset 6"));
}
