// Rotation by three positions (M-RoPE), in every backend against the published formula.
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <random>

#include "kernels/cuda/cuda_backend.h"
#include "tests/common/engine/backends.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

constexpr int32_t kDim = 64;  // of a head; one KV head
constexpr int32_t kHeads = 2;
constexpr int32_t kHidden = 32;
constexpr int32_t kRows = 5;
constexpr int64_t kCols = (kHeads + 2) * kDim;

struct Positions {
  std::vector<int32_t> time, planes;
};

// apply_multimodal_rotary_pos_emb of transformers' qwen2_vl (half) and glm4v (interleaved), for one
// row: cosines and sines of all three axes are cut into sections, twice; piece n is axis n % 3's.
std::vector<double> published(const std::vector<double>& x, const double (&position)[3],
                              const std::vector<float>& inverse_frequency,
                              const std::array<int32_t, 3>& sections, bool interleaved) {
  const auto pairs = inverse_frequency.size();
  std::vector<double> cosine;
  std::vector<double> sine;
  size_t dim = 0;
  for (size_t piece = 0; piece < 6; ++piece) {
    for (int32_t i = 0; i < sections[piece % 3]; ++i, ++dim) {
      const double angle =
          position[piece % 3] * static_cast<double>(inverse_frequency[dim % pairs]);
      cosine.push_back(std::cos(angle));
      sine.push_back(std::sin(angle));
    }
  }
  if (interleaved) {  // the first half of them, each twice
    for (std::vector<double>* values : {&cosine, &sine}) {
      std::vector<double> twice;
      for (size_t i = 0; i < pairs; ++i) twice.insert(twice.end(), 2, (*values)[i]);
      *values = twice;
    }
  }
  std::vector<double> out = x;
  for (size_t d = 0; d < 2 * pairs; ++d) {
    double turned = 0;
    if (interleaved) {
      turned = d % 2 == 0 ? -x[d + 1] : x[d - 1];
    } else {
      turned = d < pairs ? -x[d + pairs] : x[d - pairs];
    }
    out[d] = x[d] * cosine[d] + turned * sine[d];
  }
  return out;
}

// The q and k heads of a step's rows as prepare_qkv() leaves them, q in place.
class Bench {
 public:
  Bench(std::unique_ptr<Backend> device, const Rope& rope, const std::vector<float>& frequencies)
      : backend(std::move(device)), rope_(rope) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    std::vector<float> table(kRows * kHidden);
    std::vector<float> weight(static_cast<size_t>(kCols * kHidden));
    for (float& v : table) v = normal(random);
    for (float& v : weight) v = normal(random);
    const auto view = [](const std::vector<float>& values, int64_t rows) {
      return WeightView{reinterpret_cast<const std::byte*>(values.data()), DType::kF32, rows,
                        kHidden};
    };
    const WeightView views[] = {view(table, kRows), view(weight, kCols)};
    table_ = backend->add_matrix({&views[0], 1}).value();
    weight_ = backend->add_matrix({&views[1], 1}).value();
    norm_ = backend->add_vector(std::vector<float>(kHidden, 1.0F)).value();
    rope_.inverse_frequency = backend->add_vector(frequencies).value();
    hidden_ = backend->add_residual(kRows, kHidden).value();
    normed_ = backend->add_activation(kRows, kHidden).value();
    qkv_ = backend->add_activation(kRows, kCols).value();
    REQUIRE(backend->reserve_logits(kRows, kRows).ok());
    KvShape shape;
    shape.layer_count = 1;
    shape.kv_head_count = 1;
    shape.head_dim = kDim;
    shape.head_count = kHeads;
    shape.page_tokens = 16;
    shape.page_count = 1;
    shape.type = DType::kBF16;
    const auto pool = backend->make_kv_pool(shape);
    REQUIRE_MESSAGE(pool.ok(), pool.message());
  }

  // [rows][kHeads * kDim]
  std::vector<float> queries(const Positions& positions) {
    const std::vector<int32_t> ids = {0, 1, 2, 3, 4};
    const int32_t page = 0;
    const SequenceSlice slice{0, kRows, 0, {&page, 1}};
    Batch batch{ids, positions.time, {&slice, 1}, {}};
    batch.plane_positions = positions.planes;
    backend->begin(batch);
    backend->embed(table_, hidden_);
    backend->residual_norm({hidden_, kNoAct, kNoVec, norm_, 1e-5F, normed_});
    backend->matmul(weight_, kNoVec, normed_, qkv_);
    backend->prepare_qkv({qkv_, 0, kHeads, kNoVec, kNoVec, 1e-5F, rope_});
    backend->end();
    std::vector<float> all(kRows * kCols);
    backend->read_activation(qkv_, kRows, all);
    std::vector<float> out;
    for (int64_t r = 0; r < kRows; ++r) {
      out.insert(out.end(), all.begin() + r * kCols, all.begin() + r * kCols + kHeads * kDim);
    }
    return out;
  }

  std::unique_ptr<Backend> backend;

 private:
  Rope rope_;
  Mat table_{}, weight_{};
  Vec norm_ = kNoVec;
  Act hidden_ = kNoAct, normed_ = kNoAct, qkv_ = kNoAct;
};

