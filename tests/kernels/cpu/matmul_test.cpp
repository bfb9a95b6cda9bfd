// Matrix products of every format on every instruction set, against double precision over the
// decoded weights.
#include <doctest/doctest.h>

#include <cstring>
#include <fstream>

#include "tests/kernels/cpu/harness.h"
#include "tests/support/emulated.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

// out[b, r] = sum over c of x[b, c] * w[r, c] + bias[r]; x rounded to int8 blocks for parts that
// take them.
std::vector<double> reference(const std::vector<TestMatrix>& parts, const std::vector<float>& x,
                              int64_t batch, const std::vector<float>& bias, bool exact) {
  int64_t rows = 0;
  for (const TestMatrix& part : parts) rows += part.rows;
  const int64_t cols = parts[0].cols;
  std::vector<double> out(static_cast<size_t>(batch * rows));
  for (int64_t b = 0; b < batch; ++b) {
    const float* row = x.data() + b * cols;
    const std::vector<double> plain(row, row + cols);
    const std::vector<double> rounded = cols % 32 == 0 ? int8_values(row, cols) : plain;
    int64_t at = 0;
    for (const TestMatrix& part : parts) {
      const std::vector<double>& in = exact || is_float_type(part.type) ? plain : rounded;
      for (int64_t r = 0; r < part.rows; ++r, ++at) {
        double sum = bias.empty() ? 0.0 : bias[static_cast<size_t>(at)];
        for (int64_t c = 0; c < cols; ++c)
          sum += in[static_cast<size_t>(c)] * part.values[static_cast<size_t>(r * cols + c)];
        out[static_cast<size_t>(b * rows + at)] = sum;
      }
    }
  }
  return out;
}

struct Product {
  std::vector<float> out;
  int64_t rows = 0;
};

Product multiply(Backend& backend, const std::vector<TestMatrix>& parts,
                 const std::vector<float>& x, int64_t batch, const std::vector<float>& bias) {
  std::vector<WeightView> views;
  Product product;
  for (const TestMatrix& part : parts) {
    views.push_back(part.view());
    product.rows += part.rows;
  }
  const Mat weight = take(backend.add_matrix(views));
  const Vec bias_vec = bias.empty() ? kNoVec : take(backend.add_vector(bias));
  const Act out = take(backend.add_activation(batch, product.rows));
  const PlainBatch plain(batch);
  const Act in = filled_activation(backend, x, batch, parts[0].cols, plain);
  backend.matmul(weight, bias_vec, in, out);
  product.out = read(backend, out, batch, product.rows);
  return product;
}

}  // namespace

TEST_CASE("every format times every batch size equals the double-precision product") {
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(std::string(isa_name(isa)));
    for (const DType type : kAllTypes) {
      CAPTURE(std::string(dtype_info(type).name));
      const int64_t block = dtype_info(type).block_elems;
      uint32_t seed = 1;
      for (const int64_t rows : {1, 3, 17, kEmulated ? 30 : 100}) {
        for (const int64_t batch : {1, 2, 3, 5, 9, 33, 41}) {
          const int64_t cols = block == 1 ? 37 + rows : block * (1 + (rows + batch) % 4);
          CAPTURE(rows);
          CAPTURE(cols);
          CAPTURE(batch);
          const std::unique_ptr<Backend> backend = open_backend(isa);
          const std::vector<TestMatrix> parts = {random_matrix(type, rows, cols, ++seed)};
          const std::vector<float> x = random_values(static_cast<size_t>(batch * cols), ++seed);
          const std::vector<float> bias = batch % 2 == 0
                                              ? random_values(static_cast<size_t>(rows), ++seed)
                                              : std::vector<float>{};
          const Product product = multiply(*backend, parts, x, batch, bias);
          CHECK(relative_error(product.out, reference(parts, x, batch, bias, false)) < 2e-6);
        }
      }
    }
  }
}

