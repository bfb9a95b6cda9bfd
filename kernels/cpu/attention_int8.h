// Attention over int8 pages in integer arithmetic, over any vector type V. Its dot product (four
// bytes per lane, as in the matmul) takes four dimensions of K for a lane's key, and four keys of V
// for a lane's dimension; kv_layout.h keeps both side by side for it.
//
// A query becomes bytes with one scale, like a token of K. A probability is first multiplied by the
// scale of its token's V, then becomes hi + lo / 128 of the chunk's largest such weight, both
// signed bytes: about 15 bits, so that a chunk where one key outweighs all others keeps the others
// too. The sums of a chunk are exact integers.
#pragma once

#include <cstdint>

#include "kernels/cpu/attention_chunk.h"
#include "kernels/cpu/head_rotation.h"
#include "kernels/cpu/row_kernel.h"

namespace updraft {

template <class V>
struct AttendInt8 {
  using F = typename V::F;
  using I = typename V::I;
  using B = typename V::B;
  static constexpr int kPerGroup = kKeyGroup / V::kLanes;
  // Where dot() wants unsigned bytes, pages hold them with an offset of 128.
  static constexpr int kOffset = V::kSignedBytes ? 0 : 128;
  // Registers of sums in flight: enough to hide the dot product's latency.
  static constexpr int kSums = 4 * V::kSlab;

  // The parts of the scratch.
  struct Scratch {
    int8_t* q;        // [slots][head_dim_padded]
    float* turned;    // [head_dim_padded] one query, rotated
    float* q_scale;   // [slots] from integer products to powers of two, without K's scale
    int32_t* q_init;  // [slots] takes kOffset out of the products
    float* scores;    // [kQueryGroup][kKeyChunk]
    int8_t* high;     // [kQueryGroup][kKeyChunk] the probabilities
    int8_t* low;
  };
  static UPDRAFT_INLINE Scratch scratch_of(const AttentionBlock& op) {
    const int64_t slots = op.row_count * op.group + kQueryGroup;
    Scratch s;
    s.scores = op.scratch;
    float* next = s.scores + kQueryGroup * kKeyChunk;
    s.high = reinterpret_cast<int8_t*>(next);
    s.low = s.high + kQueryGroup * kKeyChunk;
    next += kQueryGroup * kKeyChunk / 2;
    s.q_scale = next;
    s.q_init = reinterpret_cast<int32_t*>(next + slots);
    s.turned = next + 2 * slots;
    s.q = reinterpret_cast<int8_t*>(s.turned + op.kv->head_dim_padded);
    return s;
  }

  static UPDRAFT_INLINE void prepare(const AttentionBlock& op, int slots) {
    const Scratch s = scratch_of(op);
    const int stride = op.kv->head_dim_padded;
    const float scale = op.scale * kLog2E / static_cast<float>(rotation_block(op.head_dim));
    float* x = s.turned;
    for (int i = 0; i < slots; ++i) {
      int8_t* to = s.q + static_cast<int64_t>(i) * stride;
      s.q_scale[i] = 0.0F;
      s.q_init[i] = 0;
      if (i >= op.row_count * op.group) {
        for (int d = 0; d < stride; ++d) to[d] = 0;
        continue;
      }
      const float* from = query_of(op, i);
      for (int d = 0; d < op.head_dim; ++d) x[d] = from[d];
      for (int d = op.head_dim; d < stride; ++d) x[d] = 0.0F;
      rotate_head<V>(x, op.head_dim);
      const float peak = peak_of<V>(x, op.head_dim);
      const F inverse = V::set1(peak > 1e-30F ? 127.0F / peak : 0.0F);
      I sum = V::set1_int(0);
      for (int d = 0; d < stride; d += V::kLanes) {
        const I q = V::round_to_int(V::mul(V::load(x + d), inverse));
        V::store_s8(to + d, q);
        sum = V::add_int(sum, q);
      }
      s.q_scale[i] = peak > 1e-30F ? scale * (peak / 127.0F) : 0.0F;
      s.q_init[i] = -kOffset * V::reduce_add_int(sum);
    }
  }

