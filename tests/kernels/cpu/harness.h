// Helpers for the CPU backend's tests: random data, a backend of a given instruction set, matrices
// in any format, and the plain double-precision arithmetic that results are held against.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/quant/quant.h"

namespace updraft::testing {

inline std::vector<float> random_values(size_t count, uint32_t seed, float spread = 1.0F) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, spread);
  std::vector<float> values(count);
  for (float& v : values) v = normal(random);
  return values;
}

// A matrix in a format, and the values that its bytes mean.
struct TestMatrix {
  DType type;
  int64_t rows;
  int64_t cols;
  std::vector<std::byte> bytes;
  std::vector<float> values;
  WeightView view() const { return {bytes.data(), type, rows, cols}; }
};

inline TestMatrix random_matrix(DType type, int64_t rows, int64_t cols, uint32_t seed) {
  TestMatrix m{type, rows, cols, {}, {}};
  const std::vector<float> source = random_values(static_cast<size_t>(rows * cols), seed, 0.5F);
  m.bytes.resize(static_cast<size_t>(rows * row_bytes(type, cols)));
  quantize_row(type, source, m.bytes.data());
  m.values.resize(source.size());
  dequantize_row(type, m.bytes.data(), m.values);
  return m;
}

inline constexpr DType kAllTypes[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ8_0,
                                      DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                                      DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};

inline bool is_float_type(DType type) { return dtype_info(type).block_elems == 1; }

inline std::unique_ptr<Backend> open_backend(CpuIsa isa, int threads = 2, bool exact = false) {
  CpuConfig config;
  config.isa = isa;
  config.thread_count = threads;
  config.exact = exact;
  config.pin = false;
  Result<std::unique_ptr<Backend>> backend = open_cpu_backend(config);
  REQUIRE_MESSAGE(backend.ok(), backend.message());
  return std::move(*backend);
}

template <typename T>
T take(Result<T> result) {
  REQUIRE_MESSAGE(result.ok(), result.message());
  return std::move(*result);
}
inline void take(Result<void> result) { REQUIRE_MESSAGE(result.ok(), result.message()); }

// Values that reach an activation as they are: an f32 embedding table, one row per token.
// What a step of plain operations needs: rows 0..n-1 of `table` in an activation.
struct PlainBatch {
  std::vector<int32_t> ids;
  std::vector<int32_t> positions;
  explicit PlainBatch(int64_t rows) {
    for (int32_t i = 0; i < rows; ++i) {
      ids.push_back(i);
      positions.push_back(i);
    }
  }
  Batch batch() const { return {ids, positions, {}, {}}; }
};

// Puts `values` [rows, cols] into a new activation, through an f32 table; the backend is inside a
// step afterwards.
inline Act filled_activation(Backend& backend, const std::vector<float>& values, int64_t rows,
                             int64_t cols, const PlainBatch& plain) {
  const WeightView view{reinterpret_cast<const std::byte*>(values.data()), DType::kF32, rows, cols};
  const Mat table = take(backend.add_matrix({&view, 1}));
  const Act act = take(backend.add_activation(rows, cols));
  backend.begin(plain.batch());
  backend.embed(table, act);
  return act;
}

inline std::vector<float> read(Backend& backend, Act act, int64_t rows, int64_t cols) {
  std::vector<float> out(static_cast<size_t>(rows * cols));
  backend.read_activation(act, rows, out);
  return out;
}

// x as the quantised formats see it: per 32 values an integer of 8 bits times a scale. In double,
// from the definition.
inline std::vector<double> int8_values(const float* x, int64_t cols) {
  std::vector<double> out(static_cast<size_t>(cols));
  for (int64_t first = 0; first < cols; first += 32) {
    float peak = 0;
    for (int64_t c = first; c < first + 32; ++c) peak = std::max(peak, std::fabs(x[c]));
    const float scale = peak / 127.0F;
    const float inverse =
        peak > 0 ? 127.0F / peak : 0.0F;  // f32, so that ties round as in the kernels
    for (int64_t c = first; c < first + 32; ++c) {
      out[static_cast<size_t>(c)] = std::nearbyint(x[c] * inverse) * static_cast<double>(scale);
    }
  }
  return out;
}

// Root of the mean squared difference, relative to the expected values' own.
inline double relative_error(const std::vector<float>& got, const std::vector<double>& expected) {
  REQUIRE(got.size() == expected.size());
  double difference = 0;
  double size = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    difference += std::pow(static_cast<double>(got[i]) - expected[i], 2);
    size += expected[i] * expected[i];
  }
  if (!std::isfinite(difference)) return INFINITY;
  return std::sqrt(difference / (size + 1e-30));
}

}  // namespace updraft::testing
