// The skinny product against a sum in double precision over the reference decoder's weights.
#include "kernels/cuda/skinny_gemm.h"

#include <cstring>

#include "kernels/cuda/row_ops.h"
#include "tests/kernels/cuda/gemm_support.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;

TEST_CASE("the skinny product equals the sum in double precision, in every format and schedule") {
  for (const DType type : kTypes) {
    CAPTURE(dtype_info(type).name);
    const bool super = dtype_info(type).block_elems == 256;
    // 37 rows: a band of 5 and a block without its second band; 544 columns of Q4_0: half a tile
    // pads.
    const Problem problem(type, 37, super ? 768 : 544, 64);
    for (const int32_t tokens : {1, 8, 11, 16}) {
      const auto expected = problem.expected(tokens, true);
      for (const Schedule& schedule : schedules()) {
        std::vector<float> got = problem.run(0, tokens, 1, true, schedule);
        CHECK(difference(std::span(got), expected) < 2e-6);
      }
    }
    std::vector<float> got = problem.run(0, 61, 1, false);
    CHECK(difference(std::span(got), problem.expected(61, false)) < 2e-6);
  }
}

TEST_CASE("columns split over blocks are added in one order") {
  for (const DType type : kTypes) {
    CAPTURE(dtype_info(type).name);
    const Problem problem(type, 48, 2048, 16);
    const auto expected = problem.expected(3, true);
    std::vector<float> first;
    for (const Schedule& schedule : schedules()) {
      std::vector<float> got = problem.run(0, 3, 3, true, schedule);
      CHECK(difference(std::span(got), expected) < 2e-6);
      if (first.empty()) first = got;
      CHECK(got == first);
    }
  }
}

TEST_CASE("a token alone gets the same bits as in any batch") {
  for (const DType type : kTypes) {
    CAPTURE(dtype_info(type).name);
    const Problem problem(type, 32, 1024, 64);
    for (const int32_t splits : {1, 2}) {
      const std::vector<float> whole = problem.run(0, 64, splits, false);
      for (const int32_t tokens : {1, 5, 12, 20, 40}) {
        const int32_t first = 64 - tokens;
        const std::vector<float> part = problem.run(first, tokens, splits, false);
        CHECK(std::equal(part.begin(), part.end(), whole.begin() + first * 32));
      }
    }
  }
}

TEST_CASE("bfloat16 outputs are the rounded sums") {
  const Problem problem(DType::kQ4_0, 40, 256, 4);
  Buffer<Bf16> y("y", 4 * 48);
  SkinnyGemm op;
  op.layout = problem.layout;
  op.weight = problem.packed->data();
  op.x = problem.x->data();
  op.x_stride = 256;
  op.tokens = 4;
  op.y_bf16 = y.data();
  op.y_stride = 48;
  require_ok(run_skinny_gemm(op, nullptr));
  const std::vector<float> exact = problem.run(0, 4, 1, false);
  for (size_t token = 0; token < 4; ++token) {
    for (size_t r = 0; r < 48; ++r) {
      const uint16_t bits = y[token * 48 + r].bits;
      CHECK(bits == (r < 40 ? float_to_bf16(exact[token * 40 + r]) : 0xFFFF));
    }
  }
}

TEST_CASE("13,696 columns are summed as in double precision") {
  // Positive weights and activations would lose bits in bfloat16 or in one running sum.
  for (const DType type : {DType::kBF16, DType::kQ4_0, DType::kF8_E4M3}) {
    CAPTURE(dtype_info(type).name);
    const Problem problem(type, 16, 13696, 2);
    std::vector<float> got = problem.run(0, 2, 1, false);
    CHECK(difference(std::span(got), problem.expected(2, false)) < cut_off(13696 / 8));
  }
}

