// GGUF: tensors and keys as they are. A folder: the model's weights in the order and with the names
// that GGUF files of its architecture have.
#include "tools/convert/source_model.h"

#include <algorithm>
#include <filesystem>
#include <numeric>

#include "common/model/gguf.h"
#include "common/model/model.h"
#include "common/text/tokenizer.h"
#include "tools/convert/gguf_layout.h"

namespace updraft {
namespace {

// --- GGUF ---

int64_t integer_key(const GgufFile& file, const std::string& key) {
  const GgufValue* value = file.find_key(key);
  if (value == nullptr) return 0;
  if (value->is_array()) {
    const auto numbers = value->integers();
    return numbers && !numbers->empty() ? numbers->front() : 0;
  }
  return value->integer().value_or(0);
}

MixContext mix_of(const GgufFile& file, const std::vector<SourceTensor>& tensors) {
  const std::string architecture = file.architecture().ok() ? *file.architecture() : "";
  MixContext mix;
  mix.layer_count = static_cast<int32_t>(integer_key(file, architecture + ".block_count"));
  mix.tied_embeddings = std::none_of(tensors.begin(), tensors.end(), [](const SourceTensor& t) {
    return t.name == "output.weight";
  });
  mix.is_llama_70b = architecture == "llama" && mix.layer_count == 80 &&
                     integer_key(file, "llama.attention.head_count") !=
                         integer_key(file, "llama.attention.head_count_kv");
  return mix;
}

Result<SourceModel> open_gguf_source(const std::string& path) {
  const auto parts = open_gguf_parts(path);
  if (!parts) return parts.error();
  SourceModel source;
  for (const auto& part : *parts) {
    for (const GgufTensor& tensor : part->tensors()) {
      SourceTensor out;
      out.name = tensor.name;
      out.ne.assign(tensor.ne.begin(), tensor.ne.begin() + tensor.dimension_count);
      out.type = tensor.type;
      const auto cols = static_cast<int64_t>(tensor.ne[0]);
      out.rows.push_back(
          {tensor.bytes.data(), tensor.type, static_cast<int64_t>(tensor.elems()) / cols, cols});
      source.tensors.push_back(std::move(out));
    }
  }
  if (source.tensors.empty()) return fail(path + ": has no tensors, it is a vocabulary only");
  const auto architecture = parts->front()->architecture();
  if (!architecture) return architecture.error();
  source.mix = mix_of(*parts->front(), source.tensors);
  source.set_keys = [first = parts->front()](GgufWriter& writer) {
    for (const GgufKey& key : first->keys()) {
      if (!key.name.starts_with("split.")) writer.set_copy(key);
    }
  };
  source.files = std::make_shared<std::vector<std::shared_ptr<const GgufFile>>>(*parts);
  return source;
}

// --- a Hugging Face folder ---

// Where each rotated pair's two rows go when the pairs' storage changes; rows beyond rope_dims
// stay.
std::vector<int64_t> reordered_rows(const Hyperparameters& h, int32_t head_count, RopeStyle to) {
  std::vector<int64_t> order(static_cast<size_t>(head_count) * static_cast<size_t>(h.head_dim));
  std::iota(order.begin(), order.end(), 0);
  const int32_t half = h.rope_dims / 2;
  for (int32_t head = 0; head < head_count; ++head) {
    const int64_t first = int64_t{head} * h.head_dim;
    for (int32_t pair = 0; pair < half; ++pair) {
      for (int32_t side = 0; side < 2; ++side) {
        const int64_t interleaved = first + 2 * pair + side;
        const int64_t halves = first + int64_t{side} * half + pair;
        if (to == RopeStyle::kInterleaved) order[static_cast<size_t>(interleaved)] = halves;
        if (to == RopeStyle::kHalf) order[static_cast<size_t>(halves)] = interleaved;
      }
    }
  }
  return order;
}

class FolderSource {
 public:
  explicit FolderSource(const Model& model) : model_(model), h_(model.hyperparameters()) {}

  std::vector<SourceTensor> tensors() {
    const LayerWeights& first = model_.weights().layers.front();
    LayoutParts parts;
    parts.head = !h_.tied_embeddings;
    parts.qkv_bias = !first.q_bias.empty();
    parts.o_bias = !first.o_bias.empty();
    parts.rope_divisors = h_.rope_scaling.kind == RopeScaling::Kind::kLlama3 ||
                          !model_.weights().rope_divisors.empty();
    std::vector<SourceTensor> out;
    for (LayoutTensor& tensor : gguf_layout(h_, parts)) out.push_back(fill(std::move(tensor)));
    return out;
  }

 private:
  SourceTensor fill(LayoutTensor layout) {
    SourceTensor out;
    if (layout.is_vector()) {
      out.values = vector_of(layout);
      UPDRAFT_CHECK(out.values.size() == layout.ne[0], "the loader checks shapes");
    } else {
      out.rows = rows_of(layout);
      out.type = out.rows.front().type;
    }
    const bool reorders = h_.rope_style != gguf_rope_style(h_);
    if (reorders && (layout.role == TensorRole::kQ || layout.role == TensorRole::kQBias))
      out.order = reordered_rows(h_, h_.head_count, gguf_rope_style(h_));
    if (reorders && (layout.role == TensorRole::kK || layout.role == TensorRole::kKBias))
      out.order = reordered_rows(h_, h_.kv_head_count, gguf_rope_style(h_));
    if (!out.values.empty() && !out.order.empty()) {
      std::vector<float> moved(out.values.size());
      for (size_t i = 0; i < moved.size(); ++i)
        moved[i] = out.values[static_cast<size_t>(out.order[i])];
      out.values = std::move(moved);
      out.order.clear();
    }
    out.name = std::move(layout.name);
    out.ne = std::move(layout.ne);
    return out;
  }

