// The host's part of a step: no allocation while the same sequences decode on, whoever waits.
#include <doctest/doctest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "tests/common/engine/core_runner.h"

namespace {
thread_local int64_t allocations = 0;  // of this thread
}

// Of the whole test program.
void* operator new(size_t bytes) {
  ++allocations;
  if (void* memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}
// Of std::stable_sort's buffer, for instance; what the one below gives back.
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(bytes == 0 ? 1 : bytes);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

using namespace updraft;
using namespace updraft::testing;

namespace {

// A device that computes nothing: what is left is the host's own work.
class EmptyBackend final : public Backend {
 public:
  explicit EmptyBackend(bool samples) : samples_(samples) {}
  std::string description() const override { return "empty"; }
  uint64_t memory_used_bytes() const override { return 0; }
  uint64_t memory_total_bytes() const override { return 0; }
  Result<Mat> add_matrix(std::span<const WeightView>) override { return Mat{0}; }
  Result<Vec> add_vector(std::span<const float>) override { return Vec{0}; }
  Result<Act> add_activation(int64_t, int64_t) override { return Act{0}; }
  Result<void> reserve_logits(int64_t rows, int64_t vocab) override {
    tokens_.resize(static_cast<size_t>(rows), 5);
    logits_.resize(static_cast<size_t>(rows * vocab));
    return {};
  }
  Result<void> make_kv_pool(const KvShape&) override { return {}; }
  uint64_t kv_page_bytes(const KvShape&) const override { return 1; }
  bool samples() const override { return samples_; }
  int32_t steps_in_flight_max() const override { return samples_ ? 2 : 1; }
  void begin(const Batch&) override {}
  void embed(Mat, Act) override {}
  void residual_norm(const ResidualNorm&) override {}
  void matmul(Mat, Vec, Act, Act) override {}
  void prepare_qkv(const QkvPrepare&) override {}
  void attention(const Attention&) override {}
  void gated_matmul(Mat, Act, Act) override {}
  void logits(Mat, Act) override {}
  std::span<float> read_logits() override { return logits_; }
  std::span<const int32_t> read_tokens() override { return tokens_; }
  void copy_page(int32_t, int32_t) override {}
  void read_activation(Act, int64_t, std::span<float>) override {}

 private:
  const bool samples_;
  std::vector<int32_t> tokens_;
  std::vector<float> logits_;
};

class CountingSink final : public SequenceSink {
 public:
  void on_start() override {}
  bool on_token(const SampledToken&) override {
    ++tokens;
    return true;
  }
  void on_end(SequenceEnd, int32_t) override {}
  int64_t tokens = 0;
};

}  // namespace

TEST_CASE("steps of sequences that decode on allocate nothing") {
  for (const bool samples : {true, false}) {
    CAPTURE(samples);
    Hyperparameters h = tiny_hyperparameters();
    h.context_tokens = 2048;
    EngineCoreConfig config = core_config(h);
    config.scheduler.page_tokens = 512;
    config.scheduler.page_count = 32;
    CoreRunner runner(config, *random_model(tiny_hyperparameters(), 1),
                      std::make_unique<EmptyBackend>(samples));
    auto sink = std::make_shared<CountingSink>();
    for (uint64_t id = 1; id <= 6; ++id) {  // two of them wait
      SequenceRequest request = greedy_request(id, {1, 2, 3}, 2000);
      runner.core().add(std::move(request), sink, 0);
    }
    std::vector<uint64_t> ended;
    const auto step = [&] {
      runner.core().plan(1, ended);
      runner.core().run(ended);
    };
    for (int i = 0; i < 50; ++i) step();
    const int64_t tokens_before = sink->tokens;
    const int64_t before = allocations;
    for (int i = 0; i < 300; ++i) step();
    const int64_t count = allocations - before;
    CHECK(sink->tokens - tokens_before == 4 * 300);
    CHECK(count == 0);
    runner.core().end_all(ended);
  }
}
