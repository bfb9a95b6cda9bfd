// Events to OpenAI's objects: what the server test does not reach. Shapes follow OpenAI's API
// reference.
#include "common/http/openai_response.h"

#include <doctest/doctest.h>

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <cmath>
#include <limits>

#include "common/http/json_text.h"

using namespace updraft;
namespace json = boost::json;

namespace {

AnswerHead head_of(Request::Kind kind, int32_t choices = 1, bool logprobs = false) {
  OpenAiCall call;
  call.request.id = "0123";
  call.request.kind = kind;
  call.request.model = "alias";
  call.request.prompts = {"p"};
  call.request.choice_count = choices;
  call.request.sampling.logprobs = logprobs;
  return AnswerHead(call, 1700000000);
}

TokenChunk chunk_of(std::string text, int32_t choice = 0) {
  TokenChunk chunk;
  chunk.choice = choice;
  chunk.ids = {1};
  chunk.text = std::move(text);
  return chunk;
}

TokenChunk end_of(FinishReason reason, int32_t choice = 0) {
  TokenChunk chunk;
  chunk.choice = choice;
  chunk.finish = reason;
  return chunk;
}

PositionLogprobs position(const std::string& text, float logprob,
                          std::vector<TokenLogprob> top = {}) {
  PositionLogprobs out;
  out.chosen.text = text;
  out.chosen.logprob = logprob;
  out.top = std::move(top);
  return out;
}

std::vector<std::string> data_of(const std::string& events) {
  std::vector<std::string> all;
  for (size_t at = 0; at < events.size();) {
    REQUIRE(events.compare(at, 6, "data: ") == 0);
    const size_t end = events.find("\n\n", at);
    REQUIRE(end != std::string::npos);
    all.push_back(events.substr(at + 6, end - at - 6));
    at = end + 2;
  }
  return all;
}

}  // namespace

TEST_CASE("text of any kind survives the way through JSON") {
  for (const std::string& text :
       {std::string("plain"), std::string("\"\\/\b\f\n\r\t"), std::string("\0\x01\x1f\x7f", 4),
        std::string("\xc3\xa4\xe4\xbd\xa0\xf0\x9f\x98\x80"), std::string("</script>")}) {
    CHECK(json::parse(json_string(text)).as_string() ==
          json::string_view(text.data(), text.size()));
  }
  CHECK(json::parse(json_string("a\xff")).as_string() == "a\xef\xbf\xbd");
}

TEST_CASE("numbers read back as the same float, and what JSON cannot say is OpenAI's -9999") {
  for (const float value : {0.0F, -0.1F, 1e-30F, -3.4e38F, 123456.78F}) {
    std::string text;
    append_json_number(text, value);
    CHECK(static_cast<float>(json::parse(text).to_number<double>()) == value);
  }
  std::string text;
  append_json_number(text, -std::numeric_limits<float>::infinity());
  CHECK(text == "-9999.0");
}

TEST_CASE("chat log probabilities carry token, bytes and alternatives") {
  WholeAnswer answer(head_of(Request::Kind::kChat, 1, true));
  TokenChunk chunk = chunk_of("\xe4\xbd\xa0");
  chunk.logprobs = {position("\xe4\xbd", -0.25F, {{1, -0.25F, "\xe4\xbd"}, {2, -1.5F, "b"}}),
                    position("\xa0", -0.5F)};
  answer.chunk(chunk);
  const json::value body = json::parse(answer.body({}, {}));
  const json::value& content = body.at("choices").at(0).at("logprobs").at("content");
  REQUIRE(content.as_array().size() == 2);
  CHECK(content.at(0).at("logprob").to_number<double>() == doctest::Approx(-0.25));
  CHECK(content.at(0).at("bytes") == json::parse("[228,189]"));
  CHECK(content.at(0).at("top_logprobs").at(1).at("token") == "b");
  CHECK(content.at(0).at("top_logprobs").at(1).at("bytes") == json::parse("[98]"));
  CHECK(content.at(1).at("top_logprobs").as_array().empty());
}

