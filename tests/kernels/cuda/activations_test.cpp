// Quantised activations: the backend against the double-precision one, whose weights and inputs of
// products are rounded to the same grids.
#include "kernels/cuda/runtime_simt.h"
#include "kernels/cuda/wide_gemm_cublas_simt.h"
#include "kernels/simt/stream.h"
#include "tests/common/engine/reference_backend.h"
#include "tests/kernels/cuda/backend_support.h"
#include "tests/kernels/cuda/plain_cublas.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;
using updraft::testing::ReferenceBackend;

namespace {

// Products of layers as they are with one scale per row on either side.
class QuantizedReference final : public ReferenceBackend {
 public:
  explicit QuantizedReference(CudaActivations kind) : kind_(kind) {}

  Result<Mat> add_split_matrix(std::span<const WeightView> parts, const Split&) override {
    std::vector<std::vector<float>> values;
    std::vector<WeightView> rounded;
    for (const WeightView& part : parts) {
      const auto* from = reinterpret_cast<const float*>(part.data);  // MemoryModel's are f32
      values.emplace_back(from, from + part.rows * part.cols);
      std::vector<double> row(static_cast<size_t>(part.cols));
      for (int64_t r = 0; r < part.rows; ++r) {
        float* at = values.back().data() + r * part.cols;
        std::copy_n(at, part.cols, row.begin());
        round(row.data(), part.cols);
        std::transform(row.begin(), row.end(), at, [](double v) { return static_cast<float>(v); });
      }
      rounded.push_back({reinterpret_cast<const std::byte*>(values.back().data()), DType::kF32,
                         part.rows, part.cols});
    }
    const auto made = add_matrix(rounded);
    if (made) quantized_.push_back(*made);
    return made;
  }
  void matmul(Mat weight, Vec bias, Act in, Act out) override {
    if (std::find(quantized_.begin(), quantized_.end(), weight) != quantized_.end()) round_rows(in);
    ReferenceBackend::matmul(weight, bias, in, out);
  }
  void gated_matmul(Mat gate_up, Act in, Act out) override {
    round_rows(in);
    ReferenceBackend::gated_matmul(gate_up, in, out);
  }

 private:
  void round_rows(Act in) {
    for (int64_t r = 0; r < rows(); ++r) round(&at(in, r, 0), act(in).cols);
  }
  void round(double* row, int64_t cols) const {
    double largest = 0;
    for (int64_t c = 0; c < cols; ++c) largest = std::max(largest, std::abs(row[c]));
    const bool int8 = kind_ == CudaActivations::kInt8;
    const double scale = largest / (int8 ? 127 : 448);
    for (int64_t c = 0; c < cols && scale > 0; ++c) {
      row[c] = scale * (int8 ? std::nearbyint(row[c] / scale) : to_e4m3(row[c] / scale));
    }
  }
  // Four bits of mantissa with the hidden one, down to 2^-9.
  static double to_e4m3(double v) {
    if (v == 0) return 0;
    const int exponent = std::max(std::ilogb(v), -6);
    const double step = std::ldexp(1.0, exponent - 3);
    return std::nearbyint(v / step) * step;
  }

  const CudaActivations kind_;
  std::vector<Mat> quantized_;
};

CudaConfig with(CudaActivations activations) {
  CudaConfig config;
  config.activations = activations;
  return config;
}

struct EmulatedLibrary {
  std::vector<PlainCublas::Call> calls;
  EmulatedLibrary() {
    set_emulated_cublas([this] { return std::make_unique<PlainCublas>(&calls, simt::submit); });
  }
  ~EmulatedLibrary() { set_emulated_cublas({}); }
};

}  // namespace

// A value that bfloat16 moved over the edge between two codes is a whole step away: so the
// difference is a part of what the grids themselves lose, not of bfloat16's.
TEST_CASE("products of quantised rows are those of the reference that rounds to the same grids") {
  struct Case {
    CudaActivations kind;
    Architecture architecture;
    double error_max;  // of its logits, relative to the largest
  };
  for (const Case& c : {Case{CudaActivations::kInt8, Architecture::kQwen2, 4e-2},
                        Case{CudaActivations::kInt8, Architecture::kGlm4, 4e-2},
                        Case{CudaActivations::kFp8, Architecture::kLlama, 0.14}}) {
    CAPTURE(static_cast<int>(c.kind));
    CAPTURE(static_cast<int>(c.architecture));
    const auto model = bf16_model(gpu_hyperparameters(c.architecture), 12);
    Runner plain(*model, std::make_unique<ReferenceBackend>());
    Runner rounded(*model, std::make_unique<QuantizedReference>(c.kind));
    Runner run(*model, open_emulated(with(c.kind)));
    Runner::Sequence a;
    Runner::Sequence b;
    Runner::Sequence d;
    const auto tokens = random_tokens(12, 3);
    const auto got = run.step(a, tokens);
    const auto expected = rounded.step(b, tokens);
    const auto exact = plain.step(d, tokens);
    const double error = worst(got, expected);
    const double loss = worst(expected, exact);
    MESSAGE("difference " << error << ", of the rounded reference from the exact one " << loss);
    CHECK(error < c.error_max);
    CHECK(error < loss);  // nearer to what it should round to than that is to the exact one
    // The next rows too, in a step that is captured and one that is replayed.
    for (const int32_t token : random_tokens(3, 4)) {
      CHECK(worst(run.step(a, {token}), rounded.step(b, {token})) < c.error_max);
    }
    CHECK(run.backend->description().find(std::string(cuda_activations_name(c.kind)) +
                                          " activations") != std::string::npos);
  }
}

