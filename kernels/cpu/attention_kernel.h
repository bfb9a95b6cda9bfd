// Attention of one block of queries over the pages of its sequence, over any vector type V: one
// pass over the keys with a running softmax (FlashAttention's recurrence). The queries of a block
// share one kv head, so K and V are read once for up to kQueryGroup of them; scores come out as
// whole registers of keys because K is interleaved (kv_layout.h). How scores and values are
// multiplied is the page type's own: attention_float.h, attention_bf16.h, attention_int8.h.
//
// The keys are cut into segments of kSegmentChunks chunks, each with a softmax of its own, merged
// in order. Threads can so share one long sequence, and whether they do changes no bit.
//
// Batch invariance: keys are taken in chunks of kKeyChunk that depend on positions alone. A query
// whose keys end before or inside a chunk gets probability 0 for the rest of it and adds exact
// zeros, as it would alone.
#pragma once

#include <cstdint>

#include "kernels/cpu/attention_bf16.h"
#include "kernels/cpu/attention_chunk.h"
#include "kernels/cpu/attention_float.h"
#include "kernels/cpu/attention_int8.h"

namespace updraft {

// The arithmetic of a page type.
template <class V, DType kType>
struct AttendOf {
  using Type = AttendFloat<V, kType>;
};
template <class V>
struct AttendOf<V, DType::kQ8_0> {
  using Type = AttendInt8<V>;
};
template <HasBf16Pairs V>
struct AttendOf<V, DType::kBF16> {
  using Type = AttendBf16<V>;
};

template <class V, DType kType>
void attend_segment_of(const AttentionBlock& op, int segment, float* state) {
  using Attend = typename AttendOf<V, kType>::Type;
  const StateView view = view_state(op, state);
  clear_state(op, view);
  Attend::prepare(op, view.slots);
  const int count = op.row_count * op.group;
  const int key_limit = op.first_key_count + op.row_count - 1;
  constexpr int kGroups = kKeyChunk / kKeyGroup;
  KeyChunk chunk;
  for (int c = 0; c < kSegmentChunks; ++c) {
    locate_chunk(op, (segment * kSegmentChunks + c) * kGroups, key_limit, chunk);
    if (chunk.group_count == 0) break;
    int i = 0;
    for (; i + kQueryGroup <= count; i += kQueryGroup) {
      Attend::template chunk<kQueryGroup>(op, chunk, i, kQueryGroup, view);
    }
    // One more pass over the keys, with the next larger number of queries; those too many are
    // zeros.
    const int left = count - i;
    if (left > 4) {
      Attend::template chunk<8>(op, chunk, i, left, view);
    } else if (left > 2) {
      Attend::template chunk<4>(op, chunk, i, left, view);
    } else if (left == 2) {
      Attend::template chunk<2>(op, chunk, i, left, view);
    } else if (left == 1) {
      Attend::template chunk<1>(op, chunk, i, left, view);
    }
  }
}

template <class V>
void attend_segment(const AttentionBlock& op, int segment, float* state) {
  switch (op.kv->type) {
    case DType::kF32:
      return attend_segment_of<V, DType::kF32>(op, segment, state);
    case DType::kF16:
      return attend_segment_of<V, DType::kF16>(op, segment, state);
    case DType::kBF16:
      return attend_segment_of<V, DType::kBF16>(op, segment, state);
    default:
      return attend_segment_of<V, DType::kQ8_0>(op, segment, state);
  }
}

// A query without a key in the later segment has -infinity for its maximum there: its own factor is
// exactly 1 and it adds exact zeros, as if the segment had not been.
template <class V>
void merge_segment(const AttentionBlock& op, const float* later, float* state) {
  const StateView to = view_state(op, state);
  const StateView from = view_state(op, const_cast<float*>(later));
  const int64_t stride = op.kv->head_dim_padded;
  for (int i = 0; i < op.row_count * op.group; ++i) {
    const float max =
        from.softmax[i].max > to.softmax[i].max ? from.softmax[i].max : to.softmax[i].max;
    const typename V::F keep = exp2_of<V>(V::set1(to.softmax[i].max - max));
    const typename V::F add = exp2_of<V>(V::set1(from.softmax[i].max - max));
    to.softmax[i].sum = to.softmax[i].sum * V::first(keep) + from.softmax[i].sum * V::first(add);
    to.softmax[i].max = max;
    float* values = to.values + i * stride;
    const float* more = from.values + i * stride;
    for (int64_t d = 0; d < stride; d += V::kLanes) {
      V::store(values + d, V::fma(V::load(more + d), add, V::mul(V::load(values + d), keep)));
    }
  }
}

template <class V>
void finish_attention(const AttentionBlock& op, const float* state) {
  const StateView view = view_state(op, const_cast<float*>(state));
  for (int i = 0; i < op.row_count * op.group; ++i) {
    float* to = op.out + (i / op.group) * op.out_row_stride + (i % op.group) * op.head_dim;
    const float* values = view.values + static_cast<int64_t>(i) * op.kv->head_dim_padded;
    const float inverse = 1.0F / view.softmax[i].sum;
    for (int d = 0; d < op.head_dim; ++d) to[d] = values[d] * inverse;
    if (op.kv->type == DType::kQ8_0) AttendInt8<V>::finish(to, op.head_dim);
  }
}

}  // namespace updraft
