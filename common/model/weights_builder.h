// From named tensors to the engine's weights. Each container fills a TensorTable; the one assembly
// below knows which tensors an architecture has, checks every shape, splits fused matrices into row
// ranges and refuses leftovers, so that a tensor which would change the result is never silently
// ignored.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "common/base/bytes.h"
#include "common/base/result.h"
#include "common/model/model.h"

namespace updraft {

// One tensor of a file, its bytes checked to be there and to match type and shape.
struct StoredTensor {
  std::vector<int64_t> shape;  // outermost first: [rows, cols] for a matrix
  std::optional<DType> type;   // nothing: a format that weights cannot have
  std::string type_name;       // as the container spells it, for messages
  ByteView bytes;
  const float* row_scales = nullptr;  // of F8_E4M3: one for each row
};

using TensorTable = std::unordered_map<std::string, StoredTensor>;

// "[512, 64]"
std::string shape_text(const std::vector<int64_t>& shape);

// How a container names tensors. Matrices and norms get ".weight" appended, biases ".bias". Empty:
// has no such tensor.
struct WeightNames {
  std::string embedding, final_norm, head;  // without suffix
  std::string rope_divisors;                // full name
  std::string layer_prefix;                 // followed by the layer number and "."
  std::string attn_norm, q, k, v, qkv, o, q_norm, k_norm, post_attn_norm;
  std::string ffn_norm, gate, up, gate_up, down, post_ffn_norm;
};

struct BuiltWeights {
  Weights weights;
  bool tied_embeddings = false;
  uint64_t parameter_count = 0;
  std::string quantization;  // the format that most weights of matrices have
};

// Rows of the embedding table; hidden_dim is its columns. An error when it is missing or has
// another shape.
Result<int32_t> embedding_rows(const TensorTable& table, const WeightNames& names,
                               int32_t hidden_dim);

// Whether a missing head means that the embedding is used (nothing: yes if missing), or is known
// from the configuration. `ignorable(name)`: tensors that may be left over. Errors name the tensor,
// the expected and the found shape.
Result<BuiltWeights> build_weights(const TensorTable& table, const WeightNames& names,
                                   const Hyperparameters& h, std::optional<bool> tied,
                                   bool (*ignorable)(const std::string& name));

}  // namespace updraft
