// The sums of a chunk of positions that a lane holds, put aside, joined and finished: what both
// kernels of prefill attention do alike.
//
// A lane has rows g and g + 8 of each of its warp's kTiles tiles of 16, g = lane / 4. Sums are a
// type with kTiles, kDim, kThreads (of a block that hold some), largest and weight [kTiles][2], and
// at(m, n, i): of tile m, dimensions 8 * n .., the sums of an mma.
#pragma once

#include "kernels/cuda/prefill_unit.h"

namespace updraft::cuda {

// Vectors of a thread in a slot of the workspace.
template <typename Sums>
constexpr int kSlotVectors = Sums::kTiles*(Sums::kDim / 8 + 1);

template <typename Sums>
UPDRAFT_DEVICE void clear(Sums& sums) {
  UPDRAFT_UNROLL
  for (int m = 0; m < Sums::kTiles; ++m) {
    UPDRAFT_UNROLL
    for (int n = 0; n < Sums::kDim / 8; ++n) {
      UPDRAFT_UNROLL
      for (int i = 0; i < 4; ++i) sums.at(m, n, i) = 0.0F;
    }
    UPDRAFT_UNROLL
    for (int i = 0; i < 2; ++i) {
      sums.largest[m][i] = kNever;
      sums.weight[m][i] = 0.0F;
    }
  }
}

UPDRAFT_DEVICE Vec16 bits_of(float a, float b, float c, float d) {
  return {{float_bits(a), float_bits(b), float_bits(c), float_bits(d)}};
}

template <typename Sums>
UPDRAFT_DEVICE void put_aside(Sums& sums, Vec16* slot) {
  slot += thread_x();
  UPDRAFT_UNROLL
  for (int m = 0; m < Sums::kTiles; ++m) {
    UPDRAFT_UNROLL
    for (int n = 0; n < Sums::kDim / 8; ++n) {
      store(slot, bits_of(sums.at(m, n, 0), sums.at(m, n, 1), sums.at(m, n, 2), sums.at(m, n, 3)));
      slot += Sums::kThreads;
    }
    store(slot,
          bits_of(sums.largest[m][0], sums.largest[m][1], sums.weight[m][0], sums.weight[m][1]));
    slot += Sums::kThreads;
  }
}

// Joins the sums with those in a slot, which are of the chunks before, or of the chunk behind. A
// row that sees nothing of the later chunk has no scores there: its part is multiplied by zero.
template <bool kSlotIsLater, typename Sums>
UPDRAFT_DEVICE void join(Sums& sums, const Vec16* slot, float scale_log2) {
  slot += thread_x();
  UPDRAFT_UNROLL
  for (int m = 0; m < Sums::kTiles; ++m) {
    const Vec16 state = slot[Sums::kDim / 8 * Sums::kThreads];
    float own[2];
    float other[2];
    UPDRAFT_UNROLL
    for (int i = 0; i < 2; ++i) {
      const float theirs = bits_float(state.word[i]);
      const float top = sums.largest[m][i] > theirs ? sums.largest[m][i] : theirs;
      own[i] = exp2_fast((sums.largest[m][i] - top) * scale_log2);
      other[i] = exp2_fast((theirs - top) * scale_log2);
      sums.largest[m][i] = top;
      const float weight = bits_float(state.word[2 + i]);
      sums.weight[m][i] = kSlotIsLater ? fma(weight, other[i], sums.weight[m][i] * own[i])
                                       : fma(sums.weight[m][i], own[i], weight * other[i]);
    }
    UPDRAFT_UNROLL
    for (int n = 0; n < Sums::kDim / 8; ++n) {
      const Vec16 v = *slot;
      slot += Sums::kThreads;
      UPDRAFT_UNROLL
      for (int i = 0; i < 4; ++i) {
        float& mine = sums.at(m, n, i);
        const float theirs = bits_float(v.word[i]);
        mine = kSlotIsLater ? fma(theirs, other[i / 2], mine * own[i / 2])
                            : fma(mine, own[i / 2], theirs * other[i / 2]);
      }
    }
    slot += Sums::kThreads;
  }
}

// v = H v of the rows' values (head_rotation.h), whose dimensions lie as KvTile::value_dim says for
// bytes: bit 0 in n, bit 1 in i, bits 2 and 3 in the lane, those above in n. Blocks are of 8 at
// least.
template <int kDim>
UPDRAFT_DEVICE void rotate(float (&v)[kDim / 8][4], int block, int lane) {
  const auto turn = [](float& a, float& b) {
    const float sum = a + b;
    b = a - b;
    a = sum;
  };
  UPDRAFT_UNROLL
  for (int n = 0; n < kDim / 8; n += 2) {
    UPDRAFT_UNROLL
    for (int i = 0; i < 4; ++i) turn(v[n][i], v[n + 1][i]);
  }
  UPDRAFT_UNROLL
  for (int n = 0; n < kDim / 8; ++n) {
    turn(v[n][0], v[n][1]);
    turn(v[n][2], v[n][3]);
  }
  UPDRAFT_UNROLL
  for (int step = 1; step <= 2; step *= 2) {
    if (4 * step >= block) continue;
    UPDRAFT_UNROLL
    for (int n = 0; n < kDim / 8; ++n) {
      UPDRAFT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float other = shuffle_xor(v[n][i], static_cast<uint32_t>(step));
        v[n][i] = (lane & step) != 0 ? other - v[n][i] : v[n][i] + other;
      }
    }
  }
  UPDRAFT_UNROLL
  for (int step = 2; step < kDim / 8; step *= 2) {
    if (8 * step >= block) continue;
    UPDRAFT_UNROLL
    for (int n = 0; n < kDim / 8; ++n) {
      if ((n & step) != 0) continue;
      UPDRAFT_UNROLL
      for (int i = 0; i < 4; ++i) turn(v[n][i], v[n + step][i]);
    }
  }
}

