// The one entry: which way a product takes, and what the passes around a library's product make of
// it. The library is played by plain loops over what it is given.
#include "kernels/cuda/gemm.h"

#include <memory>

#include "kernels/cuda/tile_gemm.h"
#include "tests/kernels/cuda/gemm_support.h"
#include "tests/kernels/cuda/plain_cublas.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;

namespace {

struct Device {
  std::vector<PlainCublas::Call> calls;
  std::unique_ptr<GemmDevice> gemm;
  explicit Device(bool library, int32_t capability = 90) {
    auto opened = GemmDevice::open({4, capability},
                                   library ? std::make_unique<PlainCublas>(&calls) : nullptr);
    REQUIRE(opened.ok());
    gemm = std::move(*opened);
  }
};

struct Scratch {
  Buffer<std::byte> memory;
  Scratch(const GemmDevice& device, const PackedLayout& layout, int32_t tokens)
      : memory("scratch", gemm_scratch_bytes(device, layout, tokens)) {
    std::fill_n(memory.data(), kSkinnyCounterBytes, std::byte{0});
  }
  GemmScratch get() const { return {memory.data(), memory.size()}; }
};

Gemm gemm_of(const Device& device, const Problem& problem, int32_t tokens, const Scratch& scratch) {
  Gemm op;
  op.device = device.gemm.get();
  op.layout = problem.layout;
  op.weight = problem.packed->data();
  op.x = problem.x->data();
  op.x_stride = problem.cols;
  op.tokens = tokens;
  op.y_stride = problem.rows;
  op.scratch = scratch.get();
  return op;
}

std::vector<float> product(const Device& device, const Problem& problem, int32_t tokens,
                           bool with_bias) {
  const Scratch scratch(*device.gemm, problem.layout, tokens);
  Buffer<float> y("y", static_cast<size_t>(tokens * problem.rows));
  Gemm op = gemm_of(device, problem, tokens, scratch);
  op.bias = with_bias ? problem.bias->data() : nullptr;
  op.y_f32 = y.data();
  require_ok(run_gemm(op, nullptr));
  return {y.span().begin(), y.span().end()};
}

}  // namespace

TEST_CASE("without a library a token's bits are the same alone and among any number") {
  const Device device(false);
  for (const DType type : {DType::kQ4_K, DType::kBF16}) {
    const Problem problem(type, 48, 2048, 130);
    const std::vector<float> whole = product(device, problem, 130, true);
    for (const int32_t tokens : {1, 64, 65}) {
      const std::vector<float> part = product(device, problem, tokens, true);
      CHECK(std::equal(part.begin(), part.end(), whole.begin()));
    }
  }
}

TEST_CASE(
    "the library's product of unpacked weights is within a bfloat16 rounding of each weight") {
  for (const DType type : kTypes) {
    CAPTURE(dtype_info(type).name);
    Device device(true, 80);
    const Problem problem(type, 37, 512, 66);
    for (const bool with_bias : {false, true}) {
      std::vector<float> got = product(device, problem, 66, with_bias);
      // BF16 and F8_E4M3 unpack exactly; the others round each weight by up to 2^-9, at random: the
      // largest of 2,442 sums of 512 terms is then off by about 4 * sqrt(512) * 2^-10 of some 80.
      const bool exact = type == DType::kBF16 || type == DType::kF8_E4M3;
      CHECK(difference(std::span(got), problem.expected(66, with_bias)) < (exact ? 1e-6 : 3e-3));
    }
    REQUIRE(device.calls.size() == 2);
    CHECK(device.calls[0].kind == CublasKind::kBf16);
    device.gemm->set_batch_invariant(true);
    const std::vector<float> tile = product(device, problem, 66, true);
    CHECK(device.calls.size() == 2);
    const std::vector<float> alone = product(device, problem, 1, true);
    CHECK(std::equal(alone.begin(), alone.end(), tile.begin()));
  }
}

