// Random models (random_weights.h) as files: what peers open too, and what loading is timed with.
#pragma once

#include <string>

#include "common/base/result.h"
#include "common/model/model.h"
#include "kernels/quant/dtype.h"

namespace updraft::gpu {

// A GGUF file that llama.cpp opens too (it has no tokenizer: "no_vocab"). Errors: a shape that is
// not known, a width that is no multiple of the format's block; the disk.
Result<void> write_random_gguf(const std::string& shape, DType type, const std::string& path);

// A Hugging Face folder, made if it is not there: config.json and one model.safetensors in bf16,
// with the names of Qwen3ForCausalLM and no tokenizer. Only qwen3 shapes. Errors: another
// architecture; the disk.
Result<void> write_random_safetensors(const Hyperparameters& shape, const std::string& folder);

}  // namespace updraft::gpu
