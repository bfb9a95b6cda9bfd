// The device functions as PTX, one instruction each. Included through device.h; the only file that
// names a CUDA header. Instructions and layouts: PTX ISA 9.0, sections 9.7.9 (data
// movement), 9.7.13 (barriers, votes), 9.7.15 (mma).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <string>

#include "common/base/result.h"
#include "kernels/cuda/types.h"

#define UPDRAFT_DEVICE __device__ __forceinline__
#define UPDRAFT_KERNEL(threads) __global__ void __launch_bounds__(threads)
#define UPDRAFT_KERNEL_ALONE(threads) __global__ void __launch_bounds__(threads, 1)
#define UPDRAFT_UNROLL _Pragma("unroll")
#define UPDRAFT_UNROLL_BY(count) UPDRAFT_PRAGMA(unroll count)
#define UPDRAFT_PRAGMA(text) _Pragma(#text)
#define UPDRAFT_NO_UNROLL _Pragma("unroll 1")
#define UPDRAFT_GRID_CONSTANT __grid_constant__

namespace updraft::cuda {

inline constexpr uint32_t kAllLanes = 0xFFFFFFFF;

// --- who am I ---
UPDRAFT_DEVICE uint32_t thread_x() { return threadIdx.x; }
UPDRAFT_DEVICE uint32_t block_x() { return blockIdx.x; }
UPDRAFT_DEVICE uint32_t block_y() { return blockIdx.y; }
UPDRAFT_DEVICE uint32_t block_z() { return blockIdx.z; }
UPDRAFT_DEVICE uint32_t block_threads() { return blockDim.x; }
UPDRAFT_DEVICE uint32_t grid_x() { return gridDim.x; }
UPDRAFT_DEVICE uint32_t grid_y() { return gridDim.y; }

// --- barriers ---
UPDRAFT_DEVICE void sync_block() { __syncthreads(); }
UPDRAFT_DEVICE void sync_named(uint32_t id, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
UPDRAFT_DEVICE void arrive_named(uint32_t id, uint32_t threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
UPDRAFT_DEVICE void sync_warp(uint32_t mask = kAllLanes) { __syncwarp(mask); }

// --- shuffles, votes, reductions ---
template <typename T>
UPDRAFT_DEVICE T shuffle(T value, uint32_t from_lane, uint32_t mask = kAllLanes) {
  return __shfl_sync(mask, value, static_cast<int>(from_lane));
}
template <typename T>
UPDRAFT_DEVICE T shuffle_xor(T value, uint32_t bits, uint32_t mask = kAllLanes) {
  return __shfl_xor_sync(mask, value, static_cast<int>(bits));
}
template <typename T>
UPDRAFT_DEVICE T shuffle_down(T value, uint32_t delta, uint32_t mask = kAllLanes) {
  return __shfl_down_sync(mask, value, delta);
}
template <typename T>
UPDRAFT_DEVICE T shuffle_up(T value, uint32_t delta, uint32_t mask = kAllLanes) {
  return __shfl_up_sync(mask, value, delta);
}
UPDRAFT_DEVICE uint32_t ballot(bool vote, uint32_t mask = kAllLanes) {
  return __ballot_sync(mask, vote);
}
UPDRAFT_DEVICE bool any(bool vote, uint32_t mask = kAllLanes) {
  return __any_sync(mask, vote) != 0;
}
UPDRAFT_DEVICE bool all(bool vote, uint32_t mask = kAllLanes) {
  return __all_sync(mask, vote) != 0;
}
UPDRAFT_DEVICE uint32_t reduce_add(uint32_t value, uint32_t mask = kAllLanes) {
  return __reduce_add_sync(mask, value);
}
UPDRAFT_DEVICE uint32_t reduce_max(uint32_t value, uint32_t mask = kAllLanes) {
  return __reduce_max_sync(mask, value);
}
UPDRAFT_DEVICE uint32_t reduce_min(uint32_t value, uint32_t mask = kAllLanes) {
  return __reduce_min_sync(mask, value);
}

// --- matrices ---
UPDRAFT_DEVICE uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}
UPDRAFT_DEVICE void load_matrix(uint32_t (&out)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(out[0])
               : "r"(shared_address(row))
               : "memory");
}
UPDRAFT_DEVICE void load_matrix(uint32_t (&out)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(out[0]), "=r"(out[1])
               : "r"(shared_address(row))
               : "memory");
}
UPDRAFT_DEVICE void load_matrix(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}
UPDRAFT_DEVICE void load_matrix_transposed(uint32_t (&out)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(out[0])
               : "r"(shared_address(row))
               : "memory");
}
UPDRAFT_DEVICE void load_matrix_transposed(uint32_t (&out)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(out[0]), "=r"(out[1])
               : "r"(shared_address(row))
               : "memory");
}
UPDRAFT_DEVICE void load_matrix_transposed(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}
UPDRAFT_DEVICE void mma_bf16(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
UPDRAFT_DEVICE void mma_f16(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
UPDRAFT_DEVICE void mma_s8(int32_t (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// --- memory ---
// The loads are volatile so that they stay where the kernel puts them: well before their use.
UPDRAFT_DEVICE void copy_async16(void* to_shared, const void* from_global, bool valid) {
  const int source_bytes = valid ? 16 : 0;
  asm volatile(
      "cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)),
      "l"(from_global), "r"(source_bytes)
      : "memory");
}
UPDRAFT_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Groups>
UPDRAFT_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Groups) : "memory");
}

template <typename T>
UPDRAFT_DEVICE T load(const T* at) {
  static_assert(sizeof(T) == 16 || sizeof(T) == 8 || sizeof(T) == 4 || sizeof(T) == 2 ||
                sizeof(T) == 1);
  T value;
  if constexpr (sizeof(T) == 16) {
    auto* word = reinterpret_cast<uint32_t*>(&value);
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "l"(at));
  } else if constexpr (sizeof(T) == 8) {
    auto* word = reinterpret_cast<uint32_t*>(&value);
    asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(word[0]), "=r"(word[1]) : "l"(at));
  } else if constexpr (sizeof(T) == 4) {
    uint32_t bits;
    asm("ld.global.nc.u32 %0, [%1];" : "=r"(bits) : "l"(at));
    memcpy(&value, &bits, 4);
  } else if constexpr (sizeof(T) == 2) {
    uint16_t bits;
    asm("ld.global.nc.u16 %0, [%1];" : "=h"(bits) : "l"(at));
    memcpy(&value, &bits, 2);
  } else {
    uint16_t bits;
    asm("ld.global.nc.u8 %0, [%1];" : "=h"(bits) : "l"(at));
    const auto low = static_cast<uint8_t>(bits);
    memcpy(&value, &low, 1);
  }
  return value;
}
template <typename T>
UPDRAFT_DEVICE T load_once(const T* at) {
  static_assert(sizeof(T) == 16 || sizeof(T) == 8);
  T value;
  auto* word = reinterpret_cast<uint32_t*>(&value);
  if constexpr (sizeof(T) == 16) {
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "l"(at));
  } else {
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v2.u32 {%0, %1}, [%2];"
                 : "=r"(word[0]), "=r"(word[1])
                 : "l"(at));
  }
  return value;
}
// Through the ordinary path: the read-only one is for what does not change while the kernel lives.
template <typename T>
UPDRAFT_DEVICE T load_written(const T* at) {
  static_assert(sizeof(T) == 16 || sizeof(T) == 8 || sizeof(T) == 4);
  uint32_t word[sizeof(T) / 4];
  if constexpr (sizeof(T) == 16) {
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "l"(at)
                 : "memory");
  } else if constexpr (sizeof(T) == 8) {
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];"
                 : "=r"(word[0]), "=r"(word[1])
                 : "l"(at)
                 : "memory");
  } else {
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(word[0]) : "l"(at) : "memory");
  }
  T value;
  memcpy(&value, word, sizeof value);
  return value;
}
UPDRAFT_DEVICE void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
UPDRAFT_DEVICE void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
template <typename T>
UPDRAFT_DEVICE void store(T* at, const T& value) {
  *at = value;
}

