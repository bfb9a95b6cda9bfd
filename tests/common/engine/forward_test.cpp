// The forward pass against values from outside: chatglm.cpp's one-layer ChatGLM4 in every backend,
// and every architecture's small random model in every backend against the double-precision
// reference.
#include "common/engine/forward.h"

#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <numeric>
#include <random>
#include <vector>

#include "tests/common/engine/backends.h"
#include "tests/common/engine/memory_model.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

// One sequence run by hand, in chunks, on pages that are not in order.
struct ByHand {
  ByHand(const Model& model, std::unique_ptr<Backend> device, int32_t rows_max)
      : backend(std::move(device)) {
    auto created = Forward::create(model, *backend, {rows_max, rows_max}, {});
    REQUIRE_MESSAGE(created.ok(), created.message());
    forward.emplace(std::move(*created));
    KvShape shape = Forward::kv_shape(model.hyperparameters());
    shape.page_tokens = 16;
    shape.page_count = 20;
    shape.type = DType::kF32;
    REQUIRE(backend->make_kv_pool(shape).ok());
    for (int32_t i = 0; i < shape.page_count; ++i) pages.push_back((i * 7 + 3) % shape.page_count);
  }

  // Logits of all rows.
  std::vector<float> run(std::span<const int32_t> tokens) {
    const auto count = static_cast<int32_t>(tokens.size());
    std::vector<int32_t> positions(tokens.size());
    std::iota(positions.begin(), positions.end(), cached);
    std::vector<int32_t> rows(tokens.size());
    std::iota(rows.begin(), rows.end(), 0);
    const SequenceSlice slice{0, count, cached, pages};
    const auto logits = forward->run(*backend, {tokens, positions, {&slice, 1}, rows});
    cached += count;
    return {logits.begin(), logits.end()};
  }

  std::unique_ptr<Backend> backend;
  std::optional<Forward> forward;
  std::vector<int32_t> pages;
  int32_t cached = 0;
};

double max_difference(std::span<const float> a, std::span<const float> b) {
  REQUIRE(a.size() == b.size());
  double worst = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    REQUIRE(std::isfinite(a[i]));
    worst = std::max(worst, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  }
  return worst;
}

struct Reader {
  explicit Reader(const std::string& path) : in(path, std::ios::binary) { REQUIRE(in.good()); }
  template <typename T>
  std::vector<T> take(size_t count) {
    std::vector<T> out(count);
    in.read(reinterpret_cast<char*>(out.data()), static_cast<std::streamsize>(count * sizeof(T)));
    REQUIRE(in.good());
    return out;
  }
  std::ifstream in;
};

}  // namespace

