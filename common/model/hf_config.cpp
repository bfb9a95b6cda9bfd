// config.json -> Hyperparameters. What would change the result and is not implemented is refused by
// name.
#include "common/model/hf_config.h"

#include <algorithm>
#include <cmath>

#include "common/base/bytes.h"
#include "common/model/hyperparameters.h"

namespace updraft {
namespace {

// Reads members of one object. The first failure sticks. null counts as absent, as in transformers.
class Members {
 public:
  Members(const JsonValue& object, std::string prefix)
      : object_(object), prefix_(std::move(prefix)) {}

  const std::string& error() const { return error_; }
  std::string name(const std::string& key) const { return "key " + prefix_ + key; }

  const JsonValue* find(const std::string& key) const {
    const JsonValue* value = object_.find(key);
    return value == nullptr || value->is_null() ? nullptr : value;
  }

  void refuse(std::string message) {
    if (error_.empty()) error_ = std::move(message);
  }
  void refuse(const std::string& key, const std::string& expected) {
    const JsonValue* value = find(key);
    if (value == nullptr) return refuse(name(key) + " is missing");
    refuse(name(key) + " is " + value->describe() + ", expected " + expected);
  }

  int32_t count(const std::string& key, int64_t max,
                std::optional<int64_t> fallback = std::nullopt) {
    const JsonValue* value = find(key);
    if (value == nullptr && fallback) return static_cast<int32_t>(*fallback);
    const auto number = value == nullptr ? std::nullopt : value->integer();
    if (number && *number >= 1 && *number <= max) return static_cast<int32_t>(*number);
    refuse(key, "an integer from 1 to " + std::to_string(max));
    return 1;
  }

  // A finite number above zero that float can hold.
  float positive(const std::string& key, std::optional<double> fallback = std::nullopt) {
    const JsonValue* value = find(key);
    if (value == nullptr && fallback) return static_cast<float>(*fallback);
    const auto number = value == nullptr ? std::nullopt : value->number();
    if (number && *number > 0 && *number <= 1e30) return static_cast<float>(*number);
    refuse(key, "a positive number");
    return 1.0F;
  }

  bool flag(const std::string& key, bool fallback) {
    const JsonValue* value = find(key);
    if (value == nullptr) return fallback;
    const auto found = value->boolean();
    if (!found) refuse(key, "true or false");
    return found.value_or(fallback);
  }

  std::string text(const std::string& key) {
    const JsonValue* value = find(key);
    if (value == nullptr) return "";
    if (value->text() == nullptr) {
      refuse(key, "text");
      return "";
    }
    return *value->text();
  }

  // A switch whose other position is not implemented.
  void require(const std::string& key, bool wanted) {
    if (flag(key, wanted) != wanted)
      refuse(name(key) + " is " + find(key)->describe() + ", which is not supported");
  }

