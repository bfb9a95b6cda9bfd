// Rotation, KV append and attention over pages, against double precision that knows no pages,
// blocks or chunks.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <numeric>

#include "tests/kernels/cpu/harness.h"
#include "tests/support/emulated.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

struct Shape {
  int head_count = 4;
  int kv_head_count = 2;
  int head_dim = 64;
  int page_tokens = 16;
  DType type = DType::kF32;
  RopeStyle style = RopeStyle::kHalf;
  int rope_dims = 64;
  bool qk_norm = false;
  float magnitude = 1.0F;
  bool still = false;  // all angles are zero: q and k reach the pages as they are

  int qkv_cols() const { return (head_count + 2 * kv_head_count) * head_dim; }
  int out_cols() const { return head_count * head_dim; }
};

// Weights of a made-up layer: what the two sides share.
struct Parameters {
  std::vector<float> frequencies;
  std::vector<float> q_norm;
  std::vector<float> k_norm;
  explicit Parameters(const Shape& s)
      : q_norm(random_values(static_cast<size_t>(s.head_dim), 71)),
        k_norm(random_values(static_cast<size_t>(s.head_dim), 72)) {
    for (int i = 0; i < s.rope_dims / 2; ++i) {
      frequencies.push_back(
          s.still ? 0.0F : static_cast<float>(std::pow(10000.0, -2.0 * i / s.rope_dims)));
    }
  }
};

// One sequence: its raw q, k, v rows, and how far it has come.
struct Sequence {
  std::vector<float> qkv;  // [length, qkv_cols]
  int length = 0;
  int cached = 0;
  int position_offset = 0;  // rotary position of index 0
  std::vector<int32_t> pages;
};

double rounded_to(DType type, double x) {
  if (type == DType::kF16) return half_to_float(float_to_half(static_cast<float>(x)));
  if (type == DType::kBF16) return bf16_to_float(float_to_bf16(static_cast<float>(x)));
  return x;
}

// The head after norm and rotation, in double.
std::vector<double> prepared(const Shape& s, const Parameters& p, const float* raw,
                             const std::vector<float>& norm, int position) {
  std::vector<double> x(raw, raw + s.head_dim);
  if (s.qk_norm) {
    double sum = 0;
    for (const double v : x) sum += v * v;
    const double factor = 1.0 / std::sqrt(sum / s.head_dim + 1e-6);
    for (size_t i = 0; i < x.size(); ++i) x[i] *= factor * static_cast<double>(norm[i]);
  }
  for (int i = 0; i < s.rope_dims / 2; ++i) {
    const bool half = s.style == RopeStyle::kHalf;
    double& a = x[static_cast<size_t>(half ? i : 2 * i)];
    double& b = x[static_cast<size_t>(half ? i + s.rope_dims / 2 : 2 * i + 1)];
    const double angle = position * static_cast<double>(p.frequencies[static_cast<size_t>(i)]);
    const double c = std::cos(angle) * static_cast<double>(s.magnitude);
    const double d = std::sin(angle) * static_cast<double>(s.magnitude);
    const double a0 = a;
    a = a0 * c - b * d;
    b = a0 * d + b * c;
  }
  return x;
}

// The keys of a sequence's first `count` rows as the pages hold them: [row * kv_head_count + head].
std::vector<std::vector<double>> keys_of(const Shape& s, const Parameters& p, const Sequence& q,
                                         int count) {
  std::vector<std::vector<double>> keys;
  for (int t = 0; t < count; ++t) {
    for (int head = 0; head < s.kv_head_count; ++head) {
      const float* raw = q.qkv.data() + t * s.qkv_cols() + (s.head_count + head) * s.head_dim;
      keys.push_back(prepared(s, p, raw, p.k_norm, t + q.position_offset));
      for (double& v : keys.back()) v = rounded_to(s.type, v);
    }
  }
  return keys;
}

