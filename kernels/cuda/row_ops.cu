// One block per row for the norms, whose sums are added in a fixed order; one thread per 8 elements
// elsewhere.
#include <string>

#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm_output.h"
#include "kernels/cuda/norm_sums.h"
#include "kernels/cuda/row_ops.h"
#include "kernels/cuda/row_quantize.h"
#include "kernels/cuda/weight_tile.h"

namespace updraft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kVector = 8;  // elements of 16 bytes of bfloat16

// --- embedding ---

struct EmbedArguments {
  PackedWeight table;
  const int32_t* token_ids;
  float* hidden;
  int32_t rows;
  int32_t cols;
};

// A thread decodes what the tile's lane holds of one row: 16 columns of 64, 8 of 32.
template <DType kType>
UPDRAFT_KERNEL(kThreads)
embed_kernel(EmbedArguments in) {
  let_next_start();
  wait_for_previous();
  using Registers = TileRegisters<kType>;
  const int64_t index = static_cast<int64_t>(block_x()) * kThreads + thread_x();
  const int t = static_cast<int>(index % 4);
  const int tile = static_cast<int>(index / 4 % in.table.tiles);
  const int64_t row = index / 4 / in.table.tiles;
  if (row >= in.rows) return;
  const int id = in.token_ids[row];
  const int known = id < 0 ? 0 : id;
  const int half = known % kTileRows / 8;
  const Registers registers =
      fetch_tile<kType>(in.table, known / kTileRows, tile, known % 8 * 4 + t);
  const float row_scale =
      Registers::kFormat.row_scale ? reinterpret_cast<const float*>(in.table.scales)[known] : 1.0F;
  UPDRAFT_UNROLL
  for (int chunk = 0; chunk < Registers::kChunks; ++chunk) {
    const ChunkScales by = chunk_scales(registers, chunk);
    UPDRAFT_UNROLL
    for (int step = 0; step < 2; ++step) {
      uint32_t a[4];
      uint32_t rest[4] = {0, 0, 0, 0};
      make_fragment(registers, 2 * chunk + step, a);
      if constexpr (kType == DType::kF16) make_remainder(registers, 2 * chunk + step, a, rest);
      const int column = (tile * Registers::kChunks + chunk) * kChunk +
                         (kType == DType::kQ6_K ? 16 * step + 4 * t : 8 * t + 4 * step);
      if (column >= in.cols) continue;  // padding
      float scale = row_scale;
      if constexpr (Registers::kScaled) {
        const int group = kType == DType::kQ6_K ? step : 0;
        scale = half == 0 ? by.scale[group][0] : by.scale[group][1];
      }
      const float min = half == 0 ? by.min[0] : by.min[1];
      float* out = in.hidden + row * in.cols + column;
      UPDRAFT_UNROLL
      for (int pair = 0; pair < 2; ++pair) {
        const uint32_t both = half == 0 ? a[2 * pair] : a[2 * pair + 1];
        const uint32_t left = half == 0 ? rest[2 * pair] : rest[2 * pair + 1];
        const float first = low_bf16(both) + low_bf16(left);
        const float second = high_bf16(both) + high_bf16(left);
        out[2 * pair] = id < 0 ? 0.0F : first * scale - min;
        out[2 * pair + 1] = id < 0 ? 0.0F : second * scale - min;
      }
    }
  }
}

template <DType kType>
Result<void> run_embed_of(const EmbedArguments& in, Stream stream) {
  const int64_t threads = int64_t{in.rows} * in.table.tiles * 4;
  LaunchShape shape;
  shape.grid = {static_cast<uint32_t>((threads + kThreads - 1) / kThreads), 1, 1};
  shape.block = {kThreads, 1, 1};
  shape.early_start = true;
  return launch(embed_kernel<kType>, shape, stream, in);
}

// --- norms ---

struct Eight {
  float v[kVector];
};
UPDRAFT_DEVICE Eight load_eight(const Bf16* at) {
  const Vec16 bits = *reinterpret_cast<const Vec16*>(at);
  Eight out;
  UPDRAFT_UNROLL
  for (int i = 0; i < kVector / 2; ++i) {
    out.v[2 * i] = low_bf16(bits.word[i]);
    out.v[2 * i + 1] = high_bf16(bits.word[i]);
  }
  return out;
}
UPDRAFT_DEVICE Eight load_eight(const float* at) {
  Eight out;
  UPDRAFT_UNROLL
  for (int half = 0; half < 2; ++half) {
    const Vec16 bits = reinterpret_cast<const Vec16*>(at)[half];
    UPDRAFT_UNROLL
    for (int i = 0; i < 4; ++i) out.v[4 * half + i] = bits_float(bits.word[i]);
  }
  return out;
}
UPDRAFT_DEVICE void store_eight(float* at, const Eight& in) {
  UPDRAFT_UNROLL
  for (int half = 0; half < 2; ++half) {
    Vec16 bits;
    UPDRAFT_UNROLL
    for (int i = 0; i < 4; ++i) bits.word[i] = float_bits(in.v[4 * half + i]);
    reinterpret_cast<Vec16*>(at)[half] = bits;
  }
}
UPDRAFT_DEVICE void store_eight(Bf16* at, const Eight& in) {
  Vec16 bits;
  UPDRAFT_UNROLL
  for (int i = 0; i < 4; ++i) bits.word[i] = pack_bf16(in.v[2 * i], in.v[2 * i + 1]);
  *reinterpret_cast<Vec16*>(at) = bits;
}