TEST_CASE("every output form is the same through the library and through our kernel") {
  // Gated, accumulated, bfloat16, each with and without a bias.
  for (const DType type : {DType::kBF16, DType::kF8_E4M3}) {
    CAPTURE(dtype_info(type).name);
    Device device(true, 80);
    const Problem problem(type, 64, 256, 70);
    PackedLayout gated = problem.layout;
    gated.gated = true;  // the bands are random either way
    const Scratch scratch(*device.gemm, problem.layout, 70);
    for (const bool with_bias : {false, true}) {
      for (const int form : {0, 1, 2}) {
        CAPTURE(with_bias);
        CAPTURE(form);
        std::vector<std::vector<float>> results;
        for (const bool library : {false, true}) {
          device.gemm->set_batch_invariant(!library);
          Buffer<float> wide("wide", 70 * 64);
          Buffer<Bf16> narrow("narrow", 70 * 64);
          fill_normal(wide.span(), 9);
          Gemm op = gemm_of(device, problem, 70, scratch);
          op.bias = with_bias ? problem.bias->data() : nullptr;
          if (form == 0) {
            op.y_bf16 = narrow.data();
          } else if (form == 1) {
            op.layout = gated;
            op.y_bf16 = narrow.data();
            op.y_stride = 32;
          } else {
            op.y_f32 = wide.data();
            op.accumulate = true;
          }
          require_ok(run_gemm(op, nullptr));
          std::vector<float> got;
          const size_t count = form == 1 ? 70 * 32 : 70 * 64;
          for (size_t i = 0; i < count; ++i) got.push_back(form == 2 ? wide[i] : value(narrow[i]));
          if (form == 1) CHECK(narrow[count].bits == 0xFFFF);
          results.push_back(got);
        }
        const std::vector<double> expected(results[0].begin(), results[0].end());
        CHECK(difference(std::span(results[1]), expected) < (form == 2 ? 1e-6 : 0.012));
        // Gate and up are rounded once on either way, scales and all: only a sum that lies next to
        // a tie may fall to the other side.
        size_t differing = 0;
        for (size_t i = 0; i < expected.size(); ++i) {
          differing += results[0][i] == results[1][i] ? 0 : 1;
        }
        if (form == 1) CHECK(differing < expected.size() / 20);
      }
    }
  }
}

TEST_CASE("int8 products are the same integers on every way") {
  Device device(true);
  const Problem problem(DType::kI8, 96, 512, 70);
  PackedLayout gated = problem.layout;
  gated.gated = true;
  const Scratch scratch(*device.gemm, problem.layout, 70);
  Buffer<int8_t> x("x", 70 * 512);
  std::mt19937 random(2);
  for (int8_t& v : x.span()) v = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
  Buffer<float> scales("scales", 70);
  fill_normal(scales.span(), 3, 0.01F);
  for (const bool is_gated : {false, true}) {
    std::vector<std::vector<uint16_t>> results;
    for (const bool library : {false, true}) {
      device.gemm->set_batch_invariant(!library);
      Buffer<Bf16> y("y", 70 * 96);
      Gemm op = gemm_of(device, problem, 70, scratch);
      op.layout = is_gated ? gated : problem.layout;
      op.x = nullptr;
      op.x_int8 = {x.data(), scales.data()};
      op.bias = problem.bias->data();
      op.y_bf16 = y.data();
      op.y_stride = is_gated ? 48 : 96;
      require_ok(run_gemm(op, nullptr));
      std::vector<uint16_t> bits;
      for (const Bf16 v : y.span()) bits.push_back(v.bits);
      results.push_back(bits);
      if (library) continue;
      // A token alone, through the skinny kernel.
      Buffer<Bf16> one("one", 96);
      op.tokens = 1;
      op.x_int8 = {x.data() + 69 * 512, scales.data() + 69};
      op.y_bf16 = one.data();
      require_ok(run_gemm(op, nullptr));
      int differing = 0;
      for (size_t i = 0; i < static_cast<size_t>(op.y_stride); ++i) {
        differing += one[i].bits == bits[69 * static_cast<size_t>(op.y_stride) + i] ? 0 : 1;
      }
      CHECK(differing == 0);
    }
    CHECK(results[0] == results[1]);
    if (is_gated) continue;
    // Against the integers.
    int wrong = 0;
    for (size_t token = 0; token < 70; ++token) {
      for (size_t r = 0; r < 96; ++r) {
        const float row_scale = reinterpret_cast<const float*>(problem.packed->data() +
                                                               problem.layout.scales_offset)[r];
        double sum = 0;
        for (size_t c = 0; c < 512; ++c) {
          sum += std::nearbyint(static_cast<double>(problem.weights[r][c]) /
                                static_cast<double>(row_scale)) *
                 x[token * 512 + c];
        }
        const float scaled = static_cast<float>(sum) * row_scale * scales[token];
        wrong += results[0][token * 96 + r] == float_to_bf16(scaled + (*problem.bias)[r]) ? 0 : 1;
      }
    }
    CHECK(wrong == 0);
  }
  CHECK(device.calls.size() == 2);
  CHECK(device.calls[0].kind == CublasKind::kInt8);
}

