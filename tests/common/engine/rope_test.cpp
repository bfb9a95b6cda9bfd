// Rotary frequencies against those that Hugging Face transformers 5.23 computes
// (ROPE_INIT_FUNCTIONS, head_dim 32).
#include "common/engine/rope.h"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

using namespace updraft;

namespace {

Hyperparameters with_base(float base) {
  Hyperparameters h;
  h.rope_dims = 32;
  h.rope_base = base;
  return h;
}

void check_equal(const RopeFrequencies& found, const std::vector<double>& expected) {
  REQUIRE(found.inverse.size() == expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    CAPTURE(i);
    CHECK(std::abs(static_cast<double>(found.inverse[i]) / expected[i] - 1.0) < 1e-6);
  }
}

}  // namespace

TEST_CASE("llama3 scaling: short waves kept, long ones stretched, a blend between") {
  Hyperparameters h = with_base(500000.0F);
  h.rope_scaling.kind = RopeScaling::Kind::kLlama3;
  h.rope_scaling.factor = 8.0F;
  h.rope_scaling.original_context_tokens = 8192;
  const RopeFrequencies found = rope_frequencies(h, {});
  check_equal(found,
              {1.0, 0.440366626, 0.193922758, 0.0853971019, 0.0376060307, 0.0165604409,
               0.00729266508, 0.00321144611, 0.000524846022, 7.78465546e-05, 3.42810235e-05,
               1.50962178e-05, 6.64786967e-06, 2.92749974e-06, 1.28917316e-06, 5.6770881e-07});
  CHECK(found.magnitude == 1.0F);
}

TEST_CASE("yarn with its defaults, magnitude included") {
  Hyperparameters h = with_base(1000000.0F);
  h.rope_scaling.kind = RopeScaling::Kind::kYarn;
  h.rope_scaling.factor = 4.0F;
  h.rope_scaling.original_context_tokens = 32768;
  const RopeFrequencies found = rope_frequencies(h, {});
  check_equal(found,
              {1.0, 0.421696514, 0.177827939, 0.0749894157, 0.0316227786, 0.0133352149,
               0.00477990136, 0.00165996165, 0.000549999997, 0.000168678584, 4.44569851e-05,
               1.87473561e-05, 7.90569356e-06, 3.33380353e-06, 1.40585337e-06, 5.92843435e-07});
  CHECK(found.magnitude == doctest::Approx(1.138629436111989));
}

TEST_CASE("yarn with its own betas and attention factor") {
  Hyperparameters h = with_base(10000.0F);
  h.rope_scaling.kind = RopeScaling::Kind::kYarn;
  h.rope_scaling.factor = 8.0F;
  h.rope_scaling.original_context_tokens = 256;
  h.rope_scaling.beta_fast = 16.0F;
  h.rope_scaling.beta_slow = 2.0F;
  h.rope_scaling.attention_factor = 1.25F;
  const RopeFrequencies found = rope_frequencies(h, {});
  check_equal(
      found, {1.0, 0.562341332, 0.260887921, 0.115588166, 0.0474999994, 0.0168702379, 0.00395284733,
              0.00222284929, 0.00124999997, 0.000702926656, 0.000395284733, 0.000222284929,
              0.000125000006, 7.02926627e-05, 3.95284733e-05, 2.22284925e-05});
  CHECK(found.magnitude == 1.25F);
}

TEST_CASE("linear scaling divides every frequency") {
  Hyperparameters h = with_base(10000.0F);
  h.rope_scaling.kind = RopeScaling::Kind::kLinear;
  h.rope_scaling.factor = 4.0F;
  check_equal(rope_frequencies(h, {}),
              {0.25, 0.140585333, 0.079056941, 0.0444569848, 0.0250000004, 0.0140585322,
               0.00790569466, 0.00444569858, 0.00249999994, 0.00140585331, 0.000790569466,
               0.000444569858, 0.000250000012, 0.000140585325, 7.90569466e-05, 4.44569851e-05});
}

TEST_CASE("the file's divisors are the llama3 scaling and are not applied on top of it") {
  Hyperparameters h = with_base(10000.0F);
  std::vector<float> divisors(16, 1.0F);
  divisors[15] = 32.0F;
  const RopeFrequencies plain = rope_frequencies(h, {});
  h.rope_scaling.kind = RopeScaling::Kind::kLlama3;
  h.rope_scaling.factor = 8.0F;
  h.rope_scaling.original_context_tokens = 64;
  const RopeFrequencies found = rope_frequencies(h, divisors);
  for (size_t i = 0; i < 15; ++i) CHECK(found.inverse[i] == plain.inverse[i]);
  CHECK(found.inverse[15] == plain.inverse[15] / 32.0F);
}
