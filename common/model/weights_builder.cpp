// Assembly of weights from named tensors: shapes per architecture, fused matrices as row ranges,
// leftovers refused.
#include "common/model/weights_builder.h"

#include <algorithm>
#include <array>

#include "kernels/quant/quant.h"

namespace updraft {
namespace {

std::string quoted(const std::string& name) { return "\"" + printable(name) + "\""; }

// Takes tensors out of the table. The first failure sticks; after it everything taken is empty.
class Picker {
 public:
  explicit Picker(const TensorTable& table) : table_(table) {}

  bool ok() const { return error_.empty(); }
  const std::string& error() const { return error_; }
  uint64_t parameter_count() const { return parameter_count_; }
  bool has(const std::string& name) const { return table_.contains(name); }

  WeightView matrix(const std::string& name, int64_t rows, int64_t cols) {
    const StoredTensor* tensor = take(name, {rows, cols});
    if (tensor == nullptr) return {};
    matrix_elems_[static_cast<size_t>(*tensor->type)] +=
        static_cast<uint64_t>(rows) * static_cast<uint64_t>(cols);
    return {tensor->bytes.data(), *tensor->type, rows, cols, tensor->row_scales};
  }

  std::vector<float> vector(const std::string& name, int64_t count) {
    const StoredTensor* tensor = take(name, {count});
    if (tensor == nullptr) return {};
    std::vector<float> out(static_cast<size_t>(count));
    dequantize_row(*tensor->type, tensor->bytes.data(), out);
    return out;
  }

  std::vector<float> vector_if(const std::string& name, int64_t count) {
    return has(name) ? vector(name, count) : std::vector<float>{};
  }

  // Not a parameter, or known to be a copy of another one.
  void claim(const std::string& name) { claimed_.insert(name); }

  void refuse(std::string message) {
    if (error_.empty()) error_ = std::move(message);
  }

  void refuse_leftovers(bool (*ignorable)(const std::string&)) {
    if (!ok()) return;
    std::vector<std::string> left;
    for (const auto& [name, tensor] : table_) {
      if (!claimed_.contains(name) && !ignorable(name)) left.push_back(name);
    }
    if (left.empty()) return;
    refuse("tensor " + quoted(*std::min_element(left.begin(), left.end())) +
           " is not part of this architecture as Updraft knows it" +
           (left.size() > 1 ? " (and " + std::to_string(left.size() - 1) + " more)" : ""));
  }

  std::string most_common_format() const {
    const auto most = std::max_element(matrix_elems_.begin(), matrix_elems_.end());
    return dtype_info(static_cast<DType>(most - matrix_elems_.begin())).name;
  }

 private:
  const StoredTensor* take(const std::string& name, const std::vector<int64_t>& shape) {
    if (!ok()) return nullptr;
    const auto found = table_.find(name);
    if (found == table_.end()) {
      refuse("tensor " + quoted(name) + " is missing");
      return nullptr;
    }
    const StoredTensor& tensor = found->second;
    if (!same_shape(tensor.shape, shape)) {
      refuse("tensor " + quoted(name) + " has shape " + shape_text(tensor.shape) + ", expected " +
             shape_text(shape));
      return nullptr;
    }
    if (!tensor.type) {
      refuse("tensor " + quoted(name) + " has format " + tensor.type_name +
             ", which is not supported for weights");
      return nullptr;
    }
    if (claimed_.insert(name).second) {
      uint64_t elems = 1;
      for (const int64_t n : shape) elems *= static_cast<uint64_t>(n);
      parameter_count_ += elems;
    }
    return &tensor;
  }

  // Leading dimensions of 1 do not matter: some writers store vectors as [1, n].
  static bool same_shape(const std::vector<int64_t>& found, const std::vector<int64_t>& wanted) {
    if (found.size() < wanted.size()) return false;
    const auto extra = static_cast<std::ptrdiff_t>(found.size() - wanted.size());
    return std::all_of(found.begin(), found.begin() + extra, [](int64_t n) { return n == 1; }) &&
           std::equal(wanted.begin(), wanted.end(), found.begin() + extra);
  }

