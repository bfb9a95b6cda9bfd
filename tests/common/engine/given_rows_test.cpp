// Prompts whose inputs are given: rows of the embedding table handed over as embeddings mean what
// their ids mean, wherever chunks, preemption and the prefix cache cut them; what is no number ends
// one sequence and nothing else.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/engine/engine.h"
#include "kernels/quant/quant.h"
#include "tests/common/engine/engine_runner.h"
#include "tests/common/engine/memory_model.h"
#include "tests/common/engine/scripted_backend.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

using Type = EmbeddingRows::Type;

// A model whose embedding table every type of row holds exactly: values with eight bits, none of
// them tiny.
std::shared_ptr<MemoryModel> exact_model(uint32_t seed) {
  auto model = random_model(small_hyperparameters(), seed);
  WeightView& table = model->weights().embedding;
  std::vector<float> values(static_cast<size_t>(table.rows * table.cols));
  std::memcpy(values.data(), table.data, values.size() * sizeof(float));
  for (float& value : values) {
    value = bf16_to_float(float_to_bf16(value));
    if (std::fabs(value) < 0.001F) value = 0.0F;
  }
  const bool tied = model->weights().head.data == table.data;
  table = model->matrix(values, table.rows, table.cols);
  if (tied) model->weights().head = table;
  return model;
}

std::string row_text(const MemoryModel& model, int32_t id, Type type) {
  const WeightView& table = model.weights().embedding;
  const auto dim = static_cast<size_t>(table.cols);
  const auto* row = reinterpret_cast<const float*>(table.data) + static_cast<size_t>(id) * dim;
  std::string out(dim * value_bytes(type), '\0');
  for (size_t i = 0; i < dim; ++i) {
    if (type == Type::kF32) {
      std::memcpy(out.data() + 4 * i, &row[i], 4);
    } else {
      const uint16_t half = type == Type::kF16 ? float_to_half(row[i]) : float_to_bf16(row[i]);
      std::memcpy(out.data() + 2 * i, &half, 2);
    }
  }
  return out;
}

EmbeddingRows rows_of(const MemoryModel& model, std::span<const int32_t> ids, Type type) {
  EmbeddingRows rows;
  rows.type = type;
  rows.row_count = static_cast<int32_t>(ids.size());
  rows.dim = static_cast<int32_t>(model.weights().embedding.cols);
  std::string bytes;
  for (const int32_t id : ids) bytes += row_text(model, id, type);
  rows.bytes = std::move(bytes);
  return rows;
}

// Positions [first, first + count) of the prompt become rows of the table.
void give(SequenceRequest& request, const MemoryModel& model, int32_t first, int32_t count,
          Type type = Type::kF32) {
  const auto ids =
      std::span(request.prompt).subspan(static_cast<size_t>(first), static_cast<size_t>(count));
  request.inputs.push_back({first, rows_of(model, ids, type)});
  std::fill(ids.begin(), ids.end(), kNoToken);
}

std::vector<int32_t> random_ids(std::mt19937& random, int32_t count, int32_t vocab) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < count; ++i)
    ids.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(vocab)));
  return ids;
}

// The ids' answers, and their log-probabilities to the bit.
struct Answer {
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
  friend bool operator==(const Answer&, const Answer&) = default;
};
std::vector<Answer> answers_of(Engine& engine, std::vector<SequenceRequest> requests) {
  std::vector<std::shared_ptr<Recorder>> recorders;
  for (SequenceRequest& request : requests) {
    request.sampling.logprobs = true;
    recorders.push_back(std::make_shared<Recorder>());
    REQUIRE(engine.submit(std::move(request), recorders.back()));
  }
  std::vector<Answer> out;
  for (const auto& recorder : recorders) {
    REQUIRE(recorder->wait_end());
    REQUIRE(recorder->end == SequenceEnd::kLength);
    Answer& answer = out.emplace_back();
    for (const SampledToken& token : recorder->tokens) {
      answer.ids.push_back(token.id);
      answer.logprobs.push_back(token.logprob);
    }
  }
  return out;
}

