// Keys and tensors of GGUF files. Names and meaning: the GGUF specification and what llama.cpp
// reads for these architectures.
#include "tools/convert/gguf_layout.h"

#include <cmath>

#include "common/engine/rope.h"
#include "common/model/hyperparameters.h"

namespace updraft {
namespace {

bool is_qwen(Architecture a) { return a == Architecture::kQwen2 || a == Architecture::kQwen3; }

bool has_fused_gate(Architecture a) {
  return a == Architecture::kGlm4 || a == Architecture::kChatglm;
}

class Layout {
 public:
  explicit Layout(const Hyperparameters& h) : h_(h) {}

  void add(TensorRole role, const std::string& name, std::vector<uint64_t> ne) {
    const std::string prefix = layer_ < 0 ? "" : "blk." + std::to_string(layer_) + ".";
    tensors_.push_back({prefix + name, std::move(ne), role, layer_});
  }

  void add_ends(const LayoutParts& parts) {
    const auto hidden = static_cast<uint64_t>(h_.hidden_dim);
    const auto vocab = static_cast<uint64_t>(h_.vocab_count);
    add(TensorRole::kEmbedding, "token_embd.weight", {hidden, vocab});
    add(TensorRole::kFinalNorm, "output_norm.weight", {hidden});
    if (parts.head) add(TensorRole::kHead, "output.weight", {hidden, vocab});
    if (parts.rope_divisors)
      add(TensorRole::kRopeDivisors, "rope_freqs.weight",
          {static_cast<uint64_t>(h_.rope_dims / 2)});
  }

  void add_layer(int32_t layer, const LayoutParts& parts) {
    layer_ = layer;
    add_attention(parts);
    add_ffn();
  }

  std::vector<LayoutTensor> take() { return std::move(tensors_); }

 private:
  void add_attention(const LayoutParts& parts) {
    const auto hidden = static_cast<uint64_t>(h_.hidden_dim);
    const auto head = static_cast<uint64_t>(h_.head_dim);
    const uint64_t q_rows = static_cast<uint64_t>(h_.head_count) * head;
    const uint64_t kv_rows = static_cast<uint64_t>(h_.kv_head_count) * head;
    add(TensorRole::kAttnNorm, "attn_norm.weight", {hidden});
    add(TensorRole::kQ, "attn_q.weight", {hidden, q_rows});
    add(TensorRole::kK, "attn_k.weight", {hidden, kv_rows});
    add(TensorRole::kV, "attn_v.weight", {hidden, kv_rows});
    if (parts.qkv_bias) {
      add(TensorRole::kQBias, "attn_q.bias", {q_rows});
      add(TensorRole::kKBias, "attn_k.bias", {kv_rows});
      add(TensorRole::kVBias, "attn_v.bias", {kv_rows});
    }
    if (h_.architecture == Architecture::kQwen3) {
      add(TensorRole::kQNorm, "attn_q_norm.weight", {head});
      add(TensorRole::kKNorm, "attn_k_norm.weight", {head});
    }
    add(TensorRole::kO, "attn_output.weight", {q_rows, hidden});
    if (parts.o_bias) add(TensorRole::kOBias, "attn_output.bias", {hidden});
    if (h_.architecture == Architecture::kGlm4)
      add(TensorRole::kPostAttnNorm, "post_attention_norm.weight", {hidden});
  }

  void add_ffn() {
    const auto hidden = static_cast<uint64_t>(h_.hidden_dim);
    const auto ff = static_cast<uint64_t>(h_.ff_dim);
    add(TensorRole::kFfnNorm, "ffn_norm.weight", {hidden});
    if (has_fused_gate(h_.architecture)) {
      add(TensorRole::kGateUp, "ffn_up.weight", {hidden, 2 * ff});
    } else {
      add(TensorRole::kGate, "ffn_gate.weight", {hidden, ff});
      add(TensorRole::kUp, "ffn_up.weight", {hidden, ff});
    }
    add(TensorRole::kDown, "ffn_down.weight", {ff, hidden});
    if (h_.architecture == Architecture::kGlm4)
      add(TensorRole::kPostFfnNorm, "post_ffw_norm.weight", {hidden});
  }