 private:
  const JsonValue& object_;
  std::string prefix_;
  std::string error_;
};

struct ModelType {
  const char* name;
  Architecture architecture;
  RopeStyle rope_style;
  double rotary_part;  // default of partial_rotary_factor
};

// The column "HF files" of the rotary layouts: every file but the GLMs' rotates halves.
constexpr ModelType kModelTypes[] = {
    {"llama", Architecture::kLlama, RopeStyle::kHalf, 1.0},
    {"mistral", Architecture::kLlama, RopeStyle::kHalf, 1.0},
    {"qwen2", Architecture::kQwen2, RopeStyle::kHalf, 1.0},
    {"qwen3", Architecture::kQwen3, RopeStyle::kHalf, 1.0},
    {"glm4", Architecture::kGlm4, RopeStyle::kInterleaved, 0.5},
    {"glm4v", Architecture::kGlm4, RopeStyle::kInterleaved, 0.5},
    {"glm4v_text", Architecture::kGlm4, RopeStyle::kInterleaved, 0.5},
    {"glm", Architecture::kChatglm, RopeStyle::kInterleaved, 0.5},
    {"chatglm", Architecture::kChatglm, RopeStyle::kInterleaved, 0.5},
};

void read_yarn(Members& rope, Hyperparameters& h) {
  RopeScaling& scaling = h.rope_scaling;
  scaling.kind = RopeScaling::Kind::kYarn;
  scaling.factor = rope.positive("factor");
  if (rope.find("attention_factor") != nullptr)
    scaling.attention_factor = rope.positive("attention_factor");
  scaling.beta_fast = rope.positive("beta_fast", 32.0);
  scaling.beta_slow = rope.positive("beta_slow", 1.0);
  for (const char* key : {"mscale", "mscale_all_dim"}) {
    if (rope.find(key) != nullptr) rope.refuse(rope.name(key) + " is not supported");
  }
  rope.require("truncate", true);
  h.context_tokens = extended_context_tokens(h);
}

void read_sections(Members& rope, Hyperparameters& h) {
  const JsonValue* sections = rope.find("mrope_section");
  if (sections == nullptr) return;
  const JsonValue::Array* values = sections->array();
  if (h.architecture != Architecture::kGlm4 || values == nullptr ||
      values->size() > h.mrope_sections.size()) {
    return rope.refuse(rope.name("mrope_section") + " is " + sections->describe() +
                       ", supported for glm4v with at most 4 integers");
  }
  for (size_t i = 0; i < values->size(); ++i) {
    const auto n = (*values)[i].integer();
    if (!n || *n < 0 || *n > kHeadDimMax) {
      return rope.refuse(rope.name("mrope_section") + " has the element " +
                         (*values)[i].describe());
    }
    h.mrope_sections[i] = static_cast<int32_t>(*n);
  }
}

// rope_scaling, or since transformers 5 rope_parameters, which holds the base too.
void read_rope_object(Members& rope, const JsonValue& object, Hyperparameters& h,
                      int32_t original_fallback) {
  for (const JsonMember& member : *object.object()) {
    if (member.value.object() != nullptr) {
      return rope.refuse(rope.name(member.key) +
                         " is an object; rotary parameters per kind of layer are not supported");
    }
  }
  read_sections(rope, h);
  std::string type = rope.text("rope_type");
  if (type.empty()) type = rope.text("type");
  RopeScaling& scaling = h.rope_scaling;
  if (type.empty() || type == "default") {
    if (rope.find("factor") != nullptr && rope.positive("factor") != 1.0F) {
      rope.refuse(rope.name("factor") + " is " + rope.find("factor")->describe() +
                  " without a rope_type that uses it");
    }
    return;
  }
  if (type == "linear") {
    scaling.kind = RopeScaling::Kind::kLinear;
    scaling.factor = rope.positive("factor");
    return;
  }
  scaling.original_context_tokens =
      rope.count("original_max_position_embeddings", kContextTokensMax, original_fallback);
  if (type == "yarn") return read_yarn(rope, h);
  if (type != "llama3") {
    return rope.refuse(rope.name("rope_type") + " is \"" + printable(type) +
                       "\", supported are default, linear, yarn and llama3");
  }
  scaling.kind = RopeScaling::Kind::kLlama3;
  scaling.factor = rope.positive("factor");
  scaling.low_freq_factor = rope.positive("low_freq_factor");
  scaling.high_freq_factor = rope.positive("high_freq_factor");
  rope.count("original_max_position_embeddings", kContextTokensMax);  // here it has no default
}

int32_t rotary_dims(Members& members, float part, const Hyperparameters& h) {
  if (part > 1.0F) members.refuse("partial_rotary_factor", "a number above 0 and at most 1");
  return static_cast<int32_t>(static_cast<float>(h.head_dim) * part);
}

void read_rope(Members& members, const std::string& prefix, const ModelType& type,
               Hyperparameters& h) {
  h.rope_style = type.rope_style;
  h.rope_base = members.positive("rope_theta", 10000.0);
  float part = members.positive("partial_rotary_factor", type.rotary_part);
  const int32_t original =
      members.count("original_max_position_embeddings", kContextTokensMax, h.context_tokens);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const JsonValue* object = members.find(key);
    if (object == nullptr) continue;
    if (object->object() == nullptr) return members.refuse(key, "an object");
    Members rope(*object, prefix + key + ".");
    read_rope_object(rope, *object, h, original);
    h.rope_base = rope.positive("rope_theta", h.rope_base);
    part = rope.positive("partial_rotary_factor", part);
    if (!rope.error().empty()) return members.refuse(rope.error());
  }
  h.rope_dims = rotary_dims(members, part, h);
}

void refuse_sliding_window(Members& members, const std::string& model_type,
                           const Hyperparameters& h) {
  if (const JsonValue* kinds = members.find("layer_types");
      kinds != nullptr && kinds->array() != nullptr) {
    for (const JsonValue& kind : *kinds->array()) {
      if (kind.text() != nullptr && *kind.text() == "full_attention") continue;
      return members.refuse(members.name("layer_types") + " has " + kind.describe() +
                            ", only \"full_attention\" is supported");
    }
  }
  if (members.find("sliding_window") == nullptr) return;
  if (!members.flag("use_sliding_window", model_type == "mistral")) return;
  const int32_t window = members.count("sliding_window", INT32_MAX);
  const int32_t full_layers = members.find("max_window_layers") == nullptr
                                  ? 0
                                  : members.count("max_window_layers", INT32_MAX);
  if (window >= h.context_tokens || full_layers >= h.layer_count) return;
  members.refuse(members.name("sliding_window") + " is " + std::to_string(window) +
                 ", a window smaller than the context of " + std::to_string(h.context_tokens) +
                 " tokens is not supported");
}

void read_transformers_keys(Members& members, const std::string& prefix, const ModelType& type,
                            HfConfig& config) {
  Hyperparameters& h = config.hyperparameters;
  h.layer_count = members.count("num_hidden_layers", kLayersMax);
  h.hidden_dim = members.count("hidden_size", kHiddenDimMax);
  h.ff_dim = members.count("intermediate_size", kFfDimMax);
  h.head_count = members.count("num_attention_heads", kHeadsMax);
  h.kv_head_count = members.count("num_key_value_heads", kHeadsMax, h.head_count);
  h.vocab_count = members.count("vocab_size", kVocabMax);
  h.context_tokens = members.count("max_position_embeddings", kContextTokensMax);
  h.norm_eps = members.positive("rms_norm_eps");
  if (members.find("head_dim") == nullptr && h.hidden_dim % h.head_count != 0) {
    members.refuse(members.name("num_attention_heads") + " " + std::to_string(h.head_count) +
                   " does not divide hidden_size " + std::to_string(h.hidden_dim));
  }
  h.head_dim = members.count("head_dim", kHeadDimMax, h.hidden_dim / h.head_count);
  config.attention_bias = members.flag("attention_bias", false);
  const std::string activation = members.text("hidden_act");
  if (!activation.empty() && activation != "silu" && activation != "swish") {
    members.refuse(members.name("hidden_act") + " is \"" + printable(activation) +
                   "\", only silu is supported");
  }
  read_rope(members, prefix, type, h);
  refuse_sliding_window(members, type.name, h);
}

// Keys of ChatGLMConfig (chatglm2-6b to glm-4-9b-chat).
void read_chatglm_keys(Members& members, HfConfig& config) {
  Hyperparameters& h = config.hyperparameters;
  h.layer_count = members.count("num_layers", kLayersMax);
  h.hidden_dim = members.count("hidden_size", kHiddenDimMax);
  h.ff_dim = members.count("ffn_hidden_size", kFfDimMax);
  h.head_count = members.count("num_attention_heads", kHeadsMax);
  h.head_dim = members.count("kv_channels", kHeadDimMax, std::max(1, h.hidden_dim / h.head_count));
  h.kv_head_count = members.flag("multi_query_attention", false)
                        ? members.count("multi_query_group_num", kHeadsMax)
                        : h.head_count;
  h.vocab_count = members.find("padded_vocab_size") != nullptr
                      ? members.count("padded_vocab_size", kVocabMax)
                      : members.count("vocab_size", kVocabMax);
  h.context_tokens = members.count("seq_length", kContextTokensMax);
  h.norm_eps = members.positive("layernorm_epsilon");
  h.rope_style = RopeStyle::kInterleaved;
  h.rope_base = 10000.0F * members.positive("rope_ratio", 1.0);
  h.rope_dims = h.head_dim / 2;
  config.attention_bias =
      members.flag("add_qkv_bias", false) || members.flag("add_bias_linear", false);
  members.require("rmsnorm", true);
  members.require("post_layer_norm", true);
  members.require("apply_residual_connection_post_layernorm", false);
  members.require("interleaved_qkv", false);
  config.old_chatglm_names = true;
}

Result<int32_t> read_id(const JsonValue& value, const std::string& name, int32_t vocab_count) {
  const auto id = value.integer();
  if (!id || *id < 0 || *id >= vocab_count) {
    return fail("key " + name + " has " + value.describe() + ", expected the id of one of " +
                std::to_string(vocab_count) + " tokens");
  }
  return static_cast<int32_t>(*id);
}

HyperparameterNames config_names(const Members& members, bool old_chatglm) {
  return {members.name("num_attention_heads"),
          members.name(old_chatglm ? "multi_query_group_num" : "num_key_value_heads"),
          "head dimension",
          "rotary dimensions",
          members.name("mrope_section"),
          members.name("rope_scaling.factor"),
          members.name("rope_scaling.")};
}

// Three writers of e4m3 checkpoints: fine-grained fp8 ("fp8"), FBGEMM's ("fbgemm_fp8") and
// compressed-tensors in its format "float-quantized". Each says in the file what scale a matrix
// has.
Result<void> read_quantization(const JsonValue& value, const std::string& path, HfConfig& config) {
  const auto text = [&](const char* key) -> std::string {
    const JsonValue* found = value.find(key);
    return found == nullptr || found->text() == nullptr ? "" : *found->text();
  };
  const std::string method = text("quant_method");
  const bool known = method == "fp8" || method == "fbgemm_fp8" ||
                     (method == "compressed-tensors" && text("format") == "float-quantized");
  if (!known) {
    const JsonValue* said = value.find("quant_method");
    return fail(
        path + ": key quantization_config has the method " +
        (said != nullptr ? said->describe() : std::string("null")) +
        (method == "compressed-tensors" ? " with the format \"" + text("format") + "\"" : "") +
        "; read are unquantised safetensors and those of fp8, fbgemm_fp8 and "
        "compressed-tensors float-quantized (use a GGUF file for other quantised weights)");
  }
  const std::string format = text("fmt");
  if (!format.empty() && format != "e4m3" && format != "float8_e4m3fn") {
    return fail(path + ": key quantization_config.fmt is \"" + printable(format) +
                "\", only e4m3 is read");
  }
  config.fp8 = true;
  const JsonValue* block = value.find("weight_block_size");
  if (block == nullptr || block->array() == nullptr) return {};
  const JsonValue::Array& sides = *block->array();
  for (size_t i = 0; i < sides.size() && sides.size() == 2; ++i) {
    const auto side = sides[i].integer();
    if (!side || *side < 1 || *side > (1 << 20)) {
      return fail(path + ": key quantization_config.weight_block_size has the side " +
                  sides[i].describe() + ", 1..1048576 are read");
    }
    config.fp8_block[i] = *side;
  }
  if (sides.size() == 2) return {};
  return fail(path + ": key quantization_config.weight_block_size has " +
              std::to_string(sides.size()) + " sides, a block has two");
}

}  // namespace