TEST_CASE("the library multiplies bytes in multiples of 4 rows, whatever the matrix has") {
  Device device(true);
  const Problem problem(DType::kI8, 41, 512, 70);
  const Scratch scratch(*device.gemm, problem.layout, 70);
  Buffer<int8_t> x("x", 70 * 512);
  std::mt19937 random(2);
  for (int8_t& v : x.span()) v = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
  Buffer<float> scales("scales", 70);
  fill_normal(scales.span(), 3, 0.01F);
  std::vector<std::vector<float>> results;
  for (const bool library : {false, true}) {
    device.gemm->set_batch_invariant(!library);
    Buffer<float> y("y", 70 * 44);
    std::fill_n(y.data(), y.size(), 7.0F);
    Gemm op = gemm_of(device, problem, 70, scratch);
    op.x = nullptr;
    op.x_int8 = {x.data(), scales.data()};
    op.y_f32 = y.data();
    op.y_stride = 44;
    require_ok(run_gemm(op, nullptr));
    results.emplace_back(y.span().begin(), y.span().end());
  }
  CHECK(results[0] == results[1]);
  CHECK(results[1][41] == 7.0F);
  REQUIRE(device.calls.size() == 1);
  CHECK(device.calls[0].rows % 4 == 0);
}

TEST_CASE("e4m3 activations are multiplied as such where the device can, else widened") {
  const Problem problem(DType::kF8_E4M3, 48, 512, 70);
  Buffer<Float8> x("x", 70 * 512);
  std::mt19937 random(2);
  for (Float8& v : x.span()) {
    do v.bits = static_cast<uint8_t>(random());
    while ((v.bits & 0x7F) == 0x7F);
  }
  Buffer<float> scales("scales", 70);
  fill_normal(scales.span(), 3, 0.01F);
  std::vector<double> expected;
  for (size_t token = 0; token < 70; ++token) {
    for (size_t r = 0; r < 48; ++r) {
      double sum = 0;
      for (size_t c = 0; c < 512; ++c) {
        sum += static_cast<double>(problem.weights[r][c]) *
               static_cast<double>(f8_to_float(x[token * 512 + c].bits));
      }
      expected.push_back(sum * static_cast<double>(scales[token]));
    }
  }
  // Widened by who made them: the same bits, and a few tokens need nothing else.
  Buffer<Bf16> widened("widened", 70 * 512);
  for (size_t i = 0; i < widened.size(); ++i) widened[i] = {float_to_bf16(f8_to_float(x[i].bits))};
  for (const int32_t tokens : {3, 70}) {
    Device device(false);
    const Scratch scratch(*device.gemm, problem.layout, tokens);
    std::vector<std::vector<float>> results;
    for (const bool given : {false, true}) {
      Buffer<float> y("y", static_cast<size_t>(tokens * 48));
      Gemm op = gemm_of(device, problem, tokens, scratch);
      op.x = nullptr;
      op.x_float8 = {given && tokens == 3 ? nullptr : x.data(), scales.data(),
                     given ? widened.data() : nullptr};
      op.y_f32 = y.data();
      require_ok(run_gemm(op, nullptr));
      results.emplace_back(y.span().begin(), y.span().end());
    }
    CHECK(results[0] == results[1]);
  }
  Device few(false);
  const Scratch scratch(*few.gemm, problem.layout, 70);
  Buffer<float> y("y", 70 * 48);
  Gemm many = gemm_of(few, problem, 70, scratch);
  many.x = nullptr;
  many.x_float8 = {nullptr, scales.data(), widened.data()};
  many.y_f32 = y.data();
  CHECK(run_gemm(many, nullptr).message().find("one input") != std::string::npos);
  for (const int32_t capability : {80, 90, 100}) {
    for (const int32_t tokens : {3, 70}) {
      for (const bool library : {true, false}) {
        Device device(library, capability);
        const Scratch scratch(*device.gemm, problem.layout, tokens);
        Buffer<float> y("y", static_cast<size_t>(tokens * 48));
        Gemm op = gemm_of(device, problem, tokens, scratch);
        op.x = nullptr;
        op.x_float8 = {x.data(), scales.data()};
        op.y_f32 = y.data();
        require_ok(run_gemm(op, nullptr));
        const std::vector<double> first(expected.begin(), expected.begin() + tokens * 48);
        CHECK(difference(y.span(), first) < 2e-6);
        const bool called = library && tokens == 70;
        REQUIRE(device.calls.size() == (called ? 1U : 0U));
        if (called) {
          CHECK(device.calls[0].kind ==
                (capability == 90 ? CublasKind::kFloat8 : CublasKind::kBf16));
        }
      }
    }
  }
}

