// The weight formats. Truths: bytes written by ggml (golden/ggml_quant_blocks.json), and a second
// decoder below that computes one weight at a time in double precision from the format's
// definition.
#include "kernels/quant/quant.h"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/shared_data.h"

using namespace updraft;

namespace {

// All numbers of the array behind "key", whatever its nesting.
std::vector<double> json_numbers(const std::string& text, const std::string& key) {
  std::vector<double> out;
  size_t at = text.find("\"" + key + "\"");
  REQUIRE(at != std::string::npos);
  at = text.find('[', at);
  int depth = 0;
  while (at < text.size()) {
    const char c = text[at];
    if (c == '[') ++depth;
    if (c == ']' && --depth == 0) break;
    if (c == '-' || (c >= '0' && c <= '9')) {
      char* end = nullptr;
      out.push_back(std::strtod(text.c_str() + at, &end));
      at = static_cast<size_t>(end - text.c_str());
    } else {
      ++at;
    }
  }
  return out;
}

double half_at(const uint8_t* p) {
  return static_cast<double>(half_to_float(static_cast<uint16_t>(p[0] | (p[1] << 8))));
}

// Weight i of one block, straight from the definition.
double weight_at(DType type, const uint8_t* b, int i) {
  const int j = i % 16;
  const auto nibble = [&](const uint8_t* qs) { return i < 16 ? qs[j] & 15 : qs[j] >> 4; };
  const auto fifth = [&](const uint8_t* qh) { return ((qh[i / 8] >> (i % 8)) & 1) * 16; };
  const auto six_bits = [&](int k, bool min) {  // the 6-bit scale or min of sub-block k
    const uint8_t* s = b + 4;
    if (k < 4) return s[k + (min ? 4 : 0)] & 63;
    const int low = min ? s[k + 4] >> 4 : s[k + 4] & 15;
    return low + ((s[k - (min ? 0 : 4)] >> 6) * 16);
  };
  switch (type) {
    case DType::kQ4_0:
      return half_at(b) * (nibble(b + 2) - 8);
    case DType::kQ4_1:
      return half_at(b) * nibble(b + 4) + half_at(b + 2);
    case DType::kQ5_0:
      return half_at(b) * (nibble(b + 6) + fifth(b + 2) - 16);
    case DType::kQ5_1:
      return half_at(b) * (nibble(b + 8) + fifth(b + 4)) + half_at(b + 2);
    case DType::kQ8_0:
      return half_at(b) * static_cast<int8_t>(b[2 + i]);
    case DType::kQ4_K:
    case DType::kQ5_K: {
      const int sub = i / 32;
      const uint8_t* qs = b + (type == DType::kQ4_K ? 16 : 48) + 32 * (sub / 2);
      int q = sub % 2 == 0 ? qs[i % 32] & 15 : qs[i % 32] >> 4;
      if (type == DType::kQ5_K) q += ((b[16 + i % 32] >> sub) & 1) * 16;
      return half_at(b) * six_bits(sub, false) * q - half_at(b + 2) * six_bits(sub, true);
    }
    case DType::kQ6_K: {
      const int half = i / 128;
      const int l = i % 32;
      const int quarter = (i % 128) / 32;
      const uint8_t low = b[64 * half + l + (quarter % 2) * 32];
      const int q = (quarter < 2 ? low & 15 : low >> 4) +
                    ((b[128 + 32 * half + l] >> (2 * quarter)) & 3) * 16;
      return half_at(b + 208) * static_cast<int8_t>(b[192 + i / 16]) * (q - 32);
    }
    default:
      return 0.0;
  }
}

constexpr std::array kBlockTypes = {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0,
                                    DType::kQ5_1, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};

double mean_square(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - b[i], 2);
  return sum / static_cast<double>(a.size());
}

std::vector<float> round_trip(DType type, const std::vector<float>& x) {
  std::vector<std::byte> bytes(
      static_cast<size_t>(row_bytes(type, static_cast<int64_t>(x.size()))));
  quantize_row(type, x, bytes.data());
  std::vector<float> y(x.size());
  dequantize_row(type, bytes.data(), y);
  return y;
}

std::vector<float> gaussian(size_t count, uint32_t seed, float mean = 0.0F) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(mean, 1.0F);
  std::vector<float> x(count);
  for (float& v : x) v = normal(random);
  return x;
}

}  // namespace