TEST_CASE(
    "chatglm.cpp's ChatGLM4 layer gives its hidden states, prompt first, then token by token") {
  const auto path = shared_data("golden/glm4_model.data");
  if (!path) return;
  Hyperparameters h;
  h.architecture = Architecture::kChatglm;
  h.layer_count = 1;
  h.hidden_dim = 32;
  h.ff_dim = 48;
  h.head_count = 8;
  h.kv_head_count = 2;
  h.head_dim = 4;
  h.vocab_count = 5;
  h.context_tokens = 64;
  h.norm_eps = 1.5625e-7F;
  h.rope_style = RopeStyle::kInterleaved;
  h.rope_dims = 2;

  MemoryModel model(h);
  Reader file(*path);
  const auto slice = [&](const std::vector<float>& all, int64_t row, int64_t rows, int64_t cols) {
    return model.matrix({all.begin() + row * cols, all.begin() + (row + rows) * cols}, rows, cols);
  };
  const auto part = [](const std::vector<float>& all, int64_t first, int64_t count) {
    return std::vector<float>(all.begin() + first, all.begin() + first + count);
  };
  Weights& w = model.weights();
  LayerWeights& layer = w.layers[0];
  w.embedding = model.matrix(file.take<float>(5 * 32), 5, 32);
  w.head = w.embedding;  // the file has none; only hidden states are compared
  layer.attn_norm = file.take<float>(32);
  const auto qkv = file.take<float>(48 * 32);
  layer.q = slice(qkv, 0, 32, 32);
  layer.k = slice(qkv, 32, 8, 32);
  layer.v = slice(qkv, 40, 8, 32);
  const auto bias = file.take<float>(48);
  layer.q_bias = part(bias, 0, 32);
  layer.k_bias = part(bias, 32, 8);
  layer.v_bias = part(bias, 40, 8);
  layer.o = model.matrix(file.take<float>(32 * 32), 32, 32);
  layer.ffn_norm = file.take<float>(32);
  const auto gate_up = file.take<float>(96 * 32);
  layer.gate = slice(gate_up, 0, 48, 32);
  layer.up = slice(gate_up, 48, 48, 32);
  layer.down = model.matrix(file.take<float>(32 * 48), 32, 48);
  w.final_norm = file.take<float>(32);

  std::vector<std::pair<std::vector<int32_t>, std::vector<float>>> cases;
  for (const size_t count : {3, 1, 1}) {
    auto x = file.take<int32_t>(count);
    auto y = file.take<float>(count * 32);
    cases.emplace_back(std::move(x), std::move(y));
  }
  for (const std::string& name : backend_names()) {
    CAPTURE(name);
    ByHand run(model, open_backend(name), 4);
    for (const auto& [x, y] : cases) {
      run.run(x);
      std::vector<float> hidden(y.size());
      run.backend->read_activation(run.forward->final_hidden(), static_cast<int64_t>(x.size()),
                                   hidden);
      CHECK(max_difference(hidden, y) < 1e-5);
    }
  }
}

TEST_CASE("every architecture gives the reference's logits in every backend, whole and in chunks") {
  std::mt19937 random(3);
  std::vector<int32_t> tokens(70);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % 96);
  for (const Architecture architecture :
       {Architecture::kLlama, Architecture::kQwen2, Architecture::kQwen3, Architecture::kGlm4,
        Architecture::kChatglm}) {
    Hyperparameters h = small_hyperparameters(architecture);
    if (architecture == Architecture::kGlm4 || architecture == Architecture::kChatglm) {
      h.rope_style = RopeStyle::kInterleaved;
      h.rope_dims = 8;
    }
    h.tied_embeddings = architecture == Architecture::kQwen2;
    const auto model = random_model(h, 17);
    ByHand whole(*model, open_backend("reference"), 80);
    const std::vector<float> expected = whole.run(tokens);
    for (const std::string& name : backend_names()) {
      CAPTURE(name);
      CAPTURE(architecture_name(architecture));
      for (const size_t chunk : {70, 33, 16, 1}) {
        ByHand run(*model, open_backend(name), 80);
        std::vector<float> logits;
        for (size_t at = 0; at < tokens.size(); at += chunk) {
          const auto part =
              run.run(std::span(tokens).subspan(at, std::min(chunk, tokens.size() - at)));
          logits.insert(logits.end(), part.begin(), part.end());
        }
        CHECK(max_difference(logits, expected) < 2e-4);
      }
    }
  }
}

TEST_CASE("a chunk without logits leaves the same KV memory as one with them") {
  const auto model = random_model(small_hyperparameters(), 5);
  std::vector<int32_t> tokens(20);
  std::iota(tokens.begin(), tokens.end(), 1);
  ByHand with(*model, open_backend("reference"), 32);
  with.run(tokens);
  const std::vector<int32_t> last = {50};
  const auto expected = with.run(last);

  ByHand without(*model, open_backend("reference"), 32);
  std::vector<int32_t> positions(20);
  std::iota(positions.begin(), positions.end(), 0);
  const SequenceSlice slice{0, 20, 0, without.pages};
  CHECK(without.forward->run(*without.backend, {tokens, positions, {&slice, 1}, {}}).empty());
  without.cached = 20;
  CHECK(without.run(last) == expected);
}
