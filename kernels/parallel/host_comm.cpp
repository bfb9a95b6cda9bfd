// Sums between threads of one process: each rank adds up its own part of the elements over all
// ranks' buffers, and writes it to all of them.
#include <algorithm>
#include <barrier>
#include <span>

#include "common/base/check.h"
#include "kernels/parallel/comm.h"

namespace updraft {
namespace {

struct Group {
  explicit Group(int32_t size) : arrived(size), buffers(static_cast<size_t>(size)) {}
  std::barrier<> arrived;
  std::vector<std::span<float>> buffers;  // of the current sum, each written by its rank
};

class HostComm final : public Comm {
 public:
  HostComm(std::shared_ptr<Group> group, int32_t rank) : group_(std::move(group)), rank_(rank) {}

  int32_t rank() const override { return rank_; }
  int32_t size() const override { return static_cast<int32_t>(group_->buffers.size()); }
  std::string description() const override { return "shared memory"; }

  Result<void> all_reduce(void* values, int64_t count, Values type, CUstream_st* stream) override {
    if (type != Values::kF32 || stream != nullptr)
      return fail("sums in host memory are of f32 and have no stream");
    std::vector<std::span<float>>& buffers = group_->buffers;
    buffers[static_cast<size_t>(rank_)] = {static_cast<float*>(values), static_cast<size_t>(count)};
    group_->arrived.arrive_and_wait();  // all buffers are known, and complete
    // A cache line is one rank's.
    constexpr int64_t kUnit = 16;
    const int64_t units = (count + kUnit - 1) / kUnit;
    const auto first = static_cast<size_t>(std::min(count, units * rank_ / size() * kUnit));
    const auto end = static_cast<size_t>(std::min(count, units * (rank_ + 1) / size() * kUnit));
    for (const std::span<float> buffer : buffers)
      UPDRAFT_CHECK(buffer.size() == static_cast<size_t>(count), "all ranks ask for the same sum");
    for (size_t i = first; i < end; ++i) {
      float sum = buffers[0][i];
      for (size_t rank = 1; rank < buffers.size(); ++rank) sum += buffers[rank][i];
      for (const std::span<float> buffer : buffers) buffer[i] = sum;
    }
    group_->arrived.arrive_and_wait();  // nobody touches another's buffer any more
    return {};
  }

 private:
  const std::shared_ptr<Group> group_;
  const int32_t rank_;
};

}  // namespace

std::vector<std::shared_ptr<Comm>> make_host_comms(int32_t size) {
  UPDRAFT_CHECK(size > 0);
  const auto group = std::make_shared<Group>(size);
  std::vector<std::shared_ptr<Comm>> comms;
  for (int32_t rank = 0; rank < size; ++rank)
    comms.push_back(std::make_shared<HostComm>(group, rank));
  return comms;
}

}  // namespace updraft