TEST_CASE("completion log probabilities are parallel arrays with character offsets") {
  WholeAnswer answer(head_of(Request::Kind::kCompletion, 1, true));
  TokenChunk chunk = chunk_of(
      "a\xc3\xa4"
      "b");
  chunk.logprobs = {position("a", std::nanf("")),
                    position("\xc3\xa4", -0.5F, {{1, -0.5F, "\xc3\xa4"}, {2, -1.0F, "x"}}),
                    position("b", -2.0F, {{3, -0.1F, "y"}})};
  answer.chunk(chunk);
  const json::value body = json::parse(answer.body({}, {}));
  const json::value& logprobs = body.at("choices").at(0).at("logprobs");
  CHECK(logprobs.at("tokens") == json::parse(R"(["a","ä","b"])"));
  CHECK(logprobs.at("token_logprobs").at(0).is_null());  // the first token of an echoed prompt
  CHECK(logprobs.at("text_offset") == json::parse("[0,1,2]"));
  CHECK(logprobs.at("top_logprobs").at(0).is_null());
  CHECK(logprobs.at("top_logprobs").at(1).as_object().size() == 2);
  CHECK(logprobs.at("top_logprobs").at(2).as_object().contains("b"));  // the chosen one is always
                                                                       // there
}

TEST_CASE("offsets go on through a stream") {
  StreamAnswer answer(head_of(Request::Kind::kCompletion, 1, true));
  TokenChunk first = chunk_of("ab");
  first.logprobs = {position("ab", -1.0F)};
  TokenChunk second = chunk_of("c");
  second.logprobs = {position("c", -1.0F)};
  answer.chunk(first);
  const auto events = data_of(answer.chunk(second));
  REQUIRE(events.size() == 1);
  CHECK(json::parse(events[0]).at("choices").at(0).at("logprobs").at("text_offset") ==
        json::parse("[2]"));
}

TEST_CASE("several choices: each has its role and its reason, the last one waits for the end") {
  StreamAnswer answer(head_of(Request::Kind::kChat, 2));
  Started started;
  started.model = "real";
  const auto roles = data_of(answer.started(started));
  REQUIRE(roles.size() == 2);
  CHECK(json::parse(roles[1]).at("choices").at(0).at("index") == 1);
  CHECK(json::parse(roles[1]).at("model") == "real");
  CHECK(answer.started(started).empty());  // moved to another node
  CHECK(data_of(answer.chunk(chunk_of("x", 1))).size() == 1);
  CHECK(answer.chunk(chunk_of("", 1)).empty());  // a held back character
  const auto first_end = data_of(answer.chunk(end_of(FinishReason::kLength, 1)));
  REQUIRE(first_end.size() == 1);
  CHECK(json::parse(first_end[0]).at("choices").at(0).at("finish_reason") == "length");
  CHECK(answer.chunk(end_of(FinishReason::kStop, 0)).empty());
  const auto end = data_of(answer.finished({}, {}));
  REQUIRE(end.size() == 2);
  CHECK(json::parse(end[0]).at("choices").at(0).at("index") == 0);
  CHECK(json::parse(end[0]).at("updraft").at("ttft_ms").is_null());
  CHECK(end[1] == "[DONE]");
}

TEST_CASE("chunks of choices that were never asked for are dropped") {
  StreamAnswer stream(head_of(Request::Kind::kCompletion));
  WholeAnswer whole(head_of(Request::Kind::kCompletion));
  for (const int32_t choice : {-1, 1, 1000000}) {
    CHECK(stream.chunk(chunk_of("x", choice)).empty());
    whole.chunk(chunk_of("x", choice));
  }
  CHECK(json::parse(whole.body({}, {})).at("choices").at(0).at("text") == "");
}

TEST_CASE("text and reason in one chunk lose nothing") {
  StreamAnswer answer(head_of(Request::Kind::kCompletion));
  TokenChunk chunk = chunk_of("last");
  chunk.finish = FinishReason::kLength;
  CHECK(data_of(answer.chunk(chunk)).size() == 1);
  const auto end = data_of(answer.finished({}, {}));
  REQUIRE(end.size() == 2);
  CHECK(json::parse(end[0]).at("choices").at(0).at("finish_reason") == "length");
}

TEST_CASE("errors are objects with nulls where nothing is known") {
  RequestError error;
  error.code = ErrorCode::kInternal;
  error.message = "a \"quoted\" reason";
  const json::value body = json::parse(error_json(error)).at("error");
  CHECK(body.at("message") == "a \"quoted\" reason");
  CHECK(body.at("type") == "server_error");
  CHECK(body.at("param").is_null());
  CHECK(body.at("code").is_null());
}