// Attention output of row `index` of a sequence, all heads.
std::vector<double> attended(const Shape& s, const Parameters& p, const Sequence& q,
                             const std::vector<std::vector<double>>& keys, int index) {
  const int cols = s.qkv_cols();
  std::vector<double> out;
  for (int head = 0; head < s.head_count; ++head) {
    const int kv_head = head / (s.head_count / s.kv_head_count);
    const std::vector<double> query = prepared(
        s, p, q.qkv.data() + index * cols + head * s.head_dim, p.q_norm, index + q.position_offset);
    std::vector<double> scores;
    for (int t = 0; t <= index; ++t) {
      const std::vector<double>& key = keys[static_cast<size_t>(t * s.kv_head_count + kv_head)];
      double score = 0;
      for (size_t d = 0; d < key.size(); ++d) score += query[d] * key[d];
      scores.push_back(score / std::sqrt(s.head_dim));
    }
    const double top = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (double& v : scores) sum += v = std::exp(v - top);
    for (int d = 0; d < s.head_dim; ++d) {
      double value = 0;
      for (int t = 0; t <= index; ++t) {
        const float* v =
            q.qkv.data() + t * cols + (s.head_count + s.kv_head_count + kv_head) * s.head_dim;
        value += scores[static_cast<size_t>(t)] / sum * rounded_to(s.type, v[d]);
      }
      out.push_back(value);
    }
  }
  return out;
}

// A backend with one layer's worth of buffers (layer 1 of 3, so that layers cannot be mixed up
// unnoticed).
class Layer {
 public:
  Layer(CpuIsa isa, const Shape& shape, int threads, int page_count)
      : shape_(shape), parameters_(shape), backend_(open_backend(isa, threads)) {
    qkv_ = take(backend_->add_activation(kRowsMax, shape.qkv_cols()));
    out_ = take(backend_->add_activation(kRowsMax, shape.out_cols()));
    frequencies_ = take(backend_->add_vector(parameters_.frequencies));
    q_norm_ = take(backend_->add_vector(parameters_.q_norm));
    k_norm_ = take(backend_->add_vector(parameters_.k_norm));
    take(backend_->make_kv_pool(
        {3, shape.kv_head_count, shape.head_dim, shape.page_tokens, page_count, shape.type}));
    free_pages_.resize(static_cast<size_t>(page_count));
    std::iota(free_pages_.begin(), free_pages_.end(), 0);
    std::shuffle(free_pages_.begin(), free_pages_.end(), std::mt19937(99));
  }

  // The next `counts[i]` rows of each sequence in one step; returns the attention's output rows.
  std::vector<float> step(std::vector<Sequence*> sequences, const std::vector<int>& counts) {
    std::vector<int32_t> ids, positions;
    std::vector<SequenceSlice> slices;
    std::vector<float> rows;
    for (size_t i = 0; i < sequences.size(); ++i) {
      Sequence& q = *sequences[i];
      while (static_cast<int>(q.pages.size()) * shape_.page_tokens < q.cached + counts[i]) {
        q.pages.push_back(take_page());
      }
      slices.push_back({static_cast<int32_t>(ids.size()), counts[i], q.cached, q.pages});
      for (int n = 0; n < counts[i]; ++n) {
        positions.push_back(q.cached + n + q.position_offset);
        ids.push_back(static_cast<int32_t>(ids.size()));
      }
      rows.insert(rows.end(), q.qkv.begin() + q.cached * shape_.qkv_cols(),
                  q.qkv.begin() + (q.cached + counts[i]) * shape_.qkv_cols());
    }
    const WeightView view{reinterpret_cast<const std::byte*>(rows.data()), DType::kF32,
                          static_cast<int64_t>(ids.size()), shape_.qkv_cols()};
    const Mat table = take(backend_->add_matrix({&view, 1}));
    backend_->begin({ids, positions, slices, {}});
    backend_->embed(table, qkv_);
    QkvPrepare prepare;
    prepare.qkv = qkv_;
    prepare.layer = 1;
    prepare.head_count = shape_.head_count;
    prepare.eps = 1e-6F;
    prepare.rope = {shape_.style, shape_.rope_dims, frequencies_, shape_.magnitude};
    if (shape_.qk_norm) {
      prepare.q_norm = q_norm_;
      prepare.k_norm = k_norm_;
    }
    backend_->prepare_qkv(prepare);
    Attention attention;
    attention.qkv = qkv_;
    attention.layer = 1;
    attention.head_count = shape_.head_count;
    attention.scale = static_cast<float>(1.0 / std::sqrt(shape_.head_dim));
    attention.out = out_;
    backend_->attention(attention);
    for (size_t i = 0; i < sequences.size(); ++i) sequences[i]->cached += counts[i];
    return read(*backend_, out_, static_cast<int64_t>(ids.size()), shape_.out_cols());
  }

