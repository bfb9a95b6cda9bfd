// One thread per output, or per 8 of them; quantising takes a block per row.
#include <cstring>
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

// Neighbours of a row.
template <int kCount>
struct Neighbours {
  float v[kCount];
};
// kCount > 1: aligned to 16 bytes, as are the two below.
template <int kCount, typename T>
UPDRAFT_DEVICE Neighbours<kCount> load_neighbours(const T* at) {
  Neighbours<kCount> out;
  if constexpr (kCount == 1) {
    out.v[0] = as_float(*at);
  } else {
    constexpr int kPerLoad = 16 / static_cast<int>(sizeof(T));
    UPDRAFT_UNROLL
    for (int i = 0; i < kCount; i += kPerLoad) {
      const Vec16 bits = load_written(reinterpret_cast<const Vec16*>(at + i));
      T values[kPerLoad];
      memcpy(values, &bits, sizeof bits);
      UPDRAFT_UNROLL
      for (int j = 0; j < kPerLoad; ++j) out.v[i + j] = as_float(values[j]);
    }
  }
  return out;
}
template <int kCount>
UPDRAFT_DEVICE void store_neighbours(float* at, const Neighbours<kCount>& in) {
  if constexpr (kCount == 1) {
    *at = in.v[0];
  } else {
    UPDRAFT_UNROLL
    for (int i = 0; i < kCount; i += 4) {
      store(reinterpret_cast<Vec16*>(at + i),
            Vec16{{float_bits(in.v[i]), float_bits(in.v[i + 1]), float_bits(in.v[i + 2]),
                   float_bits(in.v[i + 3])}});
    }
  }
}
template <int kCount>
UPDRAFT_DEVICE void store_neighbours(Bf16* at, const Neighbours<kCount>& in) {
  if constexpr (kCount == 1) {
    *at = to_bf16(in.v[0]);
  } else {
    static_assert(kCount == kVector);
    Vec16 bits;
    UPDRAFT_UNROLL
    for (int i = 0; i < 4; ++i) bits.word[i] = pack_bf16(in.v[2 * i], in.v[2 * i + 1]);
    store(reinterpret_cast<Vec16*>(at), bits);
  }
}

// kCount: outputs of a thread, neighbours; of a gated matrix they lie within a band.
template <typename T, int kCount>
UPDRAFT_KERNEL(kThreads)
finish_kernel(FinishProduct in, const T* product) {
  let_next_start();
  wait_for_previous();
  const int per_row = (in.gated ? in.rows / 2 : in.rows) / kCount;
  const int64_t index = static_cast<int64_t>(block_x()) * kThreads + thread_x();
  const int64_t token = index / per_row;
  const int output = static_cast<int>(index % per_row) * kCount;
  if (token >= in.tokens) return;
  const T* sums = product + token * in.product_stride;
  const auto values_of = [&](int row, const float* bias) {
    Neighbours<kCount> out = load_neighbours<kCount>(sums + row);
    UPDRAFT_UNROLL
    for (int i = 0; i < kCount; ++i) {
      float& value = out.v[i];
      if (in.row_scales != nullptr) value = multiply(value, in.row_scales[row + i]);
      if (in.token_scales != nullptr) value = multiply(value, in.token_scales[token]);
      if (bias != nullptr) value += bias[output + i];
    }
    return out;
  };
  const int64_t at = token * in.y_stride + output;
  if (in.gated) {
    const int row = output / kTileRows * 2 * kTileRows + output % kTileRows;
    Neighbours<kCount> out = values_of(row, in.bias);
    const Neighbours<kCount> up = values_of(row + kTileRows, in.up_bias);
    UPDRAFT_UNROLL
    for (int i = 0; i < kCount; ++i) {
      out.v[i] = silu_times(to_float(to_bf16(out.v[i])), to_float(to_bf16(up.v[i])));
    }
    store_neighbours<kCount>(in.y_bf16 + at, out);
    return;
  }
  Neighbours<kCount> out = values_of(output, in.bias);
  if (in.y_bf16 != nullptr) {
    store_neighbours<kCount>(in.y_bf16 + at, out);
    return;
  }
  if (in.accumulate) {
    const Neighbours<kCount> there = load_neighbours<kCount>(in.y_f32 + at);
    UPDRAFT_UNROLL
    for (int i = 0; i < kCount; ++i) out.v[i] = there.v[i] + out.v[i];
  }
  store_neighbours<kCount>(in.y_f32 + at, out);
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

template <typename T>
Result<void> finish(const FinishProduct& op, const T* product, Stream stream) {
  const int32_t outputs = op.gated ? op.rows / 2 : op.rows;
  const auto in_vectors = [](const void* at, int64_t stride) {
    return reinterpret_cast<uintptr_t>(at) % 16 == 0 && stride % kVector == 0;
  };
  const bool wide = outputs % kVector == 0 && in_vectors(product, op.product_stride) &&
                    in_vectors(op.y_bf16, op.y_stride) && in_vectors(op.y_f32, op.y_stride);
  const int64_t all = int64_t{op.tokens} * outputs;
  return wide ? launch(finish_kernel<T, kVector>, threads_shape(all / kVector), stream, op, product)
              : launch(finish_kernel<T, 1>, threads_shape(all), stream, op, product);
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
  if (op.product_bf16 != nullptr) return finish(op, op.product_bf16, stream);
  if (op.product_f32 != nullptr) return finish(op, op.product_f32, stream);
  return finish(op, op.product_int32, stream);
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
