// Packing for the GPU loses nothing: unpacking gives the reference decoder's values bit for bit.
#include "kernels/cuda/weight_layout.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "common/base/bytes.h"
#include "kernels/quant/quant.h"

using namespace updraft;
using namespace updraft::cuda;

namespace {

// Random bytes are valid blocks of every quantised format but for scales that are not finite.
std::vector<std::byte> random_matrix(DType type, int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<std::byte> bytes(static_cast<size_t>(rows * row_bytes(type, cols)));
  std::vector<float> values(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; ++r) {
    for (float& v : values) v = normal(random);
    quantize_row(type, values, bytes.data() + r * row_bytes(type, cols));
  }
  return bytes;
}

std::vector<std::byte> packed(const WeightView& weight, const PackedLayout& layout) {
  std::vector<std::byte> out(static_cast<size_t>(layout.bytes), std::byte{0xFF});
  // In two parts, as two threads would.
  const int64_t tiles = layout.rows_padded / kTileRows;
  pack_tiles(weight, layout, tiles / 2, tiles, out);
  pack_tiles(weight, layout, 0, tiles / 2, out);
  return out;
}

int differing(const WeightView& weight, const PackedLayout& layout,
              std::span<const std::byte> bytes) {
  int count = 0;
  std::vector<float> expected(static_cast<size_t>(weight.cols));
  std::vector<float> got(expected.size());
  for (int64_t r = 0; r < weight.rows; ++r) {
    dequantize_row(weight.type, weight.data + r * row_bytes(weight.type, weight.cols), expected);
    unpack_row(layout, bytes, r, got);
    for (size_t c = 0; c < got.size(); ++c) {
      count += std::bit_cast<uint32_t>(got[c]) == std::bit_cast<uint32_t>(expected[c]) ? 0 : 1;
    }
  }
  return count;
}

}  // namespace

TEST_CASE("packed weights are the file's, bit for bit, also beside padding") {
  for (const DType type : {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0,
                           DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kBF16, DType::kF16}) {
    CAPTURE(dtype_info(type).name);
    const int64_t block = dtype_info(type).block_elems;
    for (const int64_t rows : {16, 37}) {
      const int64_t cols = block == 256 ? 512 : 96;  // 96: half a tile of Q4_0 pads
      const auto bytes = random_matrix(type, rows, cols, static_cast<uint32_t>(rows));
      const WeightView weight{bytes.data(), type, rows, cols};
      const auto layout = PackedLayout::of(packed_type(type), rows, cols);
      REQUIRE(layout.ok());
      CHECK(differing(weight, *layout, packed(weight, *layout)) == 0);
    }
  }
}

TEST_CASE(
    "a packed matrix takes no more than its format's bits and Q4_K's and Q6_K's wider scales") {
  const auto bits = [](DType type) {
    return static_cast<double>(PackedLayout::of(type, 4096, 4096)->bytes) * 8 / (4096.0 * 4096.0);
  };
  CHECK(bits(DType::kQ4_0) == 4.5);
  CHECK(bits(DType::kQ8_0) == 8.5);
  CHECK(bits(DType::kBF16) == 16);
  CHECK(bits(DType::kQ4_K) == 4.625);
  CHECK(bits(DType::kQ6_K) == 6.5625);
  CHECK(bits(DType::kQ5_0) == 5.5);
  CHECK(bits(DType::kQ5_1) == 6);
  CHECK(bits(DType::kQ5_K) == 5.625);
  CHECK(bits(DType::kF8_E4M3) == 8 + 32.0 / 4096);
}

