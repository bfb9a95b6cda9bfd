// From a product's q, k and v to what attention reads: norm of the heads, rotation, and keys and
// values in their pages.
#pragma once

#include <cstdint>

#include "common/base/result.h"
#include "kernels/cuda/kv_pages.h"
#include "kernels/cuda/types.h"

namespace updraft::cuda {

// The rotations of a step's rows, made once for all layers: out[row, i] = magnitude * {cos,
// sin}(position * inverse_frequency[i]). Rows of images have three positions (time, height, width):
// with sections the first sections[0] pairs turn by the first one, the next sections[1] by the
// second, the rest by the third (M-RoPE of Qwen2-VL and GLM-4.1V).
struct RopeTable {
  int32_t rows = 0;
  int32_t pairs = 0;                         // rope_dims / 2
  const int32_t* positions = nullptr;        // [rows]; with sections [3, rows]
  const float* inverse_frequency = nullptr;  // [pairs]
  float magnitude = 1.0F;                    // other than 1 for YaRN
  Float2* out = nullptr;                     // [rows, pairs]
  int32_t sections[3] = {};                  // pairs of each, together all; zeros: one position
};
// Errors: no rows or pairs, sections that are not all pairs.
Result<void> run_rope_table(const RopeTable& op, Stream stream);

struct PrepareQkv {
  KvPages pages;
  int32_t layer = 0;
  int32_t rows = 0;
  int32_t head_count = 0;
  Bf16* qkv =
      nullptr;  // [rows, (head_count + 2 * kv_head_count) * head_dim]; q is changed in place
  const float* q_norm = nullptr;  // [head_dim]: RMS-norm of each head before the rotation, or null
  const float* k_norm = nullptr;
  float eps = 0.0F;
  const Float2* rotations = nullptr;  // [rows, rope_dims / 2], of run_rope_table()
  int32_t rope_dims = 0;              // even, at most head_dim; dimensions behind pass through
  bool interleaved = false;           // pairs (2i, 2i + 1); otherwise (i, i + rope_dims / 2)
  const int32_t* kv_positions =
      nullptr;  // [rows] where keys and values go; negative: a padded row, they go nowhere
  const int32_t* lines = nullptr;  // [rows] line of the table; of padded rows never looked at
  const int32_t* table = nullptr;  // [.., table_stride]
  int32_t table_stride = 0;
};
// Errors: a shape outside the above; the same by itself, for who prepares in a kernel of his own.
Result<void> check_prepare_qkv(const PrepareQkv& op);
Result<void> run_prepare_qkv(const PrepareQkv& op, Stream stream);

}  // namespace updraft::cuda