TEST_CASE("the gated product is the gated unit of the two products, bit for bit") {
  for (const DType type : {DType::kQ4_K, DType::kBF16}) {
    CAPTURE(dtype_info(type).name);
    const int64_t n = 48;
    const int64_t cols = 2048;
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    std::vector<std::byte> bytes(static_cast<size_t>(2 * n * row_bytes(type, cols)));
    std::vector<float> row(static_cast<size_t>(cols));
    for (int64_t r = 0; r < 2 * n; ++r) {
      for (float& v : row) v = 0.05F * normal(random);
      quantize_row(type, row, bytes.data() + r * row_bytes(type, cols));
    }
    const auto plain = PackedLayout::of(type, 2 * n, cols);
    const auto gated = PackedLayout::of(type, 2 * n, cols, true);
    REQUIRE((plain.ok() && gated.ok()));
    Buffer<std::byte> plain_weight("plain", static_cast<size_t>(plain->bytes));
    Buffer<std::byte> gated_weight("gated", static_cast<size_t>(gated->bytes));
    pack_tiles({bytes.data(), type, 2 * n, cols}, *plain, 0, 2 * n / 16, plain_weight.span());
    pack_gated_tiles({bytes.data(), type, n, cols},
                     {bytes.data() + n * row_bytes(type, cols), type, n, cols}, *gated, 0,
                     2 * n / 16, gated_weight.span());
    Buffer<Bf16> x("x", static_cast<size_t>(40 * cols));
    fill_normal(x.span(), 4);
    Buffer<float> bias("bias", static_cast<size_t>(2 * n));
    fill_normal(bias.span(), 5);
    for (const int32_t tokens : {1, 13, 24, 40}) {
      for (const int32_t splits : {1, 2}) {
        CAPTURE(tokens);
        CAPTURE(splits);
        Buffer<std::byte> workspace("workspace", skinny_gemm_workspace_bytes(*gated, splits));
        std::fill_n(workspace.data(), std::min(workspace.size(), kSkinnyCounterBytes),
                    std::byte{0});
        const auto count = static_cast<size_t>(tokens * n);
        Buffer<Bf16> both("both", 2 * count);
        Buffer<Bf16> expected("expected", count);
        Buffer<Bf16> y("y", count);
        SkinnyGemm op;
        op.layout = *plain;
        op.weight = plain_weight.data();
        op.x = x.data();
        op.x_stride = cols;
        op.tokens = tokens;
        op.bias = bias.data();
        op.y_bf16 = both.data();
        op.y_stride = 2 * n;
        op.splits = splits;
        op.workspace = workspace.data();
        require_ok(run_skinny_gemm(op, nullptr));
        GatedUnit unit;
        unit.rows = tokens;
        unit.n = static_cast<int32_t>(n);
        unit.in = both.data();
        unit.out = expected.data();
        require_ok(run_gated_unit(unit, nullptr));
        op.layout = *gated;
        op.weight = gated_weight.data();
        op.y_bf16 = y.data();
        op.y_stride = n;
        require_ok(run_skinny_gemm(op, nullptr));
        int differing = 0;
        for (size_t i = 0; i < count; ++i) differing += y[i].bits == expected[i].bits ? 0 : 1;
        CHECK(differing == 0);
      }
    }
  }
}

