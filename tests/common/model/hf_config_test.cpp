// config.json -> hyperparameters. The configurations are those of published models, shortened;
// expected values are the table of the models' own documentation.
#include "common/model/hf_config.h"

#include <doctest/doctest.h>

#include "tests/common/model/model_files.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

Result<HfConfig> read(const std::string& text) {
  const auto json = parse_json(text);
  REQUIRE_MESSAGE(json.ok(), json.message());
  return read_hf_config(*json, "config.json");
}

// A small llama configuration with members replaced ("" removes) or added.
std::string llama(const std::map<std::string, std::string>& changes) {
  std::map<std::string, std::string> members = {
      {"model_type", "\"llama\""}, {"num_hidden_layers", "2"},         {"hidden_size", "64"},
      {"intermediate_size", "96"}, {"num_attention_heads", "4"},       {"num_key_value_heads", "2"},
      {"vocab_size", "100"},       {"max_position_embeddings", "512"}, {"rms_norm_eps", "1e-5"}};
  for (const auto& [key, value] : changes) members[key] = value;
  std::string out;
  for (const auto& [key, value] : members) {
    if (!value.empty()) out += (out.empty() ? "" : ",") + std::string("\"") + key + "\":" + value;
  }
  return "{" + out + "}";
}

void check_key(const std::string& key, const std::string& value,
               std::initializer_list<const char*> parts) {
  const auto config = read(llama({{key, value}}));
  check_refused(config, {"config.json: ", key.c_str()});
  check_refused(config, parts);
}

}  // namespace

TEST_CASE("Llama 3.1 8B") {
  const auto config =
      read(R"({"architectures":["LlamaForCausalLM"],"attention_bias":false,"bos_token_id":128000,
    "eos_token_id":[128001,128008,128009],"hidden_act":"silu","hidden_size":4096,"intermediate_size":14336,
    "max_position_embeddings":131072,"mlp_bias":false,"model_type":"llama","num_attention_heads":32,
    "num_hidden_layers":32,"num_key_value_heads":8,"pretraining_tp":1,"rms_norm_eps":1e-05,
    "rope_scaling":{"factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,
    "original_max_position_embeddings":8192,"rope_type":"llama3"},"rope_theta":500000.0,
    "tie_word_embeddings":false,"vocab_size":128256})");
  REQUIRE_MESSAGE(config.ok(), config.message());
  const Hyperparameters& h = config->hyperparameters;
  CHECK(h.architecture == Architecture::kLlama);
  CHECK(h.rope_style == RopeStyle::kHalf);
  CHECK(h.head_dim == 128);
  CHECK(h.rope_dims == 128);
  CHECK(h.rope_base == 500000.0F);
  CHECK(h.context_tokens == 131072);
  CHECK(h.rope_scaling.kind == RopeScaling::Kind::kLlama3);
  CHECK(h.rope_scaling.factor == 8.0F);
  CHECK(h.rope_scaling.low_freq_factor == 1.0F);
  CHECK(h.rope_scaling.high_freq_factor == 4.0F);
  CHECK(h.rope_scaling.original_context_tokens == 8192);
  CHECK(config->tied == false);
  CHECK(config->bos_id == 128000);
  CHECK(config->eos_ids == std::vector<int32_t>{128001, 128008, 128009});
}

TEST_CASE("the same in the keys of transformers 5") {
  const auto config = read(
      llama({{"rope_parameters",
              R"({"rope_type":"llama3","rope_theta":500000.0,"factor":32.0,"low_freq_factor":1.0,
                                   "high_freq_factor":4.0,"original_max_position_embeddings":8192})"}}));
  REQUIRE_MESSAGE(config.ok(), config.message());
  CHECK(config->hyperparameters.rope_base == 500000.0F);
  CHECK(config->hyperparameters.rope_scaling.kind == RopeScaling::Kind::kLlama3);
  CHECK(config->hyperparameters.rope_scaling.factor == 32.0F);
}

TEST_CASE("Qwen2.5 0.5B, whose sliding window is switched off") {
  const auto config = read(
      R"({"attention_dropout":0.0,"bos_token_id":151643,"eos_token_id":151645,"hidden_act":"silu",
    "hidden_size":896,"intermediate_size":4864,"max_position_embeddings":32768,"max_window_layers":21,
    "model_type":"qwen2","num_attention_heads":14,"num_hidden_layers":24,"num_key_value_heads":2,"rms_norm_eps":1e-06,
    "rope_theta":1000000.0,"sliding_window":32768,"tie_word_embeddings":true,"use_sliding_window":false,
    "vocab_size":151936})");
  REQUIRE_MESSAGE(config.ok(), config.message());
  CHECK(config->hyperparameters.architecture == Architecture::kQwen2);
  CHECK(config->hyperparameters.head_dim == 64);
  CHECK(config->hyperparameters.norm_eps == 1e-6F);
  CHECK(config->tied == true);
  CHECK(config->eos_ids == std::vector<int32_t>{151645});
}

TEST_CASE("Qwen3 0.6B, whose heads are wider than hidden over heads") {
  const auto config =
      read(R"({"attention_bias":false,"head_dim":128,"hidden_act":"silu","hidden_size":1024,
    "intermediate_size":3072,"max_position_embeddings":40960,"max_window_layers":28,"model_type":"qwen3",
    "num_attention_heads":16,"num_hidden_layers":28,"num_key_value_heads":8,"rms_norm_eps":1e-06,"rope_scaling":null,
    "rope_theta":1000000,"sliding_window":null,"tie_word_embeddings":true,"use_sliding_window":false,
    "vocab_size":151936})");
  REQUIRE_MESSAGE(config.ok(), config.message());
  CHECK(config->hyperparameters.architecture == Architecture::kQwen3);
  CHECK(config->hyperparameters.head_dim == 128);
  CHECK(config->hyperparameters.rope_style == RopeStyle::kHalf);
}

