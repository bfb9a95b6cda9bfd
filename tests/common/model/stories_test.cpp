// A real model in both containers: the GGUF and the safetensors of stories260K hold the same
// weights, but for the order of rows that llama's conversion gives to query and key.
#include <doctest/doctest.h>

#include <cstring>

#include "common/model/model.h"
#include "kernels/quant/quant.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using updraft::testing::shared_data;

namespace {

bool same_bytes(const WeightView& a, const WeightView& b) {
  return a.type == b.type && a.rows == b.rows && a.cols == b.cols &&
         std::memcmp(a.data, b.data, static_cast<size_t>(a.rows * row_bytes(a.type, a.cols))) == 0;
}

// Row 2i + j of a head in the interleaved form is row i + j * head_dim / 2 of the head in halves.
bool same_but_interleaved(const WeightView& interleaved, const WeightView& halves,
                          int32_t head_dim) {
  if (interleaved.rows != halves.rows || interleaved.cols != halves.cols) return false;
  const auto bytes = row_bytes(interleaved.type, interleaved.cols);
  for (int64_t row = 0; row < interleaved.rows; ++row) {
    const int64_t head = row / head_dim;
    const int64_t within = row % head_dim;
    const int64_t other = head * head_dim + within / 2 + within % 2 * (head_dim / 2);
    if (std::memcmp(interleaved.data + row * bytes, halves.data + other * bytes,
                    static_cast<size_t>(bytes)) != 0) {
      return false;
    }
  }
  return true;
}

}  // namespace

TEST_CASE("stories260K has equal hyperparameters and weights in GGUF and safetensors") {
  const auto gguf_path = shared_data("weights/stories260K-f32.gguf");
  const auto folder = shared_data("weights/stories260K-hf");
  if (!gguf_path || !folder) return;
  const auto gguf = open_model(*gguf_path);
  REQUIRE_MESSAGE(gguf.ok(), gguf.message());
  const auto hf = open_model(*folder);
  REQUIRE_MESSAGE(hf.ok(), hf.message());

  const Hyperparameters& a = (*gguf)->hyperparameters();
  const Hyperparameters& b = (*hf)->hyperparameters();
  // As the model's own card says: 5 layers, dimension 64, 8 heads, 4 kv heads, hidden 172, 512
  // tokens, context 512.
  CHECK(a.layer_count == 5);
  CHECK(a.hidden_dim == 64);
  CHECK(a.ff_dim == 172);
  CHECK(a.head_count == 8);
  CHECK(a.kv_head_count == 4);
  CHECK(a.head_dim == 8);
  CHECK(a.vocab_count == 512);
  CHECK(a.context_tokens == 512);
  CHECK(a.norm_eps == 1e-5F);
  CHECK(a.tied_embeddings);
  CHECK(a.architecture == b.architecture);
  CHECK(a.layer_count == b.layer_count);
  CHECK(a.hidden_dim == b.hidden_dim);
  CHECK(a.ff_dim == b.ff_dim);
  CHECK(a.head_count == b.head_count);
  CHECK(a.kv_head_count == b.kv_head_count);
  CHECK(a.head_dim == b.head_dim);
  CHECK(a.vocab_count == b.vocab_count);
  CHECK(a.context_tokens == b.context_tokens);
  CHECK(a.norm_eps == b.norm_eps);
  CHECK(a.rope_dims == b.rope_dims);
  CHECK(a.rope_base == b.rope_base);
  CHECK(a.tied_embeddings == b.tied_embeddings);
  CHECK(a.rope_style == RopeStyle::kInterleaved);
  CHECK(b.rope_style == RopeStyle::kHalf);
  CHECK((*gguf)->parameter_count() == (*hf)->parameter_count());
  CHECK((*gguf)->parameter_count() == 260032);
  CHECK((*gguf)->quantization() == "F32");

  const Weights& v = (*gguf)->weights();
  const Weights& w = (*hf)->weights();
  CHECK(same_bytes(v.embedding, w.embedding));
  CHECK(same_bytes(v.head, w.head));
  CHECK(v.final_norm == w.final_norm);
  REQUIRE(v.layers.size() == w.layers.size());
  for (size_t i = 0; i < v.layers.size(); ++i) {
    const LayerWeights& x = v.layers[i];
    const LayerWeights& y = w.layers[i];
    CHECK(x.attn_norm == y.attn_norm);
    CHECK(x.ffn_norm == y.ffn_norm);
    CHECK(same_but_interleaved(x.q, y.q, a.head_dim));
    CHECK(same_but_interleaved(x.k, y.k, a.head_dim));
    CHECK_FALSE(same_bytes(x.q, y.q));
    CHECK(same_bytes(x.v, y.v));
    CHECK(same_bytes(x.o, y.o));
    CHECK(same_bytes(x.gate, y.gate));
    CHECK(same_bytes(x.up, y.up));
    CHECK(same_bytes(x.down, y.down));
  }
}