TEST_CASE("a choice is kept by its shape and the next power of two, as text and back") {
  Device device(true);
  const auto layout = PackedLayout::of(DType::kQ4_0, 48, 512);
  CHECK(device.gemm->choice(*layout, 100).method == WideMethod::kCublas);
  device.gemm->set_choice(*layout, 128, {WideMethod::kTile, {}});
  CublasAlgorithm algorithm;
  for (size_t i = 0; i < 8; ++i) algorithm.words[i] = 0xDEADBEEF00000000ULL * i + i;
  device.gemm->set_choice(*layout, 300, {WideMethod::kCublas, algorithm});
  device.gemm->set_warpgroup(true);
  device.gemm->set_choice(*layout, 1024, {WideMethod::kWarpgroup, {}, 4});
  CHECK(device.gemm->choices_text().find(" 1024 warpgroup 4\n") != std::string::npos);
  CHECK(device.gemm->choice(*layout, 100).method == WideMethod::kTile);
  CHECK(device.gemm->choice(*layout, 129).method == WideMethod::kCublas);
  CHECK(device.gemm->choice(*layout, 512).algorithm.words == algorithm.words);

  Device other(true);
  require_ok(other.gemm->set_choices_text(device.gemm->choices_text()));
  other.gemm->set_warpgroup(true);
  CHECK(other.gemm->choice(*layout, 1000).method == WideMethod::kWarpgroup);
  CHECK(other.gemm->choice(*layout, 1000).splits == 4);
  CHECK(other.gemm->choice(*layout, 128).splits == 1);
  CHECK(other.gemm->choice(*layout, 128).method == WideMethod::kTile);
  CHECK(other.gemm->choice(*layout, 257).algorithm.words == algorithm.words);
  CHECK(other.gemm->choices_text() == device.gemm->choices_text());

  const std::string before = other.gemm->choices_text();
  for (const char* bad :
       {"Q4_0 48 512 128 tile\nQ4_0 48 x 128 tile", "\n", "Q4_0 48 512 128 cublas",
        "Q4_0 48 512 128 fast", "Q4_0 48 512 128 warpgroup 1", "Q4_0 48 512 128 warpgroup 3",
        "Q4_0 48 512 128 warpgroup 16", "Q4_0 48 512 128 warpgroup x", "Q4_0 48 512 128 tile 2",
        "Q4_0 48 512 128 cublas 1 2 3 4 5 6 7 g"}) {
    CAPTURE(bad);
    const Result<void> set = other.gemm->set_choices_text(std::string(bad) + "\nnonsense");
    CHECK_FALSE(set.ok());
    CHECK(set.message().find("line") != std::string::npos);
  }
  CHECK(other.gemm->choices_text() == before);

  // The library gets the algorithm of its shape.
  const Problem problem(DType::kQ4_0, 48, 512, 70);
  Device third(true);
  third.gemm->set_choice(*layout, 70, {WideMethod::kCublas, algorithm});
  product(third, problem, 70, false);
  REQUIRE(third.calls.size() == 1);
  CHECK(third.calls[0].algorithm.words == algorithm.words);
}

