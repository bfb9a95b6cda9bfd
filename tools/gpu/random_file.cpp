#include "tools/gpu/random_file.h"

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <span>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "common/model/gguf_writer.h"
#include "tools/convert/gguf_layout.h"
#include "tools/gpu/random_weights.h"

namespace updraft::gpu {
namespace {

const WeightView* matrix_of(const Weights& weights, const LayoutTensor& tensor) {
  if (tensor.layer < 0)
    return tensor.role == TensorRole::kHead ? &weights.head : &weights.embedding;
  const LayerWeights& layer = weights.layers[static_cast<size_t>(tensor.layer)];
  switch (tensor.role) {
    case TensorRole::kQ:
      return &layer.q;
    case TensorRole::kK:
      return &layer.k;
    case TensorRole::kV:
      return &layer.v;
    case TensorRole::kO:
      return &layer.o;
    case TensorRole::kGate:
      return &layer.gate;
    case TensorRole::kUp:
      return &layer.up;
    case TensorRole::kDown:
      return &layer.down;
    default:
      return nullptr;
  }
}

// The bytes of a matrix, or of gate's rows and then up's.
Result<void> write_matrix(GgufWriter& writer, const Weights& weights, const LayoutTensor& tensor) {
  std::vector<const WeightView*> parts = {matrix_of(weights, tensor)};
  if (tensor.role == TensorRole::kGateUp) {
    const LayerWeights& layer = weights.layers[static_cast<size_t>(tensor.layer)];
    parts = {&layer.gate, &layer.up};
  }
  for (const WeightView* part : parts) {
    UPDRAFT_CHECK(part != nullptr, "a tensor that is a matrix of the model");
    const auto bytes = static_cast<size_t>(part->rows * row_bytes(part->type, part->cols));
    if (const auto done = writer.write({part->data, bytes}); !done) return done;
  }
  return {};
}

}  // namespace

Result<void> write_random_gguf(const std::string& shape, DType type, const std::string& path) {
  const auto h = shape_of(shape);
  if (!h) return h.error();
  const auto model = RandomWeights::make(shape, *h, type);
  if (!model) return model.error();
  LayoutParts parts;
  parts.head = true;
  parts.qkv_bias =
      h->architecture == Architecture::kQwen2 || h->architecture == Architecture::kGlm4;
  const std::vector<LayoutTensor> tensors = gguf_layout(*h, parts);
  GgufWriter writer;
  set_model_keys(writer, *h, "random " + shape);
  writer.set_text("tokenizer.ggml.model", "no_vocab");
  for (const LayoutTensor& tensor : tensors)
    writer.add_tensor(tensor.name, tensor.is_vector() ? DType::kF32 : type, tensor.ne);
  if (const auto begun = writer.begin(path); !begun) return begun;
  for (const LayoutTensor& tensor : tensors) {
    if (tensor.is_vector()) {
      const bool bias = tensor.role == TensorRole::kQBias || tensor.role == TensorRole::kKBias ||
                        tensor.role == TensorRole::kVBias;
      const std::vector<float> values(static_cast<size_t>(tensor.ne[0]), bias ? 0.1F : 1.0F);
      if (const auto done = writer.write(std::as_bytes(std::span(values))); !done) return done;
    } else if (const auto done = write_matrix(writer, (*model)->weights(), tensor); !done) {
      return done;
    }
  }
  return writer.finish();
}

namespace {

// A tensor of the file and its bytes: a matrix of the model, or a norm's ones.
struct FileTensor {
  std::string name;
  const WeightView* matrix = nullptr;
  int64_t ones = 0;

