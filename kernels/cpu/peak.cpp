// Timing of the peak loops over a thread pool.
#include "kernels/cpu/peak.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/numa.h"

namespace updraft {
namespace {

constexpr int64_t kRounds = 1 << 14;     // of an arithmetic loop per item
constexpr int64_t kReadBytes = 1 << 20;  // per item
constexpr int64_t kItemsPerThread = 8;

int64_t now_ns() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

}  // namespace

CpuPeak::CpuPeak(CpuIsa isa, ThreadPool& pool, std::unique_ptr<MemoryBudget> budget,
                 HugeBuffer buffer)
    : isa_(isa), pool_(&pool), budget_(std::move(budget)), buffer_(std::move(buffer)) {}

Result<CpuPeak> CpuPeak::open(CpuIsa isa, ThreadPool& pool, uint64_t buffer_bytes) {
  const uint64_t least = static_cast<uint64_t>(kReadBytes) * pool.thread_count();
  buffer_bytes = std::max(buffer_bytes, least) / kReadBytes * kReadBytes;
  auto budget = std::make_unique<MemoryBudget>(0, numa_nodes_of(process_cores()));
  auto buffer = HugeBuffer::allocate(*budget, buffer_bytes, "bandwidth probe");
  if (!buffer) return buffer.error();
  // Pages that were never written are all the same zero page and would be read from the cache.
  pool.for_each(static_cast<int64_t>(buffer_bytes / kReadBytes), [&](int64_t item, int) {
    std::memset(buffer->data() + item * kReadBytes, 1, kReadBytes);
  });
  return CpuPeak(isa, pool, std::move(budget), std::move(*buffer));
}

template <typename Work>
double CpuPeak::rate(int ms, double amount_per_item, int64_t items, Work work) {
  const int64_t start_ns = now_ns();
  int64_t now = start_ns;
  double amount = 0;
  do {
    pool_->for_each(items, work);
    amount += amount_per_item * static_cast<double>(items);
    now = now_ns();
  } while (now - start_ns < int64_t{ms} * 1'000'000);
  return amount * 1e9 / static_cast<double>(now - start_ns);
}

double CpuPeak::int8_ops_per_s(int ms) {
  const PeakLoops& loops = peak_loops_of(isa_);
  std::atomic<int32_t> sink{0};
  return rate(ms, loops.int8_ops_per_round * kRounds, kItemsPerThread * pool_->thread_count(),
              [&](int64_t, int) { sink.fetch_add(loops.int8(kRounds)); });
}

double CpuPeak::fma_ops_per_s(int ms) {
  const PeakLoops& loops = peak_loops_of(isa_);
  std::atomic<int32_t> sink{0};
  return rate(ms, loops.fma_ops_per_round * kRounds, kItemsPerThread * pool_->thread_count(),
              [&](int64_t, int) { sink.fetch_add(static_cast<int32_t>(loops.fma(kRounds))); });
}

double CpuPeak::read_bytes_per_s(int ms) {
  const PeakLoops& loops = peak_loops_of(isa_);
  std::atomic<uint64_t> sink{0};
  const auto items = static_cast<int64_t>(buffer_.size_bytes()) / kReadBytes;
  return rate(ms, static_cast<double>(kReadBytes), items, [&](int64_t item, int) {
    sink.fetch_add(loops.read(buffer_.data() + item * kReadBytes, kReadBytes));
  });
}

double CpuPeak::core_to_core_ns() {
  if (pool_->thread_count() < 2) return 0;
  constexpr int32_t kTrips = 20'000;
  std::atomic<int32_t> ball{0};
  std::atomic<int> players{0};
  int64_t taken_ns = 0;
  // Two items, one per thread: each waits for the other, so no thread can take both.
  pool_->for_each(2, [&](int64_t item, int) {
    players.fetch_add(1);
    while (players.load() < 2) {
    }
    const int64_t start_ns = now_ns();
    for (int32_t trip = 0; trip < kTrips; ++trip) {
      const int32_t mine = 2 * trip + static_cast<int32_t>(item);
      for (int spins = 0; ball.load(std::memory_order_acquire) != mine;) {
        if (++spins % 4096 == 0) std::this_thread::yield();  // both on one core
      }
      ball.store(mine + 1, std::memory_order_release);  // pairs with the acquire of the other side
    }
    if (item == 0) taken_ns = now_ns() - start_ns;
  });
  return static_cast<double>(taken_ns) / (2.0 * kTrips);
}

}  // namespace updraft
