// Model files of a given shape with random weights, for measuring: what a kernel does depends on
// shapes and formats, not on what the weights say. The file is complete (tokenizer included), so
// that llama.cpp and every command of this program open it like a trained one.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/progress.h"
#include "common/base/result.h"
#include "common/model/model.h"
#include "tools/convert/file_type.h"

namespace updraft {

struct NamedShape {
  const char* name;
  Hyperparameters hyperparameters;  // tied_embeddings included
};

// qwen2.5-0.5b, qwen3-0.6b, llama-3.2-1b, llama-15m: the published configurations; llama-15m with
// a context of 8,192, so that it can be measured at depth.
const std::vector<NamedShape>& named_shapes();

struct RandomModelConfig {
  Hyperparameters hyperparameters;  // rope_style is not looked at: the file has its architecture's
  std::string name = "random";      // general.name
  FileType file_type = FileType::kQ4_0;
  uint64_t seed = 1;
  int thread_count = 0;  // 0: one per core
};

// Writes the file; equal configurations give equal bytes, however many threads write them. Errors:
// hyperparameters that contradict each other, a vocabulary below 512 tokens, the disk.
Result<void> write_random_model(const RandomModelConfig& config, const std::string& path,
                                const Progress& progress);

// A byte-level BPE vocabulary of this many tokens (at least 512): the 256 bytes, short words of
// lower-case letters with the merges that make them, and three control tokens at the end.
TokenizerData synthetic_tokenizer(Architecture architecture, int32_t token_count);

// Random blocks of any format, mean 0 and standard deviation about `deviation`. Used by the above;
// here for its test. `bytes` is a whole number of blocks.
void fill_random_blocks(DType type, float deviation, uint64_t seed, std::span<std::byte> bytes);

}  // namespace updraft
