#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <vector>

#include "common/base/median.h"
#include "tools/gpu/ceilings.h"
#include "tools/gpu/report.h"

namespace updraft::gpu {
namespace {

#define RETURN_IF_CUDA_FAILS(call)                                                    \
  do {                                                                                \
    if (const cudaError_t status = (call); status != cudaSuccess)                     \
      return fail(std::string("cuda: ") + #call + ": " + cudaGetErrorString(status)); \
  } while (false)

constexpr size_t kCopyBytesMax = size_t{4} << 30;
constexpr int kRepetitions = 5;
constexpr float kMilliseconds = 50.0F;  // at least, per repetition

struct FreeDevice {
  void operator()(void* memory) const { cudaFree(memory); }
};
struct FreeHost {
  void operator()(void* memory) const { cudaFreeHost(memory); }
};
using DeviceMemory = std::unique_ptr<void, FreeDevice>;
using PinnedMemory = std::unique_ptr<void, FreeHost>;

Result<DeviceMemory> device_memory(size_t bytes) {
  void* memory = nullptr;
  RETURN_IF_CUDA_FAILS(cudaMalloc(&memory, bytes));
  RETURN_IF_CUDA_FAILS(cudaMemset(memory, 0, bytes));
  return DeviceMemory(memory);
}

// Seconds of one call of `work`, which only puts work into the default stream.
Result<double> seconds_of(const std::function<void()>& work) {
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  RETURN_IF_CUDA_FAILS(cudaEventCreate(&begin));
  RETURN_IF_CUDA_FAILS(cudaEventCreate(&end));
  const auto time = [&](int count) -> Result<float> {
    RETURN_IF_CUDA_FAILS(cudaEventRecord(begin));
    for (int i = 0; i < count; ++i) work();
    RETURN_IF_CUDA_FAILS(cudaEventRecord(end));
    RETURN_IF_CUDA_FAILS(cudaEventSynchronize(end));
    RETURN_IF_CUDA_FAILS(cudaGetLastError());
    float milliseconds = 0.0F;
    RETURN_IF_CUDA_FAILS(cudaEventElapsedTime(&milliseconds, begin, end));
    return milliseconds;
  };
  if (const auto warm = time(3); !warm) return warm.error();
  const auto once = time(3);
  if (!once) return once.error();
  const int count = 1 + static_cast<int>(kMilliseconds * 3.0F / (*once + 1e-3F));
  std::vector<double> seconds;
  for (int i = 0; i < kRepetitions; ++i) {
    const auto taken = time(count);
    if (!taken) return taken.error();
    seconds.push_back(static_cast<double>(*taken) * 1e-3 / count);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return median(seconds);
}

__global__ void __launch_bounds__(512) read_kernel(const uint4* from, size_t count, uint32_t* out) {
  uint32_t mix = 0;
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + 3 * stride < count; i += 4 * stride) {
    const uint4 a = __ldcs(from + i);
    const uint4 b = __ldcs(from + i + stride);
    const uint4 c = __ldcs(from + i + 2 * stride);
    const uint4 d = __ldcs(from + i + 3 * stride);
    mix ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w;
    mix ^= c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
  }
  for (; i < count; i += stride) mix ^= from[i].x;
  if (mix == 0x12345678U) *out = mix;  // never: the memory is zero; but the loads count
}

__global__ void empty_kernel() {}

Result<void> measure_memory(Ceilings& out, int multiprocessors) {
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  RETURN_IF_CUDA_FAILS(cudaMemGetInfo(&free_bytes, &total_bytes));
  // A part of a GPU has less; still far more than the caches hold.
  const size_t bytes = std::min(kCopyBytesMax, free_bytes / 4 / 4096 * 4096);
  auto from = device_memory(bytes);
  if (!from) return from.error();
  auto to = device_memory(bytes);
  if (!to) return to.error();
  const auto copy =
      seconds_of([&] { cudaMemcpyAsync(to->get(), from->get(), bytes, cudaMemcpyDeviceToDevice); });
  if (!copy) return copy.error();
  out.copy_bytes_per_s = 2.0 * static_cast<double>(bytes) / *copy;
  const auto read = seconds_of([&] {
    read_kernel<<<static_cast<unsigned>(multiprocessors * 4), 512>>>(
        static_cast<const uint4*>(from->get()), bytes / sizeof(uint4),
        static_cast<uint32_t*>(to->get()));
  });
  if (!read) return read.error();
  out.read_bytes_per_s = static_cast<double>(bytes) / *read;

  constexpr size_t kUploadBytes = size_t{256} << 20;
  void* pinned = nullptr;
  RETURN_IF_CUDA_FAILS(cudaMallocHost(&pinned, kUploadBytes));
  const PinnedMemory host(pinned);
  const auto upload = seconds_of(
      [&] { cudaMemcpyAsync(to->get(), host.get(), kUploadBytes, cudaMemcpyHostToDevice); });
  if (!upload) return upload.error();
  out.upload_bytes_per_s = static_cast<double>(kUploadBytes) / *upload;
  return {};
}

// Products of random bits would be denormals and NaN; zeros draw less power than real numbers and
// so overstate the rate. A fixed pattern of small numbers does neither.
__global__ void fill_kernel(uint16_t* out, size_t count, bool bytes) {
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x) {
    const uint32_t mixed = static_cast<uint32_t>(i) * 2654435761U >> 16;
    out[i] = bytes ? static_cast<uint16_t>(mixed)
                   : static_cast<uint16_t>(0x3C00U | (mixed & 0x83FFU));  // about +-0.01 .. 0.03
  }
}

Result<void> measure_products(Ceilings& out) {
  constexpr int kSize = 8192;
  constexpr double kOperations = 2.0 * kSize * kSize * kSize;
  constexpr size_t kCount = size_t{kSize} * kSize;
  auto a = device_memory(kCount * 2);
  if (!a) return a.error();
  auto b = device_memory(kCount * 2);
  if (!b) return b.error();
  auto c = device_memory(kCount * 4);
  if (!c) return c.error();
  cublasHandle_t handle = nullptr;
  if (cublasCreate(&handle) != CUBLAS_STATUS_SUCCESS) return fail("cublas: no handle");
  const std::unique_ptr<cublasContext, decltype(&cublasDestroy)> owner(handle, cublasDestroy);
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
  const auto product = [&](cudaDataType in, cudaDataType to, cublasComputeType_t compute,
                           const void* one, const void* zero) {
    const cublasStatus_t now = cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, kSize, kSize, kSize,
                                            one, a->get(), in, kSize, b->get(), in, kSize, zero,
                                            c->get(), to, kSize, compute, CUBLAS_GEMM_DEFAULT);
    if (now != CUBLAS_STATUS_SUCCESS) status = now;
  };
  const float one = 1.0F;
  const float zero = 0.0F;
  for (const auto& memory : {a->get(), b->get()})
    fill_kernel<<<1024, 256>>>(static_cast<uint16_t*>(memory), kCount, false);
  const auto bf16 =
      seconds_of([&] { product(CUDA_R_16BF, CUDA_R_16BF, CUBLAS_COMPUTE_32F, &one, &zero); });
  if (!bf16) return bf16.error();
  if (status != CUBLAS_STATUS_SUCCESS)
    return fail(std::string("cublas: ") + cublasGetStatusString(status));
  out.bf16_per_s = kOperations / *bf16;

