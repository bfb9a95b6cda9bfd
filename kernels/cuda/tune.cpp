// The list of what is to be chosen, what of it the file has, and the rest through tune_gemm().
#include "kernels/cuda/tune.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/skinny_gemm.h"

namespace updraft::cuda {
namespace {

constexpr int kAlgorithmsMax =
    6;  // of cuBLASLt; its heuristic rarely has the best one further down
constexpr int kRunsMax = 256;

struct Case {
  const TunedProduct* product;
  int32_t tokens;
};

// Each key once.
std::map<std::string, Case> cases_of(std::span<const TunedProduct> products) {
  std::map<std::string, Case> out;
  for (const TunedProduct& product : products) {
    for (int64_t tokens = 2 * kSkinnyTokensMax; tokens < 2 * int64_t{product.tokens_max};
         tokens *= 2) {
      const auto run = static_cast<int32_t>(std::min<int64_t>(tokens, product.tokens_max));
      if (run <= kSkinnyTokensMax) continue;
      out.emplace(GemmDevice::choice_key(product.layout, run), Case{&product, run});
    }
  }
  return out;
}

Gemm gemm_of(GemmDevice& device, const Case& one, const TuneRoom& room) {
  const TunedProduct& product = *one.product;
  const PackedLayout& layout = product.layout;
  Gemm op;
  op.device = &device;
  op.layout = layout;
  op.weight = product.weight;
  op.x_stride = layout.cols;
  op.tokens = one.tokens;
  op.y_stride = layout.gated ? layout.rows / 2 : layout.rows;
  op.scratch = room.scratch;
  size_t in_bytes = static_cast<size_t>(one.tokens) * static_cast<size_t>(layout.cols);
  if (!product.quantized) {
    op.x = reinterpret_cast<const Bf16*>(room.in.data());
    in_bytes *= sizeof(Bf16);
  } else if (layout.type == DType::kI8) {
    op.x_int8 = {reinterpret_cast<const int8_t*>(room.in.data()), room.in_scales.data()};
  } else {
    op.x_float8.x = reinterpret_cast<const Float8*>(room.in.data());
    op.x_float8.scale = room.in_scales.data();
  }
  if (product.wide_output) {
    op.y_f32 = reinterpret_cast<float*>(room.out.data());
  } else {
    op.y_bf16 = reinterpret_cast<Bf16*>(room.out.data());
  }
  const size_t out_bytes = static_cast<size_t>(one.tokens) * static_cast<size_t>(op.y_stride) *
                           (product.wide_output ? sizeof(float) : sizeof(Bf16));
  UPDRAFT_CHECK(room.in.size() >= in_bytes && room.out.size() >= out_bytes, "room for the widest");
  UPDRAFT_CHECK(!product.quantized || room.in_scales.size() >= static_cast<size_t>(one.tokens),
                "room for scales");
  return op;
}

// What the file has of these keys; empty after a note where it is of no use.
std::string known_text(const TuneCache& cache, const std::map<std::string, Case>& cases,
                       const std::function<void(const std::string&)>& note) {
  const auto lines = read_choices(choices_path(cache.folder, cache.of), cache.of);
  if (!lines) {
    if (note) note(lines.message() + "; measured anew");
    return {};
  }
  std::string out;
  for (const auto& [key, line] : *lines) {
    if (cases.contains(key)) out += line + "\n";
  }
  return out;
}

}  // namespace

Result<TuneReport> tune_products(GemmDevice& device, std::span<const TunedProduct> products,
                                 const TuneRoom& room, const std::optional<TuneCache>& cache,
                                 const GemmTimer& timer, Stream stream,
                                 const std::function<void(const std::string&)>& note,
                                 const Progress& progress) {
  const std::map<std::string, Case> cases = cases_of(products);
  TuneReport report;
  ChoiceLines known;
  if (cache) {
    const std::string text = known_text(*cache, cases, note);
    if (const auto set = device.set_choices_text(text); set) {
      known = choice_lines(text);
    } else if (note) {
      note(choices_path(cache->folder, cache->of) + ": " + set.message() + "; measured anew");
    }
  }
  uint64_t done = 0;
  for (const auto& [key, one] : cases) {
    ++done;
    if (known.contains(key)) {
      ++report.known_count;
      continue;
    }
    if (progress) progress("choosing products", done, cases.size());
    const auto tuned = tune_gemm(gemm_of(device, one, room), kAlgorithmsMax, timer, stream);
    if (!tuned) return tuned.error();
  }
  if (!device.refusal().empty() && note)
    note(device.refusal() + "; such products take our own kernels");
  ChoiceLines fresh = choice_lines(device.choices_text());
  for (const auto& [key, line] : known) fresh.erase(key);
  report.measured_count = static_cast<int32_t>(fresh.size());
  if (!cache || fresh.empty()) return report;
  const auto kept = add_choices(choices_path(cache->folder, cache->of), cache->of, fresh);
  if (!kept && note) note(kept.message() + "; measured at each start");
  return report;
}

GemmTimer host_timer(Stream stream, double least_ms) {
  return [stream, least_ms](const std::function<Result<void>()>& work) -> Result<double> {
    const auto seconds = [&](int runs) -> Result<double> {
      const int64_t begin_ns = monotonic_ns();
      for (int i = 0; i < runs; ++i) {
        if (auto ran = work(); !ran) return ran.error();
      }
      if (auto waited = wait(stream); !waited) return waited.error();
      return static_cast<double>(monotonic_ns() - begin_ns) / kNsPerSecond;
    };
    if (auto warm = seconds(1); !warm) return warm.error();
    int runs = 1;
    auto once = seconds(runs);
    while (once && *once < least_ms / 1000 && runs < kRunsMax) {
      runs *= 2;
      once = seconds(runs);
    }
    double best = std::numeric_limits<double>::infinity();
    for (int repeat = 0; once && repeat < 3; ++repeat) {
      best = std::min(best, *once / runs);
      once = seconds(runs);
    }
    if (!once) return once.error();
    return best;
  };
}

}  // namespace updraft::cuda
