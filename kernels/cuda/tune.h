// Start-up: which way each shape of a model's products takes (gemm_device.h), from the disk where
// an earlier start wrote it, else measured and written for the next. Never while a graph is
// captured.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "common/base/progress.h"
#include "common/base/result.h"
#include "kernels/cuda/choices_file.h"
#include "kernels/cuda/gemm.h"

namespace updraft::cuda {

// One matrix of each shape, as the model's steps multiply with it.
struct TunedProduct {
  PackedLayout layout;
  const std::byte* weight = nullptr;  // on the device
  int32_t tokens_max = 0;             // that a step gives it
  bool wide_output = false;           // f32
  bool quantized = false;             // the activations are in the weights' format, not bfloat16
};

// Device memory that may be overwritten.
struct TuneRoom {
  std::span<std::byte> in;     // the widest input of any product, for all tokens
  std::span<std::byte> out;    // the widest output
  std::span<float> in_scales;  // [tokens] of quantised activations; empty: there are none
  GemmScratch scratch;
};

struct TuneCache {
  std::string folder;
  ChoicesOf of;
};

struct TuneReport {
  int32_t known_count = 0;     // shapes and numbers of tokens that the file had
  int32_t measured_count = 0;  // that were timed now
};

// For every power of two of tokens above the skinny product's that a product can have. A file that
// is of no use, or cannot be written, is no error: `note` gets one line, and what it should have
// said is measured. `cache`: none, and nothing is read or written. Errors: of a product.
Result<TuneReport> tune_products(GemmDevice& device, std::span<const TunedProduct> products,
                                 const TuneRoom& room, const std::optional<TuneCache>& cache,
                                 const GemmTimer& timer, Stream stream,
                                 const std::function<void(const std::string&)>& note,
                                 const Progress& progress);

// By the host's clock: the work once to warm up, then as many runs as take about `least_ms`, three
// times; the best.
GemmTimer host_timer(Stream stream, double least_ms);

}  // namespace updraft::cuda
