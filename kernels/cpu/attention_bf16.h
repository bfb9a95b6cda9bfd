// Attention over bf16 pages for vector types whose instruction set multiplies pairs of bf16 and
// adds them to f32: two dimensions of K for a lane's key, two keys of V for a lane's dimension.
// Products are exact; queries and probabilities are rounded to bf16, as K and V were.
#pragma once

#include <cstdint>

#include "kernels/cpu/attention_chunk.h"
#include "kernels/cpu/bf16_pairs.h"

namespace updraft {

template <class V>
struct AttendBf16 {
  using F = typename V::F;
  using B = typename V::B;
  static constexpr int kPerGroup = kKeyGroup / V::kLanes;
  static constexpr int kSums = 4 * V::kSlab;  // registers of sums in flight

  struct Scratch {
    float* scores;  // [kQueryGroup][kKeyChunk]
    uint16_t* p;    // [kQueryGroup][kKeyChunk] probabilities, bf16
    float* scaled;  // [head_dim_padded] one query
    uint16_t* q;    // [slots][head_dim_padded] bf16
  };
  static UPDRAFT_INLINE Scratch scratch_of(const AttentionBlock& op) {
    Scratch s;
    s.scores = op.scratch;
    float* next = s.scores + kQueryGroup * kKeyChunk;
    s.p = reinterpret_cast<uint16_t*>(next);
    s.scaled = next + kQueryGroup * kKeyChunk / 2;
    s.q = reinterpret_cast<uint16_t*>(s.scaled + op.kv->head_dim_padded);
    return s;
  }

  static UPDRAFT_INLINE void prepare(const AttentionBlock& op, int slots) {
    const Scratch s = scratch_of(op);
    const int stride = op.kv->head_dim_padded;
    const int count = op.row_count * op.group;
    const float scale = op.scale * kLog2E;
    for (int i = 0; i < slots; ++i) {
      const int dims = i < count ? op.head_dim : 0;
      const float* from = i < count ? query_of(op, i) : nullptr;
      for (int d = 0; d < dims; ++d) s.scaled[d] = from[d] * scale;
      for (int d = dims; d < stride; ++d) s.scaled[d] = 0.0F;
      for (int d = 0; d < stride; d += V::kLanes)
        V::store_bf16(s.q + static_cast<int64_t>(i) * stride + d, V::load(s.scaled + d));
    }
  }

