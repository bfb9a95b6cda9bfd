// Writing a model file in another weight format: from a GGUF file (in several parts or one) or a
// Hugging Face folder to one GGUF file. Matrices are decoded, rounded by kernels/quant and streamed
// out, so the model need not fit the memory; the file appears under its name only when it is whole.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "common/base/progress.h"
#include "common/base/result.h"
#include "tools/convert/file_type.h"

namespace updraft {

struct QuantizeConfig {
  std::string input;   // .gguf, .safetensors, or a folder with config.json
  std::string output;  // .gguf
  FileType type = FileType::kQ4_0;
  int thread_count = 0;  // 0: one per core
  // Also take weights that are quantised already: what the first rounding lost stays lost.
  bool allow_requantize = false;
};

struct QuantizeReport {
  uint64_t input_bytes = 0;  // of the weights
  uint64_t output_bytes = 0;
  std::array<uint64_t, kDTypeCount> tensors{};  // tensors of each format in the output
};

// From a GGUF file every key is carried over unchanged but general.file_type,
// general.quantization_version and split.*; from a folder hyperparameters and tokenizer are written
// as the keys that GGUF readers know, and rows of q and k in the order that the architecture's GGUF
// files have. Errors: the input does not open, is quantised already (the tensor and its format),
// has a tokenizer that GGUF cannot express; input and output are one file; the disk.
Result<QuantizeReport> quantize_file(const QuantizeConfig& config, const Progress& progress);

}  // namespace updraft
