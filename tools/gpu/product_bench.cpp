#include "tools/gpu/product_bench.h"

#include <algorithm>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/median.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/skinny_gemm.h"
#include "kernels/cuda/warpgroup_check.h"
#include "kernels/cuda/warpgroup_gemm.h"

namespace updraft::gpu {
namespace {

using namespace updraft::cuda;
using Print = std::function<void(const Line&)>;

struct Shape {
  const char* name;
  int64_t rows;
  int64_t cols;
  bool gated;
};
constexpr Shape kGateUp{"gate and up", 27392, 4096, true};
constexpr Shape kDown{"down", 4096, 13696, false};
constexpr Shape kSmall{"small", 64, 256, true};

struct Case {
  DType type;
  Shape shape;
  int32_t tokens;
};

std::vector<Case> cases(bool smoke) {
  if (smoke) return {{DType::kBF16, kSmall, 70}, {DType::kQ4_0, kSmall, 70}};
  std::vector<Case> out;
  for (const DType type : {DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_K, DType::kQ6_K}) {
    for (const Shape& shape : {kGateUp, kDown}) {
      // The formats with superblocks want whole ones; 13,696 columns are 53.5.
      if (dtype_info(type).block_elems == 256 && shape.cols % 256 != 0) continue;
      out.push_back({type, shape, 2048});
    }
    out.push_back({type, kGateUp, 128});
    out.push_back({type, kGateUp, 256});
  }
  return out;
}

class Bench {
 public:
  Bench(const ProductBenchConfig& config, const Print& print) : config_(config), print_(print) {}

  Result<void> run() {
    auto stream = OwnedStream::create();
    if (!stream) return stream.error();
    stream_ = stream->get();
    const auto properties = device_properties(0);
    if (!properties) return properties.error();
    const int32_t capability = 10 * properties->compute_major + properties->compute_minor;
    if (auto judged = judge("warpgroup product = tile product", capability,
                            [&] { return check_warpgroup_gemm(stream_); });
        !judged) {
      return judged.error();
    } else {
      right_ = *judged;
    }
    if (auto judged = judge("warpgroup attention = mma.sync attention", capability,
                            [&] { return check_warpgroup_attention(stream_); });
        !judged) {
      return judged.error();
    }
    auto cublas = Cublas::open();
    if (!cublas) return cublas.error();
    auto device =
        GemmDevice::open({properties->multiprocessor_count, capability}, std::move(*cublas));
    if (!device) return device.error();
    device_ = std::move(*device);
    device_->set_warpgroup(right_);
    for (const Case& one : cases(config_.smoke)) {
      if (auto done = measure(one); !done) return done;
    }
    return {};
  }

 private:
  // Whether a kernel for capability 9.0 is right: a line, and false elsewhere.
  template <typename Check>
  Result<bool> judge(const char* name, int32_t capability, const Check& check) {
    Line line;
    line.group = "products";
    line.name = name;
    if (capability != 90) {
      line.note = "not for capability " + std::to_string(capability);
      print_(line);
      return false;
    }
    const auto verdict = check();
    line.passed = verdict.ok() && verdict->right;
    line.note = verdict ? verdict->why : verdict.message();
    print_(line);
    if (!verdict) return verdict.error();
    return verdict->right;
  }

  // Bytes whose bfloat16, fp16 and e4m3 are numbers below two.
  Result<DeviceMemory> random_memory(size_t bytes, const char* what) {
    auto memory = DeviceMemory::allocate(bytes, what);
    if (!memory) return memory.error();
    auto host = PinnedMemory::allocate(bytes, what);
    if (!host) return host.error();
    std::mt19937 random(1);
    auto* words = host->as<uint32_t>();
    for (size_t i = 0; i < bytes / 4; ++i) {
      words[i] = static_cast<uint32_t>(random()) & 0xBFBFBFBFU;
    }
    if (auto copied = copy_to_device(memory->data(), host->data(), bytes, stream_); !copied) {
      return copied.error();
    }
    if (auto done = cuda::wait(stream_); !done) return done.error();
    return memory;
  }

