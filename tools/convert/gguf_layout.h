// What a GGUF file of each architecture consists of: its keys and its tensors with their names and
// shapes, as llama.cpp and common/model read them. The writing side of common/model/gguf_model.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/model/gguf_writer.h"
#include "common/model/model.h"

namespace updraft {

// What a tensor is in the model.
enum class TensorRole : uint8_t {
  kEmbedding,
  kHead,
  kFinalNorm,
  kRopeDivisors,
  kAttnNorm,
  kQ,
  kK,
  kV,
  kQBias,
  kKBias,
  kVBias,
  kQNorm,
  kKNorm,
  kO,
  kOBias,
  kPostAttnNorm,
  kFfnNorm,
  kGate,
  kUp,
  kGateUp,  // gate's rows, then up's
  kDown,
  kPostFfnNorm,
};

struct LayoutTensor {
  std::string name;
  std::vector<uint64_t> ne;  // fastest first: {cols, rows} or {length}
  TensorRole role = TensorRole::kEmbedding;
  int32_t layer = -1;  // -1: outside the layers
  bool is_vector() const { return ne.size() == 1; }
};

// What files of one architecture may or may not have.
struct LayoutParts {
  bool head = false;  // output.weight; without it the embedding is the head
  bool qkv_bias = false;
  bool o_bias = false;
  bool rope_divisors = false;  // rope_freqs.weight
};

std::vector<LayoutTensor> gguf_layout(const Hyperparameters& h, const LayoutParts& parts);

// How a GGUF file of this architecture stores q and k: interleaved for llama and the GLMs, in
// halves for the Qwens and for GLM-4.1V.
RopeStyle gguf_rope_style(const Hyperparameters& h);

// general.architecture, general.name, and the hyperparameters. A llama3 scaling has no keys: it
// goes into rope_freqs.weight (llama3_divisors).
void set_model_keys(GgufWriter& writer, const Hyperparameters& h, const std::string& name);

// tokenizer.*; nothing when the model has no tokenizer.
void set_tokenizer_keys(GgufWriter& writer, const TokenizerData& tokenizer);

// [rope_dims / 2] what each frequency is divided by; for the scaling kind kLlama3 alone.
std::vector<float> llama3_divisors(const Hyperparameters& h);

}  // namespace updraft
