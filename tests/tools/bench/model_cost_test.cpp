// Counting work and the bound that the peaks set. Truths: counted by hand.
#include "tools/bench/model_cost.h"

#include <doctest/doctest.h>

#include <cstring>

#include "tests/support/shared_data.h"
#include "tools/bench/random_model.h"
#include "tools/bench/stream.h"

using namespace updraft;

TEST_CASE("the published shape of Qwen2.5 0.5B in Q4_0: 358 M weights in layers, 346 MB in all") {
  const testing::TempDir dir;
  RandomModelConfig config;
  for (const NamedShape& shape : named_shapes()) {
    if (std::strcmp(shape.name, "qwen2.5-0.5b") == 0)
      config.hyperparameters = shape.hyperparameters;
  }
  config.hyperparameters.layer_count = 2;  // two of 24: the file stays small
  REQUIRE(write_random_model(config, dir.file("m.gguf"), {}).ok());
  const auto model = open_model(dir.file("m.gguf"));
  REQUIRE_MESSAGE(model.ok(), model.message());
  const ModelCost cost = model_cost(**model, DType::kF16);
  CHECK(cost.layer_int8_ops * 12 == doctest::Approx(2 * 357.8e6).epsilon(0.001));
  CHECK(cost.layer_float_ops == 0);
  CHECK(cost.head_int8_ops == doctest::Approx(2 * 136.1e6).epsilon(0.001));
  CHECK(cost.layer_bytes * 12 + cost.head_bytes == doctest::Approx(346e6).epsilon(0.003));
  // 24 layers of 2 heads of 64 for K and V in two bytes: 12,288 bytes.
  CHECK(cost.kv_bytes_per_position * 12 == 12288);
}

TEST_CASE("a step takes at least its longest need") {
  ModelCost cost;
  cost.layer_int8_ops = 100;
  cost.head_int8_ops = 20;
  cost.layer_bytes = 50;
  cost.head_bytes = 10;
  cost.kv_bytes_per_position = 2;
  const PeakRates peak{1000, 1000, 100};
  // One row: 0.12 s of arithmetic, 0.6 s of reading, 0.1 s of KV.
  const Bound decode = least_time(cost, {1, 1, 5, 1}, peak);
  CHECK(decode.seconds == doctest::Approx(0.7));
  CHECK(std::string(decode.limit) == "read");
  // 64 rows, logits of one: 6.42 s of arithmetic.
  const Bound prefill = least_time(cost, {64, 1, 0, 1}, peak);
  CHECK(prefill.seconds == doctest::Approx(6.42));
  CHECK(std::string(prefill.limit) == "int8");
  cost.layer_float_ops = 1000;
  CHECK(std::string(least_time(cost, {64, 1, 0, 1}, peak).limit) == "fma");
}

TEST_CASE("gaps between tokens count when they touch the window") {
  const std::vector<int64_t> times = {0, 10, 40, 45, 100, 300};
  CHECK(longest_gap_ns(times, 20, 90) == 55);
  CHECK(longest_gap_ns(times, 41, 44) == 5);
  CHECK(longest_gap_ns(times, 300, 400) == 0);
  CHECK(longest_gap_ns({}, 0, 100) == 0);
}

TEST_CASE("prompts and hashes") {
  CHECK(random_prompt(7, 50, 100) == random_prompt(7, 50, 100));
  CHECK(random_prompt(7, 50, 100) != random_prompt(8, 50, 100));
  for (const int32_t id : random_prompt(9, 1000, 17)) CHECK((id >= 0 && id < 17));
  CHECK(hash_of_ids(std::vector<int32_t>{}) == "811c9dc5");  // FNV-1a's offset basis
  CHECK(hash_of_ids(std::vector<int32_t>{1, 2}) != hash_of_ids(std::vector<int32_t>{2, 1}));
}
