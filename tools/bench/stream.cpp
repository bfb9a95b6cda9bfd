// Streams of a benchmark and the arithmetic on their tokens.
#include "tools/bench/stream.h"

#include <algorithm>
#include <cstdio>

#include "common/base/check.h"
#include "common/base/clock.h"

namespace updraft {

BenchStream::BenchStream(int64_t submitted_ns, int32_t tokens) : submitted_ns_(submitted_ns) {
  ids_.reserve(static_cast<size_t>(tokens));
  token_ns_.reserve(static_cast<size_t>(tokens));
}

std::shared_ptr<BenchStream> BenchStream::start(Engine& engine, uint64_t id,
                                                std::vector<int32_t> prompt, int32_t tokens) {
  SequenceRequest request;
  request.id = id;
  request.prompt = std::move(prompt);
  request.sampling.temperature = 0.0F;
  request.sampling.ignore_eos = true;
  request.sampling.max_tokens = tokens;
  auto stream = std::make_shared<BenchStream>(monotonic_ns(), tokens);
  UPDRAFT_CHECK(engine.submit(std::move(request), stream), "a benchmark stays within the queue");
  return stream;
}

bool BenchStream::on_token(const SampledToken& token) {
  const int64_t now = monotonic_ns();
  const std::lock_guard lock(mutex_);
  ids_.push_back(token.id);
  token_ns_.push_back(now);
  changed_.notify_all();
  return true;
}

void BenchStream::on_failure(const std::string& why) {
  const std::lock_guard lock(mutex_);
  failure_ = why;
}

void BenchStream::on_end(SequenceEnd, int32_t) {
  const std::lock_guard lock(mutex_);
  ended_ = true;
  changed_.notify_all();
}

void BenchStream::wait_tokens(size_t count) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return ended_ || ids_.size() >= count; });
}

void BenchStream::wait_end() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return ended_; });
}

std::vector<int32_t> BenchStream::ids() const {
  const std::lock_guard lock(mutex_);
  return ids_;
}

std::vector<int64_t> BenchStream::token_ns() const {
  const std::lock_guard lock(mutex_);
  return token_ns_;
}

std::string BenchStream::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

std::vector<int32_t> random_prompt(uint64_t seed, int64_t count, int32_t vocab_count) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  uint64_t state = seed * 0x9E3779B97F4A7C15ULL + 1;
  for (int32_t& id : ids) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    id = static_cast<int32_t>((state >> 33) % static_cast<uint64_t>(vocab_count));
  }
  return ids;
}

std::string hash_of_ids(std::span<const int32_t> ids) {
  uint32_t hash = 2166136261U;
  for (const int32_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8) {
      hash ^= static_cast<uint32_t>(id) >> shift & 0xFF;
      hash *= 16777619U;
    }
  }
  char text[9];
  std::snprintf(text, sizeof text, "%08x", hash);
  return text;
}

int64_t longest_gap_ns(std::span<const int64_t> token_ns, int64_t from_ns, int64_t to_ns) {
  int64_t longest = 0;
  for (size_t i = 1; i < token_ns.size(); ++i) {
    if (token_ns[i] > from_ns && token_ns[i - 1] < to_ns)
      longest = std::max(longest, token_ns[i] - token_ns[i - 1]);
  }
  return longest;
}

}  // namespace updraft
