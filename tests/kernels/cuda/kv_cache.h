// Pages that hold the keys and values of some sequences, everything else NaN, and attention over
// them in double precision: what the tests of both attention kernels share.
#pragma once

#include <cstring>
#include <numeric>

#include "kernels/cuda/kv_pages.h"
#include "tests/kernels/cuda/support.h"

namespace updraft::cuda::testing {

struct CacheShape {
  KvType type;
  int32_t head_dim;
  int32_t head_count;
  int32_t kv_head_count;
  int32_t page_tokens;
};

inline bool same_bits(const Bf16* a, const Bf16* b, size_t count) {
  return std::memcmp(a, b, count * sizeof(Bf16)) == 0;
}

// e4m3 by its definition: subnormal steps of 2^-9, 7 exponent steps of 8 mantissas from 2^-6.
inline double fp8_value(uint8_t byte) {
  const int exponent = byte >> 3 & 15;
  const int mantissa = byte & 7;
  const double size =
      exponent == 0 ? mantissa * 0x1p-9 : std::ldexp(1.0 + mantissa / 8.0, exponent - 7);
  return (byte & 0x80) != 0 ? -size : size;
}

// x = H x per block, H the Hadamard matrix by its definition: (-1)^(number of common bits).
inline void hadamard(std::span<double> x, int block) {
  for (size_t first = 0; first < x.size(); first += static_cast<size_t>(block)) {
    std::vector<double> out(static_cast<size_t>(block));
    for (size_t i = 0; i < out.size(); ++i) {
      for (size_t j = 0; j < out.size(); ++j) {
        out[i] += (__builtin_popcountll(i & j) % 2 != 0 ? -1.0 : 1.0) * x[first + j];
      }
    }
    std::copy(out.begin(), out.end(), x.begin() + static_cast<std::ptrdiff_t>(first));
  }
}

struct KvCache {
  static constexpr int32_t kLayer = 1;

  CacheShape shape;
  KvPages pages;
  std::vector<int32_t> lengths;
  int32_t table_stride;
  Buffer<std::byte> memory;
  Buffer<int32_t> table;
  // As stored: [sequence][(position * kv_head_count + head) * head_dim + dim].
  std::vector<std::vector<double>> keys;
  std::vector<std::vector<double>> values;

  // Page ids begin at `id_first`; the memory of those before it does not exist.
  KvCache(const CacheShape& shape, const std::vector<int32_t>& lengths, int32_t id_first = 0)
      : shape(shape),
        pages(*KvPages::of(shape.type, 2, shape.kv_head_count, shape.head_dim, shape.page_tokens)),
        lengths(lengths),
        table_stride((*std::max_element(lengths.begin(), lengths.end()) + shape.page_tokens - 1) /
                         shape.page_tokens +
                     1),
        memory("pages", static_cast<size_t>(pages.page_bytes) * page_count()),
        table("table", lengths.size() * static_cast<size_t>(table_stride)) {
    pages.base = at_page(-id_first);
    std::mt19937 random(9);
    std::normal_distribution<float> normal;
    std::vector<int32_t> order(page_count());
    std::iota(order.begin(), order.end(), id_first);
    std::shuffle(order.begin(), order.end(), random);
    size_t next = 0;
    for (size_t s = 0; s < lengths.size(); ++s) {
      keys.emplace_back();
      values.emplace_back();
      for (int32_t p = 0; p < lengths[s]; ++p) {
        int32_t& page = table[s * static_cast<size_t>(table_stride) +
                              static_cast<size_t>(p / shape.page_tokens)];
        if (p % shape.page_tokens == 0) page = order[next++];
        for (int32_t h = 0; h < shape.kv_head_count; ++h) {
          std::vector<float> head(static_cast<size_t>(shape.head_dim));
          for (float& v : head) v = normal(random);
          write(page - id_first, h, p % shape.page_tokens, head, 0, pages.k_scale_offset,
                keys.back());
          for (float& v : head) v = normal(random) + 0.5F;
          write(page - id_first, h, p % shape.page_tokens, head, pages.v_offset,
                pages.v_scale_offset, values.back());
        }
      }
    }
  }

