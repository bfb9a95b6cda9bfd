// Attention of one block of queries over the pages of its sequence, over any vector type V: one
// pass over the keys with a running softmax (FlashAttention's recurrence). The queries of a block
// share one kv head, so K and V are read once for up to kQueryGroup of them; scores come out as
// whole registers of keys because K is interleaved (kv_layout.h).
//
// The keys are cut into segments of kSegmentChunks chunks, each with a softmax of its own, merged
// in order. Threads can so share one long sequence, and whether they do changes no bit.
//
// Batch invariance: keys are taken in chunks of kKeyChunk that depend on positions alone. A query
// whose keys end before or inside a chunk gets probability 0 for the rest of it and adds exact
// zeros, as it would alone.
#pragma once

#include <cstdint>

#include "kernels/cpu/row_kernel.h"

namespace updraft {

template <class V, DType kType>
UPDRAFT_INLINE typename V::F load_kv(const std::byte* at) {
  if constexpr (kType == DType::kF32) {
    return V::load(reinterpret_cast<const float*>(at));
  } else if constexpr (kType == DType::kF16) {
    return V::load_half(at);
  } else if constexpr (kType == DType::kBF16) {
    return V::load_bf16(at);
  } else {
    return V::load_s8(at);
  }
}

// The places of one chunk of keys: group g of 16 positions, of which key_count[g] exist in its
// page.
struct KeyChunk {
  static constexpr int kGroups = kKeyChunk / kKeyGroup;
  static constexpr int kAhead =
      2;  // groups of the next chunk that are known, to fetch them in time
  const std::byte* part[kGroups + kAhead];  // page part that holds the group
  int group_in_page[kGroups + kAhead];
  int key_first[kGroups + kAhead];  // position of the group's first key in the sequence
  int key_count[kGroups + kAhead];
  int group_count;    // of this chunk
  int located_count;  // and of the next
};

// Scores of kQueries queries with kColumns registers of keys, each one dimension after the other.
// scores[t * kKeyChunk + ...] = q[t] . k
template <class V, DType kType, int kQueries, int kColumns>
UPDRAFT_INLINE void score_columns(const float* q, int64_t q_stride, int head_dim,
                                  const std::byte* const* columns, float* scores) {
  constexpr int kBytes = KvLayout::value_bytes(kType);
  typename V::F sum[kQueries][kColumns];
  for (int t = 0; t < kQueries; ++t) {
    for (int i = 0; i < kColumns; ++i) sum[t][i] = V::zero();
  }
  for (int d = 0; d < head_dim; ++d) {
    typename V::F k[kColumns];
    for (int i = 0; i < kColumns; ++i)
      k[i] = load_kv<V, kType>(columns[i] + d * kKeyGroup * kBytes);
#pragma GCC unroll 8
    for (int t = 0; t < kQueries; ++t) {
      const typename V::F x = V::set1(q[t * q_stride + d]);
#pragma GCC unroll 8
      for (int i = 0; i < kColumns; ++i) sum[t][i] = V::fma(k[i], x, sum[t][i]);
    }
  }
  for (int t = 0; t < kQueries; ++t) {
    for (int i = 0; i < kColumns; ++i) V::store(scores + t * kKeyChunk + i * V::kLanes, sum[t][i]);
  }
}

// Scores of kQueries queries with all keys of a chunk. Slots beyond the keys hold anything.
// fetch_ahead: the first pass over these keys brings the next groups into the cache; pages are too
// short for the hardware to see them coming.
template <class V, DType kType, int kQueries>
UPDRAFT_INLINE void score_chunk(const AttentionBlock& op, const KeyChunk& chunk, bool fetch_ahead,
                                const float* q, int64_t q_stride, float* scores) {
  constexpr int kBytes = KvLayout::value_bytes(kType);
  constexpr int kPerGroup = kKeyGroup / V::kLanes;
  constexpr int kColumns = kQueryGroup / kQueries;  // registers at a time: 8 sums in flight
  const std::byte* columns[kKeyChunk / V::kLanes + kColumns];
  const int count = chunk.group_count * kPerGroup;
  for (int i = 0; i < count; ++i) {
    const int g = i / kPerGroup;
    columns[i] = chunk.part[g] + chunk.group_in_page[g] * op.kv->k_group_bytes +
                 (i % kPerGroup) * V::kLanes * kBytes;
  }
  // A short last set repeats the last column; its scores land behind the keys' and are not read.
  for (int i = count; i < count + kColumns; ++i) columns[i] = columns[count - 1];
  for (int i = 0; i < count; i += kColumns) {
    if (fetch_ahead) {
      for (int g = i / kPerGroup; g < (i + kColumns) / kPerGroup; ++g) {
        const int next = g + KeyChunk::kAhead;
        if (next >= chunk.located_count) break;
        V::prefetch(chunk.part[next] + chunk.group_in_page[next] * op.kv->k_group_bytes,
                    op.kv->k_group_bytes);
      }
    }
    float set[kQueries * kKeyChunk];
    const bool whole = i + kColumns <= count;
    float* to = whole ? scores + i * V::kLanes : set;
    score_columns<V, kType, kQueries, kColumns>(q, q_stride, op.head_dim, columns + i, to);
    if (!whole) {
      for (int t = 0; t < kQueries; ++t) {
        __builtin_memcpy(scores + t * kKeyChunk + i * V::kLanes, set + t * kKeyChunk,
                         static_cast<size_t>(count - i) * V::kLanes * sizeof(float));
      }
    }
  }
  if constexpr (kType == DType::kQ8_0) {
    for (int i = 0; i < count; ++i) {
      const int g = i / kPerGroup;
      const std::byte* scales =
          chunk.part[g] + op.kv->k_scale_offset_bytes +
          4 * (chunk.group_in_page[g] * kKeyGroup + (i % kPerGroup) * V::kLanes);
      const typename V::F scale = V::load(reinterpret_cast<const float*>(scales));
      for (int t = 0; t < kQueries; ++t) {
        float* s = scores + t * kKeyChunk + i * V::kLanes;
        V::store(s, V::mul(V::load(s), scale));
      }
    }
  }
}

// Running state of one query: out[d] and
struct SoftmaxState {
  float max;
  float sum;
};

// Lanes of register `i` of a chunk that hold keys below `limit`.
template <class V>
UPDRAFT_INLINE int lanes_below(const KeyChunk& chunk, int i, int limit) {
  constexpr int kPerGroup = kKeyGroup / V::kLanes;
  const int g = i / kPerGroup;
  const int end = chunk.key_first[g] + chunk.key_count[g];
  const int last = limit < end ? limit : end;
  const int n = last - (chunk.key_first[g] + (i % kPerGroup) * V::kLanes);
  return n < 0 ? 0 : n > V::kLanes ? V::kLanes : n;
}

// Turns a query's scores into probabilities against its new running maximum; returns the factor for
// what it has so far.
template <class V>
UPDRAFT_INLINE float softmax_update(const KeyChunk& chunk, int limit, float* scores,
                                    SoftmaxState& state) {
  constexpr int kPerGroup = kKeyGroup / V::kLanes;
  const int count = chunk.group_count * kPerGroup;
  const float low = -__builtin_inff();
  typename V::F peak = V::set1(low);
  for (int i = 0; i < count; ++i) {
    const int n = lanes_below<V>(chunk, i, limit);
    typename V::F s = V::load(scores + i * V::kLanes);
    if (n < V::kLanes) s = V::keep_first(s, n, low);
    peak = V::max(peak, s);
  }
  const float chunk_max = V::reduce_max(peak);
  const float max = chunk_max > state.max ? chunk_max : state.max;
  const typename V::F minus_max = V::set1(-max);
  typename V::F sum = V::zero();
  for (int i = 0; i < count; ++i) {
    const int n = lanes_below<V>(chunk, i, limit);
    typename V::F p = exp_of<V>(V::add(V::load(scores + i * V::kLanes), minus_max));
    if (n < V::kLanes) p = V::keep_first(p, n, 0.0F);
    sum = V::add(sum, p);
    V::store(scores + i * V::kLanes, p);
  }
  const float factor = V::first(exp_of<V>(V::set1(state.max - max)));
  state.max = max;
  state.sum = state.sum * factor + V::reduce_add(sum);
  return factor;
}

// out[t] = out[t] * factor[t] + sum over keys of p[t][key] * v[key], kVectors registers of
// dimensions at a time.
template <class V, DType kType, int kQueries, int kVectors>
UPDRAFT_INLINE void add_values(const AttentionBlock& op, const KeyChunk& chunk, bool fetch_ahead,
                               int key_limit, const float* p, const float* factor, int dim_first,
                               float* out, int64_t out_stride) {
  constexpr int kBytes = KvLayout::value_bytes(kType);
  typename V::F sum[kQueries][kVectors];
  for (int t = 0; t < kQueries; ++t) {
    for (int j = 0; j < kVectors; ++j) {
      sum[t][j] = V::mul(V::load(out + t * out_stride + j * V::kLanes), V::set1(factor[t]));
    }
  }
  for (int g = 0; g < chunk.group_count; ++g) {
    const int next = g + KeyChunk::kAhead;
    if (fetch_ahead && next < chunk.located_count) {
      V::prefetch(chunk.part[next] + op.kv->v_offset_bytes +
                      chunk.group_in_page[next] * kKeyGroup * op.kv->v_row_bytes,
                  kKeyGroup * op.kv->v_row_bytes);
    }
    const int left = key_limit - chunk.key_first[g];
    const int keys = left < chunk.key_count[g] ? left : chunk.key_count[g];
    const std::byte* row = chunk.part[g] + op.kv->v_offset_bytes +
                           chunk.group_in_page[g] * kKeyGroup * op.kv->v_row_bytes +
                           static_cast<int64_t>(dim_first) * kBytes;
    for (int key = 0; key < keys; ++key, row += op.kv->v_row_bytes) {
      typename V::F v[kVectors];
      for (int j = 0; j < kVectors; ++j) v[j] = load_kv<V, kType>(row + j * V::kLanes * kBytes);
#pragma GCC unroll 8
      for (int t = 0; t < kQueries; ++t) {
        const typename V::F weight = V::set1(p[t * kKeyChunk + g * kKeyGroup + key]);
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) sum[t][j] = V::fma(weight, v[j], sum[t][j]);
      }
    }
  }
  for (int t = 0; t < kQueries; ++t) {
    for (int j = 0; j < kVectors; ++j) V::store(out + t * out_stride + j * V::kLanes, sum[t][j]);
  }
}

