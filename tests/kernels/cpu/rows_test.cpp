// The operations on single rows (norms, silu) and the backend's own answers, against double
// precision.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <fstream>

#include "tests/kernels/cpu/harness.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

std::vector<double> rms_norm(const std::vector<double>& x, const std::vector<float>& w,
                             double eps) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  const double factor = 1.0 / std::sqrt(sum / static_cast<double>(x.size()) + eps);
  std::vector<double> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * factor * static_cast<double>(w[i]);
  return y;
}

// Adds delta (normed or not) to hidden row by row and norms the sum.
void norm_reference(std::vector<double>& hidden, const std::vector<float>& delta,
                    const std::vector<float>* delta_norm, const std::vector<float>& norm,
                    double eps, size_t dim, std::vector<double>& out) {
  for (size_t at = 0; at < hidden.size(); at += dim) {
    std::vector<double> add(delta.begin() + static_cast<long>(at),
                            delta.begin() + static_cast<long>(at + dim));
    if (delta_norm != nullptr) add = rms_norm(add, *delta_norm, eps);
    std::vector<double> sum(dim);
    for (size_t i = 0; i < dim; ++i) sum[i] = hidden[at + i] += add[i];
    const std::vector<double> normed = rms_norm(sum, norm, eps);
    out.insert(out.end(), normed.begin(), normed.end());
  }
}

}  // namespace

TEST_CASE("residual and norm, plain and as a sandwich, equal double precision at any width") {
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(std::string(isa_name(isa)));
    for (const size_t dim : {1U, 7U, 16U, 64U, 100U, 896U, 4097U}) {
      CAPTURE(dim);
      for (const bool sandwich : {false, true}) {
        constexpr int64_t kRows = 9;
        const auto width = static_cast<int64_t>(dim);
        const std::vector<float> h = random_values(kRows * dim, 1);
        const std::vector<float> d = random_values(kRows * dim, 2, 3.0F);
        const std::vector<float> norm = random_values(dim, 3);
        const std::vector<float> delta_norm = random_values(dim, 4);
        const std::unique_ptr<Backend> backend = open_backend(isa);
        const PlainBatch plain(kRows);
        ResidualNorm op;
        op.hidden = filled_activation(*backend, h, kRows, width, plain);
        op.delta = filled_activation(*backend, d, kRows, width, plain);
        op.norm = take(backend->add_vector(norm));
        if (sandwich) op.delta_norm = take(backend->add_vector(delta_norm));
        op.eps = 1e-5F;
        op.out = take(backend->add_activation(kRows, width));
        backend->residual_norm(op);
        std::vector<double> hidden(h.begin(), h.end());
        std::vector<double> out;
        norm_reference(hidden, d, sandwich ? &delta_norm : nullptr, norm, 1e-5, dim, out);
        CHECK(relative_error(read(*backend, op.hidden, kRows, width), hidden) < 1e-6);
        CHECK(relative_error(read(*backend, op.out, kRows, width), out) < 1e-6);

        // Without an output only the sum happens; without a delta only the norm.
        ResidualNorm only_add = op;
        only_add.out = kNoAct;
        backend->residual_norm(only_add);
        std::vector<double> ignored;
        norm_reference(hidden, d, sandwich ? &delta_norm : nullptr, norm, 1e-5, dim, ignored);
        CHECK(relative_error(read(*backend, op.hidden, kRows, width), hidden) < 1e-6);
        ResidualNorm only_norm = op;
        only_norm.delta = kNoAct;
        only_norm.delta_norm = kNoVec;
        backend->residual_norm(only_norm);
        CHECK(relative_error(read(*backend, op.out, kRows, width), ignored) < 1e-6);
      }
    }
  }
}

TEST_CASE("the golden RMS norm comes out") {
  const auto path = shared_data("golden/rms_norm.data");
  if (!path) return;
  std::ifstream file(*path, std::ios::binary);
  std::vector<float> data(64 + 3 * 64 + 3 * 64);
  file.read(reinterpret_cast<char*>(data.data()),
            static_cast<std::streamsize>(data.size() * sizeof(float)));
  REQUIRE(file.good());
  for (const CpuIsa isa : available_isas()) {
    const std::unique_ptr<Backend> backend = open_backend(isa);
    ResidualNorm op;
    op.hidden =
        filled_activation(*backend, {data.begin() + 64, data.begin() + 256}, 3, 64, PlainBatch(3));
    op.norm = take(backend->add_vector(std::span<const float>(data).first(64)));
    op.eps = 1e-5F;
    op.out = take(backend->add_activation(3, 64));
    backend->residual_norm(op);
    const std::vector<float> got = read(*backend, op.out, 3, 64);
    for (size_t i = 0; i < got.size(); ++i) CHECK(std::fabs(got[i] - data[256 + i]) < 1e-5F);
  }
}