  size_t page_count() const {
    size_t count = 3;
    for (const int32_t length : lengths) {
      count += static_cast<size_t>((length + shape.page_tokens - 1) / shape.page_tokens);
    }
    return count;
  }
  // Through integers: the result may lie outside the memory.
  std::byte* at_page(int64_t page) const {
    return reinterpret_cast<std::byte*>(reinterpret_cast<intptr_t>(memory.data()) +
                                        page * pages.page_bytes);
  }

  void write(int32_t page, int32_t head, int32_t slot, const std::vector<float>& in,
             int64_t part_offset, int64_t scale_offset, std::vector<double>& exact) const {
    std::byte* layer = at_page(page) + kLayer * pages.layer_bytes;
    const int64_t row_bytes = pages.head_bytes / shape.page_tokens;
    std::byte* at = layer + part_offset + head * pages.head_bytes + slot * row_bytes;
    std::memset(at, 0, static_cast<size_t>(row_bytes));  // the padding
    if (shape.type == KvType::kBf16) {
      for (const float v : in) {
        const uint16_t bits = float_to_bf16(v);
        std::memcpy(at, &bits, 2);
        at += 2;
        exact.push_back(static_cast<double>(bf16_to_float(bits)));
      }
      return;
    }
    float largest = 0;
    for (const float v : in) largest = std::max(largest, std::abs(v));
    const bool int8 = shape.type == KvType::kInt8;
    const float scale = int8 ? largest / 127 : largest / 448;
    std::memcpy(layer + scale_offset + (head * shape.page_tokens + slot) * 4, &scale, 4);
    for (const float v : in) {
      uint8_t byte = 0;
      if (int8) {
        byte = static_cast<uint8_t>(std::lround(v / scale));
      } else {
        // Any byte that is a number will do; the large ones have the value's size.
        byte = static_cast<uint8_t>(std::lround(std::min(126.0F, std::abs(v) * 60.0F)));
        if (v < 0) byte |= 0x80;
      }
      *at++ = static_cast<std::byte>(byte);
      exact.push_back(static_cast<double>(scale) *
                      (int8 ? static_cast<double>(static_cast<int8_t>(byte)) : fp8_value(byte)));
    }
  }

  // softmax(q k) v of query head `head`, which sees the first `length` positions of a sequence.
  std::vector<double> attend(size_t sequence, const Bf16* q, int32_t head, int32_t length) const {
    const auto dim = static_cast<size_t>(shape.head_dim);
    const auto kv = static_cast<size_t>(head / (shape.head_count / shape.kv_head_count));
    const auto at = [&](int32_t p) {
      return (static_cast<size_t>(p * shape.kv_head_count) + kv) * dim;
    };
    std::vector<double> scores;
    for (int32_t p = 0; p < length; ++p) {
      double score = 0;
      for (size_t d = 0; d < dim; ++d) {
        score += static_cast<double>(value(q[d])) * keys[sequence][at(p) + d];
      }
      scores.push_back(score / std::sqrt(static_cast<double>(dim)));
    }
    const double top = scores.empty() ? 0 : *std::max_element(scores.begin(), scores.end());
    double weight = 0;
    std::vector<double> sum(dim);
    for (int32_t p = 0; p < length; ++p) {
      const double w = std::exp(scores[static_cast<size_t>(p)] - top);
      weight += w;
      for (size_t d = 0; d < dim; ++d) sum[d] += w * values[sequence][at(p) + d];
    }
    for (double& v : sum) v = length == 0 ? 0 : v / weight;
    if (pages.rotation_block > 1) {
      hadamard(sum, pages.rotation_block);
      for (double& v : sum) v /= pages.rotation_block;
    }
    return sum;
  }
};

}  // namespace updraft::cuda::testing
