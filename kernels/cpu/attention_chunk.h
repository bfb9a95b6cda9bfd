// What every arithmetic of attention shares: a chunk of keys located in pages, the state that a
// block of queries carries from chunk to chunk, and the exponential. Softmax runs in powers of two:
// log2(e) goes into the queries' scale.
#pragma once

#include <cstdint>

#include "kernels/cpu/inline.h"
#include "kernels/cpu/kernels.h"

namespace updraft {

inline constexpr float kLog2E = 1.44269504088896341F;

// 2^x to about 1e-7 relative for x <= 127, exactly 1 at 0; everything below -126 gives 2^-126.
// x = n + r, |r| <= 1/2; the polynomial is a minimax fit of 2^r with its constant held at 1.
template <class V>
UPDRAFT_INLINE typename V::F exp2_of(typename V::F x) {
  x = V::max(x, V::set1(-126.0F));
  const typename V::F n = V::round(x);
  const typename V::F r = V::sub(x, n);
  typename V::F p = V::set1(1.5594677824992687e-4F);
  p = V::fma(p, r, V::set1(1.3406643411144614e-3F));
  p = V::fma(p, r, V::set1(9.617692790925503e-3F));
  p = V::fma(p, r, V::set1(5.5503103882074356e-2F));
  p = V::fma(p, r, V::set1(2.4022652208805084e-1F));
  p = V::fma(p, r, V::set1(6.931472420692444e-1F));
  p = V::fma(p, r, V::set1(1.0F));
  return V::scale_by_power(p, n);
}

// The places of one chunk of keys: group g of 16 positions, of which key_count[g] exist in its
// page.
struct KeyChunk {
  static constexpr int kGroups = kKeyChunk / kKeyGroup;
  static constexpr int kAhead = kGroups;  // groups of the next chunk, located to fetch them in time
  const std::byte* page[kGroups + kAhead];  // that holds the group
  int group_in_page[kGroups + kAhead];
  int key_first[kGroups + kAhead];  // position of the group's first key in the sequence
  int key_count[kGroups + kAhead];
  int group_count = 0;    // of this chunk
  int located_count = 0;  // and of the next
  bool full = false;      // every group of this chunk has its 16 keys

  const std::byte* k_group(const KvLayout& kv, int g) const {
    return page[g] + group_in_page[g] * kv.k_group_bytes;
  }
  const std::byte* v_group(const KvLayout& kv, int g) const {
    return page[g] + kv.v_offset_bytes + group_in_page[g] * kKeyGroup * kv.v_row_bytes;
  }
  // int8 pages: the scales of the group's keys and values.
  const float* k_scales(const KvLayout& kv, int g) const {
    return reinterpret_cast<const float*>(page[g] + kv.k_scale_offset_bytes) +
           group_in_page[g] * kKeyGroup;
  }
  const float* v_scales(const KvLayout& kv, int g) const {
    return reinterpret_cast<const float*>(page[g] + kv.v_scale_offset_bytes) +
           group_in_page[g] * kKeyGroup;
  }
  // Whether a query with this many keys sees every lane of the chunk's registers.
  bool whole_below(int limit) const {
    return full && limit >= key_first[group_count - 1] + kKeyGroup;
  }
  // Keys of group g that a query with this many keys sees; 0..16.
  int keys_below(int g, int limit) const {
    const int left = limit - key_first[g];
    return left < 0 ? 0 : left < key_count[g] ? left : key_count[g];
  }
};

// The groups of 16 positions from `group` on, up to two chunks' worth, as far as `key_limit`.
UPDRAFT_INLINE void locate_chunk(const AttentionBlock& op, int group, int key_limit,
                                 KeyChunk& chunk) {
  const KvLayout& kv = *op.kv;
  chunk.group_count = 0;
  chunk.located_count = 0;
  chunk.full = true;
  int page = group / kv.groups_per_page;
  int in_page = group % kv.groups_per_page;
  for (int i = 0; i < KeyChunk::kGroups + KeyChunk::kAhead; ++i) {
    const int first = page * kv.page_tokens + in_page * kKeyGroup;
    if (first >= key_limit) return;
    const int in_group = kv.page_tokens - in_page * kKeyGroup;
    chunk.page[i] = op.pool + op.pages[page] * kv.page_stride;
    chunk.group_in_page[i] = in_page;
    chunk.key_first[i] = first;
    chunk.key_count[i] = in_group < kKeyGroup ? in_group : kKeyGroup;
    chunk.located_count = i + 1;
    if (i < KeyChunk::kGroups) {
      chunk.group_count = i + 1;
      chunk.full = chunk.full && in_group >= kKeyGroup;
    }
    if (++in_page == kv.groups_per_page) {
      in_page = 0;
      ++page;
    }
  }
}

// The first pass over a chunk's keys fetches, line for line, the same group of the next chunk:
// pages are too short for the hardware to see them coming, and one burst per chunk would stall.
// Without a next chunk the group itself, which costs nothing.
UPDRAFT_INLINE int group_ahead(const KeyChunk& chunk, int g) {
  return g + KeyChunk::kGroups < chunk.located_count ? g + KeyChunk::kGroups : g;
}

// Where the registers of keys of a chunk begin. The last of a set of kColumns may be short: it
// repeats the last register, and its scores land behind the keys' and are not read.
template <class V, int kColumns>
struct KeyColumns {
  static constexpr int kPerGroup = kKeyGroup / V::kLanes;
  static constexpr int kAll = kPerGroup * KeyChunk::kGroups;
  const std::byte* at[kAll + kColumns];
  int64_t ahead_bytes[kAll + kColumns];  // to the same register of the next chunk
  int count;