TEST_CASE("tuning keeps the fastest way of a shape") {
  const Problem problem(DType::kQ8_0, 48, 64, 70);
  // The times of our kernel and of the algorithms 1 to 3, and what is fastest.
  const std::vector<std::pair<std::vector<double>, int>> cases = {
      {{4, 3, 2, 5}, 2}, {{1, 3, 2, 5}, 0}, {{4, 4, 4, 3.9}, 3}};
  for (const auto& [times, fastest] : cases) {
    Device device(true);
    const Scratch scratch(*device.gemm, problem.layout, 70);
    Buffer<float> y("y", 70 * 48);
    Gemm op = gemm_of(device, problem, 70, scratch);
    op.y_f32 = y.data();
    size_t timed = 0;
    const GemmTimer timer = [&](const std::function<Result<void>()>& work) -> Result<double> {
      require_ok(work());
      return times[timed++];
    };
    require_ok(tune_gemm(op, 5, timer, nullptr));
    CHECK(timed == 4);
    REQUIRE(device.calls.size() == 3);
    CHECK(device.calls[1].algorithm.words[0] == 2);
    CHECK(device.calls[1].algorithm.words[1] == 48);
    const WideChoice choice = device.gemm->choice(problem.layout, 70);
    CHECK((choice.method == WideMethod::kTile) == (fastest == 0));
    CHECK(choice.algorithm.words[0] == static_cast<uint64_t>(fastest));
    op.tokens = 64;  // skinny: nothing to choose
    require_ok(tune_gemm(op, 5, timer, nullptr));
    CHECK(timed == 4);
  }
}

TEST_CASE("the warpgroup product is taken where it was chosen and the device may") {
  if (!has_warpgroups()) return;
  for (const DType type : {DType::kQ4_K, DType::kF8_E4M3}) {
    const Problem problem(type, 48, 512, 70);
    Device device(false);
    const std::vector<float> tile = product(device, problem, 70, true);
    device.gemm->set_choice(problem.layout, 70, {WideMethod::kWarpgroup, {}});
    CHECK(product(device, problem, 70, true) == tile);  // not yet: nobody has checked it
    CHECK(device.gemm->choice(problem.layout, 70).method == WideMethod::kTile);
    device.gemm->set_warpgroup(true);
    CHECK(device.gemm->choice(problem.layout, 70).method == WideMethod::kWarpgroup);
    CHECK(device.gemm->choices_text().find(" 128 warpgroup\n") != std::string::npos);
    require_ok(device.gemm->set_choices_text(device.gemm->choices_text()));
    std::vector<float> got = product(device, problem, 70, true);
    CHECK(got != tile);  // other sums, rounded elsewhere
    CHECK(difference(std::span(got), problem.expected(70, true)) < 3e-3);
    device.gemm->set_batch_invariant(true);
    CHECK(product(device, problem, 70, true) == tile);
  }
  const auto bytes = PackedLayout::of(DType::kI8, 48, 512);
  Device device(true);
  device.gemm->set_warpgroup(true);
  device.gemm->set_choice(*bytes, 70, {WideMethod::kWarpgroup, {}});
  CHECK(device.gemm->choice(*bytes, 70).method == WideMethod::kCublas);
}

