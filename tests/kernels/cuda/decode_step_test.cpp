// What a decode step is made of on the device: how many kernels a layer, that each may start before
// the one in front of it has ended, and that none reads or writes too early then.
#include <set>

#include "kernels/simt/watch.h"
#include "tests/kernels/cuda/backend_support.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;

namespace {

// Launches of one replayed step of `rows` sequences that see `length` positions each.
std::vector<simt::LaunchRecord> step_launches(const Hyperparameters& h, size_t rows,
                                              int32_t length) {
  const auto model = bf16_model(h, 5);
  Runner run(*model, open_emulated());
  std::vector<Runner::Sequence> sequences(rows);
  // Their past is one page again and again: what it says does not matter.
  for (size_t s = 0; s < rows; ++s) {
    sequences[s].pages.assign(static_cast<size_t>(length / Runner::kPageTokens + 2),
                              static_cast<int32_t>(s));
  }
  const auto step = [&] {
    std::vector<Runner::Row> batch;
    for (Runner::Sequence& sequence : sequences) {
      sequence.cached = length - 1;
      batch.push_back({&sequence, 1, -1});
    }
    run.begin_sampled(batch);
    (void)run.backend->read_tokens();
  };
  step();  // by name
  step();  // captured
  const simt::LaunchLog log;
  step();
  CHECK(cuda_counters(*run.backend).replayed_steps == 2);
  return log.records();
}

int32_t launches_per_layer(Architecture architecture, size_t rows, int32_t length) {
  Hyperparameters h = gpu_hyperparameters(architecture);
  h.context_tokens = 4096;
  h.layer_count = 1;
  const size_t fewer = step_launches(h, rows, length).size();
  h.layer_count = 2;
  const size_t more = step_launches(h, rows, length).size();
  return static_cast<int32_t>(more) - static_cast<int32_t>(fewer);
}

}  // namespace

// Product of q, k and v; attention; product that ends in the residual stream; gate and up; down,
// which ends there too.
TEST_CASE("a decode step launches five kernels a layer, at most six in a long context") {
  for (const Architecture architecture :
       {Architecture::kLlama, Architecture::kQwen2, Architecture::kQwen3, Architecture::kChatglm}) {
    CAPTURE(architecture_name(architecture));
    CHECK(launches_per_layer(architecture, 1, 40) == 5);
  }
  CHECK(launches_per_layer(Architecture::kLlama, 9, 40) == 5);
  CHECK(launches_per_layer(Architecture::kLlama, 1, 2048) == 5);
  CHECK(launches_per_layer(Architecture::kLlama, 1, 2049) == 6);  // many chunks are joined aside
}

// Its norms of what attention and the feed-forward block give need whole rows before they are
// added.
TEST_CASE("glm4's sandwich norms are two kernels more") {
  CHECK(launches_per_layer(Architecture::kGlm4, 1, 40) == 7);
}

TEST_CASE("every kernel of a decode step may start early and lets the next one start") {
  for (const Architecture architecture : {Architecture::kLlama, Architecture::kGlm4}) {
    Hyperparameters h = gpu_hyperparameters(architecture);
    h.context_tokens = 4096;
    h.layer_count = 1;
    for (const int32_t length : {40, 2049}) {
      std::set<std::string> not_early;
      std::set<std::string> not_letting;
      for (const simt::LaunchRecord& record : step_launches(h, 1, length)) {
        if (!record.early_start) not_early.insert(record.kernel);
        if (!record.lets_next_start) not_letting.insert(record.kernel);
      }
      CHECK(not_early == std::set<std::string>());
      CHECK(not_letting == std::set<std::string>());
    }
  }
}

TEST_CASE("steps whose kernels overlap as far as they may give the bits of those that do not") {
  for (const Architecture architecture : {Architecture::kQwen3, Architecture::kGlm4}) {
    CAPTURE(architecture_name(architecture));
    const auto model = bf16_model(gpu_hyperparameters(architecture), 13);
    const auto run_steps = [&](bool overlapped) {
      Runner run(*model, open_emulated(), 260);
      std::vector<Runner::Sequence> sequences(2);
      // So long, in one of the two, that attention has chunks to join.
      const size_t length = architecture == Architecture::kQwen3 ? 256 : 30;
      std::vector<std::vector<float>> out;
      run.prefill(sequences[0], random_tokens(length, 1));
      std::optional<simt::Overlap> overlap;
      if (overlapped) overlap.emplace();
      out.push_back(run.prefill(sequences[1], random_tokens(20, 2)));
      for (uint32_t i = 0; i < 3; ++i) {
        for (auto& row : run.step({{&sequences[0], random_tokens(1, 10 + i)},
                                   {&sequences[1], random_tokens(1, 20 + i)}})) {
          out.push_back(row);
        }
      }
      run.begin_sampled({{&sequences[0], 4, -1}, {&sequences[1], 5, -1}});
      run.begin_sampled({{&sequences[0], 0, 1}, {&sequences[1], 0, 0}});
      for (int i = 0; i < 2; ++i) {
        const auto tokens = run.backend->read_tokens();
        out.emplace_back(tokens.begin(), tokens.end());
      }
      return out;
    };
    CHECK(run_steps(true) == run_steps(false));
  }
}

TEST_CASE("a row alone has the bits that it has in a step beyond the skinny product's tokens") {
  const auto model = bf16_model(gpu_hyperparameters(), 15);
  Runner run(*model, open_emulated());
  constexpr size_t kRows = 66;
  const std::vector<int32_t> tokens = random_tokens(kRows, 8);
  std::vector<Runner::Sequence> sequences(kRows);
  std::vector<Runner::Part> parts;
  for (size_t s = 0; s < kRows; ++s) parts.push_back({&sequences[s], {tokens[s]}});
  const auto together = run.step(parts);
  for (Runner::Sequence& sequence : sequences) run.release(sequence);
  for (const size_t s : {size_t{0}, size_t{31}, size_t{65}}) {
    Runner::Sequence alone;
    CHECK(run.step(alone, {tokens[s]})[0] == together[s]);
    run.release(alone);
  }
}