// Requests of ids, and the same with pieces of their prompts given.
struct Pairs {
  std::vector<SequenceRequest> of_ids;
  std::vector<SequenceRequest> of_rows;
};
Pairs random_pairs(const MemoryModel& model, int count, int32_t prompt, int32_t answer,
                   uint32_t seed) {
  std::mt19937 random(seed);
  const int32_t vocab = model.hyperparameters().vocab_count;
  Pairs pairs;
  for (int i = 0; i < count; ++i) {
    const auto id = static_cast<uint64_t>(i) + 1;
    pairs.of_ids.push_back(greedy_request(id, random_ids(random, prompt, vocab), answer));
    SequenceRequest rows = pairs.of_ids.back();
    rows.id += 1000;
    const Type type = std::vector<Type>{Type::kF32, Type::kF16, Type::kBF16}[random() % 3];
    // All of it, its beginning, its end, or two pieces in the middle.
    if (i % 4 == 0) give(rows, model, 0, prompt, type);
    if (i % 4 == 1) give(rows, model, 0, prompt / 2, type);
    if (i % 4 == 2) give(rows, model, prompt - 5, 5, type);
    if (i % 4 == 3) {
      give(rows, model, prompt / 4, 3, Type::kF32);
      give(rows, model, prompt / 4 + 4, prompt / 3, type);
    }
    pairs.of_rows.push_back(std::move(rows));
  }
  return pairs;
}

SequenceEnd end_of(Engine& engine, SequenceRequest request, std::string& failure) {
  const auto recorder = std::make_shared<Recorder>();
  REQUIRE(engine.submit(std::move(request), recorder));
  REQUIRE(recorder->wait_end());
  failure = recorder->failure;
  return recorder->end;
}

}  // namespace

TEST_CASE("rows of the table given as embeddings answer as their ids do, on every backend") {
  const auto model = exact_model(3);
  for (const std::string& name : backend_names()) {
    CAPTURE(name);
    const Pairs pairs = random_pairs(*model, 8, 21, 12, 5);
    const auto engine = open_engine(small_engine(), model, open_backend(name));
    CHECK(answers_of(*engine, pairs.of_rows) == answers_of(*engine, pairs.of_ids));
  }
}

TEST_CASE("given rows survive every chunk size") {
  const auto model = exact_model(4);
  const Pairs pairs = random_pairs(*model, 8, 45, 10, 6);
  const auto whole = open_engine(small_engine(), model);
  const std::vector<Answer> expected = answers_of(*whole, pairs.of_ids);
  for (const int32_t step_tokens : {4, 5, 7, 16, 64}) {
    CAPTURE(step_tokens);
    EngineConfig config = small_engine();
    config.step_tokens_max = step_tokens;
    CHECK(answers_of(*open_engine(config, model), pairs.of_rows) == expected);
  }
}

TEST_CASE("given rows survive preemption, which computes them again") {
  const auto model = exact_model(5);
  const Pairs pairs = random_pairs(*model, 8, 80, 90, 7);
  EngineConfig config = small_engine();
  const std::vector<Answer> expected = answers_of(*open_engine(config, model), pairs.of_ids);
  config.slots = 8;
  config.kv_tokens = 256;
  const auto engine = open_engine(config, model);
  CHECK(answers_of(*engine, pairs.of_rows) == expected);
  CHECK(engine->load().preemptions > 0);
  REQUIRE(wait_idle(*engine));
  CHECK(engine->load().kv_pages_free == engine->load().kv_pages_total);
}

TEST_CASE("prompts share their pages up to the first given row and not beyond") {
  const auto model = exact_model(6);
  std::mt19937 random(8);
  const std::vector<int32_t> ids = random_ids(random, 120, 96);
  std::vector<int32_t> others = ids;
  for (size_t i = 50; i < 70; ++i) others[i] = (ids[i] + 1) % 96;
  const auto request_of = [&](uint64_t id, const std::vector<int32_t>& prompt, int32_t first,
                              int32_t count) {
    SequenceRequest request = greedy_request(id, prompt, 8);
    if (count > 0) give(request, *model, first, count);
    return request;
  };
  const auto engine = open_engine(small_engine(), model);
  EngineConfig uncached = small_engine();
  uncached.prefix_cache = false;
  const auto plain = open_engine(uncached, model);
  const auto run = [&](const SequenceRequest& request) {
    const auto recorder = std::make_shared<Recorder>();
    REQUIRE(engine->submit(request, recorder));
    REQUIRE(recorder->wait_end());
    CHECK(recorder->ids() == run_all(*plain, {request})[0]);
    return recorder->cached_tokens;
  };
  CHECK(run(request_of(1, ids, 50, 20)) == 0);
  // The three pages of 16 in front of position 50, though the next prompt's rows are others.
  CHECK(run(request_of(2, others, 50, 20)) == 48);
  CHECK(run(request_of(3, ids, 50, 20)) == 48);
  // Ids find nothing behind the rows either, and then leave pages that rows do not find.
  CHECK(run(request_of(4, ids, 0, 0)) == 48);
  CHECK(run(request_of(5, ids, 0, 0)) == 112);
  CHECK(run(request_of(6, others, 50, 20)) == 48);
  CHECK(run(request_of(7, ids, 0, 1)) == 0);
}

