// The mixes. Truths: which formats llama.cpp's quantiser gives the tensors of known models, taken
// from the tables it prints.
#include "tools/convert/file_type.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

using namespace updraft;

namespace {

const std::vector<uint64_t> kMatrix = {4096, 1024};

std::string in_layer(int layer, const char* name) {
  return "blk." + std::to_string(layer) + "." + name + ".weight";
}

}  // namespace

TEST_CASE("names of file types are found in any case, others are not") {
  CHECK(file_type_from_name("q4_k_m") == FileType::kQ4_K_M);
  CHECK(file_type_from_name("Q8_0") == FileType::kQ8_0);
  CHECK_FALSE(file_type_from_name("q4-0").has_value());
  CHECK_FALSE(file_type_from_name("").has_value());
  for (int i = 0; i <= static_cast<int>(FileType::kQ6_K); ++i) {
    const auto type = static_cast<FileType>(i);
    CHECK(file_type_from_name(file_type_name(type)) == type);
  }
  // general.file_type of llama.cpp's files.
  CHECK(file_type_gguf_number(FileType::kQ4_K_M) == 15);
  CHECK(file_type_gguf_number(FileType::kBF16) == 32);
}

TEST_CASE("norms, biases and tables are left as they are") {
  CHECK(is_quantisable("blk.0.attn_q.weight", kMatrix));
  CHECK(is_quantisable("token_embd.weight", kMatrix));
  CHECK_FALSE(is_quantisable("blk.0.attn_norm.weight", std::vector<uint64_t>{4096}));
  CHECK_FALSE(is_quantisable("blk.0.attn_q_norm.weight", kMatrix));
  CHECK_FALSE(is_quantisable("blk.0.attn_q.bias", std::vector<uint64_t>{4096}));
  CHECK_FALSE(is_quantisable("blk.0.ffn_gate_inp.weight", kMatrix));
  CHECK_FALSE(is_quantisable("rope_freqs.weight", std::vector<uint64_t>{32, 1, 1, 1}));
  CHECK(is_quantisable("odd.weight", std::vector<uint64_t>{1, 7}));  // one column, seven rows
}

TEST_CASE("Q4_K_M of a 32-layer llama: which v and down projections have six bits") {
  // Layers 0-3 and 28-31, and every third between from layer 6 on.
  const std::vector<int> more = {0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31};
  const MixContext context{32, false, false};
  for (int layer = 0; layer < 32; ++layer) {
    CAPTURE(layer);
    const bool has_more = std::find(more.begin(), more.end(), layer) != more.end();
    const DType wanted = has_more ? DType::kQ6_K : DType::kQ4_K;
    CHECK(tensor_type(FileType::kQ4_K_M, in_layer(layer, "attn_v"), 4096, context) == wanted);
    CHECK(tensor_type(FileType::kQ4_K_M, in_layer(layer, "ffn_down"), 14336, context) == wanted);
    CHECK(tensor_type(FileType::kQ4_K_M, in_layer(layer, "attn_k"), 4096, context) == DType::kQ4_K);
    CHECK(tensor_type(FileType::kQ5_K_M, in_layer(layer, "attn_v"), 4096, context) ==
          (has_more ? DType::kQ6_K : DType::kQ5_K));
    CHECK(tensor_type(FileType::kQ4_K_S, in_layer(layer, "attn_v"), 4096, context) ==
          (layer < 4 ? DType::kQ5_K : DType::kQ4_K));
    CHECK(tensor_type(FileType::kQ4_K_S, in_layer(layer, "ffn_down"), 14336, context) ==
          (layer < 4 ? DType::kQ5_K : DType::kQ4_K));
    CHECK(tensor_type(FileType::kQ6_K, in_layer(layer, "attn_v"), 4096, context) == DType::kQ6_K);
  }
}

TEST_CASE("the head has six bits, the embedding too when it is the head") {
  const MixContext own{32, false, false};
  const MixContext tied{32, true, false};
  CHECK(tensor_type(FileType::kQ4_0, "output.weight", 4096, own) == DType::kQ6_K);
  CHECK(tensor_type(FileType::kQ4_0, "token_embd.weight", 4096, own) == DType::kQ4_0);
  CHECK(tensor_type(FileType::kQ4_0, "token_embd.weight", 4096, tied) == DType::kQ6_K);
  CHECK(tensor_type(FileType::kQ8_0, "token_embd.weight", 4096, tied) == DType::kQ8_0);
  CHECK(tensor_type(FileType::kF16, "token_embd.weight", 4096, tied) == DType::kF16);
}

TEST_CASE("rows that a format's blocks do not divide get its neighbour") {
  const MixContext context{24, true, false};
  CHECK(tensor_type(FileType::kQ4_K_M, in_layer(10, "attn_q"), 896, context) == DType::kQ5_0);
  CHECK(tensor_type(FileType::kQ5_K_M, in_layer(10, "attn_q"), 896, context) == DType::kQ5_1);
  CHECK(tensor_type(FileType::kQ6_K, in_layer(10, "attn_q"), 896, context) == DType::kQ8_0);
  CHECK(tensor_type(FileType::kQ4_K_M, in_layer(0, "attn_v"), 896, context) == DType::kQ8_0);
  CHECK(tensor_type(FileType::kQ4_K_M, "token_embd.weight", 896, context) == DType::kQ8_0);
  CHECK(tensor_type(FileType::kQ4_0, "token_embd.weight", 896, context) == DType::kQ8_0);
  CHECK(tensor_type(FileType::kQ4_0, in_layer(0, "attn_q"), 40, context) == DType::kF16);
  CHECK(tensor_type(FileType::kQ4_K_M, in_layer(0, "attn_q"), 40, context) == DType::kF16);
}

TEST_CASE("v of a llama 70B has five bits where it would have four") {
  const MixContext context{80, false, true};
  CHECK(tensor_type(FileType::kQ4_K_M, in_layer(10, "attn_v"), 8192, context) == DType::kQ5_K);
  CHECK(tensor_type(FileType::kQ4_K_M, in_layer(0, "attn_v"), 8192, context) == DType::kQ6_K);
  CHECK(tensor_type(FileType::kQ4_K_S, in_layer(10, "attn_v"), 8192, context) == DType::kQ5_K);
}
