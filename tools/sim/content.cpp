// See the header.
#include "tools/sim/content.h"

#include <algorithm>
#include <string_view>

#include "tools/sim/random.h"

namespace updraft::sim {
namespace {

constexpr int32_t kRoleTokens = 3;  // around each message

template <typename OnText>
void for_each_text(const Request& request, OnText on_text) {
  for (const ChatMessage& message : request.messages) {
    for (const ContentPart& part : message.parts) on_text(std::string_view(part.text));
  }
  for (const std::string& prompt : request.prompts) on_text(std::string_view(prompt));
}

}  // namespace

uint64_t content_hash(const Request& request) {
  uint64_t hash = hash_text(request.model);
  for_each_text(request, [&](std::string_view text) {
    // Eight bytes at a time: prompts are long.
    size_t i = 0;
    for (; i + 8 <= text.size(); i += 8) {
      uint64_t word = 0;
      std::copy_n(text.data() + i, 8, reinterpret_cast<char*>(&word));
      hash = (hash ^ word) * 0x9E3779B97F4A7C15ULL;
      hash ^= hash >> 29;
    }
    hash = hash_text(text.substr(i), hash);
  });
  for (const std::vector<int32_t>& ids : request.prompt_ids) {
    for (const int32_t id : ids) hash = mix(hash ^ static_cast<uint64_t>(id));
  }
  return mix(hash ^ request.sampling.seed.value_or(0));
}

std::vector<int32_t> tokenize(const Request& request, const SimModel& model) {
  std::vector<int32_t> ids;
  const auto step = static_cast<size_t>(model.bytes_per_token);
  for_each_text(request, [&](std::string_view text) {
    ids.insert(ids.end(), kRoleTokens, 1);
    for (size_t i = 0; i < text.size(); i += step)
      ids.push_back(static_cast<int32_t>(hash_text(text.substr(i, step)) & 0x7FFFFF));
  });
  for (const std::vector<int32_t>& given : request.prompt_ids)
    ids.insert(ids.end(), given.begin(), given.end());
  return ids;
}

int32_t count_tokens(const Request& request, const SimModel& model) {
  size_t count = 0;
  const auto step = static_cast<size_t>(model.bytes_per_token);
  for_each_text(request, [&](std::string_view text) {
    count += kRoleTokens + (text.size() + step - 1) / step;
  });
  for (const std::vector<int32_t>& given : request.prompt_ids) count += given.size();
  return static_cast<int32_t>(count);
}

int32_t natural_tokens(uint64_t content, int32_t choice, const SimModel& model) {
  const uint64_t spread = static_cast<uint64_t>(2 * model.answer_tokens_mean - 1);
  return 1 + static_cast<int32_t>(mix(content + static_cast<uint64_t>(choice) * 977) % spread);
}

int32_t token_at(uint64_t content, int32_t choice, int32_t index, int32_t generation) {
  const uint64_t hash =
      mix(content ^ (static_cast<uint64_t>(choice) << 40) ^ static_cast<uint64_t>(index));
  return static_cast<int32_t>(hash & 0x3FFFFF) * kGenerations + generation;
}

std::string piece_of(int32_t token) {
  const auto letter = static_cast<char>('a' + (token / kGenerations) % 26);
  return {letter, ' '};
}

}  // namespace updraft::sim