  std::vector<WeightView> rows_of(const LayoutTensor& layout) const {
    const Weights& w = model_.weights();
    if (layout.role == TensorRole::kEmbedding) return {w.embedding};
    if (layout.role == TensorRole::kHead) return {w.head};
    const LayerWeights& layer = w.layers[static_cast<size_t>(layout.layer)];
    switch (layout.role) {
      case TensorRole::kQ:
        return {layer.q};
      case TensorRole::kK:
        return {layer.k};
      case TensorRole::kV:
        return {layer.v};
      case TensorRole::kO:
        return {layer.o};
      case TensorRole::kGate:
        return {layer.gate};
      case TensorRole::kUp:
        return {layer.up};
      case TensorRole::kGateUp:
        return {layer.gate, layer.up};
      case TensorRole::kDown:
        return {layer.down};
      default:
        UPDRAFT_CHECK(false, "a matrix");
    }
  }

  std::vector<float> vector_of(const LayoutTensor& layout) const {
    const Weights& w = model_.weights();
    if (layout.role == TensorRole::kFinalNorm) return w.final_norm;
    if (layout.role == TensorRole::kRopeDivisors)
      return w.rope_divisors.empty() ? llama3_divisors(h_) : w.rope_divisors;
    const LayerWeights& layer = w.layers[static_cast<size_t>(layout.layer)];
    switch (layout.role) {
      case TensorRole::kAttnNorm:
        return layer.attn_norm;
      case TensorRole::kQBias:
        return layer.q_bias;
      case TensorRole::kKBias:
        return layer.k_bias;
      case TensorRole::kVBias:
        return layer.v_bias;
      case TensorRole::kQNorm:
        return layer.q_norm;
      case TensorRole::kKNorm:
        return layer.k_norm;
      case TensorRole::kOBias:
        return layer.o_bias;
      case TensorRole::kPostAttnNorm:
        return layer.post_attn_norm;
      case TensorRole::kFfnNorm:
        return layer.ffn_norm;
      case TensorRole::kPostFfnNorm:
        return layer.post_ffn_norm;
      default:
        UPDRAFT_CHECK(false, "a vector");
    }
  }

  const Model& model_;
  const Hyperparameters& h_;
};

// GGUF names one end token and two more kinds of end; a configuration may list several ids.
TokenizerData with_end_ids(TokenizerData tokenizer) {
  for (const int32_t id : tokenizer.extra_eos_ids) {
    if (tokenizer.eot_id < 0) {
      tokenizer.eot_id = id;
    } else if (tokenizer.eom_id < 0 && id != tokenizer.eot_id) {
      tokenizer.eom_id = id;
    }
  }
  // "Use nothing" and not "look elsewhere" for readers that want the key.
  if (tokenizer.model.empty()) tokenizer.model = "no_vocab";
  return tokenizer;
}

Result<SourceModel> open_folder_source(const std::string& path) {
  auto model = open_model(path);
  if (!model) return model.error();
  const TokenizerData& tokenizer = (*model)->tokenizer();
  if (!tokenizer.model.empty()) {
    if (const auto usable = Tokenizer::create(tokenizer); !usable) return usable.error(path);
  }
  if ((*model)->quantization() == dtype_info(DType::kF8_E4M3).name) {
    return fail(path + ": has fp8 weights with scales of their own; convert the bfloat16 original");
  }
  const Hyperparameters& h = (*model)->hyperparameters();
  SourceModel source;
  source.tensors = FolderSource(**model).tensors();
  source.mix.layer_count = h.layer_count;
  source.mix.tied_embeddings = h.tied_embeddings;
  source.mix.is_llama_70b = h.architecture == Architecture::kLlama && h.layer_count == 80 &&
                            h.head_count != h.kv_head_count;
  source.set_keys = [model = *model](GgufWriter& writer) {
    set_model_keys(writer, model->hyperparameters(), model->name());
    set_tokenizer_keys(writer, with_end_ids(model->tokenizer()));
  };
  source.files = *model;
  return source;
}

bool is_gguf(const std::string& path) {
  return !std::filesystem::is_directory(path) &&
         std::filesystem::path(path).extension() != ".safetensors";
}

}  // namespace

int64_t SourceTensor::row_count() const {
  int64_t count = 0;
  for (const WeightView& view : rows) count += view.rows;
  return count;
}

const std::byte* SourceTensor::row(int64_t r) const {
  if (!order.empty()) r = order[static_cast<size_t>(r)];
  for (const WeightView& view : rows) {
    if (r < view.rows) return view.data + r * row_bytes(view.type, view.cols);
    r -= view.rows;
  }
  UPDRAFT_CHECK(false, "a row of the tensor");
}

Result<SourceModel> open_source(const std::string& path) {
  if (!std::filesystem::exists(path)) return fail(path + ": no such file or folder");
  return is_gguf(path) ? open_gguf_source(path) : open_folder_source(path);
}

}  // namespace updraft
