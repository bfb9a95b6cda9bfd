// Small models on the CUDA backend over the emulator: what its tests share.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "common/engine/forward.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/quant/quant.h"
#include "tests/common/engine/memory_model.h"

namespace updraft::cuda::testing {

using updraft::testing::MemoryModel;

// As small as heads of 64 dimensions allow.
inline Hyperparameters gpu_hyperparameters(Architecture architecture = Architecture::kLlama) {
  Hyperparameters h;
  h.architecture = architecture;
  h.layer_count = 2;
  h.hidden_dim = 96;
  h.ff_dim = 64;
  h.head_count = 4;
  h.kv_head_count = 2;
  h.head_dim = 64;
  h.vocab_count = 96;
  h.context_tokens = 512;
  h.norm_eps = 1e-5F;
  h.rope_dims = 64;
  if (architecture == Architecture::kGlm4 || architecture == Architecture::kChatglm) {
    h.rope_style = RopeStyle::kInterleaved;
    h.rope_dims = 32;
  }
  h.tied_embeddings = architecture == Architecture::kQwen2;
  return h;
}

// Random weights that bfloat16 holds exactly.
inline std::shared_ptr<MemoryModel> bf16_model(const Hyperparameters& h, uint32_t seed) {
  auto model = updraft::testing::random_model(h, seed);
  const auto round = [&](WeightView& view) {
    std::vector<float> values(static_cast<size_t>(view.rows * view.cols));
    std::memcpy(values.data(), view.data, values.size() * sizeof(float));
    for (float& v : values) v = bf16_to_float(float_to_bf16(v));
    view = model->matrix(std::move(values), view.rows, view.cols);
  };
  Weights& w = model->weights();
  round(w.embedding);
  if (h.tied_embeddings) {
    w.head = w.embedding;
  } else {
    round(w.head);
  }
  for (LayerWeights& layer : w.layers) {
    for (WeightView* view :
         {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
      round(*view);
    }
  }
  return model;
}

inline std::unique_ptr<Backend> open_emulated(CudaConfig config = {}) {
  config.pack_threads = 2;
  auto backend = open_cuda_backend(config);
  REQUIRE_MESSAGE(backend.ok(), backend.message());
  return std::move(*backend);
}

// Sequences run by hand on one backend: each has its pages and what it has seen.
class Runner {
 public:
  static constexpr int32_t kPageTokens = 16;
  static constexpr int32_t kPages = 96;

  Runner(const Model& model, std::unique_ptr<Backend> device, int32_t rows_max = 80,
         DType kv_type = DType::kBF16)
      : backend(std::move(device)) {
    auto created = Forward::create(model, *backend, {rows_max, rows_max}, {});
    REQUIRE_MESSAGE(created.ok(), created.message());
    forward.emplace(std::move(*created));
    vocab = model.hyperparameters().vocab_count;
    KvShape shape = Forward::kv_shape(model.hyperparameters());
    shape.page_tokens = kPageTokens;
    shape.page_count = kPages;
    shape.type = kv_type;
    shape.context_tokens = model.hyperparameters().context_tokens;
    const auto made = backend->make_kv_pool(shape);
    REQUIRE_MESSAGE(made.ok(), made.message());
    for (int32_t i = 0; i < kPages; ++i) free_.push_back((i * 7 + 3) % kPages);
  }

  struct Sequence {
    std::vector<int32_t> pages;
    int32_t cached = 0;
  };
  struct Part {
    Sequence* sequence = nullptr;
    std::vector<int32_t> tokens;
    int32_t prompt_count = 0;  // of the tokens, from the first on; the others are an answer's
  };

  void reserve(Sequence& sequence, int32_t tokens) {
    while (static_cast<int32_t>(sequence.pages.size()) * kPageTokens < sequence.cached + tokens) {
      REQUIRE(!free_.empty());
      sequence.pages.push_back(free_.back());
      free_.pop_back();
    }
  }
  void release(Sequence& sequence) {
    free_.insert(free_.begin(), sequence.pages.begin(), sequence.pages.end());
    sequence = {};
  }

  // Logits of all rows of one step over all parts, or of each part's last row: [rows][vocab].
  enum class Wanted : uint8_t { kAll, kLast };
  std::vector<std::vector<float>> step(const std::vector<Part>& parts,
                                       Wanted wanted = Wanted::kAll) {
    std::vector<int32_t> ids;
    std::vector<int32_t> positions;
    std::vector<SequenceSlice> slices;
    for (const Part& part : parts) {
      const auto count = static_cast<int32_t>(part.tokens.size());
      reserve(*part.sequence, count);
      slices.push_back({static_cast<int32_t>(ids.size()), count, part.sequence->cached,
                        part.sequence->pages, count - part.prompt_count});
      for (int32_t i = 0; i < count; ++i) positions.push_back(part.sequence->cached + i);
      ids.insert(ids.end(), part.tokens.begin(), part.tokens.end());
      part.sequence->cached += count;
    }
    std::vector<int32_t> rows;
    for (const SequenceSlice& slice : slices) {
      for (int32_t i = wanted == Wanted::kAll ? 0 : slice.row_count - 1; i < slice.row_count; ++i)
        rows.push_back(slice.row_first + i);
    }
    const auto all = forward->run(*backend, {ids, positions, slices, rows});
    std::vector<std::vector<float>> out;
    for (size_t r = 0; r < rows.size(); ++r) {
      const auto row = all.subspan(r * static_cast<size_t>(vocab), static_cast<size_t>(vocab));
      out.emplace_back(row.begin(), row.end());
    }
    return out;
  }
  std::vector<std::vector<float>> step(Sequence& sequence, std::vector<int32_t> tokens) {
    return step(std::vector<Part>{{&sequence, std::move(tokens)}});
  }
  // Of a prompt; logits of the last row.
  std::vector<float> prefill(Sequence& sequence, std::vector<int32_t> tokens) {
    const auto count = static_cast<int32_t>(tokens.size());
    return step({{&sequence, std::move(tokens), count}}, Wanted::kLast)[0];
  }

  // A step of one row per sequence whose tokens the device chooses, without a draw. source -1: the
  // row's token is `token`; else that logit row of the step before.
  struct Row {
    Sequence* sequence = nullptr;
    int32_t token = 0;
    int32_t source = -1;
  };
  void begin_sampled(const std::vector<Row>& rows) {
    begin_sampled(rows, std::vector<RowSampling>(rows.size()));
  }
  void begin_sampled(const std::vector<Row>& rows, const std::vector<RowSampling>& how) {
    std::vector<int32_t> ids;
    std::vector<int32_t> sources;
    std::vector<int32_t> positions;
    std::vector<int32_t> logit_rows;
    std::vector<SequenceSlice> slices;
    for (const Row& row : rows) {
      reserve(*row.sequence, 1);
      const auto index = static_cast<int32_t>(ids.size());
      ids.push_back(row.token);
      sources.push_back(row.source);
      positions.push_back(row.sequence->cached);
      logit_rows.push_back(index);
      slices.push_back({index, 1, row.sequence->cached, row.sequence->pages, 1});
      ++row.sequence->cached;
    }
    Batch batch{ids, positions, slices, logit_rows};
    batch.samplings = how;
    batch.token_sources = sources;
    forward->start(*backend, batch);
  }

  std::unique_ptr<Backend> backend;
  std::optional<Forward> forward;
  int32_t vocab = 0;

 private:
  std::vector<int32_t> free_;
};

inline std::vector<int32_t> random_tokens(size_t count, uint32_t seed, int32_t vocab = 96) {
  std::mt19937 random(seed);
  std::vector<int32_t> out(count);
  for (int32_t& token : out) token = static_cast<int32_t>(random() % static_cast<uint32_t>(vocab));
  return out;
}

inline int32_t best(const std::vector<float>& logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// The largest difference relative to the largest expected value; infinity for what is no number.
inline double worst(const std::vector<std::vector<float>>& got,
                    const std::vector<std::vector<float>>& expected) {
  REQUIRE(got.size() == expected.size());
  double largest = 0;
  double difference = 0;
  for (size_t r = 0; r < got.size(); ++r) {
    REQUIRE(got[r].size() == expected[r].size());
    for (size_t i = 0; i < got[r].size(); ++i) {
      largest = std::max(largest, std::abs(static_cast<double>(expected[r][i])));
      const double d =
          std::abs(static_cast<double>(got[r][i]) - static_cast<double>(expected[r][i]));
      difference = std::max(difference, std::isnan(d) ? INFINITY : d);
    }
  }
  return difference / largest;
}

}  // namespace updraft::cuda::testing
