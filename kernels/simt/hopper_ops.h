// What a kernel for capability 9.0 may do besides ops.h: mbarrier objects, copies by the engine
// beside the cores, and the products of a warpgroup. Semantics after the PTX ISA 9.0, by section:
// "mbarrier", "cp.async.bulk", "cp.async.bulk.tensor", "Tensors" (swizzling, out of bounds),
// "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions" (register fragments,
// shared memory matrix layout, matrix descriptor, async proxy, wgmma.fence, .commit_group,
// .wait_group), "setmaxnreg". kernels/cuda/device_cuda_hopper.h has the same functions for nvcc.
//
// Products find of what threads wrote to shared memory only what was there before some thread's
// fence_async(); that it has to be the writing thread's is not emulated, nor what a missing one
// does to the copies behind it.
#pragma once

#include <cstdint>

#include "kernels/simt/ops.h"

namespace updraft::simt {

// --- mbarrier objects: eight bytes of shared memory each ---
// `arrivals` threads end each phase. Whoever initialised some calls publish_barriers(), and a
// barrier of the block, before others or copies use them.
void init_barrier(uint64_t* barrier, uint32_t arrivals, Place place = Place::current());
void publish_barriers(Place place = Place::current());
void arrive_at(uint64_t* barrier, Place place = Place::current());
// The phase also lacks `bytes` of copies from now on.
void arrive_expecting(uint64_t* barrier, uint32_t bytes, Place place = Place::current());
// Until the phase of this parity (0: the first) is over. False: it gave up; on a GPU after some
// seconds, here when nothing can move and the schedule says kGiveUp.
bool wait_phase(uint64_t* barrier, uint32_t parity, Place place = Place::current());

// --- copies to shared memory that `barrier` hears of ---
// `bytes` in one piece: both addresses and the size are multiples of 16.
void copy_bulk(void* to_shared, const void* from_global, uint32_t bytes, uint64_t* barrier,
               Place place = Place::current());

// A matrix in global memory whose boxes are copied: what cuTensorMapEncodeTiled() takes of a map of
// two dimensions, with 128-byte swizzling and zeros out of bounds. Kernels see an opaque map.
struct TensorMap {
  static constexpr uint64_t kMark = 0x7E4508AA70123ULL;
  uint64_t mark = kMark;
  const std::byte* data = nullptr;
  uint64_t cols = 0;  // of elements of 2 bytes
  uint64_t rows = 0;
  uint64_t row_bytes = 0;
  uint32_t box_cols = 0;
  uint32_t box_rows = 0;
};
static_assert(sizeof(TensorMap) <= 128);
// The box at (column, row): its rows of 128 bytes lie one behind the other, 16-byte units swapped
// by the address they lie at: bits 4..6 ^= bits 7..9.
void copy_box(void* to_shared, const void* map, int32_t column, int32_t row, uint64_t* barrier,
              Place place = Place::current());

// --- shared memory as the engines address it ---
uint32_t shared_address(const void* at, Place place = Place::current());

// --- products of a warpgroup: four warps in a row, from a multiple of four on ---
// wgmma.mma_async.m64nNk16: sums[64][N] += a[64][16] * b[16][N], N = 8 .. 256 in eights. Warp w has
// the rows 16 * w ..; within them lane 4 * g + t has in sums[4 * j + i] row g + 8 * (i / 2), column
// 8 * j + 2 * t + i % 2, and its registers of `a` are those of mma.m16n8k16. Matrices in shared
// memory by descriptor, in rows of 128 bytes with 128-byte swizzling: K-major, rows of 64 k; b
// `transposed` MN-major, rows of 64 n.
//
// From here to the group_wait() that covers it, `sums` and `a` belong to the product: neither may
// be read or written. A group_fence() comes before the first product of each group.
struct GroupOperands {
  uint32_t columns;
  bool is_f16;
  bool b_transposed;
  bool first;         // the product alone, not added to what the sums hold
  const uint32_t* a;  // null: a_matrix
  uint64_t a_matrix;
  uint64_t b_matrix;
  float* sums;
};
void multiply_group(const char* name, const GroupOperands& in, const Place& place);
template <int Half>
void group_mma_bf16(float (&sums)[Half], const uint32_t (&a)[4], uint64_t b,
                    Place place = Place::current()) {
  multiply_group("group_mma_bf16", {2 * Half, false, false, false, a, 0, b, sums}, place);
}
template <int Half>
void group_mma_bf16(float (&sums)[Half], uint64_t a, uint64_t b, Place place = Place::current()) {
  multiply_group("group_mma_bf16", {2 * Half, false, false, false, nullptr, a, b, sums}, place);
}
// sums = a * b, whatever they hold.
template <int Half>
void group_mma_bf16_first(float (&sums)[Half], const uint32_t (&a)[4], uint64_t b,
                          Place place = Place::current()) {
  multiply_group("group_mma_bf16_first", {2 * Half, false, false, true, a, 0, b, sums}, place);
}
template <int Half>
void group_mma_bf16_transposed(float (&sums)[Half], const uint32_t (&a)[4], uint64_t b,
                               Place place = Place::current()) {
  multiply_group("group_mma_bf16_transposed", {2 * Half, false, true, false, a, 0, b, sums}, place);
}
template <int Half>
void group_mma_f16(float (&sums)[Half], const uint32_t (&a)[4], uint64_t b,
                   Place place = Place::current()) {
  multiply_group("group_mma_f16", {2 * Half, true, false, false, a, 0, b, sums}, place);
}
template <int Half>
void group_mma_f16(float (&sums)[Half], uint64_t a, uint64_t b, Place place = Place::current()) {
  multiply_group("group_mma_f16", {2 * Half, true, false, false, nullptr, a, b, sums}, place);
}
void group_fence(Place place = Place::current());
void group_commit(Place place = Place::current());
void wait_groups(size_t groups, const Place& place);
// Until at most Groups committed groups of the warpgroup are under way.
template <int Groups>
void group_wait(Place place = Place::current()) {
  wait_groups(Groups, place);
}

// fence.proxy.async: what this thread wrote to shared memory is there for products and copies.
void fence_async();

// setmaxnreg of a whole warpgroup. Each thread begins with its share of 65,536 registers; a launch
// fails where a group asks for fewer or more in the wrong direction, where its warps differ, or
// where the block's groups want more than there are: the last of them would wait for ever.
void set_registers(uint32_t registers, bool more, const Place& place);
template <int Registers>
void fewer_registers(Place place = Place::current()) {
  static_assert(Registers % 8 == 0 && Registers >= 24 && Registers <= 256);
  set_registers(Registers, false, place);
}
template <int Registers>
void more_registers(Place place = Place::current()) {
  static_assert(Registers % 8 == 0 && Registers >= 24 && Registers <= 256);
  set_registers(Registers, true, place);
}

}  // namespace updraft::simt