  const TensorTable& table_;
  std::unordered_set<std::string> claimed_;
  std::array<uint64_t, kDTypeCountAll> matrix_elems_{};
  uint64_t parameter_count_ = 0;
  std::string error_;
};

std::string weight(const std::string& prefix, const std::string& name) {
  return prefix + name + ".weight";
}
std::string bias(const std::string& prefix, const std::string& name) {
  return prefix + name + ".bias";
}

// q, k and v: three matrices, or one whose rows are q, k, v from top to bottom; biases alike, all
// three or none.
void take_qkv(Picker& picker, const std::string& prefix, const WeightNames& names,
              const Hyperparameters& h, LayerWeights& layer) {
  const int64_t q_rows = int64_t{h.head_count} * h.head_dim;
  const int64_t kv_rows = int64_t{h.kv_head_count} * h.head_dim;
  const bool bias_needed = h.architecture == Architecture::kQwen2;
  if (!names.qkv.empty() && picker.has(weight(prefix, names.qkv))) {
    const WeightView all =
        picker.matrix(weight(prefix, names.qkv), q_rows + 2 * kv_rows, h.hidden_dim);
    if (all.empty()) return;
    layer.q = row_range(all, 0, q_rows);
    layer.k = row_range(all, q_rows, kv_rows);
    layer.v = row_range(all, q_rows + kv_rows, kv_rows);
    const std::string bias_name = bias(prefix, names.qkv);
    if (!bias_needed && !picker.has(bias_name)) return;
    const std::vector<float> values = picker.vector(bias_name, q_rows + 2 * kv_rows);
    if (values.empty()) return;
    const float* at = values.data();
    layer.q_bias.assign(at, at + q_rows);
    layer.k_bias.assign(at + q_rows, at + q_rows + kv_rows);
    layer.v_bias.assign(at + q_rows + kv_rows, at + q_rows + 2 * kv_rows);
    return;
  }
  layer.q = picker.matrix(weight(prefix, names.q), q_rows, h.hidden_dim);
  layer.k = picker.matrix(weight(prefix, names.k), kv_rows, h.hidden_dim);
  layer.v = picker.matrix(weight(prefix, names.v), kv_rows, h.hidden_dim);
  const bool any_bias = picker.has(bias(prefix, names.q)) || picker.has(bias(prefix, names.k)) ||
                        picker.has(bias(prefix, names.v));
  if (!bias_needed && !any_bias) return;
  layer.q_bias = picker.vector(bias(prefix, names.q), q_rows);
  layer.k_bias = picker.vector(bias(prefix, names.k), kv_rows);
  layer.v_bias = picker.vector(bias(prefix, names.v), kv_rows);
}

// gate and up: two matrices, or one whose first ff rows are gate.
void take_gate_up(Picker& picker, const std::string& prefix, const WeightNames& names,
                  const Hyperparameters& h, LayerWeights& layer) {
  const bool separate = !names.gate.empty() && picker.has(weight(prefix, names.gate));
  const bool may_be_fused =
      h.architecture == Architecture::kGlm4 || h.architecture == Architecture::kChatglm;
  if (separate || !may_be_fused || names.gate_up.empty()) {
    layer.gate = picker.matrix(weight(prefix, names.gate), h.ff_dim, h.hidden_dim);
    layer.up = picker.matrix(weight(prefix, names.up), h.ff_dim, h.hidden_dim);
    return;
  }
  const WeightView both =
      picker.matrix(weight(prefix, names.gate_up), 2 * int64_t{h.ff_dim}, h.hidden_dim);
  if (both.empty()) return;
  layer.gate = row_range(both, 0, h.ff_dim);
  layer.up = row_range(both, h.ff_dim, h.ff_dim);
}

LayerWeights take_layer(Picker& picker, const std::string& prefix, const WeightNames& names,
                        const Hyperparameters& h) {
  LayerWeights layer;
  layer.attn_norm = picker.vector(weight(prefix, names.attn_norm), h.hidden_dim);
  take_qkv(picker, prefix, names, h, layer);
  if (h.architecture == Architecture::kQwen3) {
    layer.q_norm = picker.vector(weight(prefix, names.q_norm), h.head_dim);
    layer.k_norm = picker.vector(weight(prefix, names.k_norm), h.head_dim);
  }
  layer.o =
      picker.matrix(weight(prefix, names.o), h.hidden_dim, int64_t{h.head_count} * h.head_dim);
  layer.o_bias = picker.vector_if(bias(prefix, names.o), h.hidden_dim);
  layer.ffn_norm = picker.vector(weight(prefix, names.ffn_norm), h.hidden_dim);
  take_gate_up(picker, prefix, names, h, layer);
  layer.down = picker.matrix(weight(prefix, names.down), h.hidden_dim, h.ff_dim);
  if (h.architecture == Architecture::kGlm4) {
    layer.post_attn_norm = picker.vector(weight(prefix, names.post_attn_norm), h.hidden_dim);
    layer.post_ffn_norm = picker.vector(weight(prefix, names.post_ffn_norm), h.hidden_dim);
  }
  return layer;
}

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

Result<int32_t> embedding_rows(const TensorTable& table, const WeightNames& names,
                               int32_t hidden_dim) {
  const std::string name = weight("", names.embedding);
  const auto found = table.find(name);
  if (found == table.end()) return fail("tensor " + quoted(name) + " is missing");
  const std::vector<int64_t>& shape = found->second.shape;
  if (shape.size() != 2 || shape[1] != hidden_dim || shape[0] < 1 || shape[0] > INT32_MAX) {
    return fail("tensor " + quoted(name) + " has shape " + shape_text(shape) +
                ", expected [vocabulary, " + std::to_string(hidden_dim) + "]");
  }
  return static_cast<int32_t>(shape[0]);
}

Result<BuiltWeights> build_weights(const TensorTable& table, const WeightNames& names,
                                   const Hyperparameters& h, std::optional<bool> tied,
                                   bool (*ignorable)(const std::string& name)) {
  Picker picker(table);
  BuiltWeights out;
  Weights& weights = out.weights;
  weights.embedding = picker.matrix(weight("", names.embedding), h.vocab_count, h.hidden_dim);
  for (int32_t i = 0; i < h.layer_count && picker.ok(); ++i) {
    weights.layers.push_back(
        take_layer(picker, names.layer_prefix + std::to_string(i) + ".", names, h));
  }
  weights.final_norm = picker.vector(weight("", names.final_norm), h.hidden_dim);
  const std::string head = weight("", names.head);
  out.tied_embeddings = tied.value_or(!picker.has(head));
  if (out.tied_embeddings) {
    weights.head = weights.embedding;
    picker.claim(head);
  } else {
    weights.head = picker.matrix(head, h.vocab_count, h.hidden_dim);
  }
  out.parameter_count = picker.parameter_count();
  if (!names.rope_divisors.empty()) {
    weights.rope_divisors = picker.vector_if(names.rope_divisors, h.rope_dims / 2);
  }
  picker.refuse_leftovers(ignorable);
  if (!picker.ok()) return fail(picker.error());
  out.quantization = picker.most_common_format();
  return out;
}

}  // namespace updraft
