// Vectors of 4 lanes in plain C++ (GCC's vector extension, lowered to whatever the target has). The
// reference for the other instruction sets, and what runs where none of them is there.
//
// Included by kernels_generic.cpp alone. The anonymous namespace keeps every template over this
// type inside that file, so that no function compiled with other flags can take its place at link
// time; for the same reason the kernels call no inline functions of the standard library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/inline.h"
#include "kernels/quant/quant.h"

namespace updraft {
namespace {

struct VecGeneric {
  static constexpr int kLanes = 4;
  static constexpr bool kSignedBytes = true;  // dot() takes Q8_0's bytes as they are
  static constexpr int kTokens = 4;           // activation rows per pass of the matmul
  static constexpr int kSlab = 2;             // vectors of V per pass of the attention

  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  struct B {
    uint8_t v[16];
  };

  static UPDRAFT_INLINE F zero() { return F{}; }
  static UPDRAFT_INLINE F set1(float x) { return F{x, x, x, x}; }
  static UPDRAFT_INLINE F load(const float* p) {
    F f;
    std::memcpy(&f, p, sizeof f);
    return f;
  }
  static UPDRAFT_INLINE void store(float* p, F f) { std::memcpy(p, &f, sizeof f); }
  static UPDRAFT_INLINE F load_first(const float* p, int n) {
    F f{};
    for (int i = 0; i < n; ++i) f[i] = p[i];
    return f;
  }
  static UPDRAFT_INLINE void store_first(float* p, F f, int n) {
    for (int i = 0; i < n; ++i) p[i] = f[i];
  }
  static UPDRAFT_INLINE F add(F a, F b) { return a + b; }
  static UPDRAFT_INLINE F sub(F a, F b) { return a - b; }
  static UPDRAFT_INLINE F mul(F a, F b) { return a * b; }
  static UPDRAFT_INLINE F div(F a, F b) { return a / b; }
  static UPDRAFT_INLINE F fma(F a, F b, F c) { return a * b + c; }
  static UPDRAFT_INLINE F max(F a, F b) { return a > b ? a : b; }
  static UPDRAFT_INLINE F min(F a, F b) { return a < b ? a : b; }
  static UPDRAFT_INLINE F abs(F a) { return a < 0 ? -a : a; }
  // Lanes [0, n) of a, the others `fill`.
  static UPDRAFT_INLINE F keep_first(F a, int n, float fill) {
    for (int i = 0; i < kLanes; ++i) a[i] = i < n ? a[i] : fill;
    return a;
  }
  static UPDRAFT_INLINE float reduce_add(F a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  static UPDRAFT_INLINE float reduce_max(F a) {
    float m = a[0];
    for (int i = 1; i < kLanes; ++i) m = a[i] > m ? a[i] : m;
    return m;
  }
  static UPDRAFT_INLINE float first(F a) { return a[0]; }
  // n * log2(e) split for exp: nearest integer, and 2^integer.
  static UPDRAFT_INLINE F round(F a) {
    const F magic = set1(12582912.0F);  // 1.5 * 2^23: adding it rounds to an integer for |a| < 2^22
    return (a + magic) - magic;
  }
  static UPDRAFT_INLINE F scale_by_power(F a, F n) {
    const I bits = (__builtin_convertvector(n, I) + 127) << 23;
    F power;
    std::memcpy(&power, &bits, sizeof power);
    return a * power;
  }

  static UPDRAFT_INLINE F load_half(const void* p) {
    F f;
    for (int i = 0; i < kLanes; ++i) {
      uint16_t h;
      std::memcpy(&h, static_cast<const char*>(p) + 2 * i, 2);
      f[i] = half_to_float(h);
    }
    return f;
  }
  static UPDRAFT_INLINE F load_bf16(const void* p) {
    I bits;
    for (int i = 0; i < kLanes; ++i) {
      uint16_t h;
      std::memcpy(&h, static_cast<const char*>(p) + 2 * i, 2);
      bits[i] = static_cast<int32_t>(static_cast<uint32_t>(h) << 16);
    }
    F f;
    std::memcpy(&f, &bits, sizeof f);
    return f;
  }
  static UPDRAFT_INLINE F load_u8(const void* p) {
    const auto* b = static_cast<const uint8_t*>(p);
    F f;
    for (int i = 0; i < kLanes; ++i) f[i] = b[i];
    return f;
  }
  static UPDRAFT_INLINE F load_s8(const void* p) {
    const auto* b = static_cast<const int8_t*>(p);
    F f;
    for (int i = 0; i < kLanes; ++i) f[i] = b[i];
    return f;
  }
  static UPDRAFT_INLINE void store_half(void* p, F f) {
    for (int i = 0; i < kLanes; ++i) {
      const uint16_t h = float_to_half(f[i]);
      std::memcpy(static_cast<char*>(p) + 2 * i, &h, 2);
    }
  }
  static UPDRAFT_INLINE void store_bf16(void* p, F f) {
    for (int i = 0; i < kLanes; ++i) {
      const uint16_t h = float_to_bf16(f[i]);
      std::memcpy(static_cast<char*>(p) + 2 * i, &h, 2);
    }
  }

  static UPDRAFT_INLINE I round_to_int(F a) { return __builtin_convertvector(round(a), I); }
  static UPDRAFT_INLINE void store_s8(int8_t* p, I a) {
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(a[i]);
  }
  static UPDRAFT_INLINE I add_int(I a, I b) { return a + b; }
  static UPDRAFT_INLINE int32_t reduce_add_int(I a) {
    int32_t sum = 0;
    for (int i = 0; i < kLanes; ++i) sum += a[i];
    return sum;
  }
  static UPDRAFT_INLINE F to_float(I a) { return __builtin_convertvector(a, F); }
  static UPDRAFT_INLINE I set1_int(int32_t x) { return I{x, x, x, x}; }

  template <int kShift>
  static UPDRAFT_INLINE I shift_left(I a) {
    return a << kShift;
  }
  static UPDRAFT_INLINE void prefetch(const void*, int64_t) {}

  // --- byte vectors: 4 consecutive columns of each of 4 rows ---
  static UPDRAFT_INLINE B load_bytes(const void* p) {
    B b;
    std::memcpy(&b, p, sizeof b);
    return b;
  }
  static UPDRAFT_INLINE B low_nibbles(B a) {
    for (uint8_t& x : a.v) x &= 15;
    return a;
  }
  static UPDRAFT_INLINE B high_nibbles(B a) {
    for (uint8_t& x : a.v) x >>= 4;
    return a;
  }
  // a | ((high shifted left by kShift, right when negative) & kMask)
  template <int kShift, int kMask>
  static UPDRAFT_INLINE B merge_high(B a, B high) {
    for (int i = 0; i < 16; ++i) {
      const int moved = kShift >= 0 ? high.v[i] << (kShift & 7) : high.v[i] >> (-kShift & 7);
      a.v[i] = static_cast<uint8_t>(a.v[i] | (moved & kMask));
    }
    return a;
  }
  // init + the dot products of kGroups groups of 4 columns with 4 * kGroups activations. Weights
  // are unsigned below 2^kBits; with kBits = 8 they are signed.
  template <int kBits, int kGroups>
  static UPDRAFT_INLINE I dot(I init, const B* x, const int8_t* a) {
    int32_t sum[kLanes];
    for (int r = 0; r < kLanes; ++r) sum[r] = 0;
    for (int g = 0; g < kGroups; ++g) {
      for (int r = 0; r < kLanes; ++r) {
        for (int j = 0; j < 4; ++j) {
          const uint8_t byte = x[g].v[4 * r + j];
          const int w = kBits == 8 ? static_cast<int8_t>(byte) : byte;
          sum[r] += w * a[4 * g + j];
        }
      }
    }
    for (int r = 0; r < kLanes; ++r) init[r] += sum[r];
    return init;
  }
};

}  // namespace
}  // namespace updraft