TEST_CASE("what the library refuses is multiplied by our kernel, from then on too") {
  const Problem problem(DType::kQ8_0, 48, 64, 70);
  Device without(false);
  const std::vector<float> expected = product(without, problem, 70, true);
  std::vector<PlainCublas::Call> calls;
  const auto open = [&](bool refuses, bool finds) {
    auto library = std::make_unique<PlainCublas>(&calls);
    library->refuses = refuses;
    library->finds = finds;
    Device out(false);
    auto opened = GemmDevice::open({4, 90}, std::move(library));
    REQUIRE(opened.ok());
    out.gemm = std::move(*opened);
    return out;
  };
  const Device device = open(true, true);
  CHECK(device.gemm->refusal().empty());
  CHECK(product(device, problem, 70, true) == expected);
  CHECK(device.gemm->refusal() == "plain: refused");
  CHECK(device.gemm->choice(problem.layout, 70).method == WideMethod::kTile);
  CHECK(product(device, problem, 70, true) == expected);
  CHECK(calls.size() == 1);

  // Tuning passes over what cannot be run and keeps what can.
  for (const bool finds : {true, false}) {
    const Device tuned = open(true, finds);
    const Scratch scratch(*tuned.gemm, problem.layout, 70);
    Buffer<float> y("y", 70 * 48);
    Gemm op = gemm_of(tuned, problem, 70, scratch);
    op.y_f32 = y.data();
    const GemmTimer timer = [&](const std::function<Result<void>()>& work) -> Result<double> {
      if (auto done = work(); !done) return done.error();
      return 1.0;
    };
    require_ok(tune_gemm(op, 5, timer, nullptr));
    CHECK(tuned.gemm->refusal() == (finds ? "plain: refused" : "plain: no algorithm"));
    CHECK(tuned.gemm->choice(problem.layout, 70).method == WideMethod::kTile);
  }

  // A sum that was begun is not begun again.
  const Device adding = open(true, true);
  const Scratch scratch(*adding.gemm, problem.layout, 70);
  Buffer<float> y("y", 70 * 48);
  Gemm op = gemm_of(adding, problem, 70, scratch);
  op.y_f32 = y.data();
  op.accumulate = true;
  CHECK_FALSE(run_gemm(op, nullptr).ok());
}

TEST_CASE("tuning counts the warpgroup product among the ways where the device may take it") {
  if (!has_warpgroups()) return;
  const Problem problem(DType::kQ8_0, 48, 64, 70);
  for (const bool library : {false, true}) {
    Device device(library);
    device.gemm->set_warpgroup(true);
    const Scratch scratch(*device.gemm, problem.layout, 70);
    Buffer<float> y("y", 70 * 48);
    Gemm op = gemm_of(device, problem, 70, scratch);
    op.y_f32 = y.data();
    int timed = 0;
    const GemmTimer timer = [&](const std::function<Result<void>()>& work) -> Result<double> {
      require_ok(work());
      return ++timed == 2 ? 1.0 : 2.0;  // the tile product, then this one, then the library's
    };
    require_ok(tune_gemm(op, 5, timer, nullptr));
    CHECK(timed == (library ? 5 : 2));
    CHECK(device.gemm->choice(problem.layout, 70).method == WideMethod::kWarpgroup);
  }
}