template <typename T>
UPDRAFT_DEVICE T atomic_add(T* at, T value) {
  return atomicAdd(at, value);
}
template <typename T>
UPDRAFT_DEVICE T atomic_max(T* at, T value) {
  return atomicMax(at, value);
}
template <typename T>
UPDRAFT_DEVICE T atomic_min(T* at, T value) {
  return atomicMin(at, value);
}
template <typename T>
UPDRAFT_DEVICE T atomic_exchange(T* at, T value) {
  return atomicExch(at, value);
}
template <typename T>
UPDRAFT_DEVICE T atomic_compare_exchange(T* at, T expected, T value) {
  return atomicCAS(at, expected, value);
}
UPDRAFT_DEVICE uint32_t atomic_add_ordered(uint32_t* at, uint32_t value) {
  uint32_t old;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(at), "r"(value)
               : "memory");
  return old;
}
UPDRAFT_DEVICE void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

template <typename T>
UPDRAFT_DEVICE T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char updraft_dynamic_shared[];
  return reinterpret_cast<T*>(updraft_dynamic_shared);
}
template <typename T, int Count, int Tag = 0>
UPDRAFT_DEVICE T* shared_array() {
  __shared__ __align__(16) unsigned char bytes[sizeof(T) * Count];
  return reinterpret_cast<T*>(bytes);
}