  // Median seconds of one product among many.
  Result<double> seconds_of(const Gemm& op) {
    const int count = config_.smoke ? 1 : 20;
    std::vector<double> seconds;
    for (int repetition = 0; repetition < (config_.smoke ? 1 : 6); ++repetition) {
      const int64_t before_ns = monotonic_ns();
      for (int i = 0; i < count; ++i) {
        if (auto done = run_gemm(op, stream_); !done) return done.error();
      }
      if (auto done = cuda::wait(stream_); !done) return done.error();
      const double each = static_cast<double>(monotonic_ns() - before_ns) * 1e-9 / count;
      if (repetition > 0 || config_.smoke) seconds.push_back(each);  // the first one warms up
    }
    return median(seconds);
  }

  Result<void> measure(const Case& one) {
    const auto layout = PackedLayout::of(one.type, one.shape.rows, one.shape.cols, one.shape.gated);
    if (!layout) return layout.error();
    const int64_t outputs = one.shape.gated ? one.shape.rows / 2 : one.shape.rows;
    const auto tokens = static_cast<size_t>(one.tokens);
    auto weight = random_memory(static_cast<size_t>(layout->bytes), "weights");
    if (!weight) return weight.error();
    auto x = random_memory(tokens * static_cast<size_t>(one.shape.cols) * 2, "x");
    if (!x) return x.error();
    auto y = DeviceMemory::allocate(tokens * static_cast<size_t>(outputs) * 2, "y");
    if (!y) return y.error();
    auto scratch =
        DeviceMemory::allocate(gemm_scratch_bytes(*device_, *layout, one.tokens), "scratch");
    if (!scratch) return scratch.error();
    if (auto filled = fill(scratch->data(), 0, kSkinnyCounterBytes, stream_); !filled) {
      return filled;
    }
    Gemm op;
    op.device = device_.get();
    op.layout = *layout;
    op.weight = weight->data();
    op.x = x->as<Bf16>();
    op.x_stride = one.shape.cols;
    op.tokens = one.tokens;
    op.y_bf16 = y->as<Bf16>();
    op.y_stride = outputs;
    op.scratch = {scratch->data(), scratch->bytes()};

    const double operations = 2.0 * static_cast<double>(one.shape.rows) *
                              static_cast<double>(one.shape.cols) * one.tokens;
    Line line;
    line.group = "products";
    line.unit = "T/s";
    std::vector<WideChoice> ways = {{WideMethod::kTile, {}}, {WideMethod::kCublas, {}}};
    const int32_t splits_max =
        warpgroup_gemm_splits_max(*layout, one.tokens, device_->facts().multiprocessor_count);
    for (int32_t splits = 1; splits <= splits_max; splits *= 2) {
      ways.push_back({WideMethod::kWarpgroup, {}, splits});
    }
    for (const WideChoice& way : ways) {
      const WideMethod method = way.method;
      device_->set_choice(*layout, one.tokens, way);
      if (device_->choice(*layout, one.tokens).method != method) continue;  // not here
      const auto seconds = seconds_of(op);
      if (!seconds) return seconds.error();
      const char* name = method == WideMethod::kTile     ? "tile"
                         : method == WideMethod::kCublas ? "cuBLASLt"
                                                         : "warpgroup";
      line.value = operations / *seconds * 1e-12;
      line.name = std::string(dtype_info(one.type).name) + " " + one.shape.name + ", " +
                  std::to_string(one.tokens) + " tokens, " + name;
      if (way.splits > 1) line.name += ", columns in " + std::to_string(way.splits);
      if (config_.ceilings.bf16_per_s > 0.0) {
        line.share = operations / *seconds / config_.ceilings.bf16_per_s;
        line.of = "bf16";
      }
      print_(line);
    }
    return {};
  }

  const ProductBenchConfig& config_;
  const Print& print_;
  Stream stream_ = nullptr;
  bool right_ = false;
  std::unique_ptr<GemmDevice> device_;
};

}  // namespace

Result<void> run_product_bench(const ProductBenchConfig& config, const Print& print) {
  return Bench(config, print).run();
}

}  // namespace updraft::gpu