TEST_CASE("GLM-4-9B-0414 rotates half of each head, interleaved") {
  const auto config =
      read(R"({"attention_bias":true,"eos_token_id":[151329,151336,151338],"head_dim":128,
    "hidden_act":"silu","hidden_size":4096,"intermediate_size":13696,"max_position_embeddings":32768,
    "model_type":"glm4","num_attention_heads":32,"num_hidden_layers":40,"num_key_value_heads":2,"pad_token_id":151329,
    "partial_rotary_factor":0.5,"rms_norm_eps":1e-05,"rope_theta":10000.0,"tie_word_embeddings":false,
    "vocab_size":151552})");
  REQUIRE_MESSAGE(config.ok(), config.message());
  CHECK(config->hyperparameters.architecture == Architecture::kGlm4);
  CHECK(config->hyperparameters.rope_style == RopeStyle::kInterleaved);
  CHECK(config->hyperparameters.rope_dims == 64);
  CHECK(config->attention_bias);
}

TEST_CASE("GLM-4.1V keeps its text part in an object of its own") {
  const auto config =
      read(R"({"model_type":"glm4v","image_token_id":151343,"tie_word_embeddings":false,
    "text_config":{"model_type":"glm4v_text","attention_bias":true,"eos_token_id":[151329,151336,151338,151348],
    "hidden_act":"silu","hidden_size":4096,"intermediate_size":13696,"max_position_embeddings":65536,
    "num_attention_heads":32,"num_hidden_layers":40,"num_key_value_heads":2,"partial_rotary_factor":0.5,
    "rms_norm_eps":1e-05,"rope_theta":10000.0,"rope_scaling":{"type":"default","mrope_section":[8,12,12]},
    "vocab_size":151552},"vision_config":{"hidden_size":1536}})");
  REQUIRE_MESSAGE(config.ok(), config.message());
  const Hyperparameters& h = config->hyperparameters;
  CHECK(h.architecture == Architecture::kGlm4);
  CHECK(h.hidden_dim == 4096);
  CHECK(h.rope_dims == 64);
  CHECK(h.rope_style == RopeStyle::kInterleaved);
  CHECK(h.mrope_sections == std::array<int32_t, 4>{8, 12, 12, 0});
  CHECK(config->eos_ids.back() == 151348);
}

TEST_CASE("the old GLM-4-9b-chat has its own keys") {
  const auto config = read(R"({"model_type":"chatglm","add_bias_linear":false,"add_qkv_bias":true,
    "apply_query_key_layer_scaling":true,"apply_residual_connection_post_layernorm":false,"ffn_hidden_size":13696,
    "hidden_size":4096,"kv_channels":128,"layernorm_epsilon":1.5625e-07,"multi_query_attention":true,
    "multi_query_group_num":2,"num_attention_heads":32,"num_layers":40,"original_rope":true,"padded_vocab_size":151552,
    "post_layer_norm":true,"rmsnorm":true,"rope_ratio":500,"seq_length":131072,"vocab_size":151552,
    "tie_word_embeddings":false,"eos_token_id":[151329,151336,151338],"pad_token_id":151329})");
  REQUIRE_MESSAGE(config.ok(), config.message());
  const Hyperparameters& h = config->hyperparameters;
  CHECK(h.architecture == Architecture::kChatglm);
  CHECK(h.layer_count == 40);
  CHECK(h.ff_dim == 13696);
  CHECK(h.kv_head_count == 2);
  CHECK(h.head_dim == 128);
  CHECK(h.rope_dims == 64);
  CHECK(h.rope_base == 5e6F);
  CHECK(h.rope_style == RopeStyle::kInterleaved);
  CHECK(h.vocab_count == 151552);
  CHECK(h.context_tokens == 131072);
  CHECK(config->old_chatglm_names);
  CHECK(config->attention_bias);
}