TEST_CASE("tuning times the columns shared by two and more blocks where few tiles are to do") {
  if (!has_warpgroups()) return;
  const Problem problem(DType::kQ4_0, 144, 2048, 70);  // two tiles for four multiprocessors
  std::vector<std::vector<float>> results;
  for (const int fastest : {2, 3}) {  // after the tile product and the whole columns
    Device device(false);
    device.gemm->set_warpgroup(true);
    const Scratch scratch(*device.gemm, problem.layout, 70);
    Buffer<float> y("y", 70 * 144);
    Gemm op = gemm_of(device, problem, 70, scratch);
    op.y_f32 = y.data();
    int timed = 0;
    const GemmTimer timer = [&](const std::function<Result<void>()>& work) -> Result<double> {
      require_ok(work());
      return ++timed == fastest ? 1.0 : 2.0;
    };
    require_ok(tune_gemm(op, 5, timer, nullptr));
    CHECK(timed == 3);
    CHECK(device.gemm->choice(problem.layout, 70).splits == fastest - 1);
    results.push_back(product(device, problem, 70, false));
    CHECK(difference(std::span(results.back()), problem.expected(70, false)) < 3e-3);
    // The same bits for any number up to the power of two that the choice is for.
    const std::vector<float> fewer = product(device, problem, 66, false);
    CHECK(std::equal(fewer.begin(), fewer.end(), results.back().begin()));
  }
  CHECK(results[0] != results[1]);  // other sums, rounded elsewhere

  // A file of another device may want more than there is a place for.
  Device device(false);
  device.gemm->set_warpgroup(true);
  device.gemm->set_choice(problem.layout, 70, {WideMethod::kWarpgroup, {}, 8});
  CHECK(product(device, problem, 70, false) == results[1]);
}

TEST_CASE("a large matrix goes through the library in tiles of rows") {
  for (const DType type : {DType::kQ4_0, DType::kF8_E4M3}) {
    const Problem problem(type, 300, 96, 66);
    PackedLayout gated = problem.layout;
    gated.rows = 288;  // whole pairs of bands; the others are not looked at
    gated.gated = true;
    Device device(true);
    Device tiled(true);
    auto opened = GemmDevice::open({4, 90, 1}, std::make_unique<PlainCublas>(&tiled.calls));
    REQUIRE(opened.ok());
    tiled.gemm = std::move(*opened);
    CHECK(product(tiled, problem, 66, true) == product(device, problem, 66, true));
    REQUIRE(tiled.calls.size() == 3);
    CHECK(tiled.calls[0].rows == 128);
    CHECK(tiled.calls[2].rows == 44);

    std::vector<std::vector<uint16_t>> results;
    for (const Device* one : {&device, &tiled}) {
      const Scratch scratch(*one->gemm, gated, 66);
      Buffer<Bf16> y("y", 66 * 144);
      Gemm op = gemm_of(*one, problem, 66, scratch);
      op.layout = gated;
      op.bias = problem.bias->data();
      op.y_bf16 = y.data();
      op.y_stride = 144;
      require_ok(run_gemm(op, nullptr));
      std::vector<uint16_t> bits;
      for (const Bf16 v : y.span()) bits.push_back(v.bits);
      results.push_back(bits);
    }
    CHECK(results[0] == results[1]);
  }
}

TEST_CASE("what does not fit a product is refused with its shape") {
  Device device(false);
  const Problem problem(DType::kQ4_0, 48, 512, 1);
  const Scratch scratch(*device.gemm, problem.layout, 1);
  Buffer<float> y("y", 48);
  Gemm good = gemm_of(device, problem, 1, scratch);
  good.y_f32 = y.data();
  require_ok(run_gemm(good, nullptr));
  const auto refused = [](const Gemm& op, const char* what) {
    const Result<void> ran = run_gemm(op, nullptr);
    CHECK_FALSE(ran.ok());
    CHECK(ran.message().find(what) != std::string::npos);
  };
  Gemm op = good;
  op.tokens = 0;
  refused(op, "48 x 512 Q4_0 with 0 tokens");
  op = good;
  op.scratch.bytes = 100;
  refused(op, "100 bytes");
  op = good;
  op.x_stride = 511;
  refused(op, "511");
  op = good;
  op.y_stride = 47;
  refused(op, "at least 48");
  op = good;
  op.x_int8 = {reinterpret_cast<const int8_t*>(op.x), y.data()};
  refused(op, "one input");
  op.x = nullptr;
  refused(op, "another kind");
  op = good;
  op.layout.gated = true;
  refused(op, "one output");
  CHECK_FALSE(GemmDevice::open({132, 75}, nullptr).ok());
}
