// Several devices as one: the logits of a single device and its greedy tokens, for every
// architecture, number of devices and share; and what cannot be cut is an error that says so.
#include "kernels/parallel/tensor_parallel.h"

#include <doctest/doctest.h>

#include <cmath>
#include <deque>

#include "common/engine/forward.h"
#include "kernels/parallel/comm.h"
#include "kernels/quant/quant.h"
#include "tests/common/engine/async_backend.h"
#include "tests/common/engine/core_runner.h"
#include "tests/common/engine/reference_backend.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

std::vector<std::unique_ptr<Backend>> cpu_ranks(int32_t count, bool exact = true) {
  const auto comms = make_host_comms(count);
  std::vector<std::unique_ptr<Backend>> ranks;
  for (const auto& comm : comms) {
    CpuConfig config;
    config.thread_count = 1;
    config.pin = false;
    config.exact = exact;
    config.comm = comm;
    auto backend = open_cpu_backend(config);
    REQUIRE_MESSAGE(backend.ok(), backend.message());
    ranks.push_back(std::move(*backend));
  }
  return ranks;
}

std::unique_ptr<Backend> group(int32_t count, std::vector<double> weights = {}, bool exact = true) {
  auto made = open_tensor_parallel(cpu_ranks(count, exact), std::move(weights));
  REQUIRE_MESSAGE(made.ok(), made.message());
  return std::move(*made);
}

// Heads and inner dimension that four devices can share.
Hyperparameters shared_hyperparameters(Architecture architecture) {
  Hyperparameters h = small_hyperparameters(architecture);
  h.head_count = 8;
  h.kv_head_count = architecture == Architecture::kGlm4 ? 2 : 4;
  h.hidden_dim = 64;
  h.ff_dim = 7 * 32;  // cut into pieces of 32
  return h;
}

// A second sequence decodes beside the first one's prompt.
std::vector<float> logits_of(const Model& model, Backend& backend, DType kv_type = DType::kF32) {
  auto forward = Forward::create(model, backend, {32, 8}, {});
  REQUIRE_MESSAGE(forward.ok(), forward.message());
  KvShape shape = Forward::kv_shape(model.hyperparameters());
  shape.page_tokens = 16;
  shape.page_count = 6;
  shape.type = kv_type;
  const auto pool = backend.make_kv_pool(shape);
  REQUIRE_MESSAGE(pool.ok(), pool.message());
  std::vector<float> out;
  const auto step = [&](std::vector<int32_t> ids, std::vector<int32_t> positions,
                        std::vector<SequenceSlice> slices, std::vector<int32_t> rows) {
    const auto read = forward->run(backend, {ids, positions, slices, rows});
    out.insert(out.end(), read.begin(), read.end());
  };
  const int32_t first[] = {3, 1};
  const int32_t second[] = {0, 5};
  step({7, 8, 9}, {0, 1, 2}, {{0, 3, 0, second}}, {2});
  std::vector<int32_t> ids;
  std::vector<int32_t> positions;
  for (int32_t i = 0; i < 20; ++i) {
    ids.push_back((i * 37 + 5) % 96);
    positions.push_back(i);
  }
  ids.push_back(10);
  positions.push_back(3);
  step(ids, positions, {{0, 20, 0, first}, {20, 1, 3, second}}, {18, 19, 20});
  step({11, 12}, {20, 4}, {{0, 1, 20, first}, {1, 1, 4, second}}, {0, 1});
  return out;
}

double difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double most = 0.0;
  double peak = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    most = std::max(most, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
    peak = std::max(peak, std::abs(static_cast<double>(b[i])));
  }
  return most / peak;
}

std::vector<std::vector<int32_t>> greedy(const std::shared_ptr<const Model>& model,
                                         std::unique_ptr<Backend> backend) {
  const auto engine = open_engine(small_engine(), model, std::move(backend));
  std::vector<SequenceRequest> requests;
  for (uint64_t id = 1; id <= 5; ++id) {
    std::vector<int32_t> prompt;
    for (int32_t i = 0; i < 30; ++i) prompt.push_back((static_cast<int32_t>(id) * 13 + 5 * i) % 96);
    requests.push_back(greedy_request(id, std::move(prompt), 30));
  }
  return run_all(*engine, requests);
}