TEST_CASE("a row's quantised products have the same bits alone, among few rows and among many") {
  for (const CudaActivations kind : {CudaActivations::kInt8, CudaActivations::kFp8}) {
    CAPTURE(static_cast<int>(kind));
    const auto model = bf16_model(gpu_hyperparameters(), 7);
    Runner run(*model, open_emulated(with(kind)));
    const auto tokens = random_tokens(70, 21);
    Runner::Sequence whole;
    const auto at_once = run.prefill(whole, tokens);  // more than a skinny product takes
    Runner::Sequence chunked;
    run.prefill(chunked, {tokens.begin(), tokens.begin() + 65});
    run.prefill(chunked, {tokens.begin() + 65, tokens.begin() + 68});
    CHECK(run.prefill(chunked, {tokens[68], tokens[69]}) == at_once);
    // Decoded alone and among others.
    Runner::Sequence alone;
    run.prefill(alone, tokens);
    const auto one = run.step({{&whole, {5}}});
    Runner::Sequence beside;
    run.prefill(beside, {1, 2, 3});
    CHECK(run.step({{&beside, {6}}, {&alone, {5}}})[1] == one[0]);
  }
}

TEST_CASE("the library multiplies what is quantised where there are many rows") {
  EmulatedLibrary library;
  const auto model = bf16_model(gpu_hyperparameters(), 8);
  const auto tokens = random_tokens(70, 22);
  for (const CudaActivations kind : {CudaActivations::kInt8, CudaActivations::kFp8}) {
    CAPTURE(static_cast<int>(kind));
    CudaConfig config = with(kind);
    config.tune = false;
    Runner rounded(*model, std::make_unique<QuantizedReference>(kind));
    Runner run(*model, open_emulated(config));
    Runner::Sequence a;
    Runner::Sequence b;
    library.calls.clear();
    const auto got = run.prefill(a, tokens);
    CHECK(worst({got}, {rounded.prefill(b, tokens)}) < 0.14);
    const CublasKind expected =
        kind == CudaActivations::kInt8 ? CublasKind::kInt8 : CublasKind::kFloat8;
    CHECK(library.calls.size() == 8);  // four a layer
    for (const auto& call : library.calls) CHECK(call.kind == expected);
    // And what it is tuned with.
    config.tune = true;
    library.calls.clear();
    Runner tuned(*model, open_emulated(config));
    size_t quantized = 0;
    for (const auto& call : library.calls) quantized += call.kind == expected ? 1 : 0;
    CHECK(quantized > 0);
  }
}

TEST_CASE(
    "weights that are quantised in the file read bfloat16, whatever activations are asked for") {
  const auto model = bf16_model(gpu_hyperparameters(), 9);
  std::vector<std::vector<std::byte>> storage;
  for (LayerWeights& layer : model->weights().layers) {
    for (WeightView* view : {&layer.q, &layer.o, &layer.down}) {
      const auto* from = reinterpret_cast<const float*>(view->data);
      std::vector<std::byte>& to = storage.emplace_back(
          static_cast<size_t>(view->rows * row_bytes(DType::kQ8_0, view->cols)));
      for (int64_t r = 0; r < view->rows; ++r) {
        quantize_row(DType::kQ8_0, {from + r * view->cols, static_cast<size_t>(view->cols)},
                     to.data() + r * row_bytes(DType::kQ8_0, view->cols));
      }
      *view = {to.data(), DType::kQ8_0, view->rows, view->cols};
    }
  }
  Runner reference(*model, std::make_unique<ReferenceBackend>());
  Runner run(*model, open_emulated(with(CudaActivations::kInt8)));
  Runner::Sequence a;
  Runner::Sequence b;
  const auto tokens = random_tokens(9, 3);
  CHECK(worst(run.step(a, tokens), reference.step(b, tokens)) < 5e-2);
}

TEST_CASE("a device without tensor cores for the format says so") {
  EmulatedDevices devices;
  devices.compute_major = 8;
  set_emulated_devices(devices);
  const auto refused = open_cuda_backend(with(CudaActivations::kFp8));
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.message() ==
        "cuda: activations = fp8: emulated GPU has compute capability 8.0; its tensor cores take "
        "e4m3 from 9.0 on (H100); int8 would do");
  CHECK(open_cuda_backend(with(CudaActivations::kInt8)).ok());
  set_emulated_devices({});
  CudaConfig both = with(CudaActivations::kInt8);
  both.fp8_weights = true;
  CHECK(open_cuda_backend(both).message() ==
        "cuda: weights = fp8 with activations = int8: one format multiplies");
}
