// What is done to one row at a time, over any vector type V: quantising activations, norms,
// rotation, KV append, silu.
#pragma once

#include <cstdint>

#include "kernels/cpu/bf16_pairs.h"
#include "kernels/cpu/head_rotation.h"
#include "kernels/cpu/inline.h"
#include "kernels/cpu/kernels.h"

namespace updraft {

// e^x to about 1e-7 relative on [-87, 88]; the ends hold outside. x = n ln 2 + r, |r| <= ln 2 / 2;
// the polynomial is Cephes' expf (S. Moshier).
template <class V>
UPDRAFT_INLINE typename V::F exp_of(typename V::F x) {
  x = V::max(V::min(x, V::set1(88.0F)), V::set1(-87.0F));
  const typename V::F n = V::round(V::mul(x, V::set1(1.44269504088896341F)));
  // ln 2 in two parts, so that n * ln 2 loses nothing.
  typename V::F r = V::fma(n, V::set1(-0.693359375F), x);
  r = V::fma(n, V::set1(2.12194440e-4F), r);
  typename V::F p = V::set1(1.9875691500e-4F);
  p = V::fma(p, r, V::set1(1.3981999507e-3F));
  p = V::fma(p, r, V::set1(8.3334519073e-3F));
  p = V::fma(p, r, V::set1(4.1665795894e-2F));
  p = V::fma(p, r, V::set1(1.6666665459e-1F));
  p = V::fma(p, r, V::set1(5.0000001201e-1F));
  p = V::fma(V::mul(p, r), r, V::add(r, V::set1(1.0F)));
  return V::scale_by_power(p, n);
}

// One block of 32 activations as signed bytes; the sums are of the bytes.
struct QuantisedBlock {
  float scale;
  int32_t sum_low;  // of columns 0..15
  int32_t sum_high;
};

template <class V>
UPDRAFT_INLINE QuantisedBlock quantize_block(const float* x, int8_t* q) {
  constexpr int kVectors = 32 / V::kLanes;
  typename V::F v[kVectors];
  typename V::F peak = V::zero();
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) {
    v[i] = V::load(x + i * V::kLanes);
    peak = V::max(peak, V::abs(v[i]));
  }
  const float amax = V::reduce_max(peak);
  // Below, 127 / amax would overflow; such a block is as good as zero.
  const bool zero = !(amax > 1e-30F);
  const typename V::F inverse = V::set1(zero ? 0.0F : 127.0F / amax);
  constexpr bool kSumsBytes = requires { V::sum_bytes(q, 0); };
  typename V::I low = V::set1_int(0);
  typename V::I high = V::set1_int(0);
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) {
    const typename V::I rounded = V::round_to_int(V::mul(v[i], inverse));
    V::store_s8(q + i * V::kLanes, rounded);
    if constexpr (kSumsBytes) continue;
    if (i < kVectors / 2) {
      low = V::add_int(low, rounded);
    } else {
      high = V::add_int(high, rounded);
    }
  }
  if constexpr (kSumsBytes) {
    return {zero ? 0.0F : amax / 127.0F, V::sum_bytes(q, 0), V::sum_bytes(q, 16)};
  }
  return {zero ? 0.0F : amax / 127.0F, V::reduce_add_int(low), V::reduce_add_int(high)};
}

template <class V>
void quantize_acts(const float* x, int64_t cols, ActBlock* out) {
  for (int64_t b = 0; b < cols / 32; ++b, x += 32) {
    const QuantisedBlock block = quantize_block<V>(x, out[b].q);
    const int32_t sum = block.sum_low + block.sum_high;
    out[b].scale = block.scale;
    out[b].scaled_sum = block.scale * static_cast<float>(sum);
    out[b].neg_sum = -sum;
    out[b].neg_sum_low = -block.sum_low;
    out[b].neg_sum_high = -block.sum_high;
  }
}