  Sequence sequence(int length, uint32_t seed, int position_offset = 0) const {
    Sequence q;
    q.qkv = random_values(static_cast<size_t>(length * shape_.qkv_cols()), seed);
    q.length = length;
    q.position_offset = position_offset;
    return q;
  }
  int32_t take_page() {
    REQUIRE_FALSE(free_pages_.empty());
    const int32_t page = free_pages_.back();
    free_pages_.pop_back();
    return page;
  }
  const Parameters& parameters() const { return parameters_; }
  Backend& backend() { return *backend_; }

 private:
  static constexpr int64_t kRowsMax = 512;
  Shape shape_;
  Parameters parameters_;
  std::unique_ptr<Backend> backend_;
  Act qkv_, out_;
  Vec frequencies_, q_norm_, k_norm_;
  std::vector<int32_t> free_pages_;
};

// Holds the rows of a step against the reference.
double step_error(const Shape& s, const Layer& layer, const std::vector<Sequence*>& sequences,
                  const std::vector<int>& counts, const std::vector<float>& got) {
  std::vector<double> expected;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const Sequence& q = *sequences[i];
    const std::vector<std::vector<double>> keys = keys_of(s, layer.parameters(), q, q.cached);
    for (int n = 0; n < counts[i]; ++n) {
      const std::vector<double> row =
          attended(s, layer.parameters(), q, keys, q.cached - counts[i] + n);
      expected.insert(expected.end(), row.begin(), row.end());
    }
  }
  return relative_error(got, expected);
}

}  // namespace

TEST_CASE("a ragged batch of chunks and decodes over scattered pages equals double precision") {
  const Shape shapes[] = {
      {.head_count = 4, .kv_head_count = 2, .head_dim = 64, .page_tokens = 16},
      {.head_count = 14, .kv_head_count = 2, .head_dim = 64, .page_tokens = 32},  // qwen2.5-0.5b
      {.head_count = 4,
       .kv_head_count = 2,
       .head_dim = 128,
       .page_tokens = 64,
       .rope_dims = 128,
       .qk_norm = true},
      {.head_count = 8,
       .kv_head_count = 1,
       .head_dim = 128,
       .page_tokens = 16,
       .style = RopeStyle::kInterleaved,
       .rope_dims = 64},  // glm4: half of the head rotates
      {.head_count = 8,
       .kv_head_count = 2,
       .head_dim = 4,
       .page_tokens = 16,
       .style = RopeStyle::kInterleaved,
       .rope_dims = 2},
      {.head_count = 8, .kv_head_count = 4, .head_dim = 8, .page_tokens = 256, .rope_dims = 8},
      {.head_count = 3,
       .kv_head_count = 3,
       .head_dim = 80,
       .page_tokens = 20,
       .rope_dims = 20,
       .magnitude = 1.3F},
  };
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(std::string(isa_name(isa)));
    for (const Shape& shape : shapes) {
      CAPTURE(shape.head_dim);
      CAPTURE(shape.page_tokens);
      Layer layer(isa, shape, 3, 64);
      Sequence a = layer.sequence(150, 1);
      Sequence b = layer.sequence(180, 2, 1000);
      Sequence c = layer.sequence(40, 3);
      CHECK(step_error(shape, layer, {&a}, {50}, layer.step({&a}, {50})) < 2e-6);
      CHECK(step_error(shape, layer, {&b}, {163}, layer.step({&b}, {163})) < 2e-6);
      const std::vector<float> mixed = layer.step({&a, &b, &c}, {99, 1, 7});
      CHECK(step_error(shape, layer, {&a, &b, &c}, {99, 1, 7}, mixed) < 2e-6);
      const std::vector<float> decodes = layer.step({&c, &b, &a}, {1, 1, 1});
      CHECK(step_error(shape, layer, {&c, &b, &a}, {1, 1, 1}, decodes) < 2e-6);
    }
  }
}

