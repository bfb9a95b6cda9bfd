#include "tools/gpu/product_bench.h"

#include <algorithm>
#include <cmath>
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
#include "kernels/quant/quant.h"

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

constexpr size_t kComparedTokens = 128;
// Roundings of weights, of two products and of what becomes of them, each to bfloat16.
constexpr double kLargestDifference = 0.02;

struct Case {
  DType type;
  Shape shape;
  int32_t tokens;
};

std::vector<Case> cases(bool smoke) {
  if (smoke) {
    std::vector<Case> out;
    for (const DType type : {DType::kBF16, DType::kQ4_0, DType::kI8, DType::kF8_E4M3})
      out.push_back({type, kSmall, 70});
    return out;
  }
  std::vector<Case> out;
  for (const DType type : {DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kI8, DType::kF8_E4M3,
                           DType::kQ4_K, DType::kQ6_K}) {
    for (const Shape& shape : {kGateUp, kDown}) {
      // The formats with superblocks want whole ones; 13,696 columns are 53.5.
      if (dtype_info(type).block_elems == 256 && shape.cols % 256 != 0) continue;
      out.push_back({type, shape, 2048});
    }
    out.push_back({type, kGateUp, 128});
    out.push_back({type, kGateUp, 256});
    if (dtype_info(type).block_elems != 256) out.push_back({type, kDown, 256});
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
    if (device_->cublas() == nullptr && !properties->emulated)
      failed("cuBLASLt", "libcublasLt.so.13 is not found: its ways are left out");
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

  void failed(const std::string& name, const std::string& why) {
    Line line;
    line.group = "products";
    line.name = name;
    line.passed = false;
    line.note = why;
    print_(line);
  }

  // Bytes whose bfloat16, fp16 and e4m3 are numbers below two; from `scales_at` on there are scales
  // of rows or tokens.
  Result<DeviceMemory> random_memory(size_t bytes, const char* what, size_t scales_at) {
    auto memory = DeviceMemory::allocate(bytes, what);
    if (!memory) return memory.error();
    auto host = PinnedMemory::allocate(bytes, what);
    if (!host) return host.error();
    std::mt19937 random(1);
    auto* words = host->as<uint32_t>();
    for (size_t i = 0; i < bytes / 4; ++i) {
      words[i] = static_cast<uint32_t>(random()) & 0xBFBFBFBFU;
    }
    for (size_t i = scales_at / 4; i < bytes / 4; ++i)
      host->as<float>()[i] = 0.001F * static_cast<float>(1 + random() % 8);
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
    const auto weight_bytes = static_cast<size_t>(layout->bytes);
    const bool by_row = packed_format(one.type).row_scale;
    auto weight = random_memory(weight_bytes, "weights",
                                by_row ? static_cast<size_t>(layout->scales_offset) : weight_bytes);
    if (!weight) return weight.error();
    // Quantised rows have their tokens' scales behind them.
    const size_t x_bytes = tokens * static_cast<size_t>(one.shape.cols) * (by_row ? 1 : 2);
    auto x = random_memory(x_bytes + (by_row ? tokens * sizeof(float) : 0), "x", x_bytes);
    if (!x) return x.error();
    const auto* token_scales = reinterpret_cast<const float*>(x->data() + x_bytes);
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
    if (one.type == DType::kI8) {
      op.x_int8 = {x->as<int8_t>(), token_scales};
    } else if (one.type == DType::kF8_E4M3) {
      op.x_float8 = {x->as<Float8>(), token_scales, nullptr};
    } else {
      op.x = x->as<Bf16>();
    }
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
    const double rate = by_row ? config_.ceilings.int8_per_s : config_.ceilings.bf16_per_s;
    std::vector<float> by_tile;
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
      const char* name = method == WideMethod::kTile     ? "tile"
                         : method == WideMethod::kCublas ? "cuBLASLt"
                                                         : "warpgroup";
      line.name = std::string(dtype_info(one.type).name) + " " + one.shape.name + ", " +
                  std::to_string(one.tokens) + " tokens, " + name;
      if (way.splits > 1) line.name += ", columns in " + std::to_string(way.splits);
      const auto seconds = seconds_of(op);
      if (!seconds) return seconds.error();
      if (device_->choice(*layout, one.tokens).method != method) {
        failed(line.name, device_->refusal());  // and our kernel was timed in its place
        continue;
      }
      line.value = operations / *seconds * 1e-12;
      if (rate > 0.0) {
        line.share = operations / *seconds / rate;
        line.of = by_row ? "int8" : "bf16";
      }
      // Each way's result against that of our own kernel, which tests hold against a reference.
      const auto values = read(
          y->as<Bf16>(), std::min<size_t>(tokens, kComparedTokens) * static_cast<size_t>(outputs));
      if (!values) return values.error();
      if (method == WideMethod::kTile) by_tile = *values;
      const double difference = worst(*values, by_tile);
      line.passed = difference < kLargestDifference;
      line.note = method == WideMethod::kTile
                      ? std::string()
                      : std::to_string(difference) + " from the tile product at most";
      print_(line);
    }
    return {};
  }

  Result<std::vector<float>> read(const Bf16* at, size_t count) {
    auto host = PinnedMemory::allocate(count * sizeof(Bf16), "y");
    if (!host) return host.error();
    if (auto copied = copy_to_host(host->data(), at, host->bytes(), stream_); !copied)
      return copied.error();
    if (auto done = cuda::wait(stream_); !done) return done.error();
    std::vector<float> out(count);
    for (size_t i = 0; i < count; ++i) out[i] = bf16_to_float(host->as<Bf16>()[i].bits);
    return out;
  }
  // The largest difference, relative to the largest value; infinity where one is no number.
  static double worst(const std::vector<float>& got, const std::vector<float>& expected) {
    double largest = 1e-30;
    double difference = 0.0;
    for (size_t i = 0; i < got.size(); ++i) {
      const double d = std::abs(static_cast<double>(got[i]) - static_cast<double>(expected[i]));
      difference = std::isfinite(d) ? std::max(difference, d) : INFINITY;
      if (!std::isfinite(difference)) return difference;
      largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
    }
    return difference / largest;
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