// The model with its layers' matrices in `type`.
std::shared_ptr<MemoryModel> quantised(const Hyperparameters& h, DType type,
                                       std::deque<std::vector<std::byte>>& storage) {
  auto model = random_model(h, 5);
  const auto convert = [&](WeightView& view) {
    std::vector<std::byte> bytes(static_cast<size_t>(view.rows * row_bytes(type, view.cols)));
    for (int64_t r = 0; r < view.rows; ++r) {
      const auto* row = reinterpret_cast<const float*>(view.data) + r * view.cols;
      quantize_row(type, {row, static_cast<size_t>(view.cols)},
                   bytes.data() + r * row_bytes(type, view.cols));
    }
    storage.push_back(std::move(bytes));
    view.data = storage.back().data();
    view.type = type;
  };
  for (LayerWeights& layer : model->weights().layers) {
    for (WeightView* view :
         {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down})
      convert(*view);
  }
  return model;
}

constexpr Architecture kArchitectures[] = {Architecture::kLlama, Architecture::kQwen2,
                                           Architecture::kQwen3, Architecture::kGlm4};

}  // namespace

TEST_CASE("two, three and four devices give the logits of one, for every architecture") {
  for (const Architecture architecture : kArchitectures) {
    const auto model = random_model(shared_hyperparameters(architecture), 8);
    const auto expected = logits_of(*model, *exact_cpu());
    for (const int32_t devices : {2, 3, 4}) {
      CAPTURE(static_cast<int>(architecture));
      CAPTURE(devices);
      CHECK(difference(logits_of(*model, *group(devices)), expected) < 2e-6);
    }
  }
}

TEST_CASE("unequal shares change nothing but who computes what") {
  for (const Architecture architecture : {Architecture::kQwen2, Architecture::kGlm4}) {
    const auto model = random_model(shared_hyperparameters(architecture), 8);
    const auto expected = logits_of(*model, *exact_cpu());
    for (const auto& weights : std::vector<std::vector<double>>{{3, 1}, {1, 5, 2}, {1, 1, 1, 9}}) {
      const auto devices = static_cast<int32_t>(weights.size());
      CHECK(difference(logits_of(*model, *group(devices, weights)), expected) < 2e-6);
    }
  }
}

TEST_CASE("an output bias is added once") {
  auto model = random_model(shared_hyperparameters(Architecture::kLlama), 8);
  for (LayerWeights& layer : model->weights().layers) layer.o_bias.assign(64, 0.75F);
  const auto expected = logits_of(*model, *exact_cpu());
  CHECK(difference(logits_of(*model, *group(2)), expected) < 2e-6);
}

TEST_CASE("quantised matrices are cut between blocks, rows and columns") {
  Hyperparameters h = shared_hyperparameters(Architecture::kQwen2);
  std::deque<std::vector<std::byte>> storage;
  h.head_dim = 32;
  for (const DType type : {DType::kQ4_0, DType::kQ8_0, DType::kF16}) {
    const auto model = quantised(h, type, storage);
    const auto expected = logits_of(*model, *exact_cpu());
    for (const int32_t devices : {2, 3, 4})
      CHECK(difference(logits_of(*model, *group(devices)), expected) < 4e-6);
  }
  h.hidden_dim = 256;
  h.head_dim = 64;
  h.ff_dim = 1024;
  for (const DType type : {DType::kQ4_K, DType::kQ6_K}) {
    const auto model = quantised(h, type, storage);
    const auto expected = logits_of(*model, *exact_cpu());
    CHECK(difference(logits_of(*model, *group(2)), expected) < 4e-6);
  }
}

TEST_CASE("matrices that have no cut between blocks are refused with the place") {
  Hyperparameters h = shared_hyperparameters(Architecture::kQwen2);
  std::deque<std::vector<std::byte>> storage;
  h.hidden_dim = 256;
  h.ff_dim = 1024;
  h.head_dim = 32;  // eight heads are one block of 256 columns
  const auto model = quantised(h, DType::kQ4_K, storage);
  const auto backend = group(2);
  const auto forward = Forward::create(*model, *backend, {32, 8}, {});
  REQUIRE_FALSE(forward.ok());
  CHECK(forward.message().find("256 x 256 in Q4_K cannot be cut at column 128") !=
        std::string::npos);

  const auto many = group(4);
  Hyperparameters few = small_hyperparameters();
  few.head_count = 2;
  const auto too_few = Forward::create(*random_model(few, 1), *many, {32, 8}, {});
  REQUIRE_FALSE(too_few.ok());
  CHECK(too_few.message().find("2 heads cannot be shared by 4 devices") != std::string::npos);
}