namespace {

// Groups of 1, 2, 4, 7 and 8 queries, heads and pages of every kind of size.
const Shape kOddShapes[] = {
    {.head_count = 3, .kv_head_count = 3, .head_dim = 80, .page_tokens = 20, .rope_dims = 20},
    {.head_count = 4, .kv_head_count = 2, .head_dim = 128, .page_tokens = 64, .rope_dims = 128},
    {.head_count = 8, .kv_head_count = 2, .head_dim = 64, .page_tokens = 16},
    {.head_count = 14, .kv_head_count = 2, .head_dim = 64, .page_tokens = 32},
    {.head_count = 8, .kv_head_count = 1, .head_dim = 32, .page_tokens = 256, .rope_dims = 32},
    {.head_count = 8, .kv_head_count = 4, .head_dim = 8, .page_tokens = 17, .rope_dims = 8},
    {.head_count = 2, .kv_head_count = 1, .head_dim = 6, .page_tokens = 100, .rope_dims = 2},
};

// The next rows of three sequences in steps that cut chunks, pages and groups of keys; the largest
// error of any step.
double worst_error(CpuIsa isa, const Shape& shape,
                   const std::function<void(Sequence&)>& change = {}) {
  Layer layer(isa, shape, 3, 64);
  Sequence a = layer.sequence(181, 21);
  Sequence b = layer.sequence(181, 22);
  Sequence c = layer.sequence(40, 23);
  for (Sequence* sequence : {&a, &b, &c}) {
    if (change) change(*sequence);
  }
  double worst = 0.0;
  const auto step = [&](const std::vector<Sequence*>& sequences, const std::vector<int>& counts) {
    const std::vector<float> got = layer.step(sequences, counts);
    worst = std::max(worst, step_error(shape, layer, sequences, counts, got));
  };
  step({&a}, {1});
  step({&a}, {50});
  step({&b}, {163});
  step({&a, &b, &c}, {99, 1, 7});
  step({&c, &b, &a}, {1, 2, 1});
  return worst;
}

// Fills the heads of a sequence with vectors that int8 pages hold without error: Hadamard's matrix
// times integers whose largest is 127, times a power of two that differs from token to token.
void make_exact(const Shape& s, Sequence& sequence) {
  std::mt19937 random(77);
  std::uniform_int_distribution<int> integer(-127, 127);
  const int block = s.head_dim & -s.head_dim;
  const auto block_root = static_cast<double>(block);
  // Queries small enough that scores differ by a few units.
  const double q_scale = std::exp2(-std::ceil(std::log2(73.0 * 73.0 / block_root / 3.0)));
  const int heads = s.head_count + 2 * s.kv_head_count;
  for (int row = 0; row < sequence.length; ++row) {
    for (int h = 0; h < heads; ++h) {
      std::vector<int> y(static_cast<size_t>(s.head_dim));
      for (int& v : y) v = integer(random);
      y[static_cast<size_t>((row + h) % s.head_dim)] = row % 2 != 0 ? 127 : -127;
      const double scale = h < s.head_count ? q_scale : std::exp2(-((row + h) % 3));
      float* to = sequence.qkv.data() + row * s.qkv_cols() + h * s.head_dim;
      for (int i = 0; i < s.head_dim; ++i) {
        int sum = 0;
        for (int j = 0; j < block; ++j) {
          const bool minus = std::popcount(static_cast<unsigned>(i % block & j)) % 2 != 0;
          const int value = y[static_cast<size_t>(i - i % block + j)];
          sum += minus ? -value : value;
        }
        to[i] = static_cast<float>(sum / block_root * scale);
      }
    }
  }
}

}  // namespace

TEST_CASE("int8 pages add no error to heads that their bytes hold exactly") {
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(std::string(isa_name(isa)));
    for (Shape shape : kOddShapes) {
      CAPTURE(shape.head_dim);
      CAPTURE(shape.page_tokens);
      shape.type = DType::kQ8_0;
      shape.still = true;
      // What remains is the probabilities' 15 bits.
      CHECK(worst_error(isa, shape, [&](Sequence& s) { make_exact(shape, s); }) < 3e-4);
    }
  }
}

