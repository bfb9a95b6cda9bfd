// config.json of a Hugging Face folder -> hyperparameters. Key names: the configuration classes of
// transformers (llama, mistral, qwen2, qwen3, glm, glm4, glm4v) and of the older chatglm
// repositories.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/model/json.h"
#include "common/model/model.h"

namespace updraft {

struct HfConfig {
  Hyperparameters
      hyperparameters;  // vocab_count as the configuration says; the embedding table must agree
  bool old_chatglm_names = false;  // tensors are named transformer.encoder.layers.N...
  std::optional<bool> tied;        // tie_word_embeddings; nothing: not said
  bool attention_bias = false;     // the configuration promises biases of q, k and v
  // quantization_config of a kind whose weights are e4m3 with scales beside them (fp8_weights.h).
  bool fp8 = false;
  std::array<int64_t, 2> fp8_block = {128,
                                      128};  // rows and columns of a scale, where they are blocks
  int32_t bos_id = -1;
  std::vector<int32_t> eos_ids;  // every id that ends a generation, the first one is "the" eos
};

// `path` is for messages: "model/config.json: key hidden_size is ...".
Result<HfConfig> read_hf_config(const JsonValue& root, const std::string& path);

// eos_token_id of a config.json or generation_config.json: absent, null, an id or a list of ids.
Result<std::vector<int32_t>> read_eos_ids(const JsonValue& root, const std::string& path,
                                          int32_t vocab_count);

}  // namespace updraft