  const int32_t whole = 1;
  const int32_t nothing = 0;
  for (const auto& memory : {a->get(), b->get()})
    fill_kernel<<<1024, 256>>>(static_cast<uint16_t*>(memory), kCount / 2, true);
  const auto int8 =
      seconds_of([&] { product(CUDA_R_8I, CUDA_R_32I, CUBLAS_COMPUTE_32I, &whole, &nothing); });
  if (!int8) return int8.error();
  if (status == CUBLAS_STATUS_SUCCESS) out.int8_per_s = kOperations / *int8;
  return {};
}

Result<void> measure_launches(Ceilings& out) {
  const auto eager = seconds_of([] {
    for (int i = 0; i < 100; ++i) empty_kernel<<<1, 32>>>();
  });
  if (!eager) return eager.error();
  out.launch_s = *eager / 100;

  constexpr int kNodes = 400;
  cudaStream_t stream = nullptr;
  RETURN_IF_CUDA_FAILS(cudaStreamCreate(&stream));
  RETURN_IF_CUDA_FAILS(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < kNodes; ++i) empty_kernel<<<1, 32, 0, stream>>>();
  cudaGraph_t graph = nullptr;
  RETURN_IF_CUDA_FAILS(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t ready = nullptr;
  RETURN_IF_CUDA_FAILS(cudaGraphInstantiate(&ready, graph, 0));
  const auto replayed = seconds_of([&] { cudaGraphLaunch(ready, nullptr); });
  cudaGraphExecDestroy(ready);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  if (!replayed) return replayed.error();
  out.graph_launch_s = *replayed / kNodes;
  return {};
}

}  // namespace

Result<Ceilings> measure_ceilings() {
  Ceilings out;
  cudaDeviceProp properties{};
  RETURN_IF_CUDA_FAILS(cudaGetDeviceProperties(&properties, 0));
  int driver = 0;
  RETURN_IF_CUDA_FAILS(cudaDriverGetVersion(&driver));
  out.device = std::string(properties.name) + ", sm_" + std::to_string(properties.major) +
               std::to_string(properties.minor) + ", " +
               std::to_string(properties.multiProcessorCount) + " multiprocessors, CUDA " +
               std::to_string(driver / 1000) + "." + std::to_string(driver % 1000 / 10);
  if (const auto done = measure_memory(out, properties.multiProcessorCount); !done)
    return done.error();
  // Without these there are still shares of the memory's bandwidth.
  for (const auto measure : {measure_products, measure_launches}) {
    if (const auto done = measure(out); !done)
      std::fprintf(stderr, "updraft_gpu: ceilings: %s\n", done.message().c_str());
  }
  return out;
}

}  // namespace updraft::gpu
