// Two GPUs as one, on the emulator: the sums of a tensor-parallel group stand in the same streams
// and graphs as the kernels around them.
#include <barrier>
#include <span>

#include "kernels/cuda/device_budget.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/runtime_simt.h"
#include "kernels/parallel/tensor_parallel.h"
#include "tests/kernels/cuda/backend_support.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;

namespace {

// What NCCL is between GPUs: work in each device's stream that waits for the others'.
struct Group {
  explicit Group(int32_t size) : arrived(size), buffers(static_cast<size_t>(size)) {}
  std::barrier<> arrived;
  std::vector<std::span<Bf16>> buffers;
};

class EmulatedComm final : public Comm {
 public:
  EmulatedComm(std::shared_ptr<Group> group, int32_t rank)
      : group_(std::move(group)), rank_(rank) {}
  int32_t rank() const override { return rank_; }
  int32_t size() const override { return static_cast<int32_t>(group_->buffers.size()); }
  std::string description() const override { return "emulated"; }
  Result<void> all_reduce(void* values, int64_t count, Values type, CUstream_st* stream) override {
    REQUIRE(type == Values::kBF16);
    return simt::submit(stream, [group = group_, rank = rank_, values, count]() -> Result<void> {
      group->buffers[static_cast<size_t>(rank)] = {static_cast<Bf16*>(values),
                                                   static_cast<size_t>(count)};
      group->arrived.arrive_and_wait();
      CHECK(group->buffers[0].size() == static_cast<size_t>(count));
      if (rank == 0) {
        for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
          float sum = 0.0F;
          for (const auto& buffer : group->buffers) sum += bf16_to_float(buffer[i].bits);
          for (const auto& buffer : group->buffers) buffer[i].bits = float_to_bf16(sum);
        }
      }
      group->arrived.arrive_and_wait();
      return {};
    });
  }

 private:
  const std::shared_ptr<Group> group_;
  const int32_t rank_;
};

struct Gpus {
  explicit Gpus(int32_t count) {
    EmulatedDevices devices;
    devices.count = count;
    set_emulated_devices(devices);
    // Work that waits for another device's must not be left for later by one of them alone.
    for (int32_t device = count - 1; device >= 0; --device) {
      REQUIRE(use_device(device).ok());
      set_stream_order({simt::Eagerness::kAtOnce, 1});
    }
  }
  ~Gpus() {
    for (int32_t device = 7; device >= 0; --device) {
      if (use_device(device).ok()) set_stream_order({});
    }
    set_emulated_devices({});
  }
};

std::unique_ptr<Backend> open_group(std::vector<std::shared_ptr<EmulatedComm>>& comms,
                                    const CudaConfig& settings = {},
                                    std::vector<double> weights = {}) {
  const auto group = std::make_shared<Group>(2);
  std::vector<std::unique_ptr<Backend>> ranks;
  for (int32_t rank = 0; rank < 2; ++rank) {
    comms.push_back(std::make_shared<EmulatedComm>(group, rank));
    CudaConfig config = settings;
    config.device = rank;
    config.comm = comms.back();
    ranks.push_back(open_emulated(config));
  }
  auto made = open_tensor_parallel(std::move(ranks), std::move(weights));
  REQUIRE_MESSAGE(made.ok(), made.message());
  return std::move(*made);
}

}  // namespace

TEST_CASE("two GPUs give the logits of one, in steps that are named, captured and replayed") {
  const Gpus gpus(2);
  for (const Architecture architecture : {Architecture::kQwen2, Architecture::kGlm4}) {
    CAPTURE(static_cast<int>(architecture));
    Hyperparameters h = gpu_hyperparameters(architecture);
    h.ff_dim = 192;  // three pieces: one has two of them
    const auto model = bf16_model(h, 3);
    std::vector<std::shared_ptr<EmulatedComm>> comms;
    Runner one(*model, open_emulated());
    Runner two(*model, open_group(comms));
    Runner::Sequence of_one;
    Runner::Sequence of_two;
    const auto prompt = random_tokens(7, 5);
    CHECK(worst(two.step(of_two, prompt), one.step(of_one, prompt)) < 2e-2);
    for (const int32_t token : random_tokens(4, 6))
      CHECK(worst(two.step(of_two, {token}), one.step(of_one, {token})) < 2e-2);
  }
}