// 1 / sqrt(mean(x^2) + eps)
template <class V>
UPDRAFT_INLINE float inverse_rms(const float* x, int64_t dim, float eps) {
  typename V::F sum[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  int64_t i = 0;
  for (; i + 4 * V::kLanes <= dim; i += 4 * V::kLanes) {
    for (int k = 0; k < 4; ++k) {
      const typename V::F v = V::load(x + i + k * V::kLanes);
      sum[k] = V::fma(v, v, sum[k]);
    }
  }
  for (; i < dim; i += V::kLanes) {
    const int n = dim - i < V::kLanes ? static_cast<int>(dim - i) : V::kLanes;
    const typename V::F v = V::load_first(x + i, n);
    sum[0] = V::fma(v, v, sum[0]);
  }
  const float total = V::reduce_add(V::add(V::add(sum[0], sum[1]), V::add(sum[2], sum[3])));
  return 1.0F / __builtin_sqrtf(total / static_cast<float>(dim) + eps);
}

// Runs f(offset, lane count) over [0, dim) in vectors; the last may be short.
template <class V, class Body>
UPDRAFT_INLINE void for_vectors(int64_t dim, Body body) {
  int64_t i = 0;
  for (; i + V::kLanes <= dim; i += V::kLanes) body(i, V::kLanes);
  if (i < dim) body(i, static_cast<int>(dim - i));
}

template <class V>
UPDRAFT_INLINE typename V::F load_some(const float* p, int n) {
  return n == V::kLanes ? V::load(p) : V::load_first(p, n);
}
template <class V>
UPDRAFT_INLINE void store_some(float* p, typename V::F v, int n) {
  if (n == V::kLanes) {
    V::store(p, v);
  } else {
    V::store_first(p, v, n);
  }
}

template <class V>
UPDRAFT_INLINE void scale_row(const float* x, const float* norm, float factor, float* out,
                              int64_t dim) {
  for_vectors<V>(dim, [&](int64_t i, int n) {
    const auto scaled = V::mul(load_some<V>(x + i, n), V::set1(factor));
    store_some<V>(out + i, V::mul(scaled, load_some<V>(norm + i, n)), n);
  });
}

template <class V>
void residual_norm_row(float* hidden, const float* delta, const float* delta_norm,
                       const float* norm, float eps, float* out, int64_t dim) {
  if (delta != nullptr) {
    const float factor = delta_norm != nullptr ? inverse_rms<V>(delta, dim, eps) : 1.0F;
    for_vectors<V>(dim, [&](int64_t i, int n) {
      typename V::F add = load_some<V>(delta + i, n);
      if (delta_norm != nullptr) {
        add = V::mul(V::mul(add, V::set1(factor)), load_some<V>(delta_norm + i, n));
      }
      store_some<V>(hidden + i, V::add(load_some<V>(hidden + i, n), add), n);
    });
  }
  if (out != nullptr) scale_row<V>(hidden, norm, inverse_rms<V>(hidden, dim, eps), out, dim);
}

template <class V>
void prepare_head_row(float* x, int head_dim, const float* norm, float eps, const RopeRow& rope) {
  if (norm != nullptr) scale_row<V>(x, norm, inverse_rms<V>(x, head_dim, eps), x, head_dim);
  if (rope.interleaved) {
    for (int i = 0; i < rope.pairs; ++i) {
      const float a = x[2 * i];
      const float b = x[2 * i + 1];
      x[2 * i] = a * rope.cos[i] - b * rope.sin[i];
      x[2 * i + 1] = a * rope.sin[i] + b * rope.cos[i];
    }
    return;
  }
  float* y = x + rope.pairs;
  for_vectors<V>(rope.pairs, [&](int64_t i, int n) {
    const auto a = load_some<V>(x + i, n);
    const auto b = load_some<V>(y + i, n);
    const auto cos = load_some<V>(rope.cos + i, n);
    const auto sin = load_some<V>(rope.sin + i, n);
    store_some<V>(x + i, V::sub(V::mul(a, cos), V::mul(b, sin)), n);
    store_some<V>(y + i, V::add(V::mul(a, sin), V::mul(b, cos)), n);
  });
}

// `count` floats in the pages' type, contiguous.
template <class V>
UPDRAFT_INLINE void convert_values(const float* x, int count, DType type, std::byte* out) {
  const int bytes = KvLayout::value_bytes(type);
  for (int i = 0; i < count; i += V::kLanes) {
    const int n = count - i < V::kLanes ? count - i : V::kLanes;
    const typename V::F v = load_some<V>(x + i, n);
    std::byte whole[4 * V::kLanes];
    switch (type) {
      case DType::kF16:
        V::store_half(whole, v);
        break;
      case DType::kBF16:
        V::store_bf16(whole, v);
        break;
      default:
        V::store(reinterpret_cast<float*>(whole), v);
        break;
    }
    __builtin_memcpy(out + i * bytes, whole, static_cast<size_t>(n * bytes));
  }
}

template <class V>
UPDRAFT_INLINE float peak_of(const float* x, int count) {
  typename V::F peak = V::zero();
  for_vectors<V>(count,
                 [&](int64_t i, int n) { peak = V::max(peak, V::abs(load_some<V>(x + i, n))); });
  return V::reduce_max(peak);
}

// int8 pages: rotated, one scale per token, four bytes side by side (kv_layout.h).
template <class V>
UPDRAFT_INLINE void store_kv_int8(const KvLayout& kv, std::byte* page, int slot, const float* k,
                                  const float* v) {
  constexpr int kHeadDimMax = 4096;  // as the pool checks
  const int group = slot / kKeyGroup;
  const int lane = slot % kKeyGroup;
  alignas(64) float x[kHeadDimMax + 16];
  int8_t bytes[kHeadDimMax + 16];
  const auto quantize = [&](const float* from, int64_t scale_offset_bytes) {
    __builtin_memcpy(x, from, static_cast<size_t>(kv.head_dim) * sizeof(float));
    for (int d = kv.head_dim; d < kv.head_dim_padded; ++d) x[d] = 0.0F;
    rotate_head<V>(x, kv.head_dim);
    const float peak = peak_of<V>(x, kv.head_dim);
    const bool zero = !(peak > 1e-30F);  // below, 127 / peak would overflow
    const float scale = zero ? 0.0F : peak / 127.0F;
    __builtin_memcpy(page + scale_offset_bytes + 4 * slot, &scale, 4);
    const typename V::F inverse = V::set1(zero ? 0.0F : 127.0F / peak);
    for (int d = 0; d < kv.head_dim_padded; d += V::kLanes)
      V::store_s8(bytes + d, V::round_to_int(V::mul(V::load(x + d), inverse)));
    if constexpr (!V::kSignedBytes) {
      for (int d = 0; d < kv.head_dim_padded; ++d) bytes[d] = static_cast<int8_t>(bytes[d] ^ 0x80);
    }
  };
  quantize(k, kv.k_scale_offset_bytes);
  std::byte* to = page + group * kv.k_group_bytes + lane * 4;
  for (int d = 0; d < kv.head_dim; d += 4) __builtin_memcpy(to + d * kKeyGroup, bytes + d, 4);
  quantize(v, kv.v_scale_offset_bytes);
  to = page + kv.v_offset_bytes + (slot - slot % 4) * kv.v_row_bytes + slot % 4;
  for (int d = 0; d < kv.head_dim; ++d) to[4 * d] = static_cast<std::byte>(bytes[d]);
}

// bf16 pages of instruction sets that multiply pairs: two values side by side (kv_layout.h).
template <class V>
UPDRAFT_INLINE void store_kv_pairs(const KvLayout& kv, std::byte* page, int slot, const float* k,
                                   const float* v) {
  constexpr int kPart = 64;
  std::byte part[2 * kPart];
  std::byte* k_to = page + slot / kKeyGroup * kv.k_group_bytes + slot % kKeyGroup * 4;
  std::byte* v_to = page + kv.v_offset_bytes + (slot - slot % 2) * kv.v_row_bytes + slot % 2 * 2;
  for (int first = 0; first < kv.head_dim; first += kPart) {
    const int count = kv.head_dim - first < kPart ? kv.head_dim - first : kPart;
    convert_values<V>(k + first, count, kv.type, part);
    // An odd last dimension has a zero beside it.
    for (int i = count; i < count + count % 2; ++i) part[2 * i] = part[2 * i + 1] = std::byte{0};
    for (int i = 0; i < count; i += 2)
      __builtin_memcpy(k_to + (first + i) * 2 * kKeyGroup, part + 2 * i, 4);
    convert_values<V>(v + first, count, kv.type, part);
    for (int i = 0; i < count; ++i) __builtin_memcpy(v_to + (first + i) * 4, part + 2 * i, 2);
  }
}

// Columns of K lie 16 values apart, V is a row.
template <class V>
void store_kv_row(const KvLayout& kv, std::byte* page, int slot, const float* k, const float* v) {
  if (kv.type == DType::kQ8_0) return store_kv_int8<V>(kv, page, slot, k, v);
  if constexpr (HasBf16Pairs<V>) {
    if (kv.type == DType::kBF16) return store_kv_pairs<V>(kv, page, slot, k, v);
  }
  const int group = slot / kKeyGroup;
  const int lane = slot % kKeyGroup;
  const int bytes = KvLayout::value_bytes(kv.type);
  std::byte* column = page + group * kv.k_group_bytes + lane * bytes;
  for (int first = 0; first < kv.head_dim; first += 64) {
    const int count = kv.head_dim - first < 64 ? kv.head_dim - first : 64;
    std::byte part[64 * 4];
    convert_values<V>(k + first, count, kv.type, part);
    std::byte* to = column + static_cast<int64_t>(first) * kKeyGroup * bytes;
    for (int i = 0; i < count; ++i) {
      __builtin_memcpy(to + i * kKeyGroup * bytes, part + i * bytes, static_cast<size_t>(bytes));
    }
  }
  convert_values<V>(v, kv.head_dim, kv.type, page + kv.v_offset_bytes + slot * kv.v_row_bytes);
}

template <class V>
void add_bias_rows(float* rows, int64_t stride, int64_t tokens, const float* bias, int64_t count) {
  for (int64_t t = 0; t < tokens; ++t, rows += stride) {
    for_vectors<V>(count, [&](int64_t i, int n) {
      store_some<V>(rows + i, V::add(load_some<V>(rows + i, n), load_some<V>(bias + i, n)), n);
    });
  }
}

// out[i] = silu(in[i]) * in[dim + i], silu(x) = x / (1 + e^-x).
template <class V>
void silu_mul_row(const float* in, float* out, int64_t dim) {
  for_vectors<V>(dim, [&](int64_t i, int n) {
    const auto gate = load_some<V>(in + i, n);
    const auto up = load_some<V>(in + dim + i, n);
    const auto silu = V::div(gate, V::add(V::set1(1.0F), exp_of<V>(V::sub(V::zero(), gate))));
    store_some<V>(out + i, V::mul(silu, up), n);
  });
}

}  // namespace updraft
