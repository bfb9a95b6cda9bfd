// The whole engine on the CUDA backend over the emulator: batches, chunks, the prefix cache,
// weights in host memory.
#include "tests/common/engine/engine_runner.h"
#include "tests/kernels/cuda/backend_support.h"

using namespace updraft;
using namespace updraft::testing;
namespace gpu = updraft::cuda::testing;

namespace {

EngineConfig gpu_engine() {
  EngineConfig config = small_engine();
  config.kv_type = DType::kBF16;
  config.draft_tokens_max = 0;
  return config;
}

std::vector<SequenceRequest> requests() {
  std::vector<SequenceRequest> out;
  for (uint64_t i = 0; i < 5; ++i) {
    const auto seed = static_cast<uint32_t>(i);
    out.push_back(greedy_request(i + 1, gpu::random_tokens(3 + 7 * i, seed), 10));
  }
  return out;
}

}  // namespace

TEST_CASE(
    "on the GPU a batch of sequences gives what each gives alone, in chunks and streamed too") {
  const auto model = gpu::bf16_model(gpu::gpu_hyperparameters(Architecture::kQwen3), 23);
  std::vector<std::vector<int32_t>> alone;
  {
    const auto engine = open_engine(gpu_engine(), model, gpu::open_emulated());
    for (const SequenceRequest& request : requests()) {
      alone.push_back(run_all(*engine, {request})[0]);
    }
  }
  {
    const auto engine = open_engine(gpu_engine(), model, gpu::open_emulated());
    CHECK(run_all(*engine, requests()) == alone);
  }
  EngineConfig chunked = gpu_engine();
  chunked.step_tokens_max = 8;
  CHECK(run_all(*open_engine(chunked, model, gpu::open_emulated()), requests()) == alone);

  EngineConfig tight = gpu_engine();
  tight.offload = true;
  tight.context_tokens = 64;
  tight.max_memory_bytes = 0;
  tight.available_memory_bytes = 0;
  auto backend = gpu::open_emulated();
  const uint64_t room = 100 << 10;
  backend->set_weight_rooms({&room, 1});
  const auto engine = open_engine(tight, model, std::move(backend));
  CHECK(engine->device().find("in host memory") != std::string::npos);
  CHECK(run_all(*engine, requests()) == alone);
}

TEST_CASE("on the GPU a prompt whose begin is cached is answered as a cold one") {
  const auto model = gpu::bf16_model(gpu::gpu_hyperparameters(), 29);
  const std::vector<int32_t> prompt = gpu::random_tokens(70, 8);
  const auto engine = open_engine(gpu_engine(), model, gpu::open_emulated());
  const auto cold = run_all(*engine, {greedy_request(1, prompt, 12)})[0];
  REQUIRE(wait_idle(*engine));
  const auto recorder = std::make_shared<Recorder>();
  REQUIRE(engine->submit(greedy_request(2, prompt, 12), recorder));
  REQUIRE(recorder->wait_end());
  CHECK(recorder->cached_tokens == 64);
  CHECK(recorder->ids() == cold);
}

TEST_CASE(
    "on the GPU answers have the same logits however their prompts were cut, and after "
    "preemption") {
  const auto model = gpu::bf16_model(gpu::gpu_hyperparameters(), 31);
  std::vector<SequenceRequest> wanted;
  for (uint64_t i = 0; i < 4; ++i) {
    // Chunks of eight leave single rows of the prompts.
    const auto seed = static_cast<uint32_t>(60 + i);
    wanted.push_back(greedy_request(i + 1, gpu::random_tokens(17 + 8 * i, seed), 40));
    wanted.back().sampling.logprobs = true;
  }
  const auto logprobs = [&](const EngineConfig& config, int64_t preemptions_min) {
    const auto engine = open_engine(config, model, gpu::open_emulated());
    std::vector<std::shared_ptr<Recorder>> recorders;
    for (size_t i = 0; i < wanted.size(); ++i) recorders.push_back(std::make_shared<Recorder>());
    // The others come while the first is at its first token.
    recorders[0]->keep_going = [&](const Recorder& first) {
      for (size_t i = 1; i < wanted.size() && first.tokens.size() == 1; ++i)
        CHECK(engine->submit(wanted[i], recorders[i]));
      return true;
    };
    REQUIRE(engine->submit(wanted[0], recorders[0]));
    std::vector<std::vector<float>> out;
    for (const auto& recorder : recorders) {
      REQUIRE(recorder->wait_end());
      out.emplace_back();
      for (const SampledToken& token : recorder->tokens) out.back().push_back(token.logprob);
    }
    CHECK(engine->load().preemptions >= preemptions_min);
    return out;
  };
  EngineConfig whole = gpu_engine();
  whole.slots = 1;
  const auto expected = logprobs(whole, 0);
  EngineConfig cut = gpu_engine();
  cut.step_tokens_max = 8;
  CHECK(logprobs(cut, 0) == expected);
  for (const bool prefix_cache : {false, true}) {
    EngineConfig tight = gpu_engine();
    tight.prefix_cache = prefix_cache;
    tight.context_tokens = 96;
    tight.kv_tokens = 128;
    CHECK(logprobs(tight, 1) == expected);
  }
}
