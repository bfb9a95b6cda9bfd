// The inner loops of the CPU backend as a table of functions, one table per instruction set.
// Tiling, threading and memory are above this table (matmul.cpp, attention.cpp, cpu_backend.cpp)
// and know no instruction set; the loops themselves are templates over a vector type
// (matmul_kernel.h, row_kernel.h, attention_kernel.h over vec_*.h).
//
// Batch invariance: every function treats each row with the same operations in the same order,
// however many rows it is given. Only integers are summed in an order that depends on the
// instruction set's grouping, and those are exact.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/kv_layout.h"
#include "kernels/quant/dtype.h"

namespace updraft {

// 32 activations as signed bytes: x ~ scale * q, |q| <= 127.
struct ActBlock {
  int8_t q[32];
  float scale;
  float scaled_sum;  // scale * sum of q: for formats with a minimum
  int32_t neg_sum;   // -(sum of q): unsigned weights with an offset of 2^k start from neg_sum << k
  int32_t neg_sum_low;  // the same over q[0..15] and q[16..31]: Q6_K has a scale per 16 columns
  int32_t neg_sum_high;
};
static_assert(sizeof(ActBlock) == 52);

// tile_count tiles times `tokens` activation rows. acts: ActBlock rows for quantised formats, f32
// rows for float formats. out[t * out_stride + tile * R + r] for token t.
struct MatmulTiles {
  const std::byte* tiles = nullptr;
  int64_t tile_stride_bytes = 0;
  int64_t tile_count = 0;
  int64_t cols = 0;
  const void* acts = nullptr;
  int64_t act_stride_bytes = 0;
  int64_t tokens = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
};

// Activations of many tokens for the panel kernels (panel_kernel.h): the tokens in groups of
// Kernels::panel_tokens, the last group as short as it comes out. A group of T tokens is, for each
// block of 32 columns: scale[T] f32, scaled_sum[T] f32, then 8 times T words of 4 columns (signed
// bytes plus the vector type's bias). The values are those of ActBlock. Groups follow each other
// without a gap.
inline constexpr int64_t kPanelBytesPerBlock = 40;  // of one token

// As MatmulTiles, for the panel layout; tokens begin at a group's first.
struct MatmulPanel {
  const std::byte* tiles = nullptr;
  int64_t tile_stride_bytes = 0;
  int64_t tile_count = 0;
  int64_t cols = 0;
  const std::byte* acts = nullptr;
  int64_t tokens = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
};

// Rotation of one row's heads: out[i] = x[i] * cos - x[j] * sin, out[j] = x[i] * sin + x[j] * cos
// for the pairs (i, j).
struct RopeRow {
  const float* cos = nullptr;  // [pairs], magnitude included
  const float* sin = nullptr;
  int pairs = 0;
  bool interleaved = false;
};

// All queries of one kv head in a block of consecutive rows of one sequence.
struct AttentionBlock {
  const float* q = nullptr;  // row 0's first query head of this kv head
  int64_t q_row_stride = 0;  // floats between rows
  int row_count = 0;
  int group = 0;  // query heads per kv head
  int head_dim = 0;
  int first_key_count = 0;  // keys that row 0 sees; row i sees i more
  float scale = 0.0F;
  const std::byte* pool = nullptr;  // page 0 of this layer and kv head
  const int32_t* pages = nullptr;
  const KvLayout* kv = nullptr;
  float* out = nullptr;
  int64_t out_row_stride = 0;
  float* scratch = nullptr;  // attention_scratch_floats()
};

struct Kernels {
  int tile_rows;
  void (*matmul[kDTypeCount])(const MatmulTiles& op);
  void (*quantize)(const float* x, int64_t cols, ActBlock* out);  // cols a multiple of 32
  // The product for many tokens, and what lays out one group of up to panel_tokens of them. 0 and
  // null where the instruction set has no such kernel, and for float formats.
  int panel_tokens;
  void (*matmul_panel[kDTypeCount])(const MatmulPanel& op);
  void (*quantize_panel)(const float* x, int64_t x_stride, int tokens, int64_t cols,
                         std::byte* out);
  // hidden += delta (times the norm of delta when delta_norm is given); out = rms_norm(hidden) *
  // norm unless null.
  void (*residual_norm)(float* hidden, const float* delta, const float* delta_norm,
                        const float* norm, float eps, float* out, int64_t dim);
  // x = rms_norm(x) * norm (if norm) and then the rotation, in place.
  void (*prepare_head)(float* x, int head_dim, const float* norm, float eps, const RopeRow& rope);
  // Writes one token's k and v of one kv head into its page.
  void (*store_kv)(const KvLayout& kv, std::byte* page, int slot, const float* k, const float* v);
  // rows[t * stride + i] += bias[i] for `count` values of each token.
  void (*add_bias)(float* rows, int64_t stride, int64_t tokens, const float* bias, int64_t count);
  void (*silu_mul)(const float* in, float* out, int64_t dim);
  // Attention of a block, one segment of keys after the other. A state holds, per query, the sum of
  // values weighted by e^(score - max) so far, max, and the sum of the weights; see
  // attention_kernel.h.
  void (*attend_segment)(const AttentionBlock& op, int segment,
                         float* state);  // state := the segment's
  void (*merge_segment)(const AttentionBlock& op, const float* later,
                        float* state);  // state := state with later
  void (*finish_attention)(const AttentionBlock& op,
                           const float* state);  // op.out := values / weights
};

// Floats of the state and of the scratch of a block of this many queries.
constexpr int64_t attention_state_floats(int64_t queries, int head_dim_padded) {
  return (queries + kQueryGroup) * (head_dim_padded + 2);
}
constexpr int64_t attention_scratch_floats(int64_t queries, int head_dim_padded) {
  return (queries + kQueryGroup) * (head_dim_padded + 2) + head_dim_padded +  // scaled queries
         2 * kQueryGroup * kKeyChunk;  // one group's scores and probabilities
}

// Those of the other processor family are declared and not there.
const Kernels& generic_kernels();
const Kernels& avx2_kernels();
const Kernels& avxvnni_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512bf16_kernels();
const Kernels& neon_kernels();
const Kernels& neon_dotprod_kernels();
const Kernels& neon_i8mm_kernels();

}  // namespace updraft
