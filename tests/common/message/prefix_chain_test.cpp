// Names of the beginnings of prompts.
#include "common/message/prefix_chain.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <set>
#include <string>

using namespace updraft;

namespace {

Request chat(const std::vector<std::pair<std::string, std::string>>& messages,
             const std::string& tenant = "t") {
  Request request;
  request.model = "m";
  request.tenant = tenant;
  for (const auto& [role, text] : messages) {
    ChatMessage message;
    message.role = role;
    ContentPart part;
    part.text = text;
    message.parts.push_back(part);
    request.messages.push_back(message);
  }
  return request;
}

std::string text_of(size_t bytes, char seed = 'a') {
  std::string text(bytes, ' ');
  for (size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>(seed + (i * i + i / 7) % 23);
  return text;
}

size_t shared(const std::vector<uint64_t>& a, const std::vector<uint64_t>& b) {
  size_t count = 0;
  while (count < a.size() && count < b.size() && a[count] == b[count]) ++count;
  return count;
}

}  // namespace

TEST_CASE("prompts share the names of what they have in common, and no more") {
  const std::string system = text_of(5000);
  const auto one = prefix_chain(chat({{"system", system}, {"user", "What is this?"}}));
  const auto two = prefix_chain(chat({{"system", system}, {"user", "And that one over there?"}}));
  REQUIRE(one.size() == 9);  // of 5,030 bytes or so, in blocks of 512
  CHECK(shared(one, two) == 9);
  std::string changed = system;
  changed[2100] ^= 1;
  const auto other = prefix_chain(chat({{"system", changed}, {"user", "What is this?"}}));
  CHECK(shared(one, other) == 4);
  for (size_t i = 4; i < 9; ++i) CHECK(one[i] != other[i]);
}

TEST_CASE("the next turn of a conversation goes on from the last") {
  auto messages = std::vector<std::pair<std::string, std::string>>{{"user", text_of(3000)}};
  const auto first = prefix_chain(chat(messages));
  messages.emplace_back("assistant", text_of(2000, 'b'));
  messages.emplace_back("user", text_of(900, 'c'));
  const auto second = prefix_chain(chat(messages));
  CHECK(shared(first, second) == first.size());
  CHECK(second.size() == 11);
}

TEST_CASE("tenants and models have names of their own") {
  const auto messages = std::vector<std::pair<std::string, std::string>>{{"system", text_of(4000)}};
  Request other_model = chat(messages);
  other_model.model = "n";
  std::set<uint64_t> all;
  for (const Request& request : {chat(messages, "a"), chat(messages, "b"), other_model}) {
    for (const uint64_t hash : prefix_chain(request)) CHECK(all.insert(hash).second);
  }
}

TEST_CASE("roles, the bounds of messages and images are part of it; developer is system") {
  const std::string text = text_of(600);
  const auto base = prefix_chain(chat({{"user", text}, {"user", text}}));
  CHECK(base != prefix_chain(chat({{"user", text}, {"assistant", text}})));
  CHECK(shared(base, prefix_chain(chat({{"user", text + text}}))) == 1);
  CHECK(prefix_chain(chat({{"developer", text}})) == prefix_chain(chat({{"system", text}})));
  Request with_image = chat({{"user", text}});
  ContentPart image;
  image.kind = ContentPart::Kind::kImage;
  image.bytes = std::string(5000, 'x');
  with_image.messages[0].parts.insert(with_image.messages[0].parts.begin(), image);
  Request other_image = with_image;
  other_image.messages[0].parts[0].bytes = std::string(5000, 'y');
  CHECK(prefix_chain(with_image).size() == 1);  // an image counts by its name, not by its bytes
  CHECK(prefix_chain(with_image) != prefix_chain(other_image));
}

TEST_CASE("completions have chains of their text or their ids") {
  Request text;
  text.kind = Request::Kind::kCompletion;
  text.prompts = {text_of(2000), text_of(9000)};
  CHECK(prefix_chain(text).size() == 3);
  Request ids;
  ids.kind = Request::Kind::kCompletion;
  ids.prompt_ids = {std::vector<int32_t>(1024, 7)};
  CHECK(prefix_chain(ids).size() == 8);
  CHECK(prefix_chain(Request{}).empty());
}

TEST_CASE("blocks grow with the depth, and the chain has an end") {
  CHECK(prefix_block_end(0) == 512);
  CHECK(prefix_block_end(31) == 32 * 512);
  CHECK(prefix_block_end(32) == 32 * 512 + 1024);
  CHECK(prefix_block_end(127) == 32 * (512 + 1024 + 2048 + 4096));
  Request request;
  request.kind = Request::Kind::kCompletion;
  request.prompts = {text_of(1'000'000)};
  CHECK(prefix_chain(request).size() == kPrefixBlocksMax);
  request.prompts = {text_of(static_cast<size_t>(prefix_block_end(70)))};
  CHECK(prefix_chain(request).size() == 71);
  request.prompts[0].pop_back();
  CHECK(prefix_chain(request).size() == 70);
}

TEST_CASE("zeros and repeats do not collapse into one name") {
  Request request;
  request.kind = Request::Kind::kCompletion;
  request.prompts = {std::string(60'000, '\0')};
  const auto chain = prefix_chain(request);
  CHECK(std::set<uint64_t>(chain.begin(), chain.end()).size() == chain.size());
  CHECK(std::find(chain.begin(), chain.end(), 0) == chain.end());
}
