// Attention over pages of floats in f32 arithmetic, over any vector type V. K holds one dimension
// of 16 keys side by side, so a register of it gives one term of 16 scores; V holds rows.
#pragma once

#include <cstdint>

#include "kernels/cpu/attention_chunk.h"

namespace updraft {

template <class V, DType kType>
UPDRAFT_INLINE typename V::F load_kv(const std::byte* at) {
  static_assert(kType == DType::kF32 || kType == DType::kF16 || kType == DType::kBF16);
  if constexpr (kType == DType::kF32) {
    return V::load(reinterpret_cast<const float*>(at));
  } else if constexpr (kType == DType::kF16) {
    return V::load_half(at);
  } else {
    return V::load_bf16(at);
  }
}

template <class V, DType kType>
struct AttendFloat {
  using F = typename V::F;
  static constexpr int kBytes = KvLayout::value_bytes(kType);
  static constexpr int kPerGroup = kKeyGroup / V::kLanes;

  struct Scratch {
    float* q;       // [slots][head_dim_padded], scaled
    float* scores;  // [kQueryGroup][kKeyChunk]
  };
  static UPDRAFT_INLINE Scratch scratch_of(const AttentionBlock& op) {
    return {op.scratch + kQueryGroup * kKeyChunk, op.scratch};
  }

  static UPDRAFT_INLINE void prepare(const AttentionBlock& op, int slots) {
    const Scratch s = scratch_of(op);
    const int stride = op.kv->head_dim_padded;
    const int count = op.row_count * op.group;
    const float scale = op.scale * kLog2E;
    for (int i = 0; i < slots; ++i) {
      float* to = s.q + static_cast<int64_t>(i) * stride;
      const int dims = i < count ? op.head_dim : 0;
      const float* from = i < count ? query_of(op, i) : nullptr;
      for (int d = 0; d < dims; ++d) to[d] = from[d] * scale;
      for (int d = dims; d < stride; ++d) to[d] = 0.0F;
    }
  }

