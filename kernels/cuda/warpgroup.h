// What kernels of warpgroups share: how threads and registers are divided between those that bring
// in and those that multiply, and descriptors of matrices in shared memory. For kernels.
#pragma once

#include "kernels/cuda/device.h"

namespace updraft::cuda {

inline constexpr int kGroupThreads = 128;
inline constexpr int kPatternBytes = 1024;  // of the swizzling: tiles begin at multiples
// Of a block of three groups with 65,536 registers: 128 * 40 + 256 * 232.
inline constexpr int kBringRegisters = 40;
inline constexpr int kMultiplyRegisters = 232;

// The next multiple of kPatternBytes of the shared window.
UPDRAFT_DEVICE std::byte* next_pattern(std::byte* at) {
  return at + (kPatternBytes - shared_address(at) % kPatternBytes) % kPatternBytes;
}

// "Matrix descriptor" of the PTX ISA, with 128-byte swizzling: rows of 128 bytes, patterns of 8
// rows one behind the other. A matrix that begins `n` bytes later is descriptor + (n >> 4).
UPDRAFT_DEVICE uint64_t k_major_matrix(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kStride = uint64_t{kPatternBytes >> 4} << 32;
  return kSwizzle128 | kStride | (address >> 4 & 0x3FFFU);
}
// The same with 64 columns in a row; the next 64 lie leading_bytes on.
UPDRAFT_DEVICE uint64_t mn_major_matrix(uint32_t address, uint32_t leading_bytes) {
  return k_major_matrix(address) | uint64_t{leading_bytes >> 4} << 16;
}

}  // namespace updraft::cuda