TEST_CASE("drafts neither match given rows nor run into them") {
  const auto model = exact_model(7);
  std::mt19937 random(9);
  // Behind the prompt [a, rows, b] the model writes a, then b, then a and b again: whoever follows
  // the a of the prompt would run into the rows.
  const std::vector<int32_t> a = random_ids(random, 12, 96);
  const std::vector<int32_t> b = random_ids(random, 12, 96);
  SequenceRequest request = greedy_request(1, a, 72);
  request.prompt.insert(request.prompt.end(), 10, 7);
  request.prompt.insert(request.prompt.end(), b.begin(), b.end());
  std::vector<int32_t> script = request.prompt;
  for (int i = 0; i < 3; ++i) {
    script.insert(script.end(), a.begin(), a.end());
    script.insert(script.end(), b.begin(), b.end());
  }
  give(request, *model, 12, 10);
  request.sampling.repetition_penalty = 1.1F;
  EngineConfig config = small_engine();
  config.step_clock = [now = int64_t{0}]() mutable { return now += 400'000; };
  const auto scripted = [&] { return std::make_unique<ScriptedBackend>(exact_cpu(), script); };
  const auto guessing = open_engine(config, model, scripted());
  const std::vector<int32_t> answer = run_all(*guessing, {request})[0];
  CHECK(guessing->load().draft_tokens_accepted > 30);
  config.draft_tokens_max = 0;
  CHECK(answer == run_all(*open_engine(config, model, scripted()), {request})[0]);
  CHECK(answer == std::vector<int32_t>(script.begin() + 34, script.begin() + 34 + 72));
}

TEST_CASE("rows that are no numbers when their turn comes end their sequence alone") {
  const auto model = exact_model(8);
  const Pairs pairs = random_pairs(*model, 4, 40, 30, 10);
  EngineConfig config = small_engine();
  config.step_tokens_max = 8;
  const auto engine = open_engine(config, model);
  const std::vector<Answer> expected = answers_of(*engine, pairs.of_ids);
  for (const Type type : {Type::kF32, Type::kF16, Type::kBF16}) {
    CAPTURE(std::string(embedding_type_name(type)));
    for (const bool infinite : {false, true}) {
      CAPTURE(infinite);
      SequenceRequest request = greedy_request(500, pairs.of_ids[0].prompt, 30);
      give(request, *model, 4, 30, type);
      // As a client does that writes into its memory after the request was taken in.
      auto bytes = std::make_shared<std::string>(request.inputs[0].rows.bytes.text());
      request.inputs[0].rows.bytes = SharedBytes(bytes, as_bytes_view(*bytes));
      const float bad = infinite ? -std::numeric_limits<float>::infinity()
                                 : std::numeric_limits<float>::quiet_NaN();
      char* const at = bytes->data() + (21 * 32 + 17) * value_bytes(type);
      if (type == Type::kF32) {
        std::memcpy(at, &bad, 4);
      } else {
        const uint16_t half = type == Type::kF16 ? float_to_half(bad) : float_to_bf16(bad);
        std::memcpy(at, &half, 2);
      }
      std::vector<std::shared_ptr<Recorder>> others;
      for (const SequenceRequest& other : pairs.of_rows) {
        others.push_back(std::make_shared<Recorder>());
        REQUIRE(engine->submit(other, others.back()));
      }
      std::string failure;
      CHECK(end_of(*engine, request, failure) == SequenceEnd::kBadInput);
      CHECK(failure ==
            "an input embedding is no finite number: row 21, column 17 of the rows that stand at "
            "position 4");
      for (size_t i = 0; i < others.size(); ++i) {
        REQUIRE(others[i]->wait_end());
        CHECK(others[i]->ids() == expected[i].ids);
      }
      REQUIRE(wait_idle(*engine));
    }
  }
  CHECK(engine->load().kv_pages_free == engine->load().kv_pages_total);
}

TEST_CASE("rows of the largest numbers leave nothing behind in the pages that they used") {
  const auto model = exact_model(9);
  for (const std::string& name : backend_names()) {
    for (const DType kv_type : {DType::kF32, DType::kF16, DType::kQ8_0}) {
      if (name == "reference" && kv_type != DType::kF32) continue;
      CAPTURE(name);
      CAPTURE(static_cast<int>(kv_type));
      EngineConfig config = small_engine();
      config.slots = 1;
      config.kv_tokens = 256;
      config.kv_type = kv_type;
      config.prefix_cache = false;
      SequenceRequest plain = greedy_request(1, {5, 6, 7, 8, 9}, 30);
      const auto expected = run_all(*open_engine(config, model, open_backend(name)), {plain})[0];
      const auto engine = open_engine(config, model, open_backend(name));
      SequenceRequest request = greedy_request(2, std::vector<int32_t>(255, 3), 1);
      give(request, *model, 0, 255);
      std::string bytes(request.inputs[0].rows.bytes.text());
      for (size_t i = 0; i < bytes.size() / 4; ++i) {
        const float huge = (i % 3 == 0 ? -1.0F : 1.0F) * std::numeric_limits<float>::max();
        std::memcpy(bytes.data() + 4 * i, &huge, 4);
      }
      request.inputs[0].rows.bytes = std::move(bytes);
      std::string failure;
      const SequenceEnd end = end_of(*engine, request, failure);
      CHECK((end == SequenceEnd::kLength || end == SequenceEnd::kFailed));
      CHECK(run_all(*engine, {plain})[0] == expected);
    }
  }
}

TEST_CASE("a row is copied from any address, and zeros stand from the first bad row on") {
  for (const Type type : {Type::kF32, Type::kF16, Type::kBF16}) {
    CAPTURE(std::string(embedding_type_name(type)));
    constexpr int32_t kDim = 300;  // more than the copy's piece
    EmbeddingRows rows;
    rows.type = type;
    rows.row_count = 3;
    rows.dim = kDim;
    std::string bytes(1 + static_cast<size_t>(embedding_bytes(rows)), '\0');
    const auto put = [&](size_t index, float value) {
      const uint16_t half = type == Type::kF16 ? float_to_half(value) : float_to_bf16(value);
      std::memcpy(bytes.data() + 1 + index * value_bytes(type),
                  type == Type::kF32 ? static_cast<const void*>(&value) : &half, value_bytes(type));
    };
    for (size_t i = 0; i < 3 * kDim; ++i) put(i, static_cast<float>(i % 128) - 64.0F);
    const auto owner = std::make_shared<const std::string>(bytes);
    rows.bytes = SharedBytes(owner, as_bytes_view(*owner).subspan(1));
    std::vector<float> out(2 * kDim, -1.0F);
    REQUIRE(!copy_rows(rows, 1, 2, out));
    for (size_t i = 0; i < out.size(); ++i)
      REQUIRE(out[i] == static_cast<float>((i + kDim) % 128) - 64.0F);
    put(kDim + 299, std::numeric_limits<float>::infinity());
    put(kDim + 298, -std::numeric_limits<float>::quiet_NaN());
    const auto changed = std::make_shared<const std::string>(bytes);
    rows.bytes = SharedBytes(changed, as_bytes_view(*changed).subspan(1));
    std::vector<float> all(3 * kDim, -1.0F);
    const auto bad = copy_rows(rows, 0, 3, all);
    REQUIRE(bad);
    CHECK(bad->row == 1);
    CHECK(bad->column == 298);
    CHECK(all[kDim - 1] == static_cast<float>((kDim - 1) % 128) - 64.0F);
    CHECK(std::all_of(all.begin() + kDim, all.end(), [](float v) { return v == 0.0F; }));
  }
}
