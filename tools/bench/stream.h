// One generation of a benchmark: remembers each token and when it came. Written by the engine
// thread, read by the thread that measures.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "common/engine/engine.h"

namespace updraft {

class BenchStream final : public SequenceSink {
 public:
  // Submits a greedy generation of exactly `tokens` tokens that no token ends. Ids of streams are
  // the caller's to keep apart.
  static std::shared_ptr<BenchStream> start(Engine& engine, uint64_t id,
                                            std::vector<int32_t> prompt, int32_t tokens);

  void on_start() override {}
  bool on_token(const SampledToken& token) override;
  void on_failure(const std::string& why) override;
  void on_end(SequenceEnd end, int32_t cached_tokens) override;

  // Any thread but the engine's. Return when that many tokens came, or the stream ended before.
  void wait_tokens(size_t count);
  void wait_end();

  // After wait_end(), or a copy of what is there so far.
  std::vector<int32_t> ids() const;
  std::vector<int64_t> token_ns() const;
  int64_t submitted_ns() const { return submitted_ns_; }
  // Empty, or why it ended before its last token.
  std::string failure() const;

 private:
  const int64_t submitted_ns_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<int32_t> ids_;
  std::vector<int64_t> token_ns_;
  bool ended_ = false;
  std::string failure_;

 public:
  explicit BenchStream(int64_t submitted_ns, int32_t tokens);
};

// `count` ids in [0, vocab_count), the same for the same seed, none like those of another seed: a
// prefix cache finds nothing.
std::vector<int32_t> random_prompt(uint64_t seed, int64_t count, int32_t vocab_count);

// FNV-1a over ids, eight hex digits: equal outputs have equal hashes.
std::string hash_of_ids(std::span<const int32_t> ids);

// The longest time between two neighbouring tokens of which at least the later one came after
// from_ns and the earlier one before to_ns; 0 when there is none.
int64_t longest_gap_ns(std::span<const int64_t> token_ns, int64_t from_ns, int64_t to_ns);

}  // namespace updraft
