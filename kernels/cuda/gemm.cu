// The choice between the kernels, and the passes around them. The scratch, in this order: the
// skinny product's counters, which nothing else touches, and its partial sums; in their place, for
// wide products, cuBLASLt's workspace, a tile of unpacked weights, a tile of the product, or
// arranged activations and the sums of split columns; behind all, widened activations.
#include <algorithm>
#include <string>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_passes.h"
#include "kernels/cuda/skinny_gemm.h"
#include "kernels/cuda/tile_gemm.h"
#include "kernels/cuda/unpack_weights.h"
#include "kernels/cuda/warpgroup_gemm.h"

namespace updraft::cuda {
namespace {

std::string shape_text(const Gemm& op) {
  return std::to_string(op.layout.rows) + " x " + std::to_string(op.layout.cols) + " " +
         dtype_info(op.layout.type).name + " with " + std::to_string(op.tokens) + " tokens";
}

Result<void> check_scratch(const Gemm& op) {
  const size_t wanted = gemm_scratch_bytes(*op.device, op.layout, op.tokens);
  if (op.scratch.bytes < wanted) {
    return fail("gemm: " + shape_text(op) + ": a scratch of " + std::to_string(op.scratch.bytes) +
                " bytes (" + std::to_string(wanted) + ")");
  }
  return {};
}

Result<void> check(const Gemm& op) {
  const bool float8 =
      op.x_float8.x != nullptr || (op.x_float8.widened != nullptr && op.tokens <= kSkinnyTokensMax);
  const int inputs = (op.x != nullptr) + (op.x_int8.x != nullptr) + float8;
  if (op.device == nullptr || op.weight == nullptr || inputs != 1 || op.tokens < 1) {
    return fail("gemm: " + shape_text(op) + ": a device, weights, one input and tokens are wanted");
  }
  const bool int8 = op.x_int8.x != nullptr;
  if (int8 != (op.layout.type == DType::kI8) || (float8 && op.layout.type != DType::kF8_E4M3)) {
    return fail("gemm: " + shape_text(op) + ": activations of another kind");
  }
  if ((int8 && op.x_int8.scale == nullptr) || (float8 && op.x_float8.scale == nullptr)) {
    return fail("gemm: " + shape_text(op) + ": quantised activations without their scales");
  }
  const int64_t unit = op.x != nullptr ? 8 : 16;
  if (op.layout.cols % 32 != 0 || op.x_stride < op.layout.cols || op.x_stride % unit != 0) {
    return fail("gemm: " + shape_text(op) + ": a stride of " + std::to_string(op.x_stride) +
                " (columns in 32s, strides in " + std::to_string(unit) + "s)");
  }
  const bool factors = op.normed.band_sums != nullptr || op.normed.factors != nullptr;
  if (factors && (op.x == nullptr || !gemm_takes_factors(*op.device, op.layout, op.tokens))) {
    return fail("gemm: " + shape_text(op) + ": no product that takes a norm's factors");
  }
  if (op.residual.hidden != nullptr) {
    if (op.tokens > kSkinnyTokensMax) {
      return fail("gemm: " + shape_text(op) + " into the residual stream (up to " +
                  std::to_string(kSkinnyTokensMax) + ")");
    }
    return check_scratch(op);
  }
  const int64_t y_cols = op.layout.gated ? op.layout.rows / 2 : op.layout.rows;
  if ((op.y_bf16 == nullptr) == (op.y_f32 == nullptr) || op.y_stride < y_cols ||
      (op.layout.gated && op.y_bf16 == nullptr) || (op.accumulate && op.y_f32 == nullptr)) {
    return fail("gemm: " + shape_text(op) + ": one output with a stride of at least " +
                std::to_string(y_cols));
  }
  return check_scratch(op);
}

// Bound of the product of the tile of weights that is unpacked at a time.
constexpr int64_t kProductBytesMax = int64_t{256} << 20;
constexpr int32_t kFloat8Capability = 90;  // the one that cuBLASLt takes a scale per row on
constexpr int32_t kWarpgroupCapability = 90;
constexpr int64_t kRowsUnit = 128;  // of a tile that is not the last

int64_t rounded_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Rows whose unpacked weights fit; bfloat16 where a format may also be computed so.
int64_t unpacked_rows_max(const GemmDevice& device, const PackedLayout& layout) {
  const int64_t element_bytes = layout.type == DType::kI8 ? 1 : 2;
  const int64_t fit =
      device.facts().unpacked_bytes_max / (layout.cols * element_bytes) / kRowsUnit * kRowsUnit;
  return std::min(layout.rows_padded, std::max(fit, kRowsUnit));
}
int64_t product_rows_max(const GemmDevice& device, const PackedLayout& layout, int64_t tokens) {
  const int64_t fit = kProductBytesMax / (tokens * 4) / kRowsUnit * kRowsUnit;
  return std::min(unpacked_rows_max(device, layout), std::max(fit, kRowsUnit));
}

// Of any number of tokens up to tokens_max: more of them have fewer splits.
int64_t partial_bytes_max(const GemmDevice& device, const PackedLayout& layout,
                          int64_t tokens_max) {
  constexpr int64_t kStep = 256;  // within one of them the least tokens have the most splits
  const int32_t multiprocessors = device.facts().multiprocessor_count;
  size_t most = 0;
  for (int64_t before = 0; before < tokens_max; before += kStep) {
    const auto least = static_cast<int32_t>(std::max<int64_t>(before, kSkinnyTokensMax) + 1);
    const int32_t splits = warpgroup_gemm_splits_max(layout, least, multiprocessors);
    if (splits == 1 || least > tokens_max) break;
    most = std::max(most, warpgroup_gemm_partial_bytes(layout, least, splits));
  }
  return static_cast<int64_t>(most);
}

struct ScratchPlan {
  int64_t workspace = 0;  // offsets
  int64_t arranged = 0;
  int64_t partial = 0;
  int64_t unpacked = 0;
  int64_t product = 0;
  int64_t widened = 0;
  int64_t bytes = 0;
};

ScratchPlan plan_scratch(const GemmDevice& device, const PackedLayout& layout, int64_t tokens_max) {
  const int32_t splits = skinny_gemm_splits(layout, device.facts().multiprocessor_count);
  const auto counters = static_cast<int64_t>(kSkinnyCounterBytes);
  const int64_t skinny =
      std::max(counters, static_cast<int64_t>(skinny_gemm_workspace_bytes(layout, splits)));
  ScratchPlan out;
  int64_t at = skinny;
  if (device.cublas() != nullptr && tokens_max > kSkinnyTokensMax) {
    out.workspace = counters;
    out.unpacked = out.workspace + static_cast<int64_t>(kCublasWorkspaceBytes);
    out.product = rounded_up(out.unpacked + unpacked_rows_max(device, layout) * layout.cols *
                                                (layout.type == DType::kI8 ? 1 : 2),
                             256);
    // As large as the product of any smaller number of tokens.
    const int64_t product =
        std::max(std::min(tokens_max * unpacked_rows_max(device, layout) * 4, kProductBytesMax),
                 tokens_max * kRowsUnit * 4);
    at = std::max(at, out.product + product);
  }
  out.arranged = counters;
  if (device.facts().capability == kWarpgroupCapability && tokens_max > kSkinnyTokensMax) {
    out.partial = rounded_up(out.arranged + tokens_max * layout.cols * 2, 256);
    at = std::max(at, out.partial + partial_bytes_max(device, layout, tokens_max));
  }
  out.widened = rounded_up(at, 256);
  if (layout.type == DType::kF8_E4M3) at = out.widened + tokens_max * layout.cols * 2;
  out.bytes = rounded_up(at, 256);
  return out;
}

// One tile of rows through cuBLASLt: unpacked, multiplied, finished.
struct CublasTile {
  const Gemm* op;
  const Bf16* x;  // or null: the bytes of op
  int64_t x_stride;
  const float* token_scales;
  const CublasAlgorithm* algorithm;
  ScratchPlan plan;
};

struct TileWork {
  UnpackWeights unpack;
  CublasProduct product;
  FinishProduct finish;
  bool bytes = false;  // unpacked as bytes
  bool wants_finish = false;
};

TileWork plan_tile(const CublasTile& tile, int64_t row_first, int64_t row_count) {
  const Gemm& op = *tile.op;
  const PackedLayout& layout = op.layout;
  TileWork out;
  out.bytes = tile.x == nullptr;
  out.unpack.layout = layout;
  out.unpack.weight = op.weight;
  out.unpack.row_first = row_first;
  out.unpack.row_count = rounded_up(row_count, kTileRows);
  out.unpack.out = op.scratch.data + tile.plan.unpacked;

  const float* row_scales =
      packed_format(layout.type).row_scale
          ? reinterpret_cast<const float*>(op.weight + layout.scales_offset) + row_first
          : nullptr;
  const bool int8 = layout.type == DType::kI8;
  const bool float8 = out.bytes && !int8;
  FinishProduct& finish = out.finish;
  // What cuBLASLt does not apply itself.
  finish.row_scales = float8 ? nullptr : row_scales;
  finish.token_scales = float8 ? nullptr : tile.token_scales;
  const bool scaled = finish.row_scales != nullptr || finish.token_scales != nullptr;
  const bool aside =
      layout.gated || int8 || (op.accumulate && (scaled || float8 || op.bias != nullptr));
  out.wants_finish = aside || scaled || op.bias != nullptr;

  const int64_t y_first = layout.gated ? row_first / 2 : row_first;
  finish.y_bf16 = op.y_bf16 == nullptr ? nullptr : op.y_bf16 + y_first;
  finish.y_f32 = op.y_f32 == nullptr ? nullptr : op.y_f32 + y_first;
  finish.y_stride = op.y_stride;

  CublasProduct& product = out.product;
  product.kind = int8 ? CublasKind::kInt8 : float8 ? CublasKind::kFloat8 : CublasKind::kBf16;
  product.rows = static_cast<int32_t>(row_count);
  product.cols = static_cast<int32_t>(layout.cols);
  product.tokens = op.tokens;
  product.weight = out.unpack.out;
  product.x = int8     ? static_cast<const void*>(op.x_int8.x)
              : float8 ? static_cast<const void*>(op.x_float8.x)
                       : tile.x;
  product.x_stride = out.bytes ? op.x_stride : tile.x_stride;
  product.row_scales = row_scales;
  product.token_scales = tile.token_scales;
  product.workspace = op.scratch.data + tile.plan.workspace;
  if (aside) {
    product.y = op.scratch.data + tile.plan.product;
    product.y_stride = rounded_up(row_count, kTileRows);
    // Of bytes the library takes multiples of 4 rows alone; rows beyond the matrix are unpacked
    // too.
    if (int8) product.rows = static_cast<int32_t>(product.y_stride);
    // Rounded once, at the end, where scales or a bias are still to come.
    product.wide_output = !int8 && (!layout.gated || scaled || op.bias != nullptr);
  } else {
    product.y = op.y_f32 != nullptr ? static_cast<void*>(finish.y_f32) : finish.y_bf16;
    product.y_stride = op.y_stride;
    product.wide_output = op.y_f32 != nullptr;
    product.accumulate = op.accumulate;
  }

  if (int8) {
    finish.product_int32 = static_cast<const int32_t*>(product.y);
  } else if (product.wide_output) {
    finish.product_f32 = static_cast<const float*>(product.y);
  } else {
    finish.product_bf16 = static_cast<const Bf16*>(product.y);
  }
  finish.product_stride = product.y_stride;
  if (op.bias != nullptr) {
    finish.bias = op.bias + y_first;
    finish.up_bias = op.bias + layout.rows / 2 + y_first;
  }
  finish.tokens = op.tokens;
  finish.rows = static_cast<int32_t>(row_count);
  finish.gated = layout.gated;
  finish.accumulate = op.accumulate;
  return out;
}

Result<void> run_tile(const CublasTile& tile, int64_t row_first, int64_t row_count, Stream stream) {
  const TileWork work = plan_tile(tile, row_first, row_count);
  const Result<void> unpacked =
      work.bytes ? run_unpack_bytes(work.unpack, stream) : run_unpack_bf16(work.unpack, stream);
  if (!unpacked) return unpacked;
  const Result<void> multiplied =
      tile.op->device->cublas()->run(work.product, *tile.algorithm, stream);
  if (!multiplied || !work.wants_finish) return multiplied;
  return run_finish_product(work.finish, stream);
}

Result<void> run_cublas(const CublasTile& tile, Stream stream) {
  const PackedLayout& layout = tile.op->layout;
  const int64_t rows_max = product_rows_max(*tile.op->device, layout, tile.op->tokens);
  for (int64_t row = 0; row < layout.rows; row += rows_max) {
    const int64_t count = std::min(rows_max, layout.rows - row);
    if (Result<void> done = run_tile(tile, row, count, stream); !done) return done;
  }
  return {};
}

// The activations as a kernel takes them; what a `cublas` product of e4m3 takes has no x.
struct Input {
  const Bf16* x;
  int64_t x_stride;
  const float* token_scales;
  bool widened;
};
Input input_of(const Gemm& op, bool cublas) {
  if (op.x != nullptr || op.x_int8.x != nullptr) {
    return {op.x, op.x_stride, op.x_int8.scale, false};
  }
  if (op.x_float8.widened != nullptr && !cublas) {
    return {op.x_float8.widened, op.x_stride, op.x_float8.scale, false};
  }
  if (cublas && op.device->facts().capability == kFloat8Capability) {
    return {nullptr, op.x_stride, op.x_float8.scale, false};
  }
  const ScratchPlan plan = plan_scratch(*op.device, op.layout, op.tokens);
  return {reinterpret_cast<const Bf16*>(op.scratch.data + plan.widened), op.layout.cols,
          op.x_float8.scale, true};
}

// choice: null: the skinny product.
Result<void> run_chosen(const Gemm& op, const WideChoice* choice, Stream stream) {
  const GemmDevice& device = *op.device;
  const PackedLayout& layout = op.layout;
  const bool cublas = choice != nullptr && choice->method == WideMethod::kCublas;
  const Input input = input_of(op, cublas);
  if (input.widened) {
    WidenFloat8 widen;
    widen.x = op.x_float8.x;
    widen.x_stride = op.x_stride;
    widen.tokens = op.tokens;
    widen.cols = static_cast<int32_t>(layout.cols);
    widen.out = const_cast<Bf16*>(input.x);
    if (Result<void> widened = run_widen_float8(widen, stream); !widened) return widened;
  }
  if (cublas) {
    return run_cublas({&op, input.x, input.x_stride, input.token_scales, &choice->algorithm,
                       plan_scratch(device, layout, op.tokens)},
                      stream);
  }
  SkinnyGemm product;
  product.layout = layout;
  product.weight = op.weight;
  product.x = input.x;
  product.x_int8 = op.x_int8.x;
  product.token_scales = input.token_scales;
  product.x_stride = input.x_stride;
  product.tokens = op.tokens;
  product.bias = op.bias;
  product.y_bf16 = op.y_bf16;
  product.y_f32 = op.y_f32;
  product.y_stride = op.y_stride;
  product.accumulate = op.accumulate;
  product.residual = op.residual;
  product.normed = op.normed;
  product.splits = skinny_gemm_splits(layout, device.facts().multiprocessor_count);
  product.workspace = op.scratch.data;
  if (choice != nullptr && choice->method == WideMethod::kWarpgroup) {
    const ScratchPlan plan = plan_scratch(device, layout, op.tokens);
    WarpgroupGemm wide;
    wide.product = product;
    wide.arranged = reinterpret_cast<Bf16*>(op.scratch.data + plan.arranged);
    wide.multiprocessor_count = device.facts().multiprocessor_count;
    // What was measured with more tokens is not more than that; what a file says may be.
    wide.splits = std::min(choice->splits,
                           warpgroup_gemm_splits_max(layout, op.tokens, wide.multiprocessor_count));
    wide.counters = reinterpret_cast<uint32_t*>(op.scratch.data);
    wide.partial = op.scratch.data + plan.partial;
    return run_warpgroup_gemm(wide, stream);
  }
  return choice == nullptr ? run_skinny_gemm(product, stream) : run_tile_gemm(product, stream);
}

Result<void> add_cublas_candidates(const Gemm& op, int algorithms_max,
                                   std::vector<WideChoice>* candidates) {
  const GemmDevice& device = *op.device;
  const Input input = input_of(op, true);
  const CublasAlgorithm heuristic;
  const CublasTile tile{&op,
                        input.x,
                        input.x_stride,
                        input.token_scales,
                        &heuristic,
                        plan_scratch(device, op.layout, op.tokens)};
  const int64_t rows = product_rows_max(device, op.layout, op.tokens);
  const TileWork work = plan_tile(tile, 0, std::min(rows, op.layout.rows));
  Result<std::vector<CublasAlgorithm>> algorithms =
      device.cublas()->candidates(work.product, algorithms_max);
  if (!algorithms) return algorithms.error();
  for (const CublasAlgorithm& algorithm : *algorithms) {
    candidates->push_back({WideMethod::kCublas, algorithm, 1});
  }
  return {};
}

}  // namespace

size_t gemm_scratch_bytes(const GemmDevice& device, const PackedLayout& layout,
                          int32_t tokens_max) {
  return static_cast<size_t>(plan_scratch(device, layout, tokens_max).bytes);
}

uint64_t gemm_library_bytes_max(const GemmDevice& device, uint64_t tokens_max) {
  constexpr uint64_t kTileBytesOfToken = uint64_t{128} << 10;
  if (device.cublas() == nullptr) return 0;
  return kSkinnyCounterBytes + kCublasWorkspaceBytes +
         static_cast<uint64_t>(device.facts().unpacked_bytes_max) +
         std::min(static_cast<uint64_t>(kProductBytesMax), tokens_max * kTileBytesOfToken);
}

bool gemm_takes_factors(const GemmDevice& device, const PackedLayout& layout, int32_t tokens) {
  return layout.type != DType::kI8 &&
         (tokens <= kSkinnyTokensMax || device.choice(layout, tokens).method == WideMethod::kTile);
}

Result<void> run_gemm(const Gemm& op, Stream stream) {
  if (Result<void> checked = check(op); !checked) return checked;
  if (op.tokens <= kSkinnyTokensMax) return run_chosen(op, nullptr, stream);
  const WideChoice choice = op.device->choice(op.layout, op.tokens);
  const Result<void> done = run_chosen(op, &choice, stream);
  // What is added to may have been added to in part.
  if (done || choice.method != WideMethod::kCublas || op.accumulate) return done;
  op.device->refuse_cublas(op.layout, op.tokens, done.message());
  const WideChoice own;
  return run_chosen(op, &own, stream);
}

Result<void> tune_gemm(const Gemm& op, int algorithms_max, const GemmTimer& seconds_of,
                       Stream stream) {
  if (Result<void> checked = check(op); !checked) return checked;
  GemmDevice& device = *op.device;
  if (op.tokens <= kSkinnyTokensMax) return {};
  std::vector<WideChoice> candidates = {WideChoice{}};
  if (device.warpgroup() && warpgroup_gemm_takes(op.layout.type)) {
    const int32_t splits_max =
        warpgroup_gemm_splits_max(op.layout, op.tokens, device.facts().multiprocessor_count);
    for (int32_t splits = 1; splits <= splits_max; splits *= 2) {
      candidates.push_back({WideMethod::kWarpgroup, {}, splits});
    }
  }
  if (device.cublas() != nullptr) {
    if (Result<void> added = add_cublas_candidates(op, algorithms_max, &candidates); !added) {
      device.refuse_cublas(op.layout, op.tokens, added.message());
    }
  }
  if (candidates.size() == 1) return {};
  const WideChoice* best = nullptr;
  double best_seconds = 0;
  for (const WideChoice& candidate : candidates) {
    const Result<double> seconds = seconds_of([&] { return run_chosen(op, &candidate, stream); });
    if (!seconds && candidate.method == WideMethod::kCublas) {
      device.refuse_cublas(op.layout, op.tokens, seconds.message());
      continue;
    }
    if (!seconds) return seconds.error();
    if (best == nullptr || *seconds < best_seconds) {
      best = &candidate;
      best_seconds = *seconds;
    }
  }
  device.set_choice(op.layout, op.tokens, *best);
  return {};
}

}  // namespace updraft::cuda