  // lane_bytes: of one key's entry beside its neighbours'.
  UPDRAFT_INLINE KeyColumns(const AttentionBlock& op, const KeyChunk& chunk, int lane_bytes) {
    count = chunk.group_count * kPerGroup;
    for (int i = 0; i < count + kColumns; ++i) {
      const int column = i < count ? i : count - 1;
      const int g = column / kPerGroup;
      const std::byte* group = chunk.k_group(*op.kv, g);
      at[i] = group + (column % kPerGroup) * V::kLanes * lane_bytes;
      ahead_bytes[i] = chunk.k_group(*op.kv, group_ahead(chunk, g)) - group;
    }
  }
};

// Lanes of register `i` of a chunk that hold keys below `limit`.
template <class V>
UPDRAFT_INLINE int lanes_below(const KeyChunk& chunk, int i, int limit) {
  constexpr int kPerGroup = kKeyGroup / V::kLanes;
  const int n = chunk.keys_below(i / kPerGroup, limit) - (i % kPerGroup) * V::kLanes;
  return n < 0 ? 0 : n > V::kLanes ? V::kLanes : n;
}

// Running softmax of one query: the largest score so far, as a power of two, and the sum of
// 2^(score - max).
struct SoftmaxState {
  float max;
  float sum;
};

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

UPDRAFT_INLINE void clear_state(const AttentionBlock& op, const StateView& state) {
  const int64_t count = static_cast<int64_t>(state.slots) * op.kv->head_dim_padded;
  for (int64_t i = 0; i < count; ++i) state.values[i] = 0.0F;
  for (int i = 0; i < state.slots; ++i) state.softmax[i] = {-__builtin_inff(), 0.0F};
}

// Query i of a block: index = row * group + head in group.
UPDRAFT_INLINE const float* query_of(const AttentionBlock& op, int i) {
  return op.q + (i / op.group) * op.q_row_stride + (i % op.group) * op.head_dim;
}
UPDRAFT_INLINE int key_count_of(const AttentionBlock& op, int i) {
  return op.first_key_count + i / op.group;
}

// f(i, n) for each register of a chunk: its first n lanes are keys below `limit`. A whole chunk
// takes the path where n is a constant.
template <class V, class Body>
UPDRAFT_INLINE void for_columns(const KeyChunk& chunk, int limit, Body body) {
  const int count = chunk.group_count * (kKeyGroup / V::kLanes);
  if (chunk.whole_below(limit)) {
    for (int i = 0; i < count; ++i) body(i, V::kLanes);
  } else {
    for (int i = 0; i < count; ++i) body(i, lanes_below<V>(chunk, i, limit));
  }
}

// Turns a query's scores into probabilities against its new running maximum; returns the factor for
// what it has so far. Every lane of the chunk's registers is written.
template <class V>
UPDRAFT_INLINE float softmax_update(const KeyChunk& chunk, int limit, float factor, float* scores,
                                    SoftmaxState& state) {
  const float low = -__builtin_inff();
  typename V::F peak = V::set1(low);
  for_columns<V>(chunk, limit, [&](int i, int n) {
    typename V::F s = V::load(scores + i * V::kLanes);
    if (n < V::kLanes) s = V::keep_first(s, n, low);
    peak = V::max(peak, s);
  });
  const float chunk_max = V::reduce_max(peak) * factor;
  const float max = chunk_max > state.max ? chunk_max : state.max;
  const typename V::F minus_max = V::set1(-max);
  const typename V::F scale = V::set1(factor);
  typename V::F sum = V::zero();
  for_columns<V>(chunk, limit, [&](int i, int n) {
    typename V::F p = exp2_of<V>(V::fma(V::load(scores + i * V::kLanes), scale, minus_max));
    if (n < V::kLanes) p = V::keep_first(p, n, 0.0F);
    sum = V::add(sum, p);
    V::store(scores + i * V::kLanes, p);
  });
  const float keep = V::first(exp2_of<V>(V::set1(state.max - max)));
  state.max = max;
  state.sum = state.sum * keep + V::reduce_add(sum);
  return keep;
}

}  // namespace updraft
