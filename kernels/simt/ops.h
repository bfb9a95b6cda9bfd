// What a kernel may do, as the emulator does it: one function per instruction of the PTX ISA that
// our kernels use, each with that instruction's layouts and rules. kernels/cuda/device_cuda.h has
// the same functions for nvcc.
//
// The last parameter of most is where the call stands, for reports; kernels leave it out.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/simt/thread.h"

namespace updraft::simt {

// --- who am I ---
inline uint32_t thread_x() { return self().index.x; }
inline uint32_t block_x() { return block().index.x; }
inline uint32_t block_y() { return block().index.y; }
inline uint32_t block_z() { return block().index.z; }
inline uint32_t block_threads() { return block().shape.block.x; }
inline uint32_t grid_x() { return block().shape.grid.x; }
inline uint32_t grid_y() { return block().shape.grid.y; }

// --- barriers ---
// __syncthreads: every thread of the block, at the same place.
void sync_block(Place place = Place::current());
// bar.sync and bar.arrive on barrier 1..15 of `threads`, a multiple of 32.
void sync_named(uint32_t id, uint32_t threads, Place place = Place::current());
void arrive_named(uint32_t id, uint32_t threads, Place place = Place::current());
void sync_warp(uint32_t mask = kAllLanes, Place place = Place::current());

// --- shuffles, votes, reductions: the lanes of `mask`, all at the same place ---
uint64_t exchange(const char* name, uint64_t value, uint32_t from_lane, uint32_t mask, Place place);

template <typename T>
T exchange_value(const char* name, T value, uint32_t from_lane, uint32_t mask, const Place& place) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(name, bits, from_lane, mask, place);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t own_lane() { return self().linear % kWarpLanes; }

template <typename T>
T shuffle(T value, uint32_t from_lane, uint32_t mask = kAllLanes, Place place = Place::current()) {
  return exchange_value("shuffle", value, from_lane % kWarpLanes, mask, place);
}
template <typename T>
T shuffle_xor(T value, uint32_t bits, uint32_t mask = kAllLanes, Place place = Place::current()) {
  return exchange_value("shuffle_xor", value, own_lane() ^ bits, mask, place);
}
// From `delta` lanes above or below; beyond the warp's end the own value.
template <typename T>
T shuffle_down(T value, uint32_t delta, uint32_t mask = kAllLanes, Place place = Place::current()) {
  const uint32_t from = own_lane() + delta;
  return exchange_value("shuffle_down", value, from < kWarpLanes ? from : own_lane(), mask, place);
}
template <typename T>
T shuffle_up(T value, uint32_t delta, uint32_t mask = kAllLanes, Place place = Place::current()) {
  const uint32_t own = own_lane();
  return exchange_value("shuffle_up", value, own >= delta ? own - delta : own, mask, place);
}

// Bit i: lane i is in the mask and its `vote` is true.
uint32_t ballot(bool vote, uint32_t mask = kAllLanes, Place place = Place::current());
inline bool any(bool vote, uint32_t mask = kAllLanes, Place place = Place::current()) {
  return ballot(vote, mask, place) != 0;
}
inline bool all(bool vote, uint32_t mask = kAllLanes, Place place = Place::current()) {
  return ballot(vote, mask, place) == mask;
}
// redux.sync
uint32_t reduce_add(uint32_t value, uint32_t mask = kAllLanes, Place place = Place::current());
uint32_t reduce_max(uint32_t value, uint32_t mask = kAllLanes, Place place = Place::current());
uint32_t reduce_min(uint32_t value, uint32_t mask = kAllLanes, Place place = Place::current());

// --- matrices ---
// ldmatrix.m8n8.xCount.b16: lane 8 * i + r brings the address of row r (16 bytes, aligned, in
// shared memory) of matrix i. Lane l receives in out[i] the elements 2 * (l % 4) and + 1 of row l /
// 4; transposed: of column l / 4.
void load_matrices(uint32_t* out, const void* row, int count, bool transposed, const Place& place);
template <int Count>
void load_matrix(uint32_t (&out)[Count], const void* row, Place place = Place::current()) {
  static_assert(Count == 1 || Count == 2 || Count == 4);
  load_matrices(out, row, Count, false, place);
}
template <int Count>
void load_matrix_transposed(uint32_t (&out)[Count], const void* row,
                            Place place = Place::current()) {
  static_assert(Count == 1 || Count == 2 || Count == 4);
  load_matrices(out, row, Count, true, place);
}

// mma.sync.m16n8k16.row.col.f32: sums[16][8] += a[16][16] * b[16][8], of bf16 or fp16 pairs. With g
// = lane / 4 and t = lane % 4: a0 = a[g][2t, 2t+1], a1 = a[g+8][same], a2 = a[g][2t+8, 2t+9], a3 =
// a[g+8][same]; b0 = b[2t, 2t+1][g], b1 = b[2t+8, 2t+9][g]; sums 0, 1 = [g][2t, 2t+1], sums 2, 3 =
// [g+8][same].
void mma_bf16(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
              Place place = Place::current());
void mma_f16(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
             Place place = Place::current());
// mma.sync.m16n8k32.row.col.s32.s8.s8.s32: a0 = a[g][4t..4t+3], a1 = a[g+8][same], a2 =
// a[g][4t+16..], a3 = a[g+8][same]; b0 = b[4t..4t+3][g], b1 = b[4t+16..][g]; sums as above.
void mma_s8(int32_t (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
            Place place = Place::current());

// --- memory ---
// cp.async.cg of 16 bytes, both sides aligned; `valid` false fills zeros and does not read.
void copy_async16(void* to_shared, const void* from_global, bool valid,
                  Place place = Place::current());
void copy_commit();
// Waits until at most `groups` committed groups of this thread are under way.
void wait_copies(size_t groups);
template <int Groups>
void copy_wait() {
  wait_copies(Groups);
}

// Ends a launch with early_start whose thread comes here before wait_for_previous().
void check_waited(const char* name, const Place& place);
void check_access(const char* name, const void* at, size_t bytes, Space space, const Place& place);
// Ends a launch with early_start that reads what a launch in front of it, which may have been under
// way when it began, has written: it was not constant while the kernel lived.
void check_constant(const char* name, const void* at, size_t bytes, const Place& place);
// ld.global.nc: 1, 2, 4, 8 or 16 bytes from global memory that nobody writes while the kernel
// lives, from before wait_for_previous() on; load_once: and that nobody reads again.
template <typename T>
T load(const T* at, Place place = Place::current()) {
  check_access("load", at, sizeof(T), Space::kGlobal, place);
  check_constant("load", at, sizeof(T), place);
  return *at;
}
template <typename T>
T load_once(const T* at, Place place = Place::current()) {
  check_access("load_once", at, sizeof(T), Space::kGlobal, place);
  check_constant("load_once", at, sizeof(T), place);
  return *at;
}
// 4, 8 or 16 bytes of what an earlier kernel of the stream has written: after wait_for_previous().
template <typename T>
T load_written(const T* at, Place place = Place::current()) {
  check_waited("load_written", place);
  check_access("load_written", at, sizeof(T), Space::kGlobal, place);
  return *at;
}
// griddepcontrol.wait and .launch_dependents, for launches with early_start: what the launch before
// has written is there; the launch behind may begin as soon as all blocks have said so.
void wait_for_previous();
inline void let_next_start() { block().lets_next_start = true; }
template <typename T>
void store(T* at, const T& value, Place place = Place::current()) {
  check_waited("store", place);
  check_access("store", at, sizeof(T), Space::kGlobal, place);
  *at = value;
}

// Atomics return the old value. Threads give way only at operations, so plain arithmetic is atomic
// here.
template <typename T>
T atomic_add(T* at, T value) {
  const T old = *at;
  *at = old + value;
  return old;
}
template <typename T>
T atomic_max(T* at, T value) {
  const T old = *at;
  if (value > old) *at = value;
  return old;
}
template <typename T>
T atomic_min(T* at, T value) {
  const T old = *at;
  if (value < old) *at = value;
  return old;
}
template <typename T>
T atomic_exchange(T* at, T value) {
  const T old = *at;
  *at = value;
  return old;
}
template <typename T>
T atomic_compare_exchange(T* at, T expected, T value) {
  const T old = *at;
  if (old == expected) *at = value;
  return old;
}
// atom.acq_rel.gpu on global memory, by which blocks hand on what they wrote: a barrier in front of
// it brings what the other threads of the block wrote, and behind a barrier they all read what the
// blocks wrote that came here before. Blocks run one after another here.
inline uint32_t atomic_add_ordered(uint32_t* at, uint32_t value) { return atomic_add(at, value); }
// fence.acq_rel.gpu
inline void fence() {}

// The launch's dynamic shared memory, 128-byte aligned.
template <typename T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(block().dynamic_shared->data());
}
std::byte* static_shared(const void* key, size_t bytes);
// An array of the block; the same (T, Count, Tag) is the same array.
template <typename T, int Count, int Tag = 0>
T* shared_array() {
  static constexpr char key = 0;
  return reinterpret_cast<T*>(static_shared(&key, sizeof(T) * Count));
}

}  // namespace updraft::simt