TEST_CASE("two GPUs go on together from tokens that the host has not read") {
  const Gpus gpus(2);
  Hyperparameters h = gpu_hyperparameters(Architecture::kLlama);
  h.ff_dim = 192;
  const auto model = bf16_model(h, 9);
  std::vector<std::shared_ptr<EmulatedComm>> comms;
  Runner two(*model, open_group(comms));
  CHECK(two.backend->samples());
  CHECK(two.backend->has_own_memory());
  CHECK(two.backend->memory_total_bytes() == 2 * plannable_bytes(uint64_t{1} << 30));
  REQUIRE(two.backend->steps_in_flight_max() == 2);
  Runner::Sequence sequence;
  std::vector<int32_t> tokens;
  two.begin_sampled({{&sequence, 11, -1}});
  for (int i = 0; i < 4; ++i) {
    two.begin_sampled({{&sequence, 0, 0}});
    tokens.push_back(two.backend->read_tokens()[0]);
  }
  tokens.push_back(two.backend->read_tokens()[0]);
  // The same with every token read and given back.
  Runner again(*model, open_group(comms));
  Runner::Sequence other;
  std::vector<int32_t> read;
  int32_t next = 11;
  for (int i = 0; i < 5; ++i) {
    again.begin_sampled({{&other, next, -1}});
    next = again.backend->read_tokens()[0];
    read.push_back(next);
  }
  CHECK(tokens == read);
}

TEST_CASE("each GPU of a group streams what it has no room for, to the same bits") {
  const Gpus gpus(2);
  Hyperparameters h = gpu_hyperparameters(Architecture::kQwen2);
  h.ff_dim = 192;
  const auto model = bf16_model(h, 4);
  std::vector<std::shared_ptr<EmulatedComm>> comms;
  const std::vector<double> alike = {1.0, 1.0};  // the memory of both is not
  Runner resident(*model, open_group(comms, {}, alike));
  auto tight = open_group(comms, {}, alike);
  REQUIRE(tight->keeps_weights_outside());
  // The first has no room for a layer's matrix, the second has for all.
  const uint64_t rooms[] = {1, 0};
  tight->set_weight_rooms(rooms);
  Runner streaming(*model, std::move(tight));
  const std::string text = streaming.backend->description();
  CHECK(text.find("weight matrices in host memory") != std::string::npos);
  CHECK(text.find("weight matrices in host memory") ==
        text.rfind("weight matrices in host memory"));
  Runner::Sequence a;
  Runner::Sequence b;
  const auto prompt = random_tokens(7, 5);
  CHECK(streaming.step(a, prompt) == resident.step(b, prompt));
  // Three sequences: a step that one GPU replays, padded, and the other does by hand.
  Runner::Sequence more[2][2];
  for (int i = 0; i < 2; ++i) {
    streaming.step(more[0][i], {i + 1, i + 2});
    resident.step(more[1][i], {i + 1, i + 2});
  }
  for (const int32_t token : random_tokens(4, 6)) {
    CHECK(streaming.step({{&a, {token}}, {&more[0][0], {3}}, {&more[0][1], {4}}}) ==
          resident.step({{&b, {token}}, {&more[1][0], {3}}, {&more[1][1], {4}}}));
  }
}

TEST_CASE(
    "layers of a group are kept as a single GPU keeps them, and its devices say what they need") {
  const Gpus gpus(2);
  Hyperparameters h = gpu_hyperparameters(Architecture::kLlama);
  h.ff_dim = 192;
  const auto model = bf16_model(h, 4);
  CudaConfig fp8;
  fp8.fp8_weights = true;
  std::vector<std::shared_ptr<EmulatedComm>> comms;
  Runner plain(*model, open_group(comms));
  Runner small(*model, open_group(comms, fp8));
  CHECK(small.backend->memory_used_bytes() < plain.backend->memory_used_bytes());
  KvShape shape = Forward::kv_shape(h);
  shape.page_tokens = 16;
  shape.page_count = 1;
  shape.type = DType::kBF16;
  const auto needs = plain.backend->needs({1000, 6000}, shape, 80);
  REQUIRE(needs.size() == 2);
  uint64_t pages = 0;
  for (const DeviceNeeds& device : needs) {
    CHECK(device.weight_bytes == 1000 + 3000);  // its copy, and its half
    CHECK(device.free_bytes > 0);
    CHECK(device.free_bytes < uint64_t{1} << 30);
    pages += device.page_bytes;
  }
  CHECK(pages == plain.backend->kv_page_bytes(shape));
}