// --- numbers ---
UPDRAFT_DEVICE float to_float(Bf16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}
UPDRAFT_DEVICE float to_float(Half value) { return __half2float(__ushort_as_half(value.bits)); }
UPDRAFT_DEVICE float to_float(Float8 value) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(value.bits, __NV_E4M3)));
}
UPDRAFT_DEVICE Float8 to_float8(float value) {
  return {__nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3)};
}
UPDRAFT_DEVICE Bf16 to_bf16(float value) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
}
UPDRAFT_DEVICE Half to_half(float value) { return {__half_as_ushort(__float2half_rn(value))}; }
UPDRAFT_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
UPDRAFT_DEVICE float low_bf16(uint32_t pair) { return __uint_as_float(pair << 16); }
UPDRAFT_DEVICE float high_bf16(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000U); }
// fma by one: sub.bf16x2 and add.bf16x2 begin with sm_90.
UPDRAFT_DEVICE uint32_t add_bf16_pairs(uint32_t a, uint32_t b) {
  uint32_t sum;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(0x3F803F80U), "r"(b));
  return sum;
}
// fma with minus zero, for the same reason.
UPDRAFT_DEVICE uint32_t multiply_bf16_pairs(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000U));
  return product;
}
UPDRAFT_DEVICE uint32_t permute_bytes(uint32_t word, uint32_t selector) {
  return __byte_perm(word, 0, selector);
}
UPDRAFT_DEVICE float low_half(uint32_t pair) {
  return to_float(Half{static_cast<uint16_t>(pair & 0xFFFFU)});
}
UPDRAFT_DEVICE float high_half(uint32_t pair) {
  return to_float(Half{static_cast<uint16_t>(pair >> 16)});
}
UPDRAFT_DEVICE uint32_t float_bits(float value) { return __float_as_uint(value); }
UPDRAFT_DEVICE float bits_float(uint32_t bits) { return __uint_as_float(bits); }
UPDRAFT_DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
UPDRAFT_DEVICE float multiply(float a, float b) { return __fmul_rn(a, b); }
UPDRAFT_DEVICE float exp2_fast(float value) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(value));
  return out;
}
UPDRAFT_DEVICE float inverse_sqrt(float value) { return 1.0F / sqrtf(value); }
UPDRAFT_DEVICE void sine_cosine(float angle, float* sine, float* cosine) {
  sincosf(angle, sine, cosine);
}
UPDRAFT_DEVICE int32_t round_to_int(float value) { return __float2int_rn(value); }
UPDRAFT_DEVICE float log2_of(float value) { return log2f(value); }
UPDRAFT_DEVICE int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}
UPDRAFT_DEVICE int count_bits(uint32_t bits) { return __popc(bits); }
// Index of the lowest bit set; at least one is.
UPDRAFT_DEVICE int first_bit(uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }

// --- launching ---
struct Dim3 {
  uint32_t x = 1;
  uint32_t y = 1;
  uint32_t z = 1;
};
struct LaunchShape {
  Dim3 grid;
  Dim3 block;
  size_t shared_bytes = 0;
  bool early_start = false;
};

// Dynamic shared memory up to which a launch asks for nothing. Every launch may have 48 KiB, static
// arrays included, which have at most the rest (as the emulator checks).
inline constexpr size_t kSharedBytesUnasked = 32 << 10;

// Whether the current device can start a kernel before the one in front has ended: capability 90.
inline bool device_starts_early() {
  constexpr int kDevicesMax = 64;
  static std::atomic<int8_t> known[kDevicesMax];  // 0: not asked yet, 1: no, 2: yes
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kDevicesMax) return false;
  // Nothing else is published with it: a second thread that asks finds the same.
  int8_t answer = known[device].load(std::memory_order_relaxed);
  if (answer == 0) {
    int major = 0;
    const cudaError_t asked =
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    answer = asked == cudaSuccess && major >= 9 ? 2 : 1;
    known[device].store(answer, std::memory_order_relaxed);
  }
  return answer == 2;
}

// Shared memory of a block, dynamic and static, on the current device; 0 where there is none.
inline size_t shared_bytes_max() {
  int device = 0;
  int most = 0;
  const bool known =
      cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess;
  return known ? static_cast<size_t>(most) : 0;
}

template <typename... Parameters, typename... Arguments>
Result<void> launch(void (*kernel)(Parameters...), const LaunchShape& shape, Stream stream,
                    const Arguments&... arguments) {
  if (shape.shared_bytes > kSharedBytesUnasked) {
    const cudaError_t allowed = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes));
    if (allowed != cudaSuccess) {
      (void)cudaGetLastError();  // so that no later call reports it
      return fail("cuda: " + std::to_string(shape.shared_bytes) +
                  " bytes of shared memory for a kernel on a GPU that gives a block at most " +
                  std::to_string(shared_bytes_max()) + ": " + cudaGetErrorString(allowed));
    }
  }
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(shape.grid.x, shape.grid.y, shape.grid.z);
  config.blockDim = dim3(shape.block.x, shape.block.y, shape.block.z);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = shape.early_start && device_starts_early() ? 1 : 0;
  const cudaError_t launched = cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
  if (launched != cudaSuccess) {
    return fail(std::string("cuda: a kernel did not start: ") + cudaGetErrorString(launched));
  }
  return {};
}

}  // namespace updraft::cuda