TEST_CASE("a channel of k far above the others costs int8 pages little") {
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(std::string(isa_name(isa)));
    const Shape shape{.head_count = 4, .kv_head_count = 2, .type = DType::kQ8_0, .still = true};
    const double error = worst_error(isa, shape, [&](Sequence& sequence) {
      for (int row = 0; row < sequence.length; ++row) {
        for (int h = 0; h < 2; ++h)
          sequence.qkv[static_cast<size_t>(row * shape.qkv_cols() + (4 + h) * 64 + 11)] += 60.0F;
      }
    });
    // Without the rotation, k's step would be 60 / 127 and the error above 0.1.
    CHECK(error < 0.04);
  }
}

TEST_CASE("pages of every type stay within their precision on odd shapes") {
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(std::string(isa_name(isa)));
    for (const DType type : {DType::kF16, DType::kBF16, DType::kQ8_0}) {
      CAPTURE(std::string(dtype_info(type).name));
      for (Shape shape : kOddShapes) {
        CAPTURE(shape.head_dim);
        CAPTURE(shape.page_tokens);
        shape.type = type;
        // Where bf16 is multiplied in pairs, queries and probabilities have its 8 bits too.
        const double bound = type == DType::kQ8_0 ? 0.03 : type == DType::kF16 ? 5e-5 : 5e-3;
        CHECK(worst_error(isa, shape) < bound);
      }
    }
  }
}

TEST_CASE(
    "pages of half precision hold rounded keys and values, int8 pages stay within their step") {
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(std::string(isa_name(isa)));
    for (const DType type : {DType::kF16, DType::kBF16, DType::kQ8_0}) {
      CAPTURE(std::string(dtype_info(type).name));
      const Shape shape{
          .head_count = 6, .kv_head_count = 2, .head_dim = 64, .page_tokens = 16, .type = type};
      Layer layer(isa, shape, 2, 32);
      Sequence a = layer.sequence(140, 4);
      Sequence b = layer.sequence(33, 5);
      layer.step({&a}, {100});
      const std::vector<float> got = layer.step({&a, &b}, {40, 33});
      // A key rounded the other way at a tie moves a score by one unit of the format; int8 is one
      // part in 254 of the peak.
      const double bound = type == DType::kQ8_0 ? 0.02 : type == DType::kF16 ? 5e-5 : 5e-3;
      CHECK(step_error(shape, layer, {&a, &b}, {40, 33}, got) < bound);
    }
  }
}

