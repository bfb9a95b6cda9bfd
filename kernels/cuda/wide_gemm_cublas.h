// cuBLASLt behind a handful of plain types: row-major products of unpacked weights. The library is
// opened at run time, so that a device without it still has our own kernels; in the emulator there
// is none (wide_gemm_cublas_simt.h).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "kernels/cuda/types.h"

namespace updraft::cuda {

// The bytes of a cublasLtMatmulAlgo_t: how one shape is computed. They may be kept on disk for the
// same library version and device; one that no longer fits its shape is passed over.
struct CublasAlgorithm {
  std::array<uint64_t, 8> words{};
  bool empty() const { return words == std::array<uint64_t, 8>{}; }
};

inline constexpr size_t kCublasWorkspaceBytes = size_t{32} << 20;  // per stream

enum class CublasKind : uint8_t {
  kBf16,    // bfloat16 x bfloat16 -> bfloat16 or f32
  kInt8,    // int8 x int8 -> int32
  kFloat8,  // e4m3 x e4m3 -> bfloat16 or f32, with one scale per row of either side; capability 90
};

// y[token, r] = sum_c x[token, c] * w[r, c]
struct CublasProduct {
  CublasKind kind = CublasKind::kBf16;
  bool wide_output = false;  // kBf16, kFloat8: y is f32
  bool accumulate = false;   // kBf16: y += the product
  int32_t rows = 0;
  int32_t cols = 0;
  int32_t tokens = 0;
  const void* weight = nullptr;  // [rows, cols]
  const void* x = nullptr;       // [tokens, x_stride]
  int64_t x_stride = 0;
  void* y = nullptr;  // [tokens, y_stride]
  int64_t y_stride = 0;
  const float* row_scales = nullptr;    // kFloat8: [rows]
  const float* token_scales = nullptr;  // kFloat8: [tokens]
  std::byte* workspace = nullptr;       // kCublasWorkspaceBytes, of one stream
};

class Cublas {
 public:
  // Of the calling thread's current device. Null: no library.
  static Result<std::unique_ptr<Cublas>> open();
  virtual ~Cublas() = default;
  // Of the library: algorithms of one say nothing to another.
  virtual std::string version() const = 0;

  // No allocation on the device and no synchronisation. With an empty algorithm, or one that does
  // not fit, the heuristic's first. Errors: a shape that the library refuses.
  virtual Result<void> run(const CublasProduct& op, const CublasAlgorithm& algorithm,
                           Stream stream) = 0;
  // Up to `count` algorithms for a shape, the most promising first; pointers are not read.
  virtual Result<std::vector<CublasAlgorithm>> candidates(const CublasProduct& op, int count) = 0;
};

}  // namespace updraft::cuda