TEST_CASE("an engine on a group says what it says on one device, exact and fast, chunks and all") {
  for (const Architecture architecture : kArchitectures) {
    CAPTURE(static_cast<int>(architecture));
    const auto model = random_model(shared_hyperparameters(architecture), 12);
    const auto expected = greedy(model, exact_cpu());
    CHECK(greedy(model, group(2)) == expected);
    CHECK(greedy(model, group(4, {2, 1, 1, 1})) == expected);
    CHECK(greedy(model, group(3, {}, false)).size() == expected.size());
  }
}

TEST_CASE("devices that sample run ahead together and say what one device says") {
  const auto comms = make_host_comms(2);
  std::vector<std::unique_ptr<Backend>> ranks;
  for (const auto& comm : comms) {
    CpuConfig config;
    config.thread_count = 1;
    config.pin = false;
    config.exact = true;
    config.comm = comm;
    auto inner = open_cpu_backend(config);
    REQUIRE(inner.ok());
    ranks.push_back(std::make_unique<AsyncBackend>(std::move(*inner)));
  }
  auto made = open_tensor_parallel(std::move(ranks));
  REQUIRE(made.ok());
  CHECK((*made)->samples());
  CHECK((*made)->steps_in_flight_max() == 2);
  const auto model = random_model(shared_hyperparameters(Architecture::kQwen3), 12);
  CHECK(greedy(model, std::move(*made)) == greedy(model, exact_cpu()));
}

TEST_CASE("a group whose devices differ does not run ahead") {
  std::vector<std::unique_ptr<Backend>> ranks;
  ranks.push_back(std::make_unique<AsyncBackend>(std::make_unique<ReferenceBackend>()));
  ranks.push_back(std::make_unique<AsyncBackend>(exact_cpu()));
  const auto made = open_tensor_parallel(std::move(ranks));
  REQUIRE(made.ok());
  CHECK((*made)->samples());
  CHECK((*made)->steps_in_flight_max() == 1);
  CHECK((*made)->description().find("reference") != std::string::npos);
}

namespace {

// A device with too little memory for the whole: its third matrix is one too many.
std::unique_ptr<Backend> small_device() {
  auto device = std::make_unique<AsyncBackend>(std::make_unique<ReferenceBackend>());
  device->matrices_max = 2;
  return device;
}

}  // namespace

TEST_CASE("a device that fails while weights are loaded is named") {
  auto ranks = cpu_ranks(3);
  ranks[1] = small_device();
  auto made = open_tensor_parallel(std::move(ranks));
  REQUIRE(made.ok());
  const auto model = random_model(shared_hyperparameters(Architecture::kLlama), 8);
  const auto forward = Forward::create(*model, **made, {32, 8}, {});
  REQUIRE_FALSE(forward.ok());
  CHECK(forward.message().find(
            "device 1 of 3 (behind reference, double precision): no memory is left") !=
        std::string::npos);
}

TEST_CASE("weights that are none are refused, and free memory is the proportion without any") {
  CHECK(open_tensor_parallel(cpu_ranks(2), {1.0}).message().find("1 weights for 2") !=
        std::string::npos);
  CHECK_FALSE(open_tensor_parallel(cpu_ranks(2), {1.0, 0.0}).ok());
  CHECK(open_tensor_parallel(cpu_ranks(2)).ok());
}

TEST_CASE(
    "e4m3 weights with scales of their rows are the same on one device and cut among several") {
  const Hyperparameters h = shared_hyperparameters(Architecture::kQwen2);
  const auto model = random_model(h, 21);
  Fp8Rows rows;
  rows.convert(model->weights());
  ReferenceBackend reference;
  const auto expected = logits_of(*model, reference);
  CHECK(difference(logits_of(*model, *group(2)), expected) < 1e-2);
  CHECK(difference(logits_of(*model, *group(3, {1.0, 2.0, 1.0})), expected) < 1e-2);
  for (const bool exact : {true, false}) {
    CpuConfig config;
    config.thread_count = 2;
    config.pin = false;
    config.exact = exact;
    auto one = open_cpu_backend(config);
    REQUIRE(one.ok());
    CHECK(difference(logits_of(*model, **one), expected) < 1e-2);
  }
}