  uint64_t bytes() const {
    return matrix != nullptr
               ? static_cast<uint64_t>(matrix->rows * row_bytes(matrix->type, matrix->cols))
               : static_cast<uint64_t>(ones) * 2;
  }
  std::string shape() const {
    return matrix != nullptr ? std::to_string(matrix->rows) + "," + std::to_string(matrix->cols)
                             : std::to_string(ones);
  }
};

std::vector<FileTensor> qwen3_tensors(const Hyperparameters& h, const Weights& weights) {
  std::vector<FileTensor> out = {{"model.embed_tokens.weight", &weights.embedding},
                                 {"lm_head.weight", &weights.head},
                                 {"model.norm.weight", nullptr, h.hidden_dim}};
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const LayerWeights& layer = weights.layers[i];
    const std::string at = "model.layers." + std::to_string(i) + ".";
    const FileTensor tensors[] = {{at + "input_layernorm.weight", nullptr, h.hidden_dim},
                                  {at + "self_attn.q_proj.weight", &layer.q},
                                  {at + "self_attn.k_proj.weight", &layer.k},
                                  {at + "self_attn.v_proj.weight", &layer.v},
                                  {at + "self_attn.q_norm.weight", nullptr, h.head_dim},
                                  {at + "self_attn.k_norm.weight", nullptr, h.head_dim},
                                  {at + "self_attn.o_proj.weight", &layer.o},
                                  {at + "post_attention_layernorm.weight", nullptr, h.hidden_dim},
                                  {at + "mlp.gate_proj.weight", &layer.gate},
                                  {at + "mlp.up_proj.weight", &layer.up},
                                  {at + "mlp.down_proj.weight", &layer.down}};
    out.insert(out.end(), std::begin(tensors), std::end(tensors));
  }
  return out;
}

std::string qwen3_config(const Hyperparameters& h) {
  const std::pair<const char*, int64_t> counts[] = {{"hidden_size", h.hidden_dim},
                                                    {"intermediate_size", h.ff_dim},
                                                    {"num_hidden_layers", h.layer_count},
                                                    {"num_attention_heads", h.head_count},
                                                    {"num_key_value_heads", h.kv_head_count},
                                                    {"head_dim", h.head_dim},
                                                    {"vocab_size", h.vocab_count},
                                                    {"max_position_embeddings", h.context_tokens}};
  std::string out =
      R"({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu",
 "tie_word_embeddings": false, "attention_bias": false, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
 "torch_dtype": "bfloat16")";
  for (const auto& [name, count] : counts)
    out += ",\n \"" + std::string(name) + "\": " + std::to_string(count);
  return out + "}\n";
}

}  // namespace

// The container: an 8-byte little-endian length, a JSON table of names, types, shapes and offsets,
// the bytes (https://github.com/huggingface/safetensors, "Format").
Result<void> write_random_safetensors(const Hyperparameters& h, const std::string& folder) {
  if (h.architecture != Architecture::kQwen3) return fail("random safetensors: only qwen3 shapes");
  const auto model = RandomWeights::make("file", h, DType::kBF16);
  if (!model) return model.error();
  const std::vector<FileTensor> tensors = qwen3_tensors(h, (*model)->weights());
  std::string table = "{";
  uint64_t offset = 0;
  for (const FileTensor& tensor : tensors) {
    const uint64_t end = offset + tensor.bytes();
    table += (offset == 0 ? "\"" : ",\"") + tensor.name + R"(":{"dtype":"BF16","shape":[)" +
             tensor.shape() + R"(],"data_offsets":[)" + std::to_string(offset) + "," +
             std::to_string(end) + "]}";
    offset = end;
  }
  table += "}";
  table.resize((table.size() + 7) / 8 * 8, ' ');  // what follows is aligned
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return fail(folder + ": " + error.message());
  std::ofstream(folder + "/config.json") << qwen3_config(h);
  std::ofstream out(folder + "/model.safetensors", std::ios::binary | std::ios::trunc);
  const uint64_t table_bytes = table.size();
  out.write(reinterpret_cast<const char*>(&table_bytes), sizeof table_bytes);
  out << table;
  for (const FileTensor& tensor : tensors) {
    if (tensor.matrix != nullptr) {
      out.write(reinterpret_cast<const char*>(tensor.matrix->data),
                static_cast<std::streamsize>(tensor.bytes()));
    } else {
      const std::vector<uint16_t> ones(static_cast<size_t>(tensor.ones), 0x3F80);
      out.write(reinterpret_cast<const char*>(ones.data()),
                static_cast<std::streamsize>(tensor.bytes()));
    }
  }
  out.close();
  if (!out) return fail(folder + "/model.safetensors: could not be written whole");
  return {};
}

}  // namespace updraft::gpu
