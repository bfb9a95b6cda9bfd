// Rotary frequencies: from a model's hyperparameters to one inverse frequency per rotated pair.
// Pure; used once at load. Sources: RoFormer (theta_i = base^(-2i/n)); YaRN (Peng et al. 2023,
// section 3.2 and 3.4); the scaling of Llama 3.1.
#pragma once

#include <span>
#include <vector>

#include "common/model/model.h"

namespace updraft {

struct RopeFrequencies {
  std::vector<float> inverse;  // [rope_dims / 2]: angle of pair i at position p is p * inverse[i]
  float magnitude = 1.0F;      // factor of cos and sin; not 1 for YaRN alone
};

// divisors: the file's own table (rope_freqs.weight) or empty; it already contains a llama3
// scaling, which is then not applied again.
RopeFrequencies rope_frequencies(const Hyperparameters& hyperparameters,
                                 std::span<const float> divisors);

}  // namespace updraft
