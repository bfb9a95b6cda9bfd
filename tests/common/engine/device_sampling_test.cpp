// One draw, three samplers: the host's (sampler.h), the device's (kernels/cuda/sample.h, here on
// its emulator) and the definition in double precision. They choose the same token for the same
// logits, parameters, seed and position, wherever rounding does not decide.
#include <doctest/doctest.h>

#include <cmath>
#include <random>
#include <vector>

#include "common/engine/sampler.h"
#include "kernels/cuda/sample.h"
#include "kernels/simt/memory.h"
#include "tests/common/engine/async_backend.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

constexpr double kRounding = 1e-5;  // of the mass, on either side of a cut or a draw

Sampling any_sampling(std::mt19937& random) {
  const auto chance = [&](uint32_t of) { return random() % of == 0; };
  Sampling sampling;
  sampling.temperature = chance(6) ? 0.0F : 0.3F + static_cast<float>(random() % 12) * 0.1F;
  sampling.top_p = chance(2) ? 1.0F : 0.05F + static_cast<float>(random() % 19) * 0.05F;
  sampling.top_k = chance(2) ? 0 : static_cast<int32_t>(1 + random() % 40);
  sampling.min_p = chance(2) ? 0.0F : 0.02F * static_cast<float>(random() % 10);
  return sampling;
}

}  // namespace

TEST_CASE("the host's sampler, the device's and the definition choose the same tokens") {
  std::mt19937 random(77);
  int compared = 0;
  for (const int32_t vocab : {1, 33, 300}) {
    constexpr int32_t kRows = 40;
    std::normal_distribution<float> normal(0.0F, 3.0F);
    std::vector<float> logits(static_cast<size_t>(kRows) * static_cast<size_t>(vocab));
    // Steps of a quarter: ties, which the smaller id wins.
    for (float& logit : logits) logit = std::round(normal(random) * 4.0F) / 4.0F;
    std::vector<cuda::SampleRow> device_rows;
    std::vector<Sampler> samplers;
    std::vector<RowSampling> rows;
    for (int32_t row = 0; row < kRows; ++row) {
      samplers.emplace_back(any_sampling(random), std::span<const int32_t>{},
                            std::span<const int32_t>{}, uint64_t{random()});
      rows.push_back(samplers.back().row_sampling(row));
      const RowSampling& how = rows.back();
      device_rows.push_back({how.temperature, how.min_p, how.top_p, how.top_k, how.uniform});
    }
    std::vector<int32_t> tokens(kRows, -7);
    const simt::Buffer<float> device_logits("logits", std::span<const float>(logits));
    cuda::Sample op;
    op.rows = kRows;
    op.vocab = vocab;
    op.logits = device_logits.data();
    op.how = device_rows.data();
    op.tokens = tokens.data();
    const auto ran = cuda::run_sample(op, nullptr);
    REQUIRE_MESSAGE(ran.ok(), ran.message());
    for (int32_t row = 0; row < kRows; ++row) {
      CAPTURE(vocab);
      CAPTURE(row);
      const auto index = static_cast<size_t>(row);
      std::vector<float> copy(logits.begin() + row * vocab, logits.begin() + (row + 1) * vocab);
      double distance = 0.0;
      const int32_t defined = reference_token(copy, rows[index], &distance);
      if (distance < kRounding) continue;
      ++compared;
      CHECK(tokens[index] == defined);
      const auto on_host = samplers[index].sample(copy, row);
      REQUIRE(on_host.ok());
      CHECK(on_host->id == defined);
    }
  }
  CHECK(compared > 90);
}

TEST_CASE("what a device cannot do by itself is left to the host") {
  const auto can = [](const Sampling& sampling, std::vector<int32_t> banned,
                      std::vector<int32_t> of_device) {
    return Sampler(sampling, {}, banned, 1).device_can(of_device);
  };
  Sampling plain;
  plain.temperature = 0.7F;
  plain.top_p = 0.9F;
  plain.top_k = 5;
  plain.min_p = 0.1F;
  CHECK(can(plain, {}, {}));
  CHECK(can(plain, {3, 4}, {3, 4}));
  CHECK_FALSE(can(plain, {3, 4}, {}));
  CHECK_FALSE(can(plain, {}, {3, 4}));
  for (int what = 0; what < 5; ++what) {
    CAPTURE(what);
    Sampling sampling = plain;
    if (what == 0) sampling.repetition_penalty = 1.1F;
    if (what == 1) sampling.frequency_penalty = 0.1F;
    if (what == 2) sampling.presence_penalty = -0.1F;
    if (what == 3) sampling.logit_bias.emplace_back(3, 1.0F);
    if (what == 4) sampling.logprobs = true;
    CHECK_FALSE(can(sampling, {}, {}));
  }
}