TEST_CASE("linear and yarn scaling are read, every other kind is refused by name") {
  const auto linear = read(llama({{"rope_scaling", R"({"type":"linear","factor":4.0})"}}));
  REQUIRE_MESSAGE(linear.ok(), linear.message());
  CHECK(linear->hyperparameters.rope_scaling.kind == RopeScaling::Kind::kLinear);
  CHECK(linear->hyperparameters.context_tokens == 512);
  const auto yarn = read(llama(
      {{"rope_scaling",
        R"({"rope_type":"yarn","factor":4.0,"original_max_position_embeddings":512,"beta_fast":16})"}}));
  REQUIRE_MESSAGE(yarn.ok(), yarn.message());
  CHECK(yarn->hyperparameters.rope_scaling.kind == RopeScaling::Kind::kYarn);
  CHECK(yarn->hyperparameters.rope_scaling.beta_fast == 16.0F);
  CHECK(yarn->hyperparameters.context_tokens == 2048);
  for (const char* type : {"dynamic", "longrope", "su", "mrope", "ntk"}) {
    check_key("rope_scaling", R"({"factor":2.0,"rope_type":")" + std::string(type) + "\"}",
              {type, "llama3"});
  }
  check_key("rope_scaling", R"({"rope_type":"linear"})", {"factor", "missing"});
  check_key("rope_scaling", R"({"rope_type":"linear","factor":0.25})", {"factor", "0.25"});
  check_key("rope_scaling", R"({"rope_type":"linear","factor":"2"})", {"factor", "\"2\""});
  check_key("rope_scaling", R"({"factor":2.0})", {"without a rope_type"});
  check_key("rope_scaling", "4", {"object"});
  check_key("rope_scaling", R"({"rope_type":"llama3","factor":8})", {"low_freq_factor", "missing"});
  check_key("rope_scaling",
            R"({"rope_type":"llama3","factor":8,"low_freq_factor":4,"high_freq_factor":1,
                "original_max_position_embeddings":128})",
            {"low_freq_factor 4"});
  check_key("rope_scaling", R"({"rope_type":"yarn","factor":8,"mscale":1.0})", {"mscale"});
  check_key("rope_scaling", R"({"mrope_section":[1,1,1]})", {"mrope_section", "glm4v"});
  check_key("rope_parameters", R"({"full_attention":{"rope_theta":1.0}})",
            {"full_attention", "per kind of layer"});
}

TEST_CASE("missing and absurd values are refused by key and value") {
  for (const char* key : {"num_hidden_layers", "hidden_size", "intermediate_size",
                          "num_attention_heads", "vocab_size", "max_position_embeddings"}) {
    check_key(key, "", {"missing"});
    check_key(key, "null", {"missing"});
    for (const char* wrong : {"0", "-1", "4294967295", "1e3", "2.5", "\"64\"", "[64]", "true"}) {
      check_key(key, wrong, {"expected an integer"});
    }
  }
  for (const char* wrong : {"0", "-1e-5", "\"x\"", "true", "1e31"}) {
    check_key("rms_norm_eps", wrong, {"positive number"});
    check_key("rope_theta", wrong, {"positive number"});
    check_key("partial_rotary_factor", wrong, {"positive number"});
  }
  check_key("num_key_value_heads", "3", {"3 does not divide", "num_attention_heads 4"});
  check_key("num_attention_heads", "3", {"3", "hidden_size 64"});
  check_key("partial_rotary_factor", "1.5", {"1.5"});
  check_key("eos_token_id", "100", {"100", "100 tokens"});
  check_key("eos_token_id", "[1,-2]", {"-2"});
  check_key("bos_token_id", "100", {"100"});
  check_refused(read(llama({{"partial_rotary_factor", "0.01"}})), {"rotary dimensions 0"});
  check_refused(read(llama({{"head_dim", "7"}})), {"rotary dimensions 7 is odd"});
  check_refused(read("[]"), {"config.json", "an array of 0", "object"});
}

TEST_CASE("models and features that are not supported are refused, never ignored") {
  check_key("model_type", "", {"missing"});
  check_key("model_type", "\"gemma3\"", {"\"gemma3\"", "supported: llama"});
  check_key("hidden_act", "\"gelu\"", {"gelu", "silu"});
  check_key("quantization_config", R"({"quant_method":"awq","bits":4})", {"\"awq\"", "GGUF"});
  check_key("layer_types", R"(["full_attention","sliding_attention"])", {"sliding_attention"});
  check_refused(read(llama({{"model_type", "\"mistral\""}, {"sliding_window", "256"}})),
                {"sliding_window", "256", "context of 512"});
  CHECK(read(llama({{"model_type", "\"mistral\""}, {"sliding_window", "512"}})).ok());
  CHECK(read(llama({{"model_type", "\"mistral\""}, {"sliding_window", "null"}})).ok());
  check_refused(
      read(llama(
          {{"use_sliding_window", "true"}, {"sliding_window", "256"}, {"max_window_layers", "1"}})),
      {"sliding_window", "256"});
  CHECK(read(llama({{"use_sliding_window", "true"},
                    {"sliding_window", "256"},
                    {"max_window_layers", "2"}}))
            .ok());
}