template <KvType kType, typename Sums>
UPDRAFT_DEVICE void finish(const PrefillArguments& in, const PrefillUnit& unit, Sums& sums) {
  constexpr int kDim = Sums::kDim;
  using Tile = KvTile<kType, kDim>;
  const int warp = static_cast<int>(thread_x()) / 32;
  const int lane = static_cast<int>(thread_x()) % 32;
  const int head_dim = in.layer.head_dim;
  UPDRAFT_UNROLL
  for (int m = 0; m < Sums::kTiles; ++m) {
    if constexpr (kType == KvType::kInt8)
      rotate<kDim>(sums.values[m], in.layer.rotation_block, lane);
    UPDRAFT_UNROLL
    for (int i = 0; i < 2; ++i) {
      float weight = sums.weight[m][i];
      weight += shuffle_xor(weight, 1);
      weight += shuffle_xor(weight, 2);
      const float factor = 1.0F / (weight * static_cast<float>(in.layer.rotation_block));
      const int row =
          unit.tile * kPrefillTileRows + (warp * Sums::kTiles + m) * 16 + i * 8 + lane / 4;
      if (row >= unit.rows(in.shared_heads)) continue;
      const int64_t out_row = unit.slice.row_first + row / in.shared_heads;
      const int64_t head = unit.kv_head * in.shared_heads + row % in.shared_heads;
      Bf16* out = in.out + (out_row * in.head_count + head) * head_dim;
      // Two neighbouring dimensions a store: of bytes' tiles they lie in two tiles.
      UPDRAFT_UNROLL
      for (int n = 0; n < kDim / 8; ++n) {
        const int pair = Tile::kBytes ? n / 2 * 2 : n;
        const int element = Tile::kBytes ? n % 2 : 0;
        const int dim = Tile::value_dim(pair, 2 * (lane % 4) + element);
        const float low = sums.at(m, pair, 2 * i + element);
        const float high =
            Tile::kBytes ? sums.at(m, pair + 1, 2 * i + element) : sums.at(m, n, 2 * i + 1);
        if (dim < head_dim) {
          store(reinterpret_cast<uint32_t*>(out + dim), pack_bf16(low * factor, high * factor));
        }
      }
    }
  }
}

}  // namespace updraft::cuda