Result<std::vector<int32_t>> read_eos_ids(const JsonValue& root, const std::string& path,
                                          int32_t vocab_count) {
  std::vector<int32_t> out;
  const JsonValue* value = root.find("eos_token_id");
  if (value == nullptr || value->is_null()) return out;
  const JsonValue::Array single = {*value};
  for (const JsonValue& one : value->array() != nullptr ? *value->array() : single) {
    const auto id = read_id(one, "eos_token_id", vocab_count);
    if (!id) return id.error(path);
    if (std::find(out.begin(), out.end(), *id) == out.end()) out.push_back(*id);
  }
  return out;
}

Result<HfConfig> read_hf_config(const JsonValue& root, const std::string& path) {
  if (root.object() == nullptr)
    return fail(path + ": is " + root.describe() + ", expected an object");
  Members outer(root, "");
  const std::string model_type = outer.text("model_type");
  if (model_type.empty())
    return fail(path + ": " +
                (outer.error().empty() ? "key model_type is missing" : outer.error()));
  const auto* type = std::find_if(std::begin(kModelTypes), std::end(kModelTypes),
                                  [&](const ModelType& t) { return model_type == t.name; });
  if (type == std::end(kModelTypes))
    return fail(path + ": key model_type: " + unsupported_architecture(model_type));
  // Models with several kinds of input keep the text part's keys in an object of their own.
  const JsonValue* nested = outer.find("text_config");
  const std::string prefix = nested != nullptr ? "text_config." : "";
  Members members(nested != nullptr ? *nested : root, prefix);
  HfConfig config;
  if (const JsonValue* quantised = outer.find("quantization_config")) {
    if (const auto read = read_quantization(*quantised, path, config); !read) return read.error();
  }
  Hyperparameters& h = config.hyperparameters;
  h.architecture = type->architecture;
  const bool old_chatglm = model_type == "chatglm";
  if (old_chatglm) {
    read_chatglm_keys(members, config);
  } else {
    read_transformers_keys(members, prefix, *type, config);
  }
  for (const Members* from :
       {static_cast<const Members*>(&outer), static_cast<const Members*>(&members)}) {
    if (const JsonValue* tie = from->find("tie_word_embeddings")) config.tied = tie->boolean();
  }
  if (!members.error().empty()) return fail(path + ": " + members.error());
  if (!outer.error().empty()) return fail(path + ": " + outer.error());
  const auto checked = check_hyperparameters(h, config_names(members, old_chatglm));
  if (!checked) return checked.error(path);

  const JsonValue& ids =
      nested != nullptr && outer.find("eos_token_id") == nullptr ? *nested : root;
  auto eos_ids = read_eos_ids(ids, path, h.vocab_count);
  if (!eos_ids) return eos_ids.error();
  config.eos_ids = std::move(*eos_ids);
  if (const JsonValue* bos = outer.find("bos_token_id"); bos != nullptr && bos->integer() != -1) {
    const auto id = read_id(*bos, "bos_token_id", h.vocab_count);
    if (!id) return id.error(path);
    config.bos_id = *id;
  }
  return config;
}

}  // namespace updraft