  template <int kQueries, int kColumns>
  static __attribute__((noinline)) void score_columns(const uint16_t* q, int64_t q_stride,
                                                      int pairs, const std::byte* const* columns,
                                                      const int64_t* ahead_bytes, float* scores) {
    F sum[kQueries][kColumns];
#pragma GCC unroll 8
    for (int t = 0; t < kQueries; ++t) {
#pragma GCC unroll 8
      for (int i = 0; i < kColumns; ++i) sum[t][i] = V::zero();
    }
    for (int pair = 0; pair < pairs; ++pair) {
      if (ahead_bytes != nullptr) {
        for (int i = 0; i < kColumns; ++i)
          V::prefetch(columns[i] + ahead_bytes[i] + pair * 4 * kKeyGroup, 64);
      }
      B k[kColumns];
#pragma GCC unroll 8
      for (int i = 0; i < kColumns; ++i) k[i] = V::load_bytes(columns[i] + pair * 4 * kKeyGroup);
#pragma GCC unroll 8
      for (int t = 0; t < kQueries; ++t) {
#pragma GCC unroll 8
        for (int i = 0; i < kColumns; ++i)
          sum[t][i] = V::dot_pairs(sum[t][i], k[i], q + t * q_stride + 2 * pair);
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
    constexpr int kAll = kPerGroup * KeyChunk::kGroups;
    constexpr int kColumns = kSums / kQueries < kAll ? kSums / kQueries : kAll;
    const int64_t stride = op.kv->head_dim_padded;
    const KeyColumns<V, kColumns> columns(op, chunk, 4);
    for (int i = 0; i < columns.count; i += kColumns) {
      score_columns<kQueries, kColumns>(
          s.q + query * stride, stride, (op.head_dim + 1) / 2, columns.at + i,
          query == 0 ? columns.ahead_bytes + i : nullptr, s.scores + i * V::kLanes);
    }
  }

  // out[t] = out[t] * factor[t] + sum over keys of p[t][key] * v[key], kVectors registers of
  // dimensions.
  template <int kQueries, int kVectors>
  static __attribute__((noinline)) void add_values(const AttentionBlock& op, const KeyChunk& chunk,
                                                   bool fetch_ahead, int key_limit,
                                                   const uint16_t* p, const float* factor,
                                                   int dim_first, float* out) {
    const int64_t stride = op.kv->head_dim_padded;
    F sum[kQueries][kVectors];
#pragma GCC unroll 8
    for (int t = 0; t < kQueries; ++t) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j)
        sum[t][j] = V::mul(V::load(out + t * stride + j * V::kLanes), V::set1(factor[t]));
    }
    for (int g = 0; g < chunk.group_count; ++g) {
      const int keys = chunk.keys_below(g, key_limit);
      const std::byte* row = chunk.v_group(*op.kv, g) + static_cast<int64_t>(dim_first) * 4;
      const int64_t ahead_bytes =
          chunk.v_group(*op.kv, group_ahead(chunk, g)) - chunk.v_group(*op.kv, g);
      for (int key = 0; key < keys; key += 2, row += 4 * stride) {
        if (fetch_ahead) V::prefetch(row + ahead_bytes, kVectors * V::kLanes * 4);
        B v[kVectors];
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) {
          v[j] = V::load_bytes(row + j * V::kLanes * 4);
          // The second key does not exist yet: what lies there may be no number.
          if (key + 1 == keys) v[j] = V::first_of_pairs(v[j]);
        }
#pragma GCC unroll 8
        for (int t = 0; t < kQueries; ++t) {
#pragma GCC unroll 4
          for (int j = 0; j < kVectors; ++j)
            sum[t][j] = V::dot_pairs(sum[t][j], v[j], p + t * kKeyChunk + g * kKeyGroup + key);
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
    const int stride = op.kv->head_dim_padded;
    const int key_first = chunk.key_first[0];
    const int limit_max = key_count_of(op, query + query_count - 1);  // the last sees most
    if (limit_max <= key_first) return;
    const Scratch s = scratch_of(op);
    score_chunk<kQueries>(op, chunk, query, s);
    float factor[kQueries];
    const int keys = chunk.group_count * kKeyGroup;
    for (int t = 0; t < kQueries; ++t) {
      const int limit = key_count_of(op, query + t);
      float* scores = s.scores + t * kKeyChunk;
      uint16_t* p = s.p + t * kKeyChunk;
      factor[t] = 1.0F;
      if (t < query_count && limit > key_first) {
        factor[t] = softmax_update<V>(chunk, limit, 1.0F, scores, state.softmax[query + t]);
        for (int i = 0; i < keys; i += V::kLanes) V::store_bf16(p + i, V::load(scores + i));
      } else {
        for (int i = 0; i < keys; ++i) p[i] = 0;
      }
    }
    constexpr int kPart = kQueries > 4 ? 4 : kQueries;
    for (int t = 0; t < kQueries; t += kPart) {
      const uint16_t* p = s.p + t * kKeyChunk;
      float* out = state.values + static_cast<int64_t>(query + t) * stride;
      const bool fetch_ahead = query == 0 && t == 0;
      int dim = 0;
      for (; dim + V::kSlab * V::kLanes <= stride; dim += V::kSlab * V::kLanes) {
        add_values<kPart, V::kSlab>(op, chunk, fetch_ahead, limit_max, p, factor + t, dim,
                                    out + dim);
      }
      for (; dim < stride; dim += V::kLanes)
        add_values<kPart, 1>(op, chunk, fetch_ahead, limit_max, p, factor + t, dim, out + dim);
    }
  }
};

}  // namespace updraft