std::unique_ptr<Backend> open_any(const std::string& name) {
  if (name != "cuda") return open_backend(name);
  CudaConfig config;
  config.pack_threads = 1;
  auto opened = cuda::open_cuda_backend(config);
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  return std::move(*opened);
}

}  // namespace

TEST_CASE(
    "rows with a time, a height and a width turn as transformers has them, in every backend") {
  std::vector<std::string> names = backend_names();
  names.emplace_back("cuda");
  // Two rows of text around three of an image, whose axes differ.
  const Positions image = {{3, 4, 4, 4, 7}, {3, 4, 5, 6, 7, 3, 4, 4, 5, 7}};
  for (const bool interleaved : {false, true}) {
    Rope rope;
    rope.style = interleaved ? RopeStyle::kInterleaved : RopeStyle::kHalf;
    rope.rope_dims = interleaved ? 32 : 64;  // GLM turns half of a head
    rope.sections =
        interleaved ? std::array<int32_t, 3>{4, 6, 6} : std::array<int32_t, 3>{8, 12, 12};
    std::vector<float> frequencies;
    for (int32_t i = 0; i < rope.rope_dims / 2; ++i)
      frequencies.push_back(static_cast<float>(std::pow(0.8, i)));
    for (const std::string& name : names) {
      CAPTURE(name);
      CAPTURE(interleaved);
      Bench bench(open_any(name), rope, frequencies);
      const std::vector<float> still = bench.queries({std::vector<int32_t>(kRows, 0), {}});
      const std::vector<float> turned = bench.queries(image);
      double worst = 0;
      double largest = 0;
      for (size_t row = 0; row < kRows; ++row) {
        const double position[3] = {static_cast<double>(image.time[row]),
                                    static_cast<double>(image.planes[row]),
                                    static_cast<double>(image.planes[kRows + row])};
        for (size_t head = 0; head < kHeads; ++head) {
          const float* from = still.data() + (row * kHeads + head) * kDim;
          const auto expected =
              published({from, from + kDim}, position, frequencies, rope.sections, interleaved);
          for (size_t d = 0; d < kDim; ++d) {
            const double got = static_cast<double>(turned[(row * kHeads + head) * kDim + d]);
            worst = std::max(worst, std::abs(got - expected[d]));
            largest = std::max(largest, std::abs(expected[d]));
          }
        }
      }
      CHECK(worst / largest < (name == "cuda" ? 8e-3 : 1e-5));
      // Text: three equal positions are one, bit for bit.
      const Positions equal = {image.time, [&] {
                                 std::vector<int32_t> twice = image.time;
                                 twice.insert(twice.end(), image.time.begin(), image.time.end());
                                 return twice;
                               }()};
      const std::vector<float> text = bench.queries({image.time, {}});
      CHECK(bench.queries(equal) == text);
      CHECK(text != turned);
    }
  }
}