// The sum over the block, in one order; every use in a kernel has a tag of its own.
template <int kTag>
UPDRAFT_DEVICE float block_sum(float value) {
  auto* sums = shared_array<float, kWarps, kTag>();
  UPDRAFT_UNROLL
  for (uint32_t step = 16; step > 0; step /= 2) value += shuffle_xor(value, step);
  if (thread_x() % 32 == 0) sums[thread_x() / 32] = value;
  sync_block();
  float total = 0.0F;
  UPDRAFT_UNROLL
  for (int w = 0; w < kWarps; ++w) total += sums[w];
  return total;
}
UPDRAFT_DEVICE float squares(const Eight& in) {
  float sum = 0.0F;
  UPDRAFT_UNROLL
  for (int i = 0; i < kVector; ++i) sum = fma(in.v[i], in.v[i], sum);
  return sum;
}

// Each thread keeps its elements of the row in shared memory between the passes: no other thread
// reads them.
UPDRAFT_KERNEL(kThreads)
residual_norm_kernel(ResidualNorm in) {
  let_next_start();
  wait_for_previous();
  auto* kept = dynamic_shared<float>();
  const int64_t row_first = static_cast<int64_t>(block_x()) * in.dim;
  const int first = static_cast<int>(thread_x()) * kVector;
  constexpr int kStep = kThreads * kVector;
  const float dim = static_cast<float>(in.dim);

  float delta_factor = 1.0F;
  if (in.delta != nullptr && in.delta_norm != nullptr) {
    float sum = 0.0F;
    for (int c = first; c < in.dim; c += kStep)
      sum += squares(load_eight(in.delta + row_first + c));
    delta_factor = inverse_sqrt(block_sum<0>(sum) / dim + in.eps);
  }
  float sum = 0.0F;
  for (int c = first; c < in.dim; c += kStep) {
    Eight hidden = load_eight(in.hidden + row_first + c);
    if (in.delta != nullptr) {
      Eight delta = load_eight(in.delta + row_first + c);
      if (in.delta_norm != nullptr) {
        const Eight norm = load_eight(in.delta_norm + c);
        UPDRAFT_UNROLL
        for (int i = 0; i < kVector; ++i) delta.v[i] = delta.v[i] * delta_factor * norm.v[i];
      }
      UPDRAFT_UNROLL
      for (int i = 0; i < kVector; ++i) hidden.v[i] += delta.v[i];
      store_eight(in.hidden + row_first + c, hidden);
    }
    store_eight(kept + c, hidden);
    sum += squares(hidden);
  }
  const QuantizedRow quantized{in.out_int8, in.out_float8, in.out_widened};
  const bool quantizes =
      in.out_int8 != nullptr || in.out_float8 != nullptr || in.out_widened != nullptr;
  if (in.out == nullptr && !quantizes) return;
  if (in.factors != nullptr) {
    const int lane = static_cast<int>(thread_x()) % 32;
    float* bands = kept + in.dim;
    for (int c = first; c - lane * kVector < in.dim; c += kStep) {  // whole warps
      Eight hidden = {};
      if (c < in.dim) {
        hidden = load_eight(kept + c);
        const Eight norm = load_eight(in.norm + c);
        Eight out;
        UPDRAFT_UNROLL
        for (int i = 0; i < kVector; ++i) out.v[i] = multiply(hidden.v[i], norm.v[i]);
        store_eight(in.out + row_first + c, out);
      }
      const float sum_of_band = band_sum_of_eight(hidden.v);
      if (c < in.dim && c % kNormBand == 0) bands[c / kNormBand] = sum_of_band;
    }
    sync_block();
    if (thread_x() >= 32) return;
    const float factor = norm_factor(in.dim, in.eps, lane, [&](int band) { return bands[band]; });
    if (lane == 0) in.factors[block_x()] = factor;
    return;
  }

  const float factor = inverse_sqrt(block_sum<1>(sum) / dim + in.eps);
  uint32_t largest = 0;
  for (int c = first; c < in.dim; c += kStep) {
    Eight out = load_eight(kept + c);
    const Eight norm = load_eight(in.norm + c);
    UPDRAFT_UNROLL
    for (int i = 0; i < kVector; ++i) {
      out.v[i] = out.v[i] * factor * norm.v[i];
      largest = larger(largest, size_bits(out.v[i]));
    }
    if (in.out != nullptr) store_eight(in.out + row_first + c, out);
    if (quantizes) store_eight(kept + c, out);
  }
  if (!quantizes) return;

  const float scale = row_scale(block_largest<kWarps>(largest, shared_array<uint32_t, kWarps, 2>()),
                                in.out_int8 != nullptr);
  const float inverse = inverse_scale(scale);
  for (int c = first; c < in.dim; c += kStep) {
    Eight out = load_eight(kept + c);
    UPDRAFT_UNROLL
    for (int i = 0; i < kVector; ++i) out.v[i] *= inverse;
    store_quantized(quantized, row_first + c, out.v);
  }
  if (thread_x() == 0) in.out_scale[block_x()] = scale;
}

