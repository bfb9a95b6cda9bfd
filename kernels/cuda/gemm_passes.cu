// One thread per output, or per 8 of them; quantising takes a block per row.
#include <string>

#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm_output.h"
#include "kernels/cuda/gemm_passes.h"
#include "kernels/cuda/row_quantize.h"

namespace updraft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kVector = 8;
constexpr int kArrangedCols = 32;

UPDRAFT_DEVICE float as_float(Bf16 value) { return to_float(value); }
UPDRAFT_DEVICE float as_float(float value) { return value; }
UPDRAFT_DEVICE float as_float(int32_t value) { return static_cast<float>(value); }

template <typename T>
UPDRAFT_KERNEL(kThreads)
finish_kernel(FinishProduct in, const T* product) {
  let_next_start();
  wait_for_previous();
  const int outputs = in.gated ? in.rows / 2 : in.rows;
  const int64_t index = static_cast<int64_t>(block_x()) * kThreads + thread_x();
  const int token = static_cast<int>(index / outputs);
  const int output = static_cast<int>(index % outputs);
  if (token >= in.tokens) return;
  const T* sums = product + token * in.product_stride;
  const auto value_of = [&](int row, const float* bias) {
    float value = as_float(sums[row]);
    if (in.row_scales != nullptr) value = multiply(value, in.row_scales[row]);
    if (in.token_scales != nullptr) value = multiply(value, in.token_scales[token]);
    if (bias != nullptr) value += bias[output];
    return value;
  };
  const int64_t at = token * in.y_stride + output;
  if (in.gated) {
    const int row = output / kTileRows * 2 * kTileRows + output % kTileRows;
    const float gate = value_of(row, in.bias);
    const float up = value_of(row + kTileRows, in.up_bias);
    in.y_bf16[at] = to_bf16(silu_times(to_float(to_bf16(gate)), to_float(to_bf16(up))));
    return;
  }
  const float value = value_of(output, in.bias);
  if (in.y_f32 != nullptr) {
    in.y_f32[at] = in.accumulate ? in.y_f32[at] + value : value;
  } else {
    in.y_bf16[at] = to_bf16(value);
  }
}

UPDRAFT_KERNEL(kThreads)
widen_float8_kernel(WidenFloat8 in) {
  let_next_start();
  wait_for_previous();
  const int vectors = in.cols / kVector;
  const int64_t index = static_cast<int64_t>(block_x()) * kThreads + thread_x();
  const int64_t token = index / vectors;
  if (token >= in.tokens) return;
  const int64_t column = index % vectors * kVector;
  const Vec8 bytes =
      load_written(reinterpret_cast<const Vec8*>(in.x + token * in.x_stride + column));
  Vec16 out;
  UPDRAFT_UNROLL
  for (int i = 0; i < kVector / 2; ++i) {
    const uint32_t pair = bytes.word[i / 2] >> (16 * (i % 2));
    out.word[i] = pack_bf16(to_float(Float8{static_cast<uint8_t>(pair & 0xFFU)}),
                            to_float(Float8{static_cast<uint8_t>(pair >> 8 & 0xFFU)}));
  }
  store(reinterpret_cast<Vec16*>(in.out + token * in.cols + column), out);
}

// A thread turns 32 columns around, words of two at a time.
template <bool kHalves>
UPDRAFT_KERNEL(kThreads)
arrange_columns_kernel(ArrangeColumns in) {
  let_next_start();
  wait_for_previous();
  const int chunks = in.cols / kArrangedCols;
  const int64_t index = static_cast<int64_t>(block_x()) * kThreads + thread_x();
  const int64_t token = index / chunks;
  if (token >= in.tokens) return;
  const int64_t column = index % chunks * kArrangedCols;
  const auto* from = reinterpret_cast<const Vec16*>(in.x + token * in.x_stride + column);
  auto* to = reinterpret_cast<Vec16*>(in.out + token * in.cols + column);
  Vec16 words[4];
  UPDRAFT_UNROLL
  for (int i = 0; i < 4; ++i) words[i] = load_written(from + i);
  UPDRAFT_UNROLL
  for (int s = 0; s < 2; ++s) {
    UPDRAFT_UNROLL
    for (int h = 0; h < 2; ++h) {
      Vec16 out;
      UPDRAFT_UNROLL
      for (int t = 0; t < 4; ++t) {
        out.word[t] =
            kHalves ? words[2 * s + t / 2].word[2 * (t % 2) + h] : words[t].word[2 * s + h];
      }
      store(to + 2 * s + h, out);
    }
  }
}

struct Eight {
  float v[kVector];
};
UPDRAFT_DEVICE Eight load_eight(const Bf16* at) {
  const Vec16 bits = load_written(reinterpret_cast<const Vec16*>(at));
  Eight out;
  UPDRAFT_UNROLL
  for (int i = 0; i < kVector / 2; ++i) {
    out.v[2 * i] = low_bf16(bits.word[i]);
    out.v[2 * i + 1] = high_bf16(bits.word[i]);
  }
  return out;
}