TEST_CASE("int8 activations cost less than 1 % and the exact mode less than 1e-6") {
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(std::string(isa_name(isa)));
    for (const DType type : kAllTypes) {
      CAPTURE(std::string(dtype_info(type).name));
      const std::vector<TestMatrix> parts = {random_matrix(type, 40, 1024, 5)};
      const std::vector<float> x = random_values(6 * 1024, 6);
      const std::vector<double> expected = reference(parts, x, 6, {}, true);
      CHECK(relative_error(multiply(*open_backend(isa), parts, x, 6, {}).out, expected) < 0.01);
      CHECK(relative_error(multiply(*open_backend(isa, 2, true), parts, x, 6, {}).out, expected) <
            1e-6);
    }
  }
}

TEST_CASE("parts of different formats lie below each other in one matrix") {
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(std::string(isa_name(isa)));
    std::vector<TestMatrix> parts;
    uint32_t seed = 20;
    int64_t rows = 5;
    for (const DType type : kAllTypes) parts.push_back(random_matrix(type, rows += 7, 512, ++seed));
    int64_t total = 0;
    for (const TestMatrix& part : parts) total += part.rows;
    const std::vector<float> x = random_values(11 * 512, 21);
    const std::vector<float> bias = random_values(static_cast<size_t>(total), 22);
    const Product product = multiply(*open_backend(isa, 3), parts, x, 11, bias);
    CHECK(relative_error(product.out, reference(parts, x, 11, bias, false)) < 2e-6);
  }
}

