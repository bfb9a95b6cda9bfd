// A Hugging Face folder (config.json, safetensors in one file or several, tokenizer files) ->
// Model.
#include <algorithm>
#include <filesystem>
#include <map>

#include "common/model/fp8_weights.h"
#include "common/model/hf_config.h"
#include "common/model/hf_tokenizer.h"
#include "common/model/json.h"
#include "common/model/loaded_model.h"
#include "common/model/safetensors.h"

namespace updraft {
namespace {

constexpr uint64_t kConfigBytesMax = 16ULL << 20;
constexpr char kSingleName[] = "model.safetensors";
constexpr char kIndexName[] = "model.safetensors.index.json";

struct Shards {
  std::vector<std::shared_ptr<const SafetensorsFile>> files;
  TensorTable table;
};

StoredTensor stored(const SafetensorsTensor& tensor) {
  return {tensor.shape, tensor.type, tensor.type_name, tensor.bytes};
}

Result<Shards> open_single(const std::string& path) {
  auto file = SafetensorsFile::open(path);
  if (!file) return file.error();
  Shards shards;
  for (const SafetensorsTensor& tensor : (*file)->tensors())
    shards.table.emplace(tensor.name, stored(tensor));
  shards.files.push_back(std::move(*file));
  return shards;
}

Result<Shards> open_sharded(const std::string& folder, const std::string& index_path) {
  const auto index = read_safetensors_index(index_path);
  if (!index) return index.error();
  Shards shards;
  std::map<std::string, std::shared_ptr<const SafetensorsFile>> opened;
  for (const auto& [tensor_name, file_name] : *index) {
    auto& file = opened[file_name];
    if (file == nullptr) {
      auto open = SafetensorsFile::open(folder + "/" + file_name);
      if (!open) return open.error();
      file = std::move(*open);
      shards.files.push_back(file);
    }
    const SafetensorsTensor* tensor = file->find(tensor_name);
    if (tensor == nullptr) {
      return fail(file->path() + ": tensor \"" + printable(tensor_name) +
                  "\" is missing, the index says it is here");
    }
    shards.table.emplace(tensor_name, stored(*tensor));
  }
  return shards;
}

// A folder: the single file if there is one, else the index. A file: itself, unless an index beside
// it lists it, as one shard alone is no model.
Result<Shards> open_shards(const std::string& path, const std::string& folder, bool is_folder) {
  const std::string index_path = folder + "/" + kIndexName;
  const bool has_index = std::filesystem::exists(index_path);
  if (!is_folder) {
    const auto index =
        has_index ? read_safetensors_index(index_path) : std::map<std::string, std::string>{};
    if (!index) return index.error();
    const std::string name = std::filesystem::path(path).filename().string();
    for (const auto& [tensor, file] : *index) {
      if (file == name) return open_sharded(folder, index_path);
    }
    return open_single(path);
  }
  const std::string single = folder + "/" + kSingleName;
  if (std::filesystem::exists(single)) return open_single(single);
  if (has_index) return open_sharded(folder, index_path);
  return fail(path + ": has neither " + kSingleName + " nor " + kIndexName);
}

WeightNames transformers_names(const TensorTable& table) {
  WeightNames names;
  std::string prefix = "model.";
  names.head = "lm_head";
  for (const char* candidate : {"model.language_model.", "language_model.model."}) {
    if (table.contains(std::string(candidate) + "embed_tokens.weight")) prefix = candidate;
  }
  if (prefix == "language_model.model.") names.head = "language_model.lm_head";
  names.embedding = prefix + "embed_tokens";
  names.final_norm = prefix + "norm";
  names.layer_prefix = prefix + "layers.";
  names.attn_norm = "input_layernorm";
  names.q = "self_attn.q_proj";
  names.k = "self_attn.k_proj";
  names.v = "self_attn.v_proj";
  names.o = "self_attn.o_proj";
  names.q_norm = "self_attn.q_norm";
  names.k_norm = "self_attn.k_norm";
  names.post_attn_norm = "post_self_attn_layernorm";
  names.ffn_norm = "post_attention_layernorm";
  names.gate = "mlp.gate_proj";
  names.up = "mlp.up_proj";
  names.gate_up = "mlp.gate_up_proj";
  names.down = "mlp.down_proj";
  names.post_ffn_norm = "post_mlp_layernorm";
  return names;
}

WeightNames old_chatglm_names() {
  WeightNames names;
  names.embedding = "transformer.embedding.word_embeddings";
  names.final_norm = "transformer.encoder.final_layernorm";
  names.head = "transformer.output_layer";
  names.layer_prefix = "transformer.encoder.layers.";
  names.attn_norm = "input_layernorm";
  names.qkv = "self_attention.query_key_value";
  names.o = "self_attention.dense";
  names.ffn_norm = "post_attention_layernorm";
  names.gate_up = "mlp.dense_h_to_4h";
  names.down = "mlp.dense_4h_to_h";
  return names;
}

// Frequencies that follow from the configuration, and the vision part, which text does not pass
// through.
bool hf_ignorable(const std::string& name) {
  return name.ends_with(".inv_freq") || name.starts_with("model.visual.") ||
         name.starts_with("visual.");
}

Result<HfConfig> read_config(const std::string& folder) {
  const std::string path = folder + "/config.json";
  const auto root = read_json_file(path, kConfigBytesMax);
  if (!root) return root.error();
  auto config = read_hf_config(*root, path);
  const std::string generation_path = folder + "/generation_config.json";
  if (!config || !std::filesystem::exists(generation_path)) return config;
  const auto generation = read_json_file(generation_path, kConfigBytesMax);
  if (!generation) return generation.error();
  const auto more = read_eos_ids(*generation, generation_path, config->hyperparameters.vocab_count);
  if (!more) return more.error();
  for (const int32_t id : *more) {
    if (std::find(config->eos_ids.begin(), config->eos_ids.end(), id) == config->eos_ids.end()) {
      config->eos_ids.push_back(id);
    }
  }
  return config;
}

Result<BuiltWeights> build(const HfConfig& config, const TensorTable& table) {
  const Hyperparameters& h = config.hyperparameters;
  const WeightNames names =
      config.old_chatglm_names ? old_chatglm_names() : transformers_names(table);
  const auto rows = embedding_rows(table, names, h.hidden_dim);
  if (!rows) return rows.error();
  if (*rows != h.vocab_count) {
    return fail("tensor \"" + names.embedding + ".weight\" has " + std::to_string(*rows) +
                " rows, config.json says vocab_size " + std::to_string(h.vocab_count));
  }
  auto built = build_weights(table, names, h, config.tied, hf_ignorable);
  if (built && config.attention_bias && built->weights.layers.front().q_bias.empty()) {
    return fail("config.json promises biases of the attention, layer 0 has none");
  }
  return built;
}

void add_ids(const HfConfig& config, TokenizerData& tokenizer) {
  if (tokenizer.bos_id < 0) tokenizer.bos_id = config.bos_id;
  if (tokenizer.eos_id < 0 && !config.eos_ids.empty()) tokenizer.eos_id = config.eos_ids.front();
  for (const int32_t id : config.eos_ids) {
    if (id != tokenizer.eos_id) tokenizer.extra_eos_ids.push_back(id);
  }
}

Digest digest_of(const std::string& folder, const Shards& shards) {
  Digest digest;
  for (const char* name : {"config.json", "tokenizer.json"}) {
    if (const auto file = MappedFile::open(folder + "/" + name)) digest.add((*file)->bytes());
  }
  for (const auto& file : shards.files) digest.add(file->header_bytes());
  return digest;
}

}  // namespace

Result<std::shared_ptr<const Model>> open_safetensors_model(const std::string& path) {
  const std::filesystem::path where = std::filesystem::absolute(path).lexically_normal();
  const bool is_folder = std::filesystem::is_directory(path);
  const std::string folder = is_folder ? path : std::filesystem::path(path).parent_path().string();
  const std::string base = folder.empty() ? "." : folder;
  const auto config = read_config(base);
  if (!config) return config.error();
  auto shards = open_shards(path, base, is_folder);
  if (!shards) return shards.error();
  auto owned = join_fp8_scales(shards->table, config->fp8, config->fp8_block);
  if (!owned) return owned.error(path);
  auto built = build(*config, shards->table);
  if (!built) return built.error(path);
  auto tokenizer = read_hf_tokenizer(base, config->hyperparameters.vocab_count);
  if (!tokenizer) return tokenizer.error();
  add_ids(*config, *tokenizer);

  ModelParts model;
  model.path = path;
  const auto stem =
      is_folder ? (where.has_filename() ? where : where.parent_path()).filename() : where.stem();
  model.name = stem.string();
  model.hyperparameters = config->hyperparameters;
  model.built = std::move(*built);
  model.tokenizer = std::move(*tokenizer);
  model.digest = digest_of(base, *shards).hex();
  for (const auto& file : shards->files) {
    model.file_bytes += file->bytes().size();
    model.files.push_back(file);
    if (file->mapping() != nullptr) model.mappings.push_back(file->mapping());
  }
  for (auto& memory : *owned) model.files.push_back(std::move(memory));
  return make_model(std::move(model));
}

}  // namespace updraft
