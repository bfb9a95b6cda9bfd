// Random model files. Truths: the weights' bytes of the published files of the same shape and mix
// (rounded to MB, as llama.cpp's own quantiser makes them), and the reader, which checks every
// shape.
#include "tools/bench/random_model.h"

#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <iterator>

#include "common/model/gguf.h"
#include "common/text/tokenizer.h"
#include "kernels/quant/quant.h"
#include "tests/support/shared_data.h"
#include "tools/convert/gguf_layout.h"

using namespace updraft;
using updraft::testing::TempDir;

namespace {

const Hyperparameters& shape_named(const std::string& name) {
  for (const NamedShape& shape : named_shapes()) {
    if (name == shape.name) return shape.hyperparameters;
  }
  FAIL("no shape " << name);
  return named_shapes().front().hyperparameters;
}

RandomModelConfig small(Architecture architecture, FileType type) {
  RandomModelConfig config;
  Hyperparameters& h = config.hyperparameters;
  h.architecture = architecture;
  h.layer_count = 2;
  h.hidden_dim = 256;
  h.ff_dim = 512;
  h.head_count = 4;
  h.kv_head_count = 2;
  h.head_dim = h.rope_dims = 64;
  h.vocab_count = 1200;
  h.context_tokens = 512;
  h.norm_eps = 1e-5F;
  h.tied_embeddings = true;
  config.file_type = type;
  return config;
}

std::string bytes_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Bytes of all tensors of a file of this shape and mix.
double weight_megabytes(const Hyperparameters& h, FileType type) {
  LayoutParts parts;
  parts.head = !h.tied_embeddings;
  parts.qkv_bias = h.architecture == Architecture::kQwen2;
  const MixContext context{h.layer_count, h.tied_embeddings, false};
  double bytes = 0;
  for (const LayoutTensor& tensor : gguf_layout(h, parts)) {
    const DType format = is_quantisable(tensor.name, tensor.ne)
                             ? tensor_type(type, tensor.name, tensor.ne[0], context)
                             : DType::kF32;
    double rows = 1;
    for (size_t i = 1; i < tensor.ne.size(); ++i) rows *= static_cast<double>(tensor.ne[i]);
    bytes += rows * static_cast<double>(row_bytes(format, static_cast<int64_t>(tensor.ne[0])));
  }
  return bytes / 1e6;
}

}  // namespace

TEST_CASE("named shapes have the size of the published files in each mix") {
  struct Published {
    const char* shape;
    double q4_0, q4_k_m, q8_0;  // MB of weights
  };
  for (const Published& p :
       {Published{"qwen2.5-0.5b", 346, 392, 525}, Published{"qwen3-0.6b", 376, 391, 633},
        Published{"llama-3.2-1b", 763, 800, 1313}}) {
    CAPTURE(p.shape);
    const Hyperparameters& h = shape_named(p.shape);
    CHECK(std::fabs(weight_megabytes(h, FileType::kQ4_0) - p.q4_0) < 1.0);
    CHECK(std::fabs(weight_megabytes(h, FileType::kQ4_K_M) - p.q4_k_m) < 1.0);
    CHECK(std::fabs(weight_megabytes(h, FileType::kQ8_0) - p.q8_0) < 1.0);
  }
}

TEST_CASE("every architecture and mix opens as a model with the shape asked for") {
  const TempDir dir;
  for (const Architecture architecture :
       {Architecture::kLlama, Architecture::kQwen2, Architecture::kQwen3, Architecture::kGlm4,
        Architecture::kChatglm}) {
    for (const FileType type : {FileType::kF32, FileType::kBF16, FileType::kQ5_1, FileType::kQ4_K_M,
                                FileType::kQ5_K_M, FileType::kQ6_K}) {
      CAPTURE(architecture_name(architecture));
      CAPTURE(file_type_name(type));
      const RandomModelConfig config = small(architecture, type);
      const auto written = write_random_model(config, dir.file("m.gguf"), {});
      REQUIRE_MESSAGE(written.ok(), written.message());
      const auto model = open_model(dir.file("m.gguf"));
      REQUIRE_MESSAGE(model.ok(), model.message());
      const Hyperparameters& h = (*model)->hyperparameters();
      CHECK(h.architecture == architecture);
      CHECK(h.layer_count == 2);
      CHECK(h.head_dim == 64);
      CHECK(h.vocab_count == 1200);
      CHECK(h.tied_embeddings);
    }
  }
}

TEST_CASE("equal configurations give equal bytes on any number of threads, other seeds do not") {
  const TempDir dir;
  RandomModelConfig config = small(Architecture::kQwen3, FileType::kQ4_0);
  for (const int threads : {1, 3}) {
    config.thread_count = threads;
    REQUIRE(write_random_model(config, dir.file(std::to_string(threads)), {}).ok());
  }
  config.seed = 2;
  REQUIRE(write_random_model(config, dir.file("other"), {}).ok());
  CHECK(bytes_of(dir.file("1")) == bytes_of(dir.file("3")));
  CHECK(bytes_of(dir.file("1")) != bytes_of(dir.file("other")));
}

TEST_CASE("random blocks of every format have mean 0 and the deviation asked for") {
  for (int i = 0; i < kDTypeCount; ++i) {
    const auto type = static_cast<DType>(i);
    CAPTURE(dtype_info(type).name);
    std::vector<float> values(1 << 18);
    std::vector<std::byte> bytes(
        static_cast<size_t>(row_bytes(type, static_cast<int64_t>(values.size()))));
    fill_random_blocks(type, 0.05F, 7, bytes);
    dequantize_row(type, bytes.data(), values);
    double sum = 0, squares = 0;
    for (const float v : values) {
      sum += v;
      squares += static_cast<double>(v) * v;
    }
    const auto count = static_cast<double>(values.size());
    CHECK(std::fabs(sum / count) < 0.001);
    CHECK(std::fabs(std::sqrt(squares / count) / 0.05 - 1.0) < 0.04);
  }
}

TEST_CASE("the synthetic vocabulary is a tokenizer that gives any text back") {
  const TokenizerData data = synthetic_tokenizer(Architecture::kQwen2, 32000);
  CHECK(data.tokens.size() == 32000);
  const auto tokenizer = Tokenizer::create(data);
  REQUIRE_MESSAGE(tokenizer.ok(), tokenizer.message());
  const std::string text = "the quick brown fox, 12 Öl\n\xF0\x9F\x98\x80";
  const std::vector<int32_t> ids = (*tokenizer)->encode_all(text, SpecialText::kPlain, false);
  CHECK(ids.size() < text.size());  // words were merged
  CHECK((*tokenizer)->decode(ids, true) == text);
}

TEST_CASE("a shape that cannot be is refused with the value") {
  const TempDir dir;
  RandomModelConfig config = small(Architecture::kLlama, FileType::kQ4_0);
  config.hyperparameters.kv_head_count = 3;
  const auto refused = write_random_model(config, dir.file("m.gguf"), {});
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.message().find("3 does not divide") != std::string::npos);
  config = small(Architecture::kLlama, FileType::kQ4_0);
  config.hyperparameters.vocab_count = 100;
  CHECK_FALSE(write_random_model(config, dir.file("m.gguf"), {}).ok());
  CHECK(bytes_of(dir.file("m.gguf")).empty());
}
