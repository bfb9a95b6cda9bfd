// The number types of CUDA kernels and their arguments, for every compiler: plain bits, no CUDA
// header.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace updraft::cuda {

// A cudaStream_t; null: the default one, on the emulator (kernels/simt/stream.h) at once.
using Stream = CUstream_st*;

struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};
struct Float8 {  // e4m3
  uint8_t bits;
};

// Bytes that travel in one instruction.
struct alignas(16) Vec16 {
  uint32_t word[4];
};
struct alignas(8) Vec8 {
  uint32_t word[2];
};
// A matrix whose boxes kernels of capability 9.0 copy (tensor_map.h); its content is the driver's.
struct alignas(64) TensorMap {
  uint64_t words[16];
};
struct alignas(8) Float2 {
  float x;
  float y;
};

}  // namespace updraft::cuda
