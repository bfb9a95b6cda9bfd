// A Model in memory of a real model's shape: random weights, of which one layer's bytes stand for
// all layers, so that 9 billion parameters are made in a second. A device that copies its weights
// holds and reads every layer of them all the same.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/model/model.h"

namespace updraft::gpu {

class RandomWeights final : public Model {
 public:
  // All matrices in `type`; blocks of quantised formats are random bytes with small scales. Errors:
  // a width that is no multiple of the format's block.
  static Result<std::shared_ptr<const Model>> make(const std::string& name,
                                                   const Hyperparameters& shape, DType type);

  RandomWeights() = default;

 private:
  WeightView matrix(DType type, int64_t rows, int64_t cols);
  std::vector<std::vector<std::byte>> storage_;
};

// Shapes of GLM-4-9B-0414, Llama-2-7B, Qwen2.5-7B, Qwen3-8B and a small one for smoke runs, by name
// ("glm-4-9b", ...). Source: the models' published configurations. Errors: another name; the
// message lists the known ones.
Result<Hyperparameters> shape_of(const std::string& name);

}  // namespace updraft::gpu
