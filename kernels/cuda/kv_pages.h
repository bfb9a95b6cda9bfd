// Where keys and values lie: pages of page_tokens positions for all layers, so that one copy moves
// a page.
//
//   page:  for each layer: K [kv_head][page_tokens][padded_dim], V the same; bfloat16, int8 or fp8
//          (e4m3); bytes only: behind them the scales of K [kv_head][page_tokens], then of V, f32;
//          a value is byte * scale
//
// A head of other than 64 or 128 dimensions is padded with zeros to the next of the two; only pages
// know of the padding. Heads live rotated in int8 pages (head_rotation.h): prepare_qkv rotates q, k
// and v, and the attention kernels turn their output back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "common/base/result.h"

namespace updraft::cuda {

enum class KvType : uint8_t { kBf16, kInt8, kFp8 };

// Plain numbers, as kernels take them. Offsets are in bytes; those of parts count from the layer's
// begin within a page.
struct KvPages {
  std::byte* base = nullptr;
  KvType type = KvType::kBf16;
  int32_t layer_count = 0;
  int32_t kv_head_count = 0;
  int32_t head_dim = 0;        // as the model has it
  int32_t padded_dim = 0;      // 64 or 128
  int32_t rotation_block = 1;  // dimensions that a head's rotation mixes, a power of two; 1: none
  int32_t page_tokens = 0;
  int32_t page_shift = 0;  // page_tokens = 1 << page_shift
  int64_t page_bytes = 0;  // from page to page; a multiple of 16
  int64_t layer_bytes = 0;
  int64_t head_bytes = 0;
  int64_t v_offset = 0;
  int64_t k_scale_offset = 0;
  int64_t v_scale_offset = 0;

  // Errors: head_dim no multiple of 8 up to 128, page_tokens no power of two in 16..256.
  static Result<KvPages> of(KvType type, int32_t layer_count, int32_t kv_head_count,
                            int32_t head_dim, int32_t page_tokens);
};

inline Result<KvPages> KvPages::of(KvType type, int32_t layer_count, int32_t kv_head_count,
                                   int32_t head_dim, int32_t page_tokens) {
  if (head_dim < 8 || head_dim > 128 || head_dim % 8 != 0) {
    return fail("KV pages on the GPU: heads of " + std::to_string(head_dim) +
                " dimensions (a multiple of 8, at most 128)");
  }
  if (page_tokens < 16 || page_tokens > 256 || (page_tokens & (page_tokens - 1)) != 0) {
    return fail("KV pages on the GPU: " + std::to_string(page_tokens) +
                " tokens a page (16, 32, 64, 128 or 256)");
  }
  if (layer_count < 1 || kv_head_count < 1) {
    return fail("KV pages on the GPU: " + std::to_string(layer_count) + " layers of " +
                std::to_string(kv_head_count) + " heads");
  }
  KvPages out;
  out.type = type;
  out.layer_count = layer_count;
  out.kv_head_count = kv_head_count;
  out.head_dim = head_dim;
  out.padded_dim = head_dim <= 64 ? 64 : 128;
  if (type == KvType::kInt8) out.rotation_block = head_dim & -head_dim;
  out.page_tokens = page_tokens;
  while (1 << out.page_shift < page_tokens) ++out.page_shift;
  const bool bytes = type != KvType::kBf16;
  out.head_bytes = int64_t{page_tokens} * out.padded_dim * (bytes ? 1 : 2);
  out.v_offset = out.head_bytes * kv_head_count;
  out.k_scale_offset = 2 * out.v_offset;
  const int64_t scale_bytes = bytes ? int64_t{page_tokens} * kv_head_count * 4 : int64_t{0};
  out.v_scale_offset = out.k_scale_offset + scale_bytes;
  out.layer_bytes = out.v_scale_offset + scale_bytes;
  out.page_bytes = out.layer_bytes * layer_count;
  return out;
}

}  // namespace updraft::cuda
