// The library of wide products, played by plain loops over what it is given: the emulator has none.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/cuda/wide_gemm_cublas.h"
#include "tests/kernels/cuda/support.h"

namespace updraft::cuda::testing {

class PlainCublas final : public Cublas {
 public:
  struct Call {
    CublasKind kind;
    int32_t rows;
    CublasAlgorithm algorithm;
  };
  using Submit = std::function<Result<void>(Stream, std::function<Result<void>()>)>;
  std::vector<Call>* calls;
  Submit submit;         // how work is given to a stream; empty: it is done at once
  bool refuses = false;  // every product, as a library does that does not know the device
  bool finds = true;     // algorithms
  explicit PlainCublas(std::vector<Call>* calls, Submit submit = {})
      : calls(calls), submit(std::move(submit)) {}

  std::string version() const override { return "plain"; }
  Result<void> run(const CublasProduct& op, const CublasAlgorithm& algorithm,
                   Stream stream) override {
    calls->push_back({op.kind, op.rows, algorithm});
    if (refuses) return fail("plain: refused");
    if (!submit) {
      // On a GPU the kernels in front may still run.
      if (auto done = finish(); !done) return done;
      return multiply(op);
    }
    return submit(stream, [op] { return multiply(op); });
  }
  // Algorithms 1, 2, 3.
  Result<std::vector<CublasAlgorithm>> candidates(const CublasProduct& op, int count) override {
    if (!finds) return fail("plain: no algorithm");
    std::vector<CublasAlgorithm> out(static_cast<size_t>(std::min(count, 3)));
    for (size_t i = 0; i < out.size(); ++i) out[i].words = {i + 1, static_cast<uint64_t>(op.rows)};
    return out;
  }

 private:
  static Result<void> multiply(const CublasProduct& op) {
    std::fill_n(op.workspace, kCublasWorkspaceBytes / 1024, std::byte{0xFF});
    for (int32_t token = 0; token < op.tokens; ++token) {
      for (int32_t r = 0; r < op.rows; ++r) {
        double sum = 0;
        for (int64_t c = 0; c < op.cols; ++c) {
          sum += element(op, op.weight, r * int64_t{op.cols} + c) *
                 element(op, op.x, token * op.x_stride + c);
        }
        const int64_t at = token * op.y_stride + r;
        if (op.kind == CublasKind::kFloat8) {
          sum *=
              static_cast<double>(op.row_scales[r]) * static_cast<double>(op.token_scales[token]);
        }
        if (op.kind == CublasKind::kInt8) {
          static_cast<int32_t*>(op.y)[at] = static_cast<int32_t>(sum);
        } else if (op.wide_output) {
          float& y = static_cast<float*>(op.y)[at];
          y = static_cast<float>(op.accumulate ? static_cast<double>(y) + sum : sum);
        } else {
          static_cast<Bf16*>(op.y)[at] = {float_to_bf16(static_cast<float>(sum))};
        }
      }
    }
    return {};
  }
  static double element(const CublasProduct& op, const void* at, int64_t index) {
    switch (op.kind) {
      case CublasKind::kInt8:
        return static_cast<const int8_t*>(at)[index];
      case CublasKind::kFloat8:
        return static_cast<double>(f8_to_float(static_cast<const uint8_t*>(at)[index]));
      default:
        return static_cast<double>(value(static_cast<const Bf16*>(at)[index]));
    }
  }
};

}  // namespace updraft::cuda::testing
