// The quantisers of the K formats, one superblock of 256 weights at a time. Internal to
// kernels/quant.
#pragma once

#include <cstddef>

namespace updraft {

void encode_q4_k(const float* x, std::byte* block);  // 144 bytes
void encode_q5_k(const float* x, std::byte* block);  // 176 bytes
void encode_q6_k(const float* x, std::byte* block);  // 210 bytes

}  // namespace updraft