TEST_CASE("a row's result has the same bits alone and in any batch, on one thread and on three") {
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(std::string(isa_name(isa)));
    for (const DType type : kAllTypes) {
      CAPTURE(std::string(dtype_info(type).name));
      const int64_t cols = is_float_type(type) ? 777 / (kEmulated ? 3 : 1) : kEmulated ? 768 : 1536;
      const std::vector<TestMatrix> parts = {random_matrix(type, 133, cols, 31)};
      const std::vector<float> x = random_values(static_cast<size_t>(300 * cols), 32);
      const Product whole = multiply(*open_backend(isa, 3), parts, x, 300, {});
      for (const auto& [first, count] :
           {std::pair<int64_t, int64_t>{0, 1}, {7, 1}, {100, 3}, {255, 45}, {60, 70}}) {
        CAPTURE(first);
        const std::vector<float> some(x.begin() + first * cols, x.begin() + (first + count) * cols);
        const Product part = multiply(*open_backend(isa, 1), parts, some, count, {});
        CHECK(std::memcmp(part.out.data(), whole.out.data() + first * 133,
                          part.out.size() * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("a gated product is silu of the gate times up, of mixed formats and any number of rows") {
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(std::string(isa_name(isa)));
    for (const auto& [gate_type, up_type] :
         {std::pair{DType::kQ4_0, DType::kQ4_0}, std::pair{DType::kQ4_K, DType::kQ6_K},
          std::pair{DType::kQ8_0, DType::kF16}}) {
      for (const int64_t rows : {3, 64, 150}) {
        for (const int64_t batch : {1, 5, 40, 300}) {
          CAPTURE(rows);
          CAPTURE(batch);
          const std::vector<TestMatrix> parts = {random_matrix(gate_type, rows, 256, 61),
                                                 random_matrix(up_type, rows, 256, 62)};
          const std::vector<float> x = random_values(static_cast<size_t>(batch * 256), 63, 0.3F);
          const std::unique_ptr<Backend> backend = open_backend(isa, 3);
          const WeightView views[] = {parts[0].view(), parts[1].view()};
          const Mat weight = take(backend->add_matrix(views));
          const Act out = take(backend->add_activation(batch, rows));
          const PlainBatch plain(batch);
          const Act in = filled_activation(*backend, x, batch, 256, plain);
          backend->gated_matmul(weight, in, out);
          const std::vector<double> both = reference(parts, x, batch, {}, false);
          std::vector<double> expected;
          for (int64_t b = 0; b < batch; ++b) {
            for (int64_t r = 0; r < rows; ++r) {
              const double gate = both[static_cast<size_t>(2 * b * rows + r)];
              const double up = both[static_cast<size_t>((2 * b + 1) * rows + r)];
              expected.push_back(gate / (1.0 + std::exp(-gate)) * up);
            }
          }
          CHECK(relative_error(read(*backend, out, batch, rows), expected) < 3e-6);
        }
      }
    }
  }
}

TEST_CASE("the largest weights and activations do not overflow the integer sums") {
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(std::string(isa_name(isa)));
    for (const DType type : kAllTypes) {
      CAPTURE(std::string(dtype_info(type).name));
      for (const float sign : {1.0F, -1.0F}) {
        // One value per block sets the scale; the others sit at the end of the quants' range.
        TestMatrix m{type, 16, 512, {}, std::vector<float>(16 * 512, sign)};
        m.bytes.resize(static_cast<size_t>(16 * row_bytes(type, 512)));
        for (size_t i = 0; i < m.values.size(); i += 16) m.values[i] = -sign;
        quantize_row(type, m.values, m.bytes.data());
        dequantize_row(type, m.bytes.data(), m.values);
        std::vector<float> x(512, 100.0F);
        for (size_t i = 0; i < x.size(); i += 16) x[i] = -100.0F;
        CHECK(relative_error(multiply(*open_backend(isa), {m}, x, 1, {}).out,
                             reference({m}, x, 1, {}, false)) < 2e-6);
      }
    }
  }
}

TEST_CASE("an embedding row of every format decodes to exactly the file's values") {
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(std::string(isa_name(isa)));
    for (const DType type : kAllTypes) {
      CAPTURE(std::string(dtype_info(type).name));
      const int64_t cols = is_float_type(type) ? 50 : 768;
      const std::vector<TestMatrix> parts = {random_matrix(type, 37, cols, 41),
                                             random_matrix(DType::kF16, 4, cols, 42)};
      const std::unique_ptr<Backend> backend = open_backend(isa);
      const WeightView views[] = {parts[0].view(), parts[1].view()};
      const Mat table = take(backend->add_matrix(views));
      const Act out = take(backend->add_activation(5, cols));
      PlainBatch plain(5);
      plain.ids = {36, 0, 40, 17, 16};
      backend->begin(plain.batch());
      backend->embed(table, out);
      const std::vector<float> got = read(*backend, out, 5, cols);
      for (int row = 0; row < 5; ++row) {
        const int id = plain.ids[static_cast<size_t>(row)];
        const float* expected = id < 37 ? parts[0].values.data() + id * cols
                                        : parts[1].values.data() + (id - 37) * cols;
        CHECK(std::memcmp(got.data() + row * cols, expected,
                          static_cast<size_t>(cols) * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("a given row stands unchanged where its id is below 0, beside rows of the table") {
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(std::string(isa_name(isa)));
    // Few rows are done at once, many by all threads.
    for (const int rows : {3, 300}) {
      CAPTURE(rows);
      constexpr int64_t kCols = 96;
      const TestMatrix table = random_matrix(DType::kQ8_0, 8, kCols, 61);
      const std::unique_ptr<Backend> backend = open_backend(isa);
      const WeightView view = table.view();
      const Mat mat = take(backend->add_matrix({&view, 1}));
      const Act out = take(backend->add_activation(300, kCols));
      PlainBatch plain(rows);
      for (int i = 0; i < rows; ++i) {
        plain.ids[static_cast<size_t>(i)] = i % 3 == 1 ? i % 8 : -1 - i;
      }
      const int64_t given_count = rows - (rows + 1) / 3;
      const std::vector<float> given = random_values(static_cast<size_t>(given_count * kCols), 62);
      Batch batch = plain.batch();
      batch.given_rows = given;
      backend->begin(batch);
      backend->embed(mat, out);
      const std::vector<float> got = read(*backend, out, rows, kCols);
      int64_t next = 0;
      for (int row = 0; row < rows; ++row) {
        const int id = plain.ids[static_cast<size_t>(row)];
        const float* expected =
            id < 0 ? given.data() + next++ * kCols : table.values.data() + id * kCols;
        CHECK(std::memcmp(got.data() + row * kCols, expected, kCols * sizeof(float)) == 0);
      }
      // The next step without any finds the table alone.
      PlainBatch tokens(2);
      backend->begin(tokens.batch());
      backend->embed(mat, out);
      CHECK(std::memcmp(read(*backend, out, 2, kCols).data(), table.values.data(),
                        2 * kCols * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("logits are taken of the asked rows in their order") {
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(std::string(isa_name(isa)));
    const std::unique_ptr<Backend> backend = open_backend(isa);
    const TestMatrix head = random_matrix(DType::kQ6_K, 333, 256, 51);
    const WeightView view = head.view();
    const Mat mat = take(backend->add_matrix({&view, 1}));
    take(backend->reserve_logits(3, 333));
    const std::vector<float> x = random_values(20 * 256, 52);
    PlainBatch plain(20);
    const Act in = filled_activation(*backend, x, 20, 256, plain);
    const std::vector<int32_t> rows = {0, 7, 19};
    Batch batch = plain.batch();
    batch.logit_rows = rows;
    backend->begin(batch);
    backend->logits(mat, in);
    const std::span<float> got = backend->read_logits();
    REQUIRE(got.size() == 3 * 333);
    std::vector<float> picked;
    for (const int32_t row : rows)
      picked.insert(picked.end(), x.begin() + row * 256, x.begin() + (row + 1) * 256);
    CHECK(relative_error({got.begin(), got.end()}, reference({head}, picked, 3, {}, false)) < 2e-6);
    batch.logit_rows = {};
    backend->begin(batch);
    backend->logits(mat, in);
    CHECK(backend->read_logits().empty());
  }
}

TEST_CASE("the golden linear layer comes out") {
  const auto path = shared_data("golden/linear.data");
  if (!path) return;
  std::ifstream file(*path, std::ios::binary);
  const auto floats = [&](size_t count) {
    std::vector<float> values(count);
    file.read(reinterpret_cast<char*>(values.data()),
              static_cast<std::streamsize>(count * sizeof(float)));
    REQUIRE(file.good());
    return values;
  };
  TestMatrix w{DType::kF32, 32, 64, {}, floats(32 * 64)};
  w.bytes.resize(w.values.size() * 4);
  std::memcpy(w.bytes.data(), w.values.data(), w.bytes.size());
  const std::vector<float> bias = floats(32);
  const std::vector<float> x = floats(2 * 64);
  const std::vector<float> y = floats(2 * 32);
  for (const CpuIsa isa : available_isas()) {
    const Product product = multiply(*open_backend(isa), {w}, x, 2, bias);
    for (size_t i = 0; i < y.size(); ++i) CHECK(std::fabs(product.out[i] - y[i]) < 1e-5F);
  }
}

TEST_CASE("bad matrices are refused with the reason") {
  const std::unique_ptr<Backend> backend = open_backend(CpuIsa::kGeneric);
  const TestMatrix a = random_matrix(DType::kQ4_0, 2, 64, 1);
  const TestMatrix b = random_matrix(DType::kQ4_0, 2, 32, 1);
  const WeightView different[] = {a.view(), b.view()};
  CHECK(backend->add_matrix(different).message() ==
        "matrix: Q4_0 part of 2 x 32 beside a part of 64 columns");
  CHECK(backend->add_matrix({}).message() == "matrix: no parts given");
  WeightView ragged = a.view();
  ragged.cols = 40;
  CHECK(backend->add_matrix({&ragged, 1}).message() ==
        "matrix: Q4_0 part of 2 x 40, its blocks hold 32 columns");
  WeightView empty = a.view();
  empty.rows = 0;
  CHECK_FALSE(backend->add_matrix({&empty, 1}).ok());
}
