// GGUF keys -> Hyperparameters and Weights. What would change the result and is not implemented is
// refused by name.
#include "common/model/gguf_model.h"

#include <cmath>
#include <filesystem>
#include <initializer_list>

#include "common/model/hyperparameters.h"
#include "common/model/loaded_model.h"
#include "common/model/weights_builder.h"

namespace updraft {
namespace {

// Reads keys "<architecture>.<suffix>". The first failure sticks, so that a list of reads needs one
// check at its end.
class Keys {
 public:
  Keys(const GgufFile& file, std::string prefix) : file_(file), prefix_(std::move(prefix)) {}

  const std::string& error() const { return error_; }
  std::string name(const std::string& suffix) const { return prefix_ + suffix; }
  const GgufValue* find(const std::string& suffix) const { return file_.find_key(name(suffix)); }

  void refuse(const std::string& message) {
    if (error_.empty()) error_ = message;
  }
  void refuse(const std::string& suffix, const GgufValue& value, const std::string& expected) {
    refuse("key " + name(suffix) + " is " + value.describe() + ", expected " + expected);
  }

  // A count: a scalar, or one value per layer as long as all are equal.
  int32_t count(const std::string& suffix, int64_t max,
                std::optional<int64_t> fallback = std::nullopt) {
    const GgufValue* value = find(suffix);
    if (value == nullptr) {
      if (!fallback) refuse("key " + name(suffix) + " is missing");
      return static_cast<int32_t>(fallback.value_or(1));
    }
    std::optional<int64_t> number = value->integer();
    if (value->is_array()) number = equal_elements(suffix, *value);
    if (!error_.empty()) return 1;
    if (!number || *number < 1 || *number > max) {
      refuse(suffix, *value, "an integer from 1 to " + std::to_string(max));
      return 1;
    }
    return static_cast<int32_t>(*number);
  }

  float number(const std::string& suffix, std::optional<float> fallback = std::nullopt) {
    const GgufValue* value = find(suffix);
    if (value == nullptr) {
      if (!fallback) refuse("key " + name(suffix) + " is missing");
      return fallback.value_or(1.0F);
    }
    const auto found = value->number();
    if (!found || !std::isfinite(static_cast<float>(*found))) {
      refuse(suffix, *value, "a finite float");
      return 1.0F;
    }
    return static_cast<float>(*found);
  }

  float positive(const std::string& suffix, std::optional<float> fallback = std::nullopt) {
    const float value = number(suffix, fallback);
    if (value > 0.0F) return value;
    refuse(suffix, *find(suffix), "a positive float");  // there: absent gives a positive value
    return 1.0F;
  }

  // Features that change the result and that Updraft does not have: the key may be absent or have
  // a value that changes nothing.
  void refuse_unless(const std::string& suffix, std::initializer_list<double> neutral) {
    const GgufValue* value = find(suffix);
    if (value == nullptr) return;
    std::optional<double> found = value->number();
    if (const auto integer = value->integer()) found = static_cast<double>(*integer);
    if (const auto flag = value->boolean()) found = *flag ? 1.0 : 0.0;
    for (const double harmless : neutral) {
      if (found == harmless) return;
    }
    refuse("key " + name(suffix) + " is " + value->describe() + ", which is not supported");
  }

 private:
  std::optional<int64_t> equal_elements(const std::string& suffix, const GgufValue& value) {
    const auto numbers = value.integers();
    if (!numbers || numbers->empty()) return std::nullopt;
    for (const int64_t number : *numbers) {
      if (number != numbers->front()) {
        refuse("key " + name(suffix) + " differs between layers (" +
               std::to_string(numbers->front()) + " and " + std::to_string(number) +
               "), which is not supported");
        return std::nullopt;
      }
    }
    return numbers->front();
  }