TEST_CASE("a lane finds its rows and columns where the layout says") {
  // A band of 16 rows and 64 columns, the quants a function of row and column, in raw blocks.
  const auto quant = [](int row, int column) {
    return (7 * row + 5 * column + row * column / 3) % 16;
  };
  std::vector<std::byte> q4(16 * 36), q8(16 * 68);
  for (int row = 0; row < 16; ++row) {
    for (int c = 0; c < 64; ++c) {
      q8[static_cast<size_t>(row * 68 + c / 32 * 34 + 2 + c % 32)] =
          static_cast<std::byte>(quant(row, c));
      q4[static_cast<size_t>(row * 36 + c / 32 * 18 + 2 + c % 16)] |=
          static_cast<std::byte>(quant(row, c) << (c % 32 / 16 * 4));
    }
  }
  const auto layout4 = PackedLayout::of(DType::kQ4_0, 16, 64);
  const auto layout8 = PackedLayout::of(DType::kQ8_0, 16, 64);
  const auto packed4 = packed({q4.data(), DType::kQ4_0, 16, 64}, *layout4);
  const auto packed8 = packed({q8.data(), DType::kQ8_0, 16, 64}, *layout8);
  int wrong = 0;
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4;
    const int t = lane % 4;
    for (int step = 0; step < 4; ++step) {
      const int c = step / 2 * 32 + 8 * t + 4 * (step % 2);
      const int column[4] = {c, c, c + 2, c + 2};
      const int row[4] = {g, g + 8, g, g + 8};
      const auto word4 = load_le<uint32_t>(packed4.data() + 16 * lane + 4 * step);
      for (int j = 0; j < 4; ++j) {
        const auto word8 = load_le<uint32_t>(packed8.data() + step / 2 * 512 + 16 * lane +
                                             8 * (step % 2) + 4 * (j / 2));
        const auto first = static_cast<uint32_t>(quant(row[j], column[j]));
        const auto second = static_cast<uint32_t>(quant(row[j], column[j] + 1));
        wrong += (word4 >> (4 * j) & 15) == first ? 0 : 1;
        wrong += (word4 >> (4 * j + 16) & 15) == second ? 0 : 1;
        wrong += (word8 >> (8 * (j % 2)) & 255) == first ? 0 : 1;
        wrong += (word8 >> (8 * (j % 2) + 16) & 255) == second ? 0 : 1;
      }
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("a wide float is packed as the nearest bfloat16") {
  const std::vector<float> values = {1.0F, 1.00390625F, -3.14159F, 65504.0F};
  std::vector<float> row(32);
  for (size_t i = 0; i < row.size(); ++i) row[i] = values[i % values.size()];
  const WeightView weight{reinterpret_cast<const std::byte*>(row.data()), DType::kF32, 1, 32};
  const auto layout = PackedLayout::of(DType::kBF16, 1, 32);
  REQUIRE(layout.ok());
  std::vector<float> got(32);
  unpack_row(*layout, packed(weight, *layout), 0, got);
  for (size_t i = 0; i < row.size(); ++i) CHECK(got[i] == bf16_to_float(float_to_bf16(row[i])));
}

TEST_CASE("what has no layout is refused by name") {
  CHECK(PackedLayout::of(DType::kQ4_1, 16, 64).message().find("Q4_1") != std::string::npos);
  CHECK(PackedLayout::of(DType::kQ4_0, 48, 64, true).message().find("48") != std::string::npos);
  CHECK_FALSE(PackedLayout::of(DType::kQ4_0, 16, 40).ok());
  CHECK_FALSE(PackedLayout::of(DType::kQ4_0, 0, 64).ok());
}

TEST_CASE("bytes with a scale per row are within half a step of the weights") {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  std::vector<float> values(20 * 64);
  for (float& v : values) v = normal(random);
  for (size_t c = 0; c < 64; ++c) values[3 * 64 + c] = 0.0F;
  const WeightView weight{reinterpret_cast<const std::byte*>(values.data()), DType::kF32, 20, 64};
  for (const DType type : {DType::kF8_E4M3, DType::kI8}) {
    CAPTURE(dtype_info(type).name);
    const auto layout = PackedLayout::of(type, 20, 64);
    REQUIRE(layout.ok());
    const auto bytes = packed(weight, *layout);
    std::vector<float> got(64);
    for (size_t r = 0; r < 20; ++r) {
      unpack_row(*layout, bytes, static_cast<int64_t>(r), got);
      float largest = 0.0F;
      for (size_t c = 0; c < 64; ++c) largest = std::max(largest, std::abs(values[r * 64 + c]));
      for (size_t c = 0; c < 64; ++c) {
        const float exact = values[r * 64 + c];
        // I8: half of largest / 127. e4m3: 1/16 of the value, half of 2^-9 among the subnormals.
        const float half_step = type == DType::kI8
                                    ? largest / 127 / 2
                                    : std::max(std::abs(exact) / 16, largest / 448 * 0x1p-10F);
        CHECK(std::abs(got[c] - exact) <= half_step * 1.0001F);
      }
    }
  }
}

TEST_CASE("a row that is not finite is NaN, its neighbours are not") {
  std::vector<float> values(16 * 32, 1.0F);
  values[5 * 32 + 7] = INFINITY;
  values[6 * 32 + 31] = NAN;
  const WeightView weight{reinterpret_cast<const std::byte*>(values.data()), DType::kF32, 16, 32};
  const auto layout = PackedLayout::of(DType::kI8, 16, 32);
  const auto bytes = packed(weight, *layout);
  std::vector<float> got(32);
  for (int64_t r = 0; r < 16; ++r) {
    unpack_row(*layout, bytes, r, got);
    CHECK(std::isnan(got[0]) == (r == 5 || r == 6));
  }
}

TEST_CASE("gate and up alternate by bands and come back as gate, then up") {
  const auto gate = random_matrix(DType::kQ4_K, 48, 256, 1);
  const auto up = random_matrix(DType::kQ4_K, 48, 256, 2);
  const auto layout = PackedLayout::of(DType::kQ4_K, 96, 256, true);
  REQUIRE(layout.ok());
  std::vector<std::byte> bytes(static_cast<size_t>(layout->bytes), std::byte{0xFF});
  const WeightView gate_view{gate.data(), DType::kQ4_K, 48, 256};
  const WeightView up_view{up.data(), DType::kQ4_K, 48, 256};
  pack_gated_tiles(gate_view, up_view, *layout, 0, 6, bytes);
  std::vector<float> expected(256), got(256);
  for (int64_t r = 0; r < 96; ++r) {
    const auto& half = r < 48 ? gate : up;
    dequantize_row(DType::kQ4_K, half.data() + r % 48 * 144, expected);
    unpack_row(*layout, bytes, r, got);
    CHECK(got == expected);
  }
  // Band 2i is gate's band i, band 2i + 1 up's.
  const auto plain = PackedLayout::of(DType::kQ4_K, 48, 256);
  std::vector<std::byte> up_alone(static_cast<size_t>(plain->bytes));
  pack_tiles(up_view, *plain, 0, 3, up_alone);
  const auto band_bytes = layout->quants_bytes / 6;
  CHECK(std::equal(up_alone.begin() + band_bytes, up_alone.begin() + 2 * band_bytes,
                   bytes.begin() + 3 * band_bytes));
}