TEST_CASE("int8 products are exact") {
  const int64_t rows = 37;
  const int64_t cols = 2048;
  for (const int32_t tokens : {1, 9, 33}) {
    for (const int32_t splits : {1, 2}) {
      std::mt19937 random(8);
      std::vector<float> weights(static_cast<size_t>(rows * cols));
      for (float& v : weights) v = static_cast<float>(static_cast<int>(random() % 255) - 127);
      for (int64_t r = 0; r < rows; ++r) weights[static_cast<size_t>(r * cols)] = 127;  // scale 1
      const auto layout = PackedLayout::of(DType::kI8, rows, cols);
      REQUIRE(layout.ok());
      Buffer<std::byte> packed("weights", static_cast<size_t>(layout->bytes));
      pack_tiles({reinterpret_cast<const std::byte*>(weights.data()), DType::kF32, rows, cols},
                 *layout, 0, layout->rows_padded / kTileRows, packed.span());
      Buffer<int8_t> x("x", static_cast<size_t>(tokens * cols));
      for (int8_t& v : x.span()) v = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
      Buffer<float> scales("scales", static_cast<size_t>(tokens));
      for (size_t i = 0; i < scales.size(); ++i)
        scales[i] = std::ldexp(1.0F, static_cast<int>(i % 5));
      Buffer<float> y("y", static_cast<size_t>(tokens * rows));
      Buffer<std::byte> workspace("workspace", skinny_gemm_workspace_bytes(*layout, splits));
      std::fill_n(workspace.data(), std::min(workspace.size(), kSkinnyCounterBytes), std::byte{0});
      SkinnyGemm op;
      op.layout = *layout;
      op.weight = packed.data();
      op.x_int8 = x.data();
      op.token_scales = scales.data();
      op.x_stride = cols;
      op.tokens = tokens;
      op.y_f32 = y.data();
      op.y_stride = rows;
      op.splits = splits;
      op.workspace = workspace.data();
      require_ok(run_skinny_gemm(op, nullptr));
      int wrong = 0;
      for (int64_t token = 0; token < tokens; ++token) {
        for (int64_t r = 0; r < rows; ++r) {
          int64_t sum = 0;
          for (int64_t c = 0; c < cols; ++c) {
            sum += x[static_cast<size_t>(token * cols + c)] *
                   static_cast<int64_t>(weights[static_cast<size_t>(r * cols + c)]);
          }
          const auto expected = static_cast<float>(sum) * scales[static_cast<size_t>(token)];
          wrong += y[static_cast<size_t>(token * rows + r)] == expected ? 0 : 1;
        }
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("a product can be added to what is there") {
  const Problem problem(DType::kQ8_0, 40, 2048, 3);
  for (const int32_t splits : {1, 2}) {
    const std::vector<float> product = problem.run(0, 3, splits, true);
    Buffer<float> y("y", 3 * 40);
    fill_normal(y.span(), 6);
    const std::vector<float> before(y.span().begin(), y.span().end());
    Buffer<std::byte> workspace("workspace", skinny_gemm_workspace_bytes(problem.layout, splits));
    std::fill_n(workspace.data(), std::min(workspace.size(), kSkinnyCounterBytes), std::byte{0});
    SkinnyGemm op;
    op.layout = problem.layout;
    op.weight = problem.packed->data();
    op.x = problem.x->data();
    op.x_stride = 2048;
    op.tokens = 3;
    op.bias = problem.bias->data();
    op.y_f32 = y.data();
    op.y_stride = 40;
    op.accumulate = true;
    op.splits = splits;
    op.workspace = workspace.data();
    require_ok(run_skinny_gemm(op, nullptr));
    int wrong = 0;
    for (size_t i = 0; i < 120; ++i) wrong += y[i] == before[i] + product[i] ? 0 : 1;
    CHECK(wrong == 0);
  }
}

TEST_CASE("a product into the residual stream leaves what product, addition and norm leave") {
  constexpr int64_t kDim = 80;  // 5 bands: a block of 2 has one of its own alone
  constexpr float kEps = 1e-5F;
  for (const DType type : {DType::kQ4_K, DType::kF8_E4M3}) {
    for (const int32_t tokens : {1, 33}) {
      for (const int32_t splits : {1, 2}) {
        CAPTURE(dtype_info(type).name);
        CAPTURE(tokens);
        CAPTURE(splits);
        const Problem problem(type, kDim, 2048, tokens);
        const auto count = static_cast<size_t>(tokens * kDim);
        Buffer<float> start("start", count);
        fill_normal(start.span(), 4, 100.0F);
        Buffer<float> norm("norm", kDim);
        fill_normal(norm.span(), 5);
        Buffer<std::byte> workspace("workspace",
                                    skinny_gemm_workspace_bytes(problem.layout, splits));
        std::fill_n(workspace.data(), std::min(workspace.size(), kSkinnyCounterBytes),
                    std::byte{0});
        SkinnyGemm op = problem.operation(0, tokens, true);
        op.splits = splits;
        op.workspace = workspace.data();

        const Buffer<float> hidden("hidden", start.span());
        const Buffer<Bf16> y("y", count);
        const Buffer<Bf16> x("x", count);
        const Buffer<float> factors("factors", static_cast<size_t>(tokens));
        op.y_bf16 = y.data();
        require_ok(run_skinny_gemm(op, nullptr));
        ResidualNorm behind;
        behind.rows = tokens;
        behind.dim = kDim;
        behind.hidden = hidden.data();
        behind.delta = y.data();
        behind.norm = norm.data();
        behind.eps = kEps;
        behind.out = x.data();
        behind.factors = factors.data();
        require_ok(run_residual_norm(behind, nullptr));

        std::vector<float> first;
        for (const Schedule& schedule : schedules()) {
          const ScheduleScope scope(schedule);
          const Buffer<float> own_hidden("own hidden", start.span());
          const Buffer<Bf16> own_x("own x", count);
          const Buffer<float> bands("bands", count / 16);
          op.y_bf16 = nullptr;
          op.residual = {own_hidden.data(), norm.data(), own_x.data(), bands.data()};
          require_ok(run_skinny_gemm(op, nullptr));
          CHECK(std::equal(hidden.span().begin(), hidden.span().end(), own_hidden.span().begin()));
          CHECK(std::memcmp(x.data(), own_x.data(), count * sizeof(Bf16)) == 0);
          if (!first.empty()) CHECK(std::equal(first.begin(), first.end(), bands.span().begin()));
          first.assign(bands.span().begin(), bands.span().end());
        }
        for (int32_t t = 0; t < tokens; ++t) {
          double squares = 0;
          double of_bands = 0;
          for (int64_t i = 0; i < kDim; ++i) {
            const auto at = static_cast<size_t>(t * kDim + i);
            const auto h = static_cast<double>(hidden[at]);
            squares += h * h;
            if (i % 16 == 0) of_bands += static_cast<double>(first[at / 16]);
          }
          CHECK(of_bands == doctest::Approx(squares).epsilon(1e-6));
          CHECK(static_cast<double>(factors[static_cast<size_t>(t)]) ==
                doctest::Approx(1 / std::sqrt(squares / kDim + static_cast<double>(kEps)))
                    .epsilon(1e-6));
        }
      }
    }
  }
}

TEST_CASE("a product that takes its norm's factors is that of the normed rows") {
  constexpr int64_t kDim = 608;  // 38 bands: lanes have one or two
  constexpr int32_t kTokens = 35;
  for (const DType type : {DType::kQ4_0, DType::kBF16, DType::kF8_E4M3}) {
    CAPTURE(dtype_info(type).name);
    const Problem problem(type, 48, kDim, kTokens);
    const Buffer<float> bands("bands", static_cast<size_t>(kTokens * kDim / 16));
    fill_normal(bands.span(), 6);
    std::vector<double> expected = problem.expected(kTokens, false);
    std::vector<float> factors;
    for (size_t t = 0; t < kTokens; ++t) {
      double sum = 0;
      for (size_t i = 0; i < kDim / 16; ++i) {
        float& band = bands[t * (kDim / 16) + i];
        band = std::abs(band) * static_cast<float>(1 + t);
        sum += static_cast<double>(band);
      }
      const double factor = 1 / std::sqrt(sum / kDim + 1e-5);
      factors.push_back(static_cast<float>(factor));
      for (size_t r = 0; r < 48; ++r) {
        double& e = expected[t * 48 + r];
        e = e * factor + static_cast<double>((*problem.bias)[r]);
      }
    }
    const Buffer<float> device_factors("factors", std::span(factors));
    std::vector<float> whole;
    for (const int32_t splits : {1, 2}) {
      const Buffer<float> y("y", kTokens * 48);
      Buffer<std::byte> workspace("workspace", skinny_gemm_workspace_bytes(problem.layout, splits));
      std::fill_n(workspace.data(), std::min(workspace.size(), kSkinnyCounterBytes), std::byte{0});
      SkinnyGemm op = problem.operation(0, kTokens, true);
      op.y_f32 = y.data();
      op.normed = {bands.data(), nullptr, 1e-5F};
      op.splits = splits;
      op.workspace = workspace.data();
      require_ok(run_skinny_gemm(op, nullptr));
      std::vector<float> got(y.span().begin(), y.span().end());
      CHECK(difference(std::span(got), expected) < 2e-6);
      if (splits == 1) whole = got;
      op.normed = {nullptr, device_factors.data(), 0.0F};
      require_ok(run_skinny_gemm(op, nullptr));
      CHECK(difference(y.span(), expected) < 2e-6);
    }
    // A token alone.
    const Buffer<float> y("y", 48);
    SkinnyGemm op = problem.operation(20, 1, true);
    op.y_f32 = y.data();
    op.normed = {bands.data() + 20 * kDim / 16, nullptr, 1e-5F};
    require_ok(run_skinny_gemm(op, nullptr));
    CHECK(std::equal(y.span().begin(), y.span().end(), whole.begin() + 20 * 48));
  }
}

TEST_CASE("the shapes of the models fill a device of 132 multiprocessors where the columns allow") {
  struct Shape {
    const char* what;
    int64_t rows;
    int64_t cols;
  };
  // qkv, o, gate and up, down; the last layer is the vocabulary's.
  const Shape shapes[] = {
      {"glm-4-9b", 4608, 4096},     {"glm-4-9b", 4096, 4096},      {"glm-4-9b", 27392, 4096},
      {"glm-4-9b", 4096, 13696},    {"qwen2.5-0.5b", 1152, 896},   {"qwen2.5-0.5b", 896, 896},
      {"qwen2.5-0.5b", 9728, 896},  {"qwen2.5-0.5b", 896, 4864},   {"qwen2.5-1.5b", 2048, 1536},
      {"qwen2.5-1.5b", 1536, 1536}, {"qwen2.5-1.5b", 17920, 1536}, {"qwen2.5-1.5b", 1536, 8960},
      {"qwen2.5-3b", 2560, 2048},   {"qwen2.5-3b", 2048, 2048},    {"qwen2.5-3b", 22016, 2048},
      {"qwen2.5-3b", 2048, 11008},  {"qwen2.5-7b", 4608, 3584},    {"qwen2.5-7b", 3584, 3584},
      {"qwen2.5-7b", 37888, 3584},  {"qwen2.5-7b", 3584, 18944},   {"llama-2-7b", 12288, 4096},
      {"llama-2-7b", 4096, 4096},   {"llama-2-7b", 22016, 4096},   {"llama-2-7b", 4096, 11008}};
  for (const Shape& shape : shapes) {
    for (const DType type : {DType::kBF16, DType::kQ4_0}) {
      const auto layout = PackedLayout::of(type, shape.rows, shape.cols);
      REQUIRE(layout.ok());
      const int64_t splits = skinny_gemm_splits(*layout, 132);
      const int64_t blocks = splits * ((layout->rows_padded + 31) / 32);
      CAPTURE(shape.what);
      CAPTURE(shape.rows);
      CAPTURE(shape.cols);
      CAPTURE(splits);
      // A warp keeps at least 2 tiles of 64 columns: fewer would not cover the latency of memory.
      const bool columns_allow = shape.cols >= 64 * 8 * 2 * (splits + 1);
      CHECK((blocks >= 2 * 132 || splits == 8 || !columns_allow));
      CHECK(
          (splits == 1 || (blocks / splits) * (splits - 1) < 2 * 132));  // and no more than needed
    }
  }
}

TEST_CASE("a matrix of few rows gives every multiprocessor a block, or every warp its least") {
  for (const int32_t multiprocessors : {108, 132}) {
    for (const DType type : {DType::kBF16, DType::kQ4_0, DType::kQ8_0, DType::kQ4_K}) {
      const bool super = dtype_info(type).block_elems == 256;
      for (const int64_t rows : {256, 384, 512, 768, 1024}) {
        for (const int64_t cols : {1024, 2048, 4096, 13824}) {
          const auto layout = PackedLayout::of(type, rows, cols);
          REQUIRE(layout.ok());
          const int64_t splits = skinny_gemm_splits(*layout, multiprocessors);
          const int64_t blocks = splits * (rows / 32);
          CAPTURE(dtype_info(type).name);
          CAPTURE(rows);
          CAPTURE(cols);
          CAPTURE(splits);
          // One more split would leave warps without columns.
          const bool least = cols < (splits + 1) * 8 * (super ? 256 : 64);
          CHECK((blocks >= multiprocessors || least || splits == 16));
          CHECK((splits == 1 || cols >= splits * 8 * (super ? 256 : 64)));
        }
      }
    }
  }
  // Of 4,096 columns 512 rows or more reach all of an A100's, and of an H100's from 544 on.
  const auto blocks = [](int64_t rows, int32_t multiprocessors) {
    const auto layout = PackedLayout::of(DType::kBF16, rows, 4096);
    return skinny_gemm_splits(*layout, multiprocessors) * (rows / 32);
  };
  for (int64_t rows = 512; rows <= 1024; rows += 32) CHECK(blocks(rows, 108) >= 108);
  for (int64_t rows = 544; rows <= 1024; rows += 32) CHECK(blocks(rows, 132) >= 132);
}

TEST_CASE("a shape that the skinny product does not take is refused with its value") {
  const Problem problem(DType::kQ8_0, 16, 64, 1);
  Buffer<float> y("y", 16);
  SkinnyGemm op;
  op.layout = problem.layout;
  op.weight = problem.packed->data();
  op.x = problem.x->data();
  op.x_stride = 64;
  op.tokens = 65;
  op.y_f32 = y.data();
  op.y_stride = 16;
  CHECK(run_skinny_gemm(op, nullptr).message().find("65 tokens") != std::string::npos);
  op.tokens = 1;
  op.x_stride = 60;
  CHECK(run_skinny_gemm(op, nullptr).message().find("60") != std::string::npos);
  op.x_stride = 64;
  op.splits = 2;
  CHECK(run_skinny_gemm(op, nullptr).message().find("workspace") != std::string::npos);
  op.splits = 1;
  Buffer<float> row("row", 32);
  op.residual = {row.data(), nullptr, nullptr, nullptr};
  CHECK(run_skinny_gemm(op, nullptr).message().find("into the residual stream") !=
        std::string::npos);
  op.residual = {};
  op.token_scales = row.data();
  op.normed.factors = row.data();
  CHECK(run_skinny_gemm(op, nullptr).message().find("two kinds of factors") != std::string::npos);
}
