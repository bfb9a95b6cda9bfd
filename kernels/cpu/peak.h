// What this machine can do at most, measured: the rates that every benchmark's result is a share
// of. The loops do nothing but the operation they measure (operands in registers, a buffer read
// once), per instruction set like the kernels.
#pragma once

#include <cstdint>
#include <memory>

#include "common/base/result.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/thread_pool.h"

namespace updraft {

// One owner thread, the pool's caller; it should be pinned like the pool's workers.
class CpuPeak {
 public:
  // isa: one of available_isas(). buffer_bytes: what read_bytes_per_s() streams, at least 1 MiB per
  // thread; as large as the weights that the result is compared with, so that the same caches help.
  // Errors: memory.
  static Result<CpuPeak> open(CpuIsa isa, ThreadPool& pool, uint64_t buffer_bytes);

  // Each runs for about `ms` and gives the whole rate of all threads, counting a multiplication and
  // an addition as two operations.
  double int8_ops_per_s(int ms);    // products of bytes summed in 32 bits
  double fma_ops_per_s(int ms);     // f32
  double read_bytes_per_s(int ms);  // every byte of the buffer once per pass, from huge pages

  // Half of a line's way from one core to another and back, in ns: the least that a message between
  // the first two threads costs. 0 with one thread.
  double core_to_core_ns();

 private:
  CpuPeak(CpuIsa isa, ThreadPool& pool, std::unique_ptr<MemoryBudget> budget, HugeBuffer buffer);
  template <typename Work>
  double rate(int ms, double amount_per_item, int64_t items, Work work);

  CpuIsa isa_;
  ThreadPool* pool_;
  std::unique_ptr<MemoryBudget> budget_;  // outlives the buffer
  HugeBuffer buffer_;
};

// The loops of one instruction set. rounds > 0. What they return proves that the work was done.
struct PeakLoops {
  double int8_ops_per_round;
  double fma_ops_per_round;
  // Sums int8_ops_per_round / 2 products 3 * -1 per round.
  int32_t (*int8)(int64_t rounds);
  // Adds 1 * 1 fma_ops_per_round / 2 times per round.
  float (*fma)(int64_t rounds);
  // The 8-byte words of the buffer, xored; bytes is a multiple of 256.
  uint64_t (*read)(const void* at, int64_t bytes);
};
const PeakLoops& generic_peak_loops();
const PeakLoops& avx2_peak_loops();
const PeakLoops& avx512_peak_loops();

}  // namespace updraft