TEST_CASE("prefill at once, in chunks and token by token gives the same bits") {
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(std::string(isa_name(isa)));
    for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0}) {
      CAPTURE(std::string(dtype_info(type).name));
      const Shape shape{.head_count = kEmulated ? 7 : 14,
                        .kv_head_count = kEmulated ? 1 : 2,
                        .head_dim = 64,
                        .page_tokens = 16,
                        .type = type};
      Layer layer(isa, shape, 2, 128);
      const Sequence fresh = layer.sequence(310, 6);
      Sequence whole = fresh;
      Sequence chunked = fresh;
      Sequence single = fresh;
      Sequence other = layer.sequence(310, 7);
      const std::vector<float> expected = layer.step({&whole}, {310});
      std::vector<float> got;
      for (const int count : {1, 130, 2, 47, 130}) {
        const std::vector<float> part = layer.step({&other, &chunked}, {3, count});
        got.insert(got.end(), part.begin() + 3 * shape.out_cols(), part.end());
      }
      CHECK(std::memcmp(got.data(), expected.data(), expected.size() * sizeof(float)) == 0);
      got.clear();
      for (int i = 0; i < 310; ++i) {
        const std::vector<float> part = layer.step({&single}, {1});
        got.insert(got.end(), part.begin(), part.end());
      }
      CHECK(std::memcmp(got.data(), expected.data(), expected.size() * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("a long sequence shared by several threads has the bits of one thread") {
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(std::string(isa_name(isa)));
    for (const DType type : {DType::kF32, DType::kBF16, DType::kQ8_0}) {
      CAPTURE(std::string(dtype_info(type).name));
      const Shape shape{
          .head_count = 6, .kv_head_count = 1, .head_dim = 64, .page_tokens = 32, .type = type};
      const double bound = type == DType::kF32 ? 2e-6 : type == DType::kBF16 ? 5e-3 : 0.03;
      Layer one(isa, shape, 1, 60);
      Layer three(isa, shape, 3, 60);
      Sequence a = one.sequence(1545, 12);
      Sequence b = a;
      for (int i = 0; i < (kEmulated ? 1 : 3); ++i) {
        one.step({&a}, {510});
        three.step({&b}, {510});
      }
      // Rows on both sides of position 1536, where a segment of keys begins: alone on one thread,
      // together on three.
      std::vector<float> alone;
      for (int i = 0; i < 14; ++i) {
        const std::vector<float> row = one.step({&a}, {1});
        alone.insert(alone.end(), row.begin(), row.end());
      }
      const std::vector<float> together = three.step({&b}, {14});
      CHECK(std::memcmp(alone.data(), together.data(), alone.size() * sizeof(float)) == 0);
      CHECK(step_error(shape, three, {&b}, {14}, together) < bound);
      const std::vector<float> decode = three.step({&b}, {1});
      CHECK(step_error(shape, three, {&b}, {1}, decode) < bound);
    }
  }
}

TEST_CASE("a copied page serves the other sequence as its own") {
  for (const CpuIsa isa : available_isas()) {
    const Shape shape{.type = DType::kF16};
    Layer layer(isa, shape, 1, 8);
    Sequence a = layer.sequence(20, 8);
    layer.step({&a}, {16});
    Sequence b = a;
    b.pages = {layer.take_page()};
    layer.backend().copy_page(a.pages[0], b.pages[0]);
    Sequence alone = a;
    const std::vector<float> expected = layer.step({&alone}, {4});
    // The original is written over; b must not notice.
    Sequence vandal = layer.sequence(16, 9);
    vandal.pages = {a.pages[0]};
    layer.step({&vandal}, {16});
    const std::vector<float> got = layer.step({&b}, {4});
    CHECK(std::memcmp(got.data(), expected.data(), expected.size() * sizeof(float)) == 0);
  }
}

TEST_CASE("what an earlier sequence left in a page, even if no number, changes nothing") {
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(std::string(isa_name(isa)));
    for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0}) {
      CAPTURE(std::string(dtype_info(type).name));
      const Shape shape{.type = type};
      Layer layer(isa, shape, 1, 8);
      Sequence vandal = layer.sequence(48, 9);
      for (float& v : vandal.qkv) v = NAN;
      layer.step({&vandal}, {48});
      Sequence a = layer.sequence(35, 8);
      a.pages = vandal.pages;
      const double bound = type == DType::kQ8_0 ? 0.03 : 5e-3;
      for (const int count : {33, 1, 1}) {  // an odd number of keys, an even one
        const std::vector<float> got = layer.step({&a}, {count});
        CHECK(step_error(shape, layer, {&a}, {count}, got) < bound);
      }
    }
  }
}

TEST_CASE("scores far apart and a first key that dominates lose nothing") {
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(std::string(isa_name(isa)));
    const Shape shape{.head_count = 2, .kv_head_count = 1, .head_dim = 64, .page_tokens = 16};
    Layer layer(isa, shape, 2, 40);
    Sequence a = layer.sequence(300, 10);
    for (float& v : a.qkv) v *= 6.0F;  // scores of several hundred either way
    const std::vector<float> got = layer.step({&a}, {300});
    CHECK(step_error(shape, layer, {&a}, {300}, got) <
          5e-5);  // a score of 300 has an f32 step of 3e-5
  }
}

TEST_CASE("a page's bytes are what the pool takes") {
  const std::unique_ptr<Backend> backend = open_backend(CpuIsa::kGeneric);
  const KvShape shape{24, 2, 64, 16, 100, DType::kF16};
  CHECK(backend->kv_page_bytes(shape) == 24 * 2 * 2 * 16 * 64 * 2);
  KvShape int8 = shape;
  int8.type = DType::kQ8_0;
  CHECK(backend->kv_page_bytes(int8) == 24 * 2 * 2 * 16 * (64 + 4));
  const uint64_t before = backend->memory_used_bytes();
  take(backend->make_kv_pool(shape));
  const uint64_t taken = backend->memory_used_bytes() - before;
  CHECK(taken >= 100 * backend->kv_page_bytes(shape));
  CHECK(taken < 100 * backend->kv_page_bytes(shape) + (2 << 20));  // and attention's scratch
}
