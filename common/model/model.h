// A model file, opened: hyperparameters, weights as views into the mapped file, tokenizer data.
// GGUF and safetensors give the same Model; whoever uses it does not know which container it came
// from.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/progress.h"
#include "common/base/result.h"
#include "kernels/backend.h"
#include "kernels/quant/dtype.h"

namespace updraft {

enum class Architecture : uint8_t { kLlama, kQwen2, kQwen3, kGlm4, kChatglm };
const char* architecture_name(Architecture architecture);

// Scaling of rotary frequencies beyond the trained context. Everything else than these is refused,
// never ignored.
struct RopeScaling {
  enum class Kind : uint8_t { kNone, kLinear, kYarn, kLlama3 };
  Kind kind = Kind::kNone;
  float factor = 1.0F;
  int32_t original_context_tokens = 0;  // yarn, llama3
  float attention_factor = 0.0F;        // yarn; 0: 0.1 * ln(factor) + 1
  float beta_fast = 32.0F;              // yarn
  float beta_slow = 1.0F;               // yarn
  float low_freq_factor = 1.0F;         // llama3
  float high_freq_factor = 4.0F;        // llama3
};

// Read from the model file only, validated: every count > 0, kv_head_count divides head_count,
// rope_dims even and <= head_dim.
struct Hyperparameters {
  Architecture architecture = Architecture::kLlama;
  int32_t layer_count = 0;
  int32_t hidden_dim = 0;
  int32_t ff_dim = 0;
  int32_t head_count = 0;
  int32_t kv_head_count = 0;
  int32_t head_dim = 0;
  int32_t vocab_count = 0;     // rows of the embedding table
  int32_t context_tokens = 0;  // trained context
  float norm_eps = 0.0F;
  RopeStyle rope_style = RopeStyle::kHalf;
  int32_t rope_dims = 0;
  float rope_base = 10000.0F;
  RopeScaling rope_scaling;
  bool tied_embeddings = false;
  // glm4 with M-RoPE sections (GLM-4.1V), zeros otherwise. Text has equal positions in all
  // sections, so only rope_style matters for it: halves in GGUF, interleaved in safetensors.
  std::array<int32_t, 4> mrope_sections{};
};

// Weights of one layer. Matrices are views (fused tensors of the file are split into row ranges),
// vectors are copies in f32. An empty view or vector: the architecture has none.
struct LayerWeights {
  std::vector<float> attn_norm;  // [hidden]
  WeightView q, k, v;            // [heads * head_dim, hidden], [kv_heads * head_dim, hidden] twice
  std::vector<float> q_bias, k_bias, v_bias;
  std::vector<float> q_norm, k_norm;  // [head_dim], qwen3
  WeightView o;                       // [hidden, heads * head_dim]
  std::vector<float> o_bias;
  std::vector<float>
      post_attn_norm;           // [hidden], glm4: norm of the attention's output before it is added
  std::vector<float> ffn_norm;  // [hidden]
  WeightView gate, up;          // [ff, hidden]
  WeightView down;              // [hidden, ff]
  std::vector<float> post_ffn_norm;  // [hidden], glm4
};

struct Weights {
  WeightView embedding;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  std::vector<float> final_norm;     // [hidden]
  WeightView head;                   // [vocab, hidden]; equals embedding when tied
  std::vector<float> rope_divisors;  // [rope_dims / 2] from rope_freqs.weight, or empty
};

// Tokenizer as the file describes it, unvalidated beyond sizes (common/text/tokenizer.h builds on
// it).
struct TokenizerData {
  // "gpt2" (byte-level BPE) or "llama" (SPM); empty: the file has no tokenizer; else a kind that is
  // not supported.
  std::string model;
  std::string pre;                  // splitter name, gpt2 only
  std::vector<std::string> tokens;  // by id
  std::vector<float> scores;        // SPM; empty or one per token
  std::vector<int32_t>
      types;  // 1 normal 2 unknown 3 control 4 user-defined 5 unused 6 byte; empty or one per token
  std::vector<std::string> merges;  // "A B" by rank, gpt2
  int32_t bos_id = -1;              // -1: none
  int32_t eos_id = -1;
  int32_t eot_id = -1;
  int32_t eom_id = -1;
  int32_t unknown_id = -1;
  int32_t padding_id = -1;
  std::optional<bool> add_bos;  // empty: the tokenizer model's default
  std::optional<bool> add_eos;
  std::optional<bool> add_space_prefix;
  std::optional<bool> ignore_merges;   // tokenizer.json only
  std::vector<int32_t> extra_eos_ids;  // config.json / generation_config.json eos_token_id lists
  std::string chat_template;           // Jinja source; empty: none
};

// Thread-safe once open (immutable).
class Model {
 public:
  virtual ~Model() = default;

  const std::string& path() const { return path_; }
  const std::string& name() const { return name_; }  // general.name or the file's stem
  const std::string& quantization() const {
    return quantization_;
  }  // most common matrix format: "Q4_0"
  // Hex digest of header and tensor table (not of the weights' bytes): equal files have equal
  // digests.
  const std::string& digest() const { return digest_; }
  uint64_t file_bytes() const { return file_bytes_; }
  uint64_t parameter_count() const { return parameter_count_; }
  const Hyperparameters& hyperparameters() const { return hyperparameters_; }
  const Weights& weights() const { return weights_; }
  const TokenizerData& tokenizer() const { return tokenizer_; }

  // Hints while the weights are handed over once, so that they are not in memory twice: this view
  // is read soon; this view has been copied. The view stays readable.
  virtual void will_read(const WeightView&) const {}
  virtual void was_read(const WeightView&) const {}

 protected:
  std::string path_;
  std::string name_;
  std::string quantization_;
  std::string digest_;
  uint64_t file_bytes_ = 0;
  uint64_t parameter_count_ = 0;
  Hyperparameters hyperparameters_;
  Weights weights_;
  TokenizerData tokenizer_;
};

// Opens a .gguf file, a .safetensors file (config.json beside it) or a folder with config.json and
// model.safetensors or model.safetensors.index.json. Errors name the file, the key or tensor, and
// the value.
Result<std::shared_ptr<const Model>> open_model(const std::string& path);

}  // namespace updraft