TEST_CASE("Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 give the bytes that ggml gives") {
  const auto path = testing::shared_data("golden/ggml_quant_blocks.json");
  if (!path) return;
  std::stringstream text;
  text << std::ifstream(*path).rdbuf();
  const std::vector<double> numbers = json_numbers(text.str(), "weight_f32_2x128");
  REQUIRE(numbers.size() == 256);
  const std::vector<float> weights(numbers.begin(), numbers.end());
  const std::pair<const char*, DType> cases[] = {{"q8_0_bytes_i8", DType::kQ8_0},
                                                 {"q4_0_bytes_i8", DType::kQ4_0},
                                                 {"q4_1_bytes_i8", DType::kQ4_1},
                                                 {"q5_0_bytes_i8", DType::kQ5_0},
                                                 {"q5_1_bytes_i8", DType::kQ5_1}};
  for (const auto& [key, type] : cases) {
    const std::string name = key;
    CAPTURE(name);
    const std::vector<double> expected = json_numbers(text.str(), key);
    std::vector<std::byte> bytes(static_cast<size_t>(row_bytes(type, 256)));
    REQUIRE(bytes.size() == expected.size());
    quantize_row(type, weights, bytes.data());
    int wrong = 0;
    for (size_t i = 0; i < bytes.size(); ++i) {
      wrong += static_cast<int8_t>(bytes[i]) == static_cast<int>(expected[i]) ? 0 : 1;
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("random bytes of every block format decode to the definition's values") {
  std::mt19937 random(7);
  for (const DType type : kBlockTypes) {
    const DTypeInfo& info = dtype_info(type);
    CAPTURE(std::string(info.name));
    std::vector<std::byte> bytes(static_cast<size_t>(info.block_bytes) * 20 + 1);
    for (std::byte& b : bytes) b = static_cast<std::byte>(random() & 255);
    std::byte* blocks = bytes.data() + 1;           // unaligned on purpose
    const auto tame = [&](int block, int offset) {  // a finite half
      std::byte* high = blocks + block * info.block_bytes + offset + 1;
      *high = static_cast<std::byte>(static_cast<int>(*high) & 0xBB);
    };
    for (int k = 0; k < 20; ++k) {
      tame(k, type == DType::kQ6_K ? 208 : 0);
      if (type == DType::kQ4_1 || type == DType::kQ5_1 || type == DType::kQ4_K ||
          type == DType::kQ5_K)
        tame(k, 2);
    }
    std::vector<float> out(static_cast<size_t>(info.block_elems) * 20);
    dequantize_row(type, blocks, out);
    double worst = 0;
    for (size_t i = 0; i < out.size(); ++i) {
      const auto block = i / static_cast<size_t>(info.block_elems);
      const auto* b =
          reinterpret_cast<const uint8_t*>(blocks) + block * static_cast<size_t>(info.block_bytes);
      const double expected =
          weight_at(type, b, static_cast<int>(i % static_cast<size_t>(info.block_elems)));
      worst = std::max(worst, std::fabs(out[i] - expected) / (1e-3 + std::fabs(expected)));
    }
    CHECK(worst < 2e-4);  // d*q and m may cancel; one f32 rounding each
  }
}

TEST_CASE("the error of each quantiser on Gaussian weights is below what its bits allow") {
  // Root mean square error of unit-variance weights; bounds from the step size: range / levels /
  // sqrt(12), measured ranges of 32 Gaussians about +-2.1 (K formats must beat their one-step
  // siblings).
  const std::vector<float> x = gaussian(256 * 64, 11);
  const auto rms = [&](DType type) { return std::sqrt(mean_square(x, round_trip(type, x))); };
  CHECK(rms(DType::kF32) == 0.0);
  CHECK(rms(DType::kF16) < 3e-4);
  CHECK(rms(DType::kBF16) < 2.4e-3);
  CHECK(rms(DType::kQ8_0) < 0.0060);
  CHECK(rms(DType::kQ4_0) < 0.100);
  CHECK(rms(DType::kQ4_1) < 0.090);
  CHECK(rms(DType::kQ5_0) < 0.050);
  CHECK(rms(DType::kQ5_1) < 0.045);
  CHECK(rms(DType::kQ4_K) < rms(DType::kQ4_1));
  CHECK(rms(DType::kQ5_K) < rms(DType::kQ5_1));
  CHECK(rms(DType::kQ6_K) < 0.022);
}

TEST_CASE("values that a K format holds exactly survive the round trip") {
  // One scale for all: q in {0..15} * 0.5 - 3.5 is a Q4_K row with d*S = 0.5 and dmin*M = 3.5.
  std::vector<float> x(256);
  for (size_t i = 0; i < x.size(); ++i) x[i] = 0.5F * static_cast<float>((i * 7) % 16) - 3.5F;
  CHECK(std::sqrt(mean_square(x, round_trip(DType::kQ4_K, x))) < 2e-3);
  // Every 16 weights reach -32 steps of 0.25: one scale for all again.
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = i % 16 == 0 ? -8.0F : 0.25F * (static_cast<float>((i * 11) % 64) - 32.0F);
  }
  CHECK(std::sqrt(mean_square(x, round_trip(DType::kQ6_K, x))) < 2e-3);
}

TEST_CASE("zero, constant and one-sided blocks decode close to what was given") {
  for (const DType type : kBlockTypes) {
    CAPTURE(std::string(dtype_info(type).name));
    const std::vector<float> zero(256, 0.0F);
    CHECK(mean_square(zero, round_trip(type, zero)) == 0.0);
    const std::vector<float> constant(256, -0.75F);
    CHECK(mean_square(constant, round_trip(type, constant)) < 1e-5);
    const std::vector<float> shifted =
        gaussian(256, 3, 20.0F);  // all positive: min would be negative
    CHECK(mean_square(shifted, round_trip(type, shifted)) < 1.2);
  }
}

TEST_CASE("NaN and infinite weights give some bytes and no undefined behaviour") {
  std::vector<float> x = gaussian(256, 5);
  x[3] = NAN;
  x[100] = INFINITY;
  x[200] = -INFINITY;
  for (const DType type : kBlockTypes) CHECK(round_trip(type, x).size() == 256);
}

TEST_CASE("the table knows GGUF's ids and refuses others") {
  CHECK(dtype_from_gguf(14) == DType::kQ6_K);
  CHECK(dtype_from_gguf(30) == DType::kBF16);
  CHECK_FALSE(dtype_from_gguf(10).has_value());  // Q2_K
  CHECK_FALSE(dtype_from_gguf(4000000000U).has_value());
  CHECK(row_bytes(DType::kQ4_K, 512) == 288);
  CHECK(row_bytes(DType::kQ5_1, 896) == 672);
}

namespace {

// The value of an e4m3 code from its definition: 1 sign, 4 exponent bits with bias 7, 3 fraction
// bits.
double e4m3_value(int code) {
  const int exponent = code >> 3 & 15;
  const int fraction = code & 7;
  if (exponent == 15 && fraction == 7) return NAN;
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 7 - 3);
  return (code & 128) != 0 ? -magnitude : magnitude;
}

}  // namespace

TEST_CASE("each of the 256 codes of e4m3 has its value and comes back") {
  for (int code = 0; code < 256; ++code) {
    CAPTURE(code);
    const float got = f8_to_float(static_cast<uint8_t>(code));
    const double expected = e4m3_value(code);
    if (std::isnan(expected)) {
      CHECK(std::isnan(got));
    } else {
      CHECK(static_cast<double>(got) == expected);
      CHECK(std::signbit(got) == (code >= 128));
    }
    CHECK(float_to_f8(got) == code);
  }
}

TEST_CASE("e4m3 rounds to the nearest code, to the even one on ties, and saturates") {
  std::mt19937 random(5);
  std::uniform_real_distribution<float> exponent(-12.0F, 9.5F);
  for (int i = 0; i < 20000; ++i) {
    float x = std::exp2(exponent(random)) * (i % 2 == 0 ? 1.0F : -1.0F);
    if (i % 3 == 0) {  // exactly between two codes
      const int code = static_cast<int>(random() % 0x7E);
      x = static_cast<float>((e4m3_value(code) + e4m3_value(code + 1)) / 2);
    }
    int best = 0;
    double closest = INFINITY;
    for (int code = 0; code < 256; ++code) {
      const double away = std::abs(e4m3_value(code) - static_cast<double>(x));
      const bool tie_to_even = away == closest && code % 2 == 0;
      if (std::signbit(x) == (code >= 128) && (away < closest || tie_to_even)) {
        best = code;
        closest = away;
      }
    }
    CAPTURE(x);
    CHECK(float_to_f8(x) == best);
  }
  CHECK(float_to_f8(1e30F) == 0x7E);
  CHECK(float_to_f8(-INFINITY) == 0xFE);
  CHECK(float_to_f8(0x1p-11F) == 0);
  CHECK((float_to_f8(NAN) & 0x7F) == 0x7F);
}

TEST_CASE("what only a device keeps is no format of a file") {
  CHECK_FALSE(dtype_from_gguf(dtype_info(DType::kF8_E4M3).gguf_type).has_value());
  const std::vector<float> x = {0.5F, 1.5F, -127.4F, 1000.0F, -1000.0F, -3.2F};
  CHECK(round_trip(DType::kI8, x) == std::vector<float>{0, 2, -127, 127, -127, -3});
  CHECK(round_trip(DType::kF8_E4M3, {1.0F, 500.0F, 0.3F})[1] == 448.0F);
}