// The queries of a block, packed: index = row * group + head in group.
struct QueryState {
  float* q;    // [queries][head_dim_padded], scaled
  float* out;  // [queries][head_dim_padded]
  SoftmaxState* softmax;
  float* scores;  // [kQueryGroup][kKeyChunk]
};

// Queries [query, query + query_count) against one chunk; query_count <= kQueries, the slots beyond
// hold zeros.
template <class V, DType kType, int kQueries>
__attribute__((noinline)) void attend_queries(const AttentionBlock& op, const KeyChunk& chunk,
                                              int query, int query_count, const QueryState& state) {
  const int64_t stride = op.kv->head_dim_padded;
  const int key_first = chunk.key_first[0];
  // The last query of the group sees most.
  const int limit_max = op.first_key_count + (query + query_count - 1) / op.group;
  if (limit_max <= key_first) return;
  score_chunk<V, kType, kQueries>(op, chunk, query == 0, state.q + query * stride, stride,
                                  state.scores);
  float factor[kQueries];
  for (int t = 0; t < kQueries; ++t) {
    const int limit = op.first_key_count + (query + t) / op.group;
    float* scores = state.scores + t * kKeyChunk;
    factor[t] = 1.0F;
    if (t < query_count && limit > key_first) {
      factor[t] = softmax_update<V>(chunk, limit, scores, state.softmax[query + t]);
    } else {
      for (int i = 0; i < kKeyChunk; ++i) scores[i] = 0.0F;
    }
  }
  if constexpr (kType == DType::kQ8_0) {  // V's scale goes into the probability
    for (int g = 0; g < chunk.group_count; ++g) {
      const auto* scales =
          reinterpret_cast<const float*>(chunk.part[g] + op.kv->v_scale_offset_bytes) +
          chunk.group_in_page[g] * kKeyGroup;
      for (int t = 0; t < kQueries; ++t) {
        float* p = state.scores + t * kKeyChunk + g * kKeyGroup;
        for (int i = 0; i < kKeyGroup; i += V::kLanes)
          V::store(p + i, V::mul(V::load(p + i), V::load(scales + i)));
      }
    }
  }
  // Fewer queries than a register file holds sums for: at most 4 at a time.
  constexpr int kPart = kQueries > 4 ? 4 : kQueries;
  for (int t = 0; t < kQueries; t += kPart) {
    const float* p = state.scores + t * kKeyChunk;
    float* out = state.out + (query + t) * stride;
    int dim = 0;
    for (; dim + V::kSlab * V::kLanes <= stride; dim += V::kSlab * V::kLanes) {
      const bool fetch_ahead = query == 0 && t == 0 && dim == 0;
      add_values<V, kType, kPart, V::kSlab>(op, chunk, fetch_ahead, limit_max, p, factor + t, dim,
                                            out + dim, stride);
    }
    for (; dim < stride; dim += V::kLanes) {
      add_values<V, kType, kPart, 1>(op, chunk, false, limit_max, p, factor + t, dim, out + dim,
                                     stride);
    }
  }
}