// Each thread keeps its elements of the row in shared memory between the passes: no other thread
// reads them.
UPDRAFT_KERNEL(kThreads)
quantize_rows_kernel(QuantizeRows in) {
  let_next_start();
  wait_for_previous();
  auto* kept = dynamic_shared<float>();
  auto* largest_of_warps = shared_array<uint32_t, kWarps>();
  const int64_t row = block_x();
  const int first = static_cast<int>(thread_x()) * kVector;
  constexpr int kStep = kThreads * kVector;
  uint32_t largest = 0;
  for (int c = first; c < in.cols; c += kStep) {
    Eight values = load_eight(in.in + row * in.in_stride + c);
    if (in.gated) {
      const Eight up = load_eight(in.in + row * in.in_stride + in.cols + c);
      UPDRAFT_UNROLL
      for (int i = 0; i < kVector; ++i) values.v[i] = silu_times(values.v[i], up.v[i]);
    }
    UPDRAFT_UNROLL
    for (int i = 0; i < kVector; ++i) {
      kept[c + i] = values.v[i];
      largest = larger(largest, size_bits(values.v[i]));
    }
  }
  const float scale =
      row_scale(block_largest<kWarps>(largest, largest_of_warps), in.out_int8 != nullptr);
  const float inverse = inverse_scale(scale);
  const QuantizedRow out{in.out_int8, in.out_float8, in.out_widened};
  for (int c = first; c < in.cols; c += kStep) {
    float scaled[kVector];
    UPDRAFT_UNROLL
    for (int i = 0; i < kVector; ++i) scaled[i] = kept[c + i] * inverse;
    store_quantized(out, row * in.cols + c, scaled);
  }
  if (thread_x() == 0) in.scale[row] = scale;
}

LaunchShape threads_shape(int64_t threads) {
  LaunchShape shape;
  shape.grid = {static_cast<uint32_t>((threads + kThreads - 1) / kThreads), 1, 1};
  shape.block = {kThreads, 1, 1};
  shape.early_start = true;
  return shape;
}

}  // namespace

Result<void> run_finish_product(const FinishProduct& op, Stream stream) {
  const int products =
      (op.product_bf16 != nullptr) + (op.product_f32 != nullptr) + (op.product_int32 != nullptr);
  if (products != 1 || op.tokens < 1 || op.rows < 1 || (op.gated && op.rows % 32 != 0) ||
      (op.y_bf16 == nullptr) == (op.y_f32 == nullptr) || (op.gated && op.y_bf16 == nullptr) ||
      (op.accumulate && op.y_f32 == nullptr)) {
    return fail("finishing a product of " + std::to_string(op.tokens) + " tokens and " +
                std::to_string(op.rows) + " rows: one input, one output that fits it");
  }
  const LaunchShape shape = threads_shape(int64_t{op.tokens} * (op.gated ? op.rows / 2 : op.rows));
  if (op.product_bf16 != nullptr) {
    return launch(finish_kernel<Bf16>, shape, stream, op, op.product_bf16);
  }
  if (op.product_f32 != nullptr) {
    return launch(finish_kernel<float>, shape, stream, op, op.product_f32);
  }
  return launch(finish_kernel<int32_t>, shape, stream, op, op.product_int32);
}

Result<void> run_widen_float8(const WidenFloat8& op, Stream stream) {
  if (op.tokens < 1 || op.cols < kVector || op.cols % kVector != 0 || op.x_stride % kVector != 0) {
    return fail("widening e4m3: " + std::to_string(op.tokens) + " tokens of " +
                std::to_string(op.cols) + " (a multiple of 8)");
  }
  return launch(widen_float8_kernel, threads_shape(int64_t{op.tokens} * op.cols / kVector), stream,
                op);
}

Result<void> run_arrange_columns(const ArrangeColumns& op, Stream stream) {
  if (op.tokens < 1 || op.cols < kArrangedCols || op.cols % kArrangedCols != 0 ||
      op.x_stride < op.cols || op.x_stride % kVector != 0) {
    return fail("arranging the columns of " + std::to_string(op.tokens) + " tokens of " +
                std::to_string(op.cols) + " with a stride of " + std::to_string(op.x_stride) +
                " (columns in 32s, strides in 8s)");
  }
  const LaunchShape shape = threads_shape(int64_t{op.tokens} * op.cols / kArrangedCols);
  return op.weights == DType::kQ6_K ? launch(arrange_columns_kernel<true>, shape, stream, op)
                                    : launch(arrange_columns_kernel<false>, shape, stream, op);
}

Result<void> run_quantize_rows(const QuantizeRows& op, Stream stream) {
  if (op.rows < 1 || op.cols < kVector || op.cols % kVector != 0 || op.cols > 32768 ||
      op.in_stride % kVector != 0 || op.in_stride < (op.gated ? 2 : 1) * int64_t{op.cols}) {
    return fail("quantising " + std::to_string(op.rows) + " rows of " + std::to_string(op.cols) +
                " elements with a stride of " + std::to_string(op.in_stride) +
                " (multiples of 8, at most 32768)");
  }
  if ((op.out_int8 != nullptr) + (op.out_float8 != nullptr) + (op.out_widened != nullptr) != 1) {
    return fail("quantising rows: int8, e4m3 or e4m3 widened, one of them");
  }
  LaunchShape shape;
  shape.grid = {static_cast<uint32_t>(op.rows), 1, 1};
  shape.block = {kThreads, 1, 1};
  shape.shared_bytes = static_cast<size_t>(op.cols) * sizeof(float);
  shape.early_start = true;
  return launch(quantize_rows_kernel, shape, stream, op);
}

}  // namespace updraft::cuda
