// The CUDA backend, over the emulator, against the double-precision backend: whole forward passes
// of small models.
#include "kernels/cuda/cuda_backend.h"

#include "tests/common/engine/reference_backend.h"
#include "tests/kernels/cuda/backend_support.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;

TEST_CASE("every architecture gives the reference's logits, whole and in chunks") {
  for (const Architecture architecture :
       {Architecture::kLlama, Architecture::kQwen2, Architecture::kQwen3, Architecture::kGlm4}) {
    CAPTURE(architecture_name(architecture));
    const auto model = bf16_model(gpu_hyperparameters(architecture), 17);
    const std::vector<int32_t> tokens = random_tokens(40, 3);
    Runner reference(*model, std::make_unique<updraft::testing::ReferenceBackend>());
    Runner::Sequence by_reference;
    const auto expected = reference.step(by_reference, tokens);

    std::vector<std::vector<float>> whole;
    Runner run(*model, open_emulated());
    for (const size_t chunk : {40, 33, 1}) {
      CAPTURE(chunk);
      Runner::Sequence sequence;
      std::vector<std::vector<float>> logits;
      for (size_t at = 0; at < tokens.size(); at += chunk) {
        const auto first = tokens.begin() + static_cast<ptrdiff_t>(at);
        const auto count = static_cast<ptrdiff_t>(std::min(chunk, tokens.size() - at));
        for (auto& row : run.step(sequence, {first, first + count})) logits.push_back(row);
      }
      run.release(sequence);
      CHECK(worst(logits, expected) < 2e-2);
      if (chunk == 40) whole = logits;
      CHECK(worst(logits, whole) < 1e-2);
    }
  }
}