// The groups of 16 positions from `group` on, up to a chunk's worth, as far as `key_limit`.
UPDRAFT_INLINE void locate_chunk(const AttentionBlock& op, int group, int key_limit,
                                 KeyChunk& chunk) {
  const KvLayout& kv = *op.kv;
  chunk.group_count = 0;
  chunk.located_count = 0;
  for (int i = 0; i < KeyChunk::kGroups + KeyChunk::kAhead; ++i) {
    const int page = (group + i) / kv.groups_per_page;
    const int in_page = (group + i) % kv.groups_per_page;
    const int first = page * kv.page_tokens + in_page * kKeyGroup;
    if (first >= key_limit) return;
    const int in_group = kv.page_tokens - in_page * kKeyGroup;
    chunk.part[i] = op.pool + op.pages[page] * op.page_stride_bytes;
    chunk.group_in_page[i] = in_page;
    chunk.key_first[i] = first;
    chunk.key_count[i] = in_group < kKeyGroup ? in_group : kKeyGroup;
    chunk.located_count = i + 1;
    chunk.group_count = i < KeyChunk::kGroups ? i + 1 : KeyChunk::kGroups;
  }
}

// The parts of a state (kernels.h): values [slots][head_dim padded], then the softmax of each slot.
// A pass may take zeros for the queries it lacks, so there are kQueryGroup slots more than queries.
struct StateView {
  float* values;
  SoftmaxState* softmax;
  int slots;
};

