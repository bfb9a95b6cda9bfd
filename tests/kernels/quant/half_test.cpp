// Half and bfloat16: expected values from IEEE 754-2008 (value = sign * 2^e * significand),
// computed with std::ldexp.
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "kernels/quant/quant.h"

using namespace updraft;

namespace {

double half_value(uint16_t h) {
  const int exponent = (h >> 10) & 31;
  const int mantissa = h & 1023;
  const double sign = (h & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa != 0 ? std::nan("") : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

}  // namespace

TEST_CASE("every half decodes to its IEEE value and encodes back to itself") {
  int wrong = 0;
  for (int h = 0; h < 65536; ++h) {
    const auto half = static_cast<uint16_t>(h);
    const float value = half_to_float(half);
    const double expected = half_value(half);
    if (std::isnan(expected)) {
      wrong += std::isnan(value) && std::isnan(half_value(float_to_half(value))) ? 0 : 1;
    } else {
      wrong += static_cast<double>(value) == expected && float_to_half(value) == half ? 0 : 1;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("a float between two halves goes to the nearer one and to even on a tie") {
  int wrong = 0;
  for (int h = 0; h < 0x7BFF; ++h) {  // all finite positive neighbours h, h + 1
    const double low = half_value(static_cast<uint16_t>(h));
    const double high = half_value(static_cast<uint16_t>(h + 1));
    const auto middle = static_cast<float>((low + high) / 2);  // exact: halves have few bits
    const int even = (h & 1) == 0 ? h : h + 1;
    wrong += float_to_half(middle) == even ? 0 : 1;
    wrong += float_to_half(std::nextafterf(middle, 0.0F)) == h ? 0 : 1;
    wrong += float_to_half(std::nextafterf(middle, 1e30F)) == h + 1 ? 0 : 1;
    wrong += float_to_half(-middle) == (even | 0x8000) ? 0 : 1;
  }
  CHECK(wrong == 0);
  CHECK(float_to_half(65519.996F) == 0x7BFF);
  CHECK(float_to_half(65520.0F) == 0x7C00);  // halfway to 2^16: infinity
  CHECK(float_to_half(1e-30F) == 0);
  CHECK(float_to_half(-INFINITY) == 0xFC00);
}

TEST_CASE("bfloat16 is the upper half of a float, rounded to nearest even") {
  CHECK(bf16_to_float(0x3F80) == 1.0F);
  CHECK(float_to_bf16(1.0F) == 0x3F80);
  CHECK(float_to_bf16(std::bit_cast<float>(0x3F808000U)) == 0x3F80);  // tie, even below
  CHECK(float_to_bf16(std::bit_cast<float>(0x3F818000U)) == 0x3F82);  // tie, even above
  CHECK(float_to_bf16(std::bit_cast<float>(0x3F808001U)) == 0x3F81);
  CHECK(float_to_bf16(std::numeric_limits<float>::max()) == 0x7F80);  // rounds to infinity
  CHECK(std::isnan(bf16_to_float(float_to_bf16(std::bit_cast<float>(0x7F800001U)))));
}
