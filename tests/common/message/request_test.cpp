// Requests: ids, sizes and counts that the entrance and the router rely on.
#include "common/message/request.h"

#include <set>
#include <string>

#include <doctest/doctest.h>

using namespace updraft;

namespace {

ContentPart text_part(std::string text) {
  ContentPart part;
  part.text = std::move(text);
  return part;
}

ContentPart image_part(std::string bytes) {
  ContentPart part;
  part.kind = ContentPart::Kind::kImage;
  part.mime = "image/png";
  part.bytes = std::move(bytes);
  return part;
}

}  // namespace

TEST_CASE("a request id is 32 lower-case hex digits and no two are equal") {
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) {
    const RequestId id = new_request_id();
    REQUIRE(id.size() == 32);
    CHECK(id.find_first_not_of("0123456789abcdef") == std::string::npos);
    CHECK(seen.insert(id).second);
  }
}

TEST_CASE("prompt bytes count text of all messages and prompts, never images") {
  Request request;
  request.messages.push_back({"system", {text_part("12345")}});
  request.messages.push_back({"user", {image_part(std::string(1000, 'x')), text_part("ä")}});
  CHECK(prompt_text_bytes(request) == 7);
  CHECK(has_image(request));

  Request completion;
  completion.kind = Request::Kind::kCompletion;
  completion.prompts = {"abc", "", "de"};
  CHECK(prompt_text_bytes(completion) == 5);
  completion.prompts.clear();
  completion.prompt_parts.resize(2);
  completion.prompt_parts[1].text = "four";
  CHECK(prompt_text_bytes(completion) == 4);
  CHECK_FALSE(has_image(completion));
}

TEST_CASE("choices are n for each prompt") {
  Request request;
  request.choice_count = 3;
  CHECK(total_choices(request) == 3);
  request.kind = Request::Kind::kCompletion;
  request.prompts = {"a", "b"};
  CHECK(total_choices(request) == 6);
  request.prompts.clear();
  request.prompt_ids = {{1}, {2}, {3}, {4}};
  CHECK(total_choices(request) == 12);
  request.prompt_ids.clear();
  request.prompt_parts.resize(5);
  CHECK(total_choices(request) == 3);
}

TEST_CASE("tiers have the names of the x-updraft-tier header") {
  CHECK(std::string(tier_name(Tier::kAny)) == "any");
  CHECK(std::string(tier_name(Tier::kEdge)) == "edge");
  CHECK(std::string(tier_name(Tier::kCloud)) == "cloud");
}