  // scores[t * kKeyChunk + ...] = q[t] . k for kColumns registers of keys, one dimension after the
  // other.
  template <int kQueries, int kColumns>
  static __attribute__((noinline)) void score_columns(const float* q, int64_t q_stride,
                                                      int head_dim, const std::byte* const* columns,
                                                      const int64_t* ahead_bytes, float* scores) {
    F sum[kQueries][kColumns];
#pragma GCC unroll 8
    for (int t = 0; t < kQueries; ++t) {
#pragma GCC unroll 8
      for (int i = 0; i < kColumns; ++i) sum[t][i] = V::zero();
    }
    for (int d = 0; d < head_dim; ++d) {
      if (ahead_bytes != nullptr && d * kKeyGroup * kBytes % 64 == 0) {
        for (int i = 0; i < kColumns; ++i)
          V::prefetch(columns[i] + ahead_bytes[i] + d * kKeyGroup * kBytes, 64);
      }
      F k[kColumns];
#pragma GCC unroll 8
      for (int i = 0; i < kColumns; ++i)
        k[i] = load_kv<V, kType>(columns[i] + d * kKeyGroup * kBytes);
#pragma GCC unroll 8
      for (int t = 0; t < kQueries; ++t) {
        const F x = V::set1(q[t * q_stride + d]);
#pragma GCC unroll 8
        for (int i = 0; i < kColumns; ++i) sum[t][i] = V::fma(k[i], x, sum[t][i]);
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < kQueries; ++t) {
#pragma GCC unroll 8
      for (int i = 0; i < kColumns; ++i)
        V::store(scores + t * kKeyChunk + i * V::kLanes, sum[t][i]);
    }
  }

  // Scores of kQueries queries with all keys of a chunk. Slots beyond the keys hold anything.
  template <int kQueries>
  static UPDRAFT_INLINE void score_chunk(const AttentionBlock& op, const KeyChunk& chunk, int query,
                                         const Scratch& s) {
    constexpr int kColumns = kQueryGroup / kQueries;  // registers at a time: 8 sums in flight
    const int64_t stride = op.kv->head_dim_padded;
    const KeyColumns<V, kColumns> columns(op, chunk, kBytes);
    for (int i = 0; i < columns.count; i += kColumns) {
      score_columns<kQueries, kColumns>(s.q + query * stride, stride, op.head_dim, columns.at + i,
                                        query == 0 ? columns.ahead_bytes + i : nullptr,
                                        s.scores + i * V::kLanes);
    }
  }

  // out[t] = out[t] * factor[t] + sum over keys of p[t][key] * v[key], kVectors registers of
  // dimensions at a time.
  template <int kQueries, int kVectors>
  static __attribute__((noinline)) void add_values(const AttentionBlock& op, const KeyChunk& chunk,
                                                   bool fetch_ahead, int key_limit, const float* p,
                                                   const float* factor, int dim_first, float* out) {
    const int64_t stride = op.kv->head_dim_padded;
    F sum[kQueries][kVectors];
#pragma GCC unroll 8
    for (int t = 0; t < kQueries; ++t) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        sum[t][j] = V::mul(V::load(out + t * stride + j * V::kLanes), V::set1(factor[t]));
      }
    }
    for (int g = 0; g < chunk.group_count; ++g) {
      const int keys = chunk.keys_below(g, key_limit);
      const std::byte* row = chunk.v_group(*op.kv, g) + static_cast<int64_t>(dim_first) * kBytes;
      const int64_t ahead_bytes =
          chunk.v_group(*op.kv, group_ahead(chunk, g)) - chunk.v_group(*op.kv, g);
      for (int key = 0; key < keys; ++key, row += op.kv->v_row_bytes) {
        if (fetch_ahead) V::prefetch(row + ahead_bytes, kVectors * V::kLanes * kBytes);
        F v[kVectors];
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) v[j] = load_kv<V, kType>(row + j * V::kLanes * kBytes);
#pragma GCC unroll 8
        for (int t = 0; t < kQueries; ++t) {
          const F weight = V::set1(p[t * kKeyChunk + g * kKeyGroup + key]);
#pragma GCC unroll 4
          for (int j = 0; j < kVectors; ++j) sum[t][j] = V::fma(weight, v[j], sum[t][j]);
        }
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < kQueries; ++t) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) V::store(out + t * stride + j * V::kLanes, sum[t][j]);
    }
  }

  // Queries [query, query + query_count) against one chunk; the slots up to kQueries hold zeros.
  template <int kQueries>
  static __attribute__((noinline)) void chunk(const AttentionBlock& op, const KeyChunk& chunk,
                                              int query, int query_count, const StateView& state) {
    const int64_t stride = op.kv->head_dim_padded;
    const int key_first = chunk.key_first[0];
    const int limit_max = key_count_of(op, query + query_count - 1);  // the last sees most
    if (limit_max <= key_first) return;
    const Scratch s = scratch_of(op);
    score_chunk<kQueries>(op, chunk, query, s);
    float factor[kQueries];
    for (int t = 0; t < kQueries; ++t) {
      const int limit = key_count_of(op, query + t);
      float* scores = s.scores + t * kKeyChunk;
      factor[t] = 1.0F;
      if (t < query_count && limit > key_first) {
        factor[t] = softmax_update<V>(chunk, limit, 1.0F, scores, state.softmax[query + t]);
      } else {
        for (int i = 0; i < kKeyChunk; ++i) scores[i] = 0.0F;
      }
    }
    // Fewer queries than a register file holds sums for: at most 4 at a time.
    constexpr int kPart = kQueries > 4 ? 4 : kQueries;
    for (int t = 0; t < kQueries; t += kPart) {
      const float* p = s.scores + t * kKeyChunk;
      float* out = state.values + (query + t) * stride;
      const bool fetch_ahead = query == 0 && t == 0;
      int dim = 0;
      for (; dim + V::kSlab * V::kLanes <= stride; dim += V::kSlab * V::kLanes) {
        add_values<kPart, V::kSlab>(op, chunk, fetch_ahead, limit_max, p, factor + t, dim,
                                    out + dim);
      }
      for (; dim < stride; dim += V::kLanes) {
        add_values<kPart, 1>(op, chunk, fetch_ahead, limit_max, p, factor + t, dim, out + dim);
      }
    }
  }
};

}  // namespace updraft