TEST_CASE("silu of the gate times up equals double precision, at the ends of the range too") {
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(std::string(isa_name(isa)));
    for (const int64_t dim : {1, 5, 48, 333}) {
      std::vector<float> x = random_values(static_cast<size_t>(4 * 2 * dim), 9, 6.0F);
      x[0] = 200.0F;
      x[static_cast<size_t>(2 * dim)] = -200.0F;
      x[static_cast<size_t>(4 * dim)] = 0.0F;
      // Two halves of the unit matrix: the products are the values themselves.
      const auto width = static_cast<size_t>(2 * dim);
      std::vector<float> unit(width * width, 0.0F);
      for (size_t i = 0; i < width; ++i) unit[i * width + i] = 1.0F;
      const auto* bytes = reinterpret_cast<const std::byte*>(unit.data());
      const WeightView halves[] = {{bytes, DType::kF32, dim, 2 * dim},
                                   {bytes + dim * 2 * dim * 4, DType::kF32, dim, 2 * dim}};
      const std::unique_ptr<Backend> backend = open_backend(isa);
      const Mat weight = take(backend->add_matrix(halves));
      const Act out = take(backend->add_activation(4, dim));
      const PlainBatch plain(4);
      const Act in = filled_activation(*backend, x, 4, 2 * dim, plain);
      backend->gated_matmul(weight, in, out);
      const std::vector<float> got = read(*backend, out, 4, dim);
      for (int64_t row = 0; row < 4; ++row) {
        for (int64_t i = 0; i < dim; ++i) {
          const double gate = x[static_cast<size_t>(row * 2 * dim + i)];
          const double up = x[static_cast<size_t>(row * 2 * dim + dim + i)];
          const double expected = gate / (1.0 + std::exp(-gate)) * up;
          CHECK(std::fabs(got[static_cast<size_t>(row * dim + i)] - expected) <=
                1e-6 * std::fabs(expected) + 1e-30);
        }
      }
    }
  }
}

TEST_CASE("too little memory is an error with both figures, and what was refused takes nothing") {
  CpuConfig config;
  config.max_memory_bytes = 1 << 20;
  config.thread_count = 1;
  std::unique_ptr<Backend> backend = take(open_cpu_backend(config));
  CHECK(backend->memory_total_bytes() == 1 << 20);
  CHECK(backend->memory_used_bytes() == 0);
  const TestMatrix small = random_matrix(DType::kF32, 64, 64, 1);
  const WeightView view = small.view();
  take(backend->add_matrix({&view, 1}));
  const uint64_t used = backend->memory_used_bytes();
  CHECK(used >= 64 * 64 * 4);
  CHECK(used < 64 * 64 * 4 + 8192);
  const Result<Act> act = backend->add_activation(1024, 1024);
  REQUIRE_FALSE(act.ok());
  CHECK(act.message().find("4194304 bytes") != std::string::npos);
  CHECK(act.message().find("1048576 bytes") != std::string::npos);
  KvShape shape{2, 2, 64, 16, 1000, DType::kF16};
  const Result<void> kv = backend->make_kv_pool(shape);
  REQUIRE_FALSE(kv.ok());
  CHECK(kv.message().find(std::to_string(backend->kv_page_bytes(shape) * 1000)) !=
        std::string::npos);
  CHECK(backend->memory_used_bytes() == used);
  shape.page_count = INT32_MAX;
  shape.layer_count = 65536;
  shape.kv_head_count = 65536;
  shape.head_dim = 4096;
  CHECK_FALSE(backend->make_kv_pool(shape).ok());
}

TEST_CASE("shapes out of range are refused by name and value") {
  const std::unique_ptr<Backend> backend = open_backend(CpuIsa::kGeneric);
  CHECK(backend->make_kv_pool({1, 1, 64, 8, 4, DType::kF16}).message() ==
        "KV pages: page_tokens is 8, must be 16..256");
  CHECK(backend->make_kv_pool({1, 1, 64, 16, 4, DType::kQ4_0}).message() ==
        "KV pages: type Q4_0, must be F32, F16, BF16 or Q8_0");
  CHECK_FALSE(backend->add_activation(0, 5).ok());
  CHECK_FALSE(backend->reserve_logits(-1, 5).ok());
  CHECK_FALSE(backend->add_vector({}).ok());
}

TEST_CASE("an instruction set or core that is not there is an error when opening") {
  CpuConfig config;
  config.cores = {100000};
  CHECK(open_cpu_backend(config).message().find("core 100000") != std::string::npos);
  config.cores.clear();
  config.thread_count = -3;
  CHECK(open_cpu_backend(config).message().find("-3") != std::string::npos);
  const std::vector<CpuIsa> isas = available_isas();
  CHECK(isas.front() == CpuIsa::kGeneric);
  config.thread_count = 1;
  config.isa = CpuIsa::kAvx512Vnni;
  if (std::find(isas.begin(), isas.end(), CpuIsa::kAvx512Vnni) == isas.end()) {
    CHECK(open_cpu_backend(config).message().find("avx512") != std::string::npos);
  } else {
    CHECK(take(open_cpu_backend(config))->description() == "cpu avx512, 1 thread");
  }
}