UPDRAFT_INLINE StateView view_state(const AttentionBlock& op, float* state) {
  const int slots = op.row_count * op.group + kQueryGroup;
  float* softmax = state + static_cast<int64_t>(slots) * op.kv->head_dim_padded;
  return {state, reinterpret_cast<SoftmaxState*>(softmax), slots};
}

// Zeroes the state and lays the scaled queries side by side.
UPDRAFT_INLINE QueryState start_segment(const AttentionBlock& op, float* state) {
  const StateView view = view_state(op, state);
  const int64_t stride = op.kv->head_dim_padded;
  QueryState queries;
  queries.q = op.scratch;
  queries.scores = op.scratch + view.slots * stride;
  queries.out = view.values;
  queries.softmax = view.softmax;
  for (int64_t i = 0; i < view.slots * stride; ++i) queries.q[i] = queries.out[i] = 0.0F;
  for (int i = 0; i < view.slots; ++i) queries.softmax[i] = {-__builtin_inff(), 0.0F};
  for (int i = 0; i < op.row_count * op.group; ++i) {
    const float* from = op.q + (i / op.group) * op.q_row_stride + (i % op.group) * op.head_dim;
    for (int d = 0; d < op.head_dim; ++d) queries.q[i * stride + d] = from[d] * op.scale;
  }
  return queries;
}

template <class V, DType kType>
void attend_segment_of(const AttentionBlock& op, int segment, float* state) {
  const QueryState queries = start_segment(op, state);
  const int count = op.row_count * op.group;
  const int key_limit = op.first_key_count + op.row_count - 1;
  constexpr int kGroups = kKeyChunk / kKeyGroup;
  KeyChunk chunk;
  for (int c = 0; c < kSegmentChunks; ++c) {
    locate_chunk(op, (segment * kSegmentChunks + c) * kGroups, key_limit, chunk);
    if (chunk.group_count == 0) break;
    int i = 0;
    for (; i + kQueryGroup <= count; i += kQueryGroup) {
      attend_queries<V, kType, kQueryGroup>(op, chunk, i, kQueryGroup, queries);
    }
    // One more pass over the keys, with the next larger number of queries; those too many are
    // zeros.
    const int left = count - i;
    if (left > 4) {
      attend_queries<V, kType, 8>(op, chunk, i, left, queries);
    } else if (left > 2) {
      attend_queries<V, kType, 4>(op, chunk, i, left, queries);
    } else if (left == 2) {
      attend_queries<V, kType, 2>(op, chunk, i, left, queries);
    } else if (left == 1) {
      attend_queries<V, kType, 1>(op, chunk, i, left, queries);
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
    const typename V::F keep = exp_of<V>(V::set1(to.softmax[i].max - max));
    const typename V::F add = exp_of<V>(V::set1(from.softmax[i].max - max));
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
  }
}

}  // namespace updraft
