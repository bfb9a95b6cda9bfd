// The device functions on CPU fibers (kernels/simt). Included through device.h.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>

#include "common/base/result.h"
#include "kernels/cuda/types.h"
#include "kernels/quant/quant.h"
#include "kernels/simt/hopper_ops.h"
#include "kernels/simt/launch.h"
#include "kernels/simt/ops.h"
#include "kernels/simt/stream.h"

#define UPDRAFT_DEVICE inline
#define UPDRAFT_KERNEL(threads) inline void
#define UPDRAFT_KERNEL_ALONE(threads) inline void
#define UPDRAFT_UNROLL
#define UPDRAFT_UNROLL_BY(count)
#define UPDRAFT_NO_UNROLL
#define UPDRAFT_GRID_CONSTANT

namespace updraft::cuda {

// NOLINTBEGIN(misc-unused-using-decls): the device functions
using simt::all;
using simt::any;
using simt::arrive_at;
using simt::arrive_expecting;
using simt::arrive_named;
using simt::atomic_add;
using simt::atomic_add_ordered;
using simt::atomic_compare_exchange;
using simt::atomic_exchange;
using simt::atomic_max;
using simt::atomic_min;
using simt::ballot;
using simt::block_threads;
using simt::block_x;
using simt::block_y;
using simt::block_z;
using simt::copy_async16;
using simt::copy_box;
using simt::copy_bulk;
using simt::copy_commit;
using simt::copy_wait;
using simt::Dim3;
using simt::dynamic_shared;
using simt::fence;
using simt::fence_async;
using simt::fewer_registers;
using simt::grid_x;
using simt::grid_y;
using simt::group_commit;
using simt::group_fence;
using simt::group_mma_bf16;
using simt::group_mma_bf16_first;
using simt::group_mma_bf16_transposed;
using simt::group_wait;
using simt::init_barrier;
using simt::LaunchShape;
using simt::let_next_start;
using simt::load;
using simt::load_matrix;
using simt::load_matrix_transposed;
using simt::load_once;
using simt::load_written;
using simt::mma_bf16;
using simt::mma_f16;
using simt::mma_s8;
using simt::more_registers;
using simt::publish_barriers;
using simt::reduce_add;
using simt::reduce_max;
using simt::reduce_min;
using simt::shared_address;
using simt::shared_array;
using simt::shared_bytes_max;
using simt::shuffle;
using simt::shuffle_down;
using simt::shuffle_up;
using simt::shuffle_xor;
using simt::store;
using simt::sync_block;
using simt::sync_named;
using simt::sync_warp;
using simt::thread_x;
using simt::wait_for_previous;
using simt::wait_phase;
// NOLINTEND

inline constexpr bool kHasWarpgroups = true;
template <int Count>
void pin(float (&/*registers*/)[Count]) {}
inline void stop_device() { simt::stop("a kernel that this device has no instructions for", {}); }

// --- numbers ---
inline float to_float(Bf16 value) { return bf16_to_float(value.bits); }
inline float to_float(Half value) { return half_to_float(value.bits); }
inline float to_float(Float8 value) { return f8_to_float(value.bits); }
// Beyond 448 the largest finite value.
inline Float8 to_float8(float value) { return {float_to_f8(value)}; }
inline Bf16 to_bf16(float value) { return {float_to_bf16(value)}; }
inline Half to_half(float value) { return {float_to_half(value)}; }
// Two bfloat16 in one register, the first in the low half.
inline uint32_t pack_bf16(float low, float high) {
  return static_cast<uint32_t>(float_to_bf16(low)) | static_cast<uint32_t>(float_to_bf16(high))
                                                         << 16;
}
inline float low_bf16(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
inline float high_bf16(uint32_t pair) { return std::bit_cast<float>(pair & 0xFFFF0000U); }
// a + b of each half, rounded to bfloat16 once.
inline uint32_t add_bf16_pairs(uint32_t a, uint32_t b) {
  return pack_bf16(low_bf16(a) + low_bf16(b), high_bf16(a) + high_bf16(b));
}
// a * b of each half, rounded to bfloat16 once.
inline uint32_t multiply_bf16_pairs(uint32_t a, uint32_t b) {
  return pack_bf16(low_bf16(a) * low_bf16(b), high_bf16(a) * high_bf16(b));
}
// Byte i of the result is the byte of `word` that digit i of `selector` (0..3) names; 4: zero.
inline uint32_t permute_bytes(uint32_t word, uint32_t selector) {
  uint32_t out = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t from = selector >> (4 * i) & 7U;
    out |= (from < 4 ? word >> (8 * from) & 0xFFU : 0U) << (8 * i);
  }
  return out;
}
inline float low_half(uint32_t pair) { return half_to_float(static_cast<uint16_t>(pair)); }
inline float high_half(uint32_t pair) { return half_to_float(static_cast<uint16_t>(pair >> 16)); }
inline uint32_t float_bits(float value) { return std::bit_cast<uint32_t>(value); }
inline float bits_float(uint32_t bits) { return std::bit_cast<float>(bits); }
// a * b + c, rounded once.
inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
// a * b, rounded: no compiler makes one operation of it and an addition behind it.
inline float multiply(float a, float b) { return a * b; }
// Within 2 units in the last place on the GPU.
inline float exp2_fast(float value) { return std::exp2(value); }
inline float inverse_sqrt(float value) { return 1.0F / std::sqrt(value); }
inline void sine_cosine(float angle, float* sine, float* cosine) {
  *sine = std::sin(angle);
  *cosine = std::cos(angle);
}
// What does not fit gives the nearest that does, NaN gives 0.
inline int32_t round_to_int(float value) {
  if (std::isnan(value)) return 0;
  const double whole = std::nearbyint(static_cast<double>(value));
  return static_cast<int32_t>(std::clamp(whole, -2147483648.0, 2147483647.0));
}

inline float log2_of(float value) { return std::log2(value); }
// The value, of which the compiler knows nothing: what is computed from it inside a loop is not
// kept in registers around the loop.
inline int opaque(int value) { return value; }
inline int count_bits(uint32_t bits) { return std::popcount(bits); }
// Index of the lowest bit set; at least one is.
inline int first_bit(uint32_t bits) { return std::countr_zero(bits); }

// --- launching ---
// With a stream the kernel runs when the stream comes to it, in the schedule that is current now.
template <typename... Parameters, typename... Arguments>
Result<void> launch(void (*kernel)(Parameters...), const LaunchShape& shape, Stream stream,
                    const Arguments&... arguments) {
  LaunchShape named = shape;
  named.kernel = std::source_location::current().function_name();  // with its parameters' types
  return simt::submit(stream, [kernel, named, schedule = simt::current_schedule(), arguments...] {
    return simt::launch(named, schedule, [&] { kernel(arguments...); });
  });
}

}  // namespace updraft::cuda