  const GgufFile& file_;
  std::string prefix_;
  std::string error_;
};

constexpr char kFactorKey[] = "rope.scaling.factor";

void read_yarn(Keys& keys, RopeScaling& scaling) {
  keys.refuse_unless("rope.scaling.yarn_log_multiplier", {0.0});
  keys.refuse_unless("rope.scaling.yarn_ext_factor", {1.0, -1.0});
  scaling.original_context_tokens =
      keys.count("rope.scaling.original_context_length", kContextTokensMax);
  scaling.beta_fast = keys.number("rope.scaling.yarn_beta_fast", 32.0F);
  scaling.beta_slow = keys.number("rope.scaling.yarn_beta_slow", 1.0F);
  // GGUF's factors multiply the default magnitude 0.1 * ln(factor) + 1 instead of replacing it.
  const float extra = keys.number("rope.scaling.attn_factor", 1.0F) *
                      keys.number("rope.scaling.yarn_attn_factor", 1.0F);
  if (extra != 1.0F) scaling.attention_factor = extra * (0.1F * std::log(scaling.factor) + 1.0F);
}

void read_rope_scaling(Keys& keys, const GgufFile& file, Hyperparameters& h) {
  const GgufValue* type = keys.find("rope.scaling.type");
  if (type == nullptr) {
    // Files from before the type key: a linear factor alone.
    const float factor = keys.number("rope.scale_linear", 1.0F);
    if (factor == 1.0F) return;
    h.rope_scaling.kind = RopeScaling::Kind::kLinear;
    h.rope_scaling.factor = factor;
    return;
  }
  const auto text = type->text();
  if (text == "none") return;
  if (text != "linear" && text != "yarn") {
    return keys.refuse("key " + keys.name("rope.scaling.type") + " is " + type->describe() +
                       ", supported are none, linear and yarn");
  }
  if (file.find_tensor("rope_freqs.weight") != nullptr) {
    return keys.refuse("tensor rope_freqs.weight contradicts key " +
                       keys.name("rope.scaling.type") + " " + type->describe());
  }
  h.rope_scaling.factor = keys.number(kFactorKey);
  h.rope_scaling.kind = text == "yarn" ? RopeScaling::Kind::kYarn : RopeScaling::Kind::kLinear;
  if (text != "yarn") return;
  read_yarn(keys, h.rope_scaling);
  h.context_tokens = extended_context_tokens(h);
}

// The table in the architecture's column "GGUF rope": llama and the GLMs are stored interleaved,
// the Qwens in halves. GLM-4.1V shares the name glm4 but is stored in halves; its sections tell.
void read_rope(Keys& keys, const GgufFile& file, Hyperparameters& h) {
  h.rope_dims = keys.count("rope.dimension_count", kHeadDimMax, h.head_dim);
  h.rope_base = keys.positive("rope.freq_base", 10000.0F);
  const bool is_qwen =
      h.architecture == Architecture::kQwen2 || h.architecture == Architecture::kQwen3;
  h.rope_style = is_qwen ? RopeStyle::kHalf : RopeStyle::kInterleaved;
  read_rope_scaling(keys, file, h);

  const GgufValue* sections = keys.find("rope.dimension_sections");
  if (sections == nullptr) return;
  const auto values = sections->integers();
  if (!values || values->size() > 4)
    return keys.refuse("rope.dimension_sections", *sections, "at most 4 integers");
  for (size_t i = 0; i < values->size(); ++i) {
    if ((*values)[i] < 0 || (*values)[i] > kHeadDimMax) {
      return keys.refuse("key " + keys.name("rope.dimension_sections") + " has element " +
                         std::to_string((*values)[i]) + ", expected 0 to " +
                         std::to_string(kHeadDimMax));
    }
    h.mrope_sections[i] = static_cast<int32_t>((*values)[i]);
  }
  if (h.mrope_sections == std::array<int32_t, 4>{}) return;
  if (h.architecture != Architecture::kGlm4) {
    return keys.refuse("key " + keys.name("rope.dimension_sections") +
                       " is only supported for glm4");
  }
  if (h.mrope_sections[0] > 0 && h.mrope_sections[1] > 0) h.rope_style = RopeStyle::kHalf;
}

void refuse_foreign_features(Keys& keys, const Hyperparameters& h) {
  for (const char* suffix :
       {"expert_count", "attention.scale", "attention.clamp_kqv", "attention.max_alibi_bias",
        "attn_logit_softcapping", "final_logit_softcapping"}) {
    keys.refuse_unless(suffix, {0.0});
  }
  for (const char* suffix : {"logit_scale", "residual_scale", "embedding_scale"}) {
    keys.refuse_unless(suffix, {0.0, 1.0});
  }
  keys.refuse_unless("attention.causal", {1.0});
  const GgufValue* window = keys.find("attention.sliding_window");
  if (window == nullptr) return;
  const auto tokens = window->integer();
  if (tokens && (*tokens == 0 || *tokens >= h.context_tokens)) return;
  keys.refuse("key " + keys.name("attention.sliding_window") + " is " + window->describe() +
              ", a window smaller than the context of " + std::to_string(h.context_tokens) +
              " tokens is not supported");
}

WeightNames gguf_names() {
  WeightNames names;
  names.embedding = "token_embd";
  names.final_norm = "output_norm";
  names.head = "output";
  names.rope_divisors = "rope_freqs.weight";
  names.layer_prefix = "blk.";
  names.attn_norm = "attn_norm";
  names.q = "attn_q";
  names.k = "attn_k";
  names.v = "attn_v";
  names.qkv = "attn_qkv";
  names.o = "attn_output";
  names.q_norm = "attn_q_norm";
  names.k_norm = "attn_k_norm";
  names.post_attn_norm = "post_attention_norm";
  names.ffn_norm = "ffn_norm";
  names.gate = "ffn_gate";
  names.up = "ffn_up";
  names.gate_up = "ffn_up";  // without ffn_gate, ffn_up holds both
  names.down = "ffn_down";
  names.post_ffn_norm = "post_ffw_norm";
  return names;
}

// Left behind by converters: frequencies that follow from the hyperparameters.
bool gguf_ignorable(const std::string& name) {
  return name.ends_with(".attn_rot_embd.weight") || name.ends_with(".attn_rot_embd") ||
         name.ends_with(".rotary_emb.inv_freq");
}

StoredTensor stored(const GgufTensor& tensor) {
  StoredTensor out;
  for (uint32_t d = tensor.dimension_count; d-- > 0;)
    out.shape.push_back(static_cast<int64_t>(tensor.ne[d]));
  out.type = tensor.type;
  out.type_name = dtype_info(tensor.type).name;
  out.bytes = tensor.bytes;
  return out;
}

int32_t vocab_without_tensors(Keys& keys, const GgufFile& file) {
  int64_t fallback = 0;
  if (const GgufValue* tokens = file.find_key("tokenizer.ggml.tokens");
      tokens != nullptr && tokens->is_array()) {
    fallback = static_cast<int64_t>(std::min<uint64_t>(tokens->count(), kVocabMax));
  }
  return keys.count("vocab_size", kVocabMax, fallback > 0 ? std::optional(fallback) : std::nullopt);
}

// The parts' tensors as one table. Parts cannot share a name.
Result<TensorTable> collect_tensors(const std::vector<std::shared_ptr<const GgufFile>>& parts) {
  TensorTable table;
  for (const auto& part : parts) {
    for (const GgufTensor& tensor : part->tensors()) {
      if (!table.emplace(tensor.name, stored(tensor)).second) {
        return fail(part->path() + ": tensor \"" + printable(tensor.name) +
                    "\" is also in an earlier part");
      }
    }
  }
  return table;
}

Result<Hyperparameters> hyperparameters_of(const GgufFile& file, const TensorTable& table) {
  const auto architecture = file.architecture();
  if (!architecture) return architecture.error();
  const auto known = architecture_from_name(*architecture);
  if (!known) return fail(file.path() + ": " + unsupported_architecture(*architecture));

  Keys keys(file, *architecture + ".");
  Hyperparameters h;
  h.architecture = *known;
  h.layer_count = keys.count("block_count", kLayersMax);
  h.hidden_dim = keys.count("embedding_length", kHiddenDimMax);
  h.ff_dim = keys.count("feed_forward_length", kFfDimMax);
  h.context_tokens = keys.count("context_length", kContextTokensMax);
  h.head_count = keys.count("attention.head_count", kHeadsMax);
  h.kv_head_count = keys.count("attention.head_count_kv", kHeadsMax, h.head_count);
  h.norm_eps = keys.positive("attention.layer_norm_rms_epsilon");
  if (keys.find("attention.key_length") == nullptr && h.hidden_dim % h.head_count != 0) {
    keys.refuse("key " + keys.name("attention.head_count") + " " + std::to_string(h.head_count) +
                " does not divide " + keys.name("embedding_length") + " " +
                std::to_string(h.hidden_dim));
  }
  h.head_dim = keys.count("attention.key_length", kHeadDimMax, h.hidden_dim / h.head_count);
  const int32_t value_dim = keys.count("attention.value_length", kHeadDimMax, h.head_dim);
  if (value_dim != h.head_dim) {
    keys.refuse("key " + keys.name("attention.value_length") + " " + std::to_string(value_dim) +
                " differs from the key length " + std::to_string(h.head_dim) +
                ", which is not supported");
  }
  read_rope(keys, file, h);
  refuse_foreign_features(keys, h);
  if (table.empty()) h.vocab_count = vocab_without_tensors(keys, file);
  if (!keys.error().empty()) return fail(file.path() + ": " + keys.error());

  const auto checked = check_hyperparameters(
      h, {"key " + keys.name("attention.head_count"), "key " + keys.name("attention.head_count_kv"),
          "head dimension", "key " + keys.name("rope.dimension_count"),
          "key " + keys.name("rope.dimension_sections"), "key " + keys.name(kFactorKey),
          "key " + keys.name("rope.scaling.yarn_")});
  if (!checked) return checked.error(file.path());
  if (!table.empty()) {
    const auto rows = embedding_rows(table, gguf_names(), h.hidden_dim);
    if (!rows) return rows.error(file.path());
    h.vocab_count = *rows;
  }
  return h;
}

}  // namespace

Result<Hyperparameters> read_hyperparameters(const GgufFile& file) {
  TensorTable table;
  for (const GgufTensor& tensor : file.tensors()) table.emplace(tensor.name, stored(tensor));
  return hyperparameters_of(file, table);
}

Result<std::shared_ptr<const Model>> make_gguf_model(
    const std::vector<std::shared_ptr<const GgufFile>>& parts, const std::string& path) {
  UPDRAFT_CHECK(!parts.empty());
  const GgufFile& first = *parts.front();
  const auto table = collect_tensors(parts);
  if (!table) return table.error();
  auto h = hyperparameters_of(first, *table);
  if (!h) return h.error();
  if (table->empty()) return fail(path + ": has no tensors, it is a vocabulary only");
  auto built = build_weights(*table, gguf_names(), *h, std::nullopt, gguf_ignorable);
  if (!built) return built.error(path);
  auto tokenizer = read_tokenizer(first);
  if (!tokenizer) return tokenizer.error();
  if (tokenizer->tokens.size() > static_cast<size_t>(h->vocab_count)) {
    return fail(
        path + ": key tokenizer.ggml.tokens has " + std::to_string(tokenizer->tokens.size()) +
        " tokens, tensor token_embd.weight only " + std::to_string(h->vocab_count) + " rows");
  }

  ModelParts model;
  model.path = path;
  const GgufValue* name = first.find_key("general.name");
  const auto name_text = name != nullptr ? name->text() : std::nullopt;
  model.name = name_text && !name_text->empty() ? std::string(*name_text)
                                                : std::filesystem::path(path).stem().string();
  model.hyperparameters = *h;
  model.built = std::move(*built);
  model.tokenizer = std::move(*tokenizer);
  Digest digest;
  for (const auto& part : parts) {
    digest.add(part->header_bytes());
    model.file_bytes += part->bytes().size();
    model.files.push_back(part);
    if (part->mapping() != nullptr) model.mappings.push_back(part->mapping());
  }
  model.digest = digest.hex();
  return make_model(std::move(model));
}

Result<std::shared_ptr<const Model>> open_gguf_model(const std::string& path) {
  const auto parts = open_gguf_parts(path);
  if (!parts) return parts.error();
  return make_gguf_model(*parts, path);
}

}  // namespace updraft