  // scores[t * kKeyChunk + ...] = (q[t] . k) * scale of k, for kColumns registers of keys.
  template <int kQueries, int kColumns>
  static __attribute__((noinline)) void score_columns(const int8_t* q, int64_t q_stride,
                                                      const int32_t* q_init, int quads,
                                                      const std::byte* const* columns,
                                                      const int64_t* ahead_bytes,
                                                      const float* const* scales, float* scores) {
    I sum[kQueries][kColumns];
#pragma GCC unroll 8
    for (int t = 0; t < kQueries; ++t) {
#pragma GCC unroll 8
      for (int i = 0; i < kColumns; ++i) sum[t][i] = V::set1_int(q_init[t]);
    }
    for (int quad = 0; quad < quads; ++quad) {
      if (ahead_bytes != nullptr) {
        for (int i = 0; i < kColumns; ++i)
          V::prefetch(columns[i] + ahead_bytes[i] + quad * 4 * kKeyGroup, 64);
      }
      B k[kColumns];
#pragma GCC unroll 8
      for (int i = 0; i < kColumns; ++i) k[i] = V::load_bytes(columns[i] + quad * 4 * kKeyGroup);
#pragma GCC unroll 8
      for (int t = 0; t < kQueries; ++t) {
#pragma GCC unroll 16
        for (int i = 0; i < kColumns; ++i) {
          sum[t][i] = V::template dot<8, 1>(sum[t][i], &k[i], q + t * q_stride + 4 * quad);
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kColumns; ++i) {
      const F scale = V::load(scales[i]);
#pragma GCC unroll 8
      for (int t = 0; t < kQueries; ++t) {
        V::store(scores + t * kKeyChunk + i * V::kLanes, V::mul(V::to_float(sum[t][i]), scale));
      }
    }
  }

  template <int kQueries>
  static UPDRAFT_INLINE void score_chunk(const AttentionBlock& op, const KeyChunk& chunk, int query,
                                         const Scratch& s) {
    constexpr int kColumns = kSums / kQueries < kPerGroup * KeyChunk::kGroups
                                 ? kSums / kQueries
                                 : kPerGroup * KeyChunk::kGroups;
    const int64_t stride = op.kv->head_dim_padded;
    const int quads = (op.head_dim + 3) / 4;
    const KeyColumns<V, kColumns> columns(op, chunk, 4);
    const float* scales[KeyColumns<V, kColumns>::kAll + kColumns];
    for (int i = 0; i < columns.count + kColumns; ++i) {
      const int column = i < columns.count ? i : columns.count - 1;
      scales[i] = chunk.k_scales(*op.kv, column / kPerGroup) + (column % kPerGroup) * V::kLanes;
    }
    for (int i = 0; i < columns.count; i += kColumns) {
      score_columns<kQueries, kColumns>(
          s.q + query * stride, stride, s.q_init + query, quads, columns.at + i,
          query == 0 ? columns.ahead_bytes + i : nullptr, scales + i, s.scores + i * V::kLanes);
    }
  }

  // The probabilities of query slot t as bytes. Returns what one unit of them is worth, and their
  // sum in units.
  struct Weights {
    float unit;
    int32_t sum;
  };
  static UPDRAFT_INLINE Weights quantize_weights(const AttentionBlock& op, const KeyChunk& chunk,
                                                 int limit, float* p, int8_t* high, int8_t* low) {
    const int count = chunk.group_count * kPerGroup;
    F peak = V::zero();
    for_columns<V>(chunk, limit, [&](int i, int n) {
      const int g = i / kPerGroup;
      const F scale = V::load(chunk.v_scales(*op.kv, g) + (i % kPerGroup) * V::kLanes);
      F weight = V::mul(V::load(p + i * V::kLanes), scale);
      if (n < V::kLanes) weight = V::keep_first(weight, n, 0.0F);
      V::store(p + i * V::kLanes, weight);
      peak = V::max(peak, weight);
    });
    const float top = V::reduce_max(peak);
    const F inverse = V::set1(top > 1e-30F ? 127.0F / top : 0.0F);
    const F parts = V::set1(128.0F);
    I sum = V::set1_int(0);
    for (int i = 0; i < count; ++i) {
      const F x = V::mul(V::load(p + i * V::kLanes), inverse);
      const I whole = V::round_to_int(x);
      const I rest = V::round_to_int(V::mul(V::sub(x, V::to_float(whole)), parts));
      V::store_s8(high + i * V::kLanes, whole);
      V::store_s8(low + i * V::kLanes, rest);
      if constexpr (kOffset != 0)
        sum = V::add_int(sum, V::add_int(V::template shift_left<7>(whole), rest));
    }
    return {top > 1e-30F ? top / (127.0F * 128.0F) : 0.0F,
            kOffset != 0 ? V::reduce_add_int(sum) : 0};
  }

  // out[t] = out[t] * factor[t] + sum over keys of weight[t][key] * v[key], kVectors registers of
  // dimensions.
  template <int kQueries, int kVectors>
  static __attribute__((noinline)) void add_values(const AttentionBlock& op, const KeyChunk& chunk,
                                                   bool fetch_ahead, int key_limit,
                                                   const Scratch& s, int slot,
                                                   const Weights* weights, const float* factor,
                                                   int dim_first, float* out) {
    const int64_t stride = op.kv->head_dim_padded;
    I high[kQueries][kVectors];
    I low[kQueries][kVectors];
#pragma GCC unroll 8
    for (int t = 0; t < kQueries; ++t) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        high[t][j] = V::set1_int(0);
        low[t][j] = V::set1_int(-kOffset * weights[t].sum);
      }
    }
    for (int g = 0; g < chunk.group_count; ++g) {
      const int quads = (chunk.keys_below(g, key_limit) + 3) / 4;
      const std::byte* row = chunk.v_group(*op.kv, g) + static_cast<int64_t>(dim_first) * 4;
      const int64_t ahead_bytes =
          chunk.v_group(*op.kv, group_ahead(chunk, g)) - chunk.v_group(*op.kv, g);
      const int8_t* p_high = s.high + slot * kKeyChunk + g * kKeyGroup;
      const int8_t* p_low = s.low + slot * kKeyChunk + g * kKeyGroup;
      for (int quad = 0; quad < quads; ++quad, row += 4 * stride) {
        if (fetch_ahead) V::prefetch(row + ahead_bytes, kVectors * V::kLanes * 4);
        B v[kVectors];
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j) v[j] = V::load_bytes(row + j * V::kLanes * 4);
#pragma GCC unroll 8
        for (int t = 0; t < kQueries; ++t) {
#pragma GCC unroll 4
          for (int j = 0; j < kVectors; ++j) {
            high[t][j] =
                V::template dot<8, 1>(high[t][j], &v[j], p_high + t * kKeyChunk + 4 * quad);
            low[t][j] = V::template dot<8, 1>(low[t][j], &v[j], p_low + t * kKeyChunk + 4 * quad);
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < kQueries; ++t) {
      const F keep = V::set1(factor[t]);
      const F unit = V::set1(weights[t].unit);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        float* to = out + t * stride + j * V::kLanes;
        const F sum = V::to_float(V::add_int(V::template shift_left<7>(high[t][j]), low[t][j]));
        V::store(to, V::fma(sum, unit, V::mul(V::load(to), keep)));
      }
    }
  }

  // Queries [query, query + query_count) against one chunk; the slots up to kQueries hold zeros.
  template <int kQueries>
  static __attribute__((noinline)) void chunk(const AttentionBlock& op, const KeyChunk& chunk,
                                              int query, int query_count, const StateView& state) {
    const int key_first = chunk.key_first[0];
    const int limit_max = key_count_of(op, query + query_count - 1);  // the last sees most
    if (limit_max <= key_first) return;
    const Scratch s = scratch_of(op);
    score_chunk<kQueries>(op, chunk, query, s);
    float factor[kQueries];
    Weights weights[kQueries];
#pragma GCC unroll 8
    for (int t = 0; t < kQueries; ++t) {
      float* scores = s.scores + t * kKeyChunk;
      int8_t* high = s.high + t * kKeyChunk;
      int8_t* low = s.low + t * kKeyChunk;
      const int limit = key_count_of(op, query + t);
      if (t < query_count && limit > key_first) {
        factor[t] =
            softmax_update<V>(chunk, limit, s.q_scale[query + t], scores, state.softmax[query + t]);
        weights[t] = quantize_weights(op, chunk, limit, scores, high, low);
      } else {
        factor[t] = 1.0F;
        weights[t] = {0.0F, 0};
        for (int i = 0; i < kKeyChunk; ++i) high[i] = low[i] = 0;
      }
    }
    constexpr int kPart = kQueries > 4 ? 4 : kQueries;
    constexpr int kVectors = kSums / 2 / kPart < V::kSlab ? kSums / 2 / kPart : V::kSlab;
    const int stride = op.kv->head_dim_padded;
    for (int t = 0; t < kQueries; t += kPart) {
      float* out = state.values + static_cast<int64_t>(query + t) * stride;
      const bool fetch_ahead = query == 0 && t == 0;
      int dim = 0;
      for (; dim + kVectors * V::kLanes <= stride; dim += kVectors * V::kLanes) {
        add_values<kPart, kVectors>(op, chunk, fetch_ahead, limit_max, s, t, weights + t,
                                    factor + t, dim, out + dim);
      }
      for (; dim < stride; dim += V::kLanes) {
        add_values<kPart, 1>(op, chunk, fetch_ahead, limit_max, s, t, weights + t, factor + t, dim,
                             out + dim);
      }
    }
  }

  // Out of the rotation, in place.
  static UPDRAFT_INLINE void finish(float* out, int head_dim) {
    rotate_head<V>(out, head_dim);
    const float inverse = 1.0F / static_cast<float>(rotation_block(head_dim));
    for (int d = 0; d < head_dim; ++d) out[d] *= inverse;
  }
};

}  // namespace updraft