// --- the gated unit ---

UPDRAFT_KERNEL(kThreads)
gated_unit_kernel(GatedUnit in) {
  let_next_start();
  wait_for_previous();
  const int64_t index = static_cast<int64_t>(block_x()) * kThreads + thread_x();
  const int vectors = in.n / kVector;
  const int64_t row = index / vectors;
  if (row >= in.rows) return;
  const int64_t column = index % vectors * kVector;
  const Eight gate = load_eight(in.in + row * 2 * in.n + column);
  Eight out = load_eight(in.in + row * 2 * in.n + in.n + column);
  UPDRAFT_UNROLL
  for (int i = 0; i < kVector; ++i) {
    out.v[i] = silu_times(gate.v[i], out.v[i]);
  }
  store_eight(in.out + row * in.n + column, out);
}

LaunchShape vectors_shape(int64_t vectors) {
  LaunchShape shape;
  shape.grid = {static_cast<uint32_t>((vectors + kThreads - 1) / kThreads), 1, 1};
  shape.block = {kThreads, 1, 1};
  return shape;
}

}  // namespace

Result<void> run_embed(const Embed& op, Stream stream) {
  if (op.rows < 1 || op.layout.cols % kChunk != 0) {
    return fail("embed: " + std::to_string(op.rows) + " rows of " + std::to_string(op.layout.cols) +
                " columns (a multiple of 32)");
  }
  const EmbedArguments in{PackedWeight::of(op.layout, op.table), op.token_ids, op.hidden, op.rows,
                          static_cast<int32_t>(op.layout.cols)};
  switch (op.layout.type) {
    case DType::kQ4_0:
      return run_embed_of<DType::kQ4_0>(in, stream);
    case DType::kQ5_0:
      return run_embed_of<DType::kQ5_0>(in, stream);
    case DType::kQ5_1:
      return run_embed_of<DType::kQ5_1>(in, stream);
    case DType::kQ8_0:
      return run_embed_of<DType::kQ8_0>(in, stream);
    case DType::kQ4_K:
      return run_embed_of<DType::kQ4_K>(in, stream);
    case DType::kQ5_K:
      return run_embed_of<DType::kQ5_K>(in, stream);
    case DType::kQ6_K:
      return run_embed_of<DType::kQ6_K>(in, stream);
    case DType::kBF16:
      return run_embed_of<DType::kBF16>(in, stream);
    case DType::kF16:
      return run_embed_of<DType::kF16>(in, stream);
    case DType::kF8_E4M3:
      return run_embed_of<DType::kF8_E4M3>(in, stream);
    default:
      return fail(std::string("embed: no layout for ") + dtype_info(op.layout.type).name);
  }
}

Result<void> run_residual_norm(const ResidualNorm& op, Stream stream) {
  if (op.rows < 1 || op.dim < kVector || op.dim % kVector != 0 || op.dim > 32768) {
    return fail("residual norm: " + std::to_string(op.rows) + " rows of " + std::to_string(op.dim) +
                " elements (a multiple of 8, at most 32768)");
  }
  const int quantized =
      (op.out_int8 != nullptr) + (op.out_float8 != nullptr) + (op.out_widened != nullptr);
  if (quantized > 1 || (quantized == 1 && op.out_scale == nullptr)) {
    return fail("residual norm: " + std::to_string(quantized) +
                " kinds of quantised rows (at most one, with scales)");
  }
  if (op.factors != nullptr && (op.dim % kNormBand != 0 || op.out == nullptr || quantized != 0)) {
    return fail("residual norm: factors of rows of " + std::to_string(op.dim) +
                " elements (a multiple of 16, as bfloat16)");
  }
  LaunchShape shape;
  shape.grid = {static_cast<uint32_t>(op.rows), 1, 1};
  shape.block = {kThreads, 1, 1};
  shape.shared_bytes = static_cast<size_t>(op.dim) * sizeof(float);
  if (op.factors != nullptr) shape.shared_bytes += shape.shared_bytes / kNormBand;
  shape.early_start = true;
  return launch(residual_norm_kernel, shape, stream, op);
}

Result<void> run_gated_unit(const GatedUnit& op, Stream stream) {
  if (op.rows < 1 || op.n < kVector || op.n % kVector != 0) {
    return fail("gated unit: " + std::to_string(op.rows) + " rows of " + std::to_string(op.n) +
                " elements (a multiple of 8)");
  }
  LaunchShape shape = vectors_shape(int64_t{op.rows} * op.n / kVector);
  shape.early_start = true;
  return launch(gated_unit_kernel, shape, stream, op);
}

}  // namespace updraft::cuda