  const Hyperparameters& h_;
  int32_t layer_ = -1;
  std::vector<LayoutTensor> tensors_;
};

void set_rope_keys(GgufWriter& writer, const Hyperparameters& h, const std::string& prefix) {
  writer.set_u32(prefix + "rope.dimension_count", static_cast<uint32_t>(h.rope_dims));
  writer.set_f32(prefix + "rope.freq_base", h.rope_base);
  if (h.mrope_sections != std::array<int32_t, 4>{})
    writer.set_i32s(prefix + "rope.dimension_sections", h.mrope_sections);
  const RopeScaling& scaling = h.rope_scaling;
  if (scaling.kind == RopeScaling::Kind::kNone || scaling.kind == RopeScaling::Kind::kLlama3)
    return;
  const bool is_yarn = scaling.kind == RopeScaling::Kind::kYarn;
  writer.set_text(prefix + "rope.scaling.type", is_yarn ? "yarn" : "linear");
  writer.set_f32(prefix + "rope.scaling.factor", scaling.factor);
  if (!is_yarn) return;
  writer.set_u32(prefix + "rope.scaling.original_context_length",
                 static_cast<uint32_t>(scaling.original_context_tokens));
  writer.set_f32(prefix + "rope.scaling.yarn_beta_fast", scaling.beta_fast);
  writer.set_f32(prefix + "rope.scaling.yarn_beta_slow", scaling.beta_slow);
  // GGUF's factor multiplies the default magnitude, the model's replaces it.
  if (scaling.attention_factor > 0.0F) {
    const float standard = 0.1F * std::log(scaling.factor) + 1.0F;
    writer.set_f32(prefix + "rope.scaling.attn_factor", scaling.attention_factor / standard);
  }
}

}  // namespace

std::vector<LayoutTensor> gguf_layout(const Hyperparameters& h, const LayoutParts& parts) {
  Layout layout(h);
  layout.add_ends(parts);
  for (int32_t layer = 0; layer < h.layer_count; ++layer) layout.add_layer(layer, parts);
  return layout.take();
}

RopeStyle gguf_rope_style(const Hyperparameters& h) {
  const bool is_glm_vision = h.mrope_sections[0] > 0 && h.mrope_sections[1] > 0;
  return is_qwen(h.architecture) || is_glm_vision ? RopeStyle::kHalf : RopeStyle::kInterleaved;
}

void set_model_keys(GgufWriter& writer, const Hyperparameters& h, const std::string& name) {
  const std::string architecture = architecture_name(h.architecture);
  const std::string prefix = architecture + ".";
  const auto set_count = [&](const char* key, int32_t value) {
    writer.set_u32(prefix + key, static_cast<uint32_t>(value));
  };
  writer.set_text("general.architecture", architecture);
  writer.set_text("general.type", "model");
  writer.set_text("general.name", name);
  set_count("vocab_size", h.vocab_count);
  set_count("context_length", h.context_tokens);
  set_count("embedding_length", h.hidden_dim);
  set_count("block_count", h.layer_count);
  set_count("feed_forward_length", h.ff_dim);
  set_count("attention.head_count", h.head_count);
  set_count("attention.head_count_kv", h.kv_head_count);
  set_count("attention.key_length", h.head_dim);
  set_count("attention.value_length", h.head_dim);
  writer.set_f32(prefix + "attention.layer_norm_rms_epsilon", h.norm_eps);
  set_rope_keys(writer, h, prefix);
}

void set_tokenizer_keys(GgufWriter& writer, const TokenizerData& tokenizer) {
  if (tokenizer.model.empty()) return;
  writer.set_text("tokenizer.ggml.model", tokenizer.model);
  if (!tokenizer.pre.empty()) writer.set_text("tokenizer.ggml.pre", tokenizer.pre);
  writer.set_texts("tokenizer.ggml.tokens", tokenizer.tokens);
  if (!tokenizer.scores.empty()) writer.set_f32s("tokenizer.ggml.scores", tokenizer.scores);
  if (!tokenizer.types.empty()) writer.set_i32s("tokenizer.ggml.token_type", tokenizer.types);
  if (!tokenizer.merges.empty()) writer.set_texts("tokenizer.ggml.merges", tokenizer.merges);
  const std::pair<const char*, int32_t> ids[] = {
      {"bos_token_id", tokenizer.bos_id},         {"eos_token_id", tokenizer.eos_id},
      {"eot_token_id", tokenizer.eot_id},         {"eom_token_id", tokenizer.eom_id},
      {"unknown_token_id", tokenizer.unknown_id}, {"padding_token_id", tokenizer.padding_id}};
  for (const auto& [name, id] : ids) {
    if (id >= 0) writer.set_u32(std::string("tokenizer.ggml.") + name, static_cast<uint32_t>(id));
  }
  const std::pair<const char*, std::optional<bool>> flags[] = {
      {"add_bos_token", tokenizer.add_bos},
      {"add_eos_token", tokenizer.add_eos},
      {"add_space_prefix", tokenizer.add_space_prefix}};
  for (const auto& [name, flag] : flags) {
    if (flag) writer.set_bool(std::string("tokenizer.ggml.") + name, *flag);
  }
  if (!tokenizer.chat_template.empty())
    writer.set_text("tokenizer.chat_template", tokenizer.chat_template);
}

std::vector<float> llama3_divisors(const Hyperparameters& h) {
  UPDRAFT_CHECK(h.rope_scaling.kind == RopeScaling::Kind::kLlama3);
  Hyperparameters plain = h;
  plain.rope_scaling.kind = RopeScaling::Kind::kNone;
  const RopeFrequencies trained = rope_frequencies(plain, {});
  const RopeFrequencies scaled = rope_frequencies(h, {});
  std::vector<float> divisors(trained.inverse.size());
  for (size_t i = 0; i < divisors.size(); ++i) divisors[i] = trained.inverse[i] / scaled.inverse[i];
  return divisors;
}

}  // namespace updraft
