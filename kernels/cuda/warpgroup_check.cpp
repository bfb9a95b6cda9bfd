// Packed weights are written as bytes, so that every field of a format takes values whose products
// are small integers.
#include "kernels/cuda/warpgroup_check.h"

#include <cstring>
#include <random>
#include <vector>

#include "kernels/cuda/runtime.h"
#include "kernels/cuda/tile_gemm.h"
#include "kernels/cuda/warpgroup_gemm.h"
#include "kernels/quant/quant.h"

namespace updraft::cuda {
namespace {

// Two blocks of rows, the second with one band; two of 128 tokens, the second with two; the ring of
// stages comes round more than twice, and its last stage is half full where a format allows it.
constexpr int64_t kRows = 144;
constexpr int32_t kTokens = 130;
constexpr int64_t kCols = 864;
constexpr int64_t kColsOfSupers = 1024;

constexpr DType kFormats[] = {DType::kBF16, DType::kQ4_0,   DType::kQ8_0, DType::kQ4_K,
                              DType::kQ6_K, DType::kQ5_0,   DType::kQ5_1, DType::kQ5_K,
                              DType::kF16,  DType::kF8_E4M3};

class Bytes {
 public:
  explicit Bytes(uint32_t seed) : random_(seed) {}
  // low .. high
  int number(int low, int high) {
    return low + static_cast<int>(random_() % static_cast<uint32_t>(high - low + 1));
  }
  std::byte any() { return static_cast<std::byte>(random_() & 0xFFU); }

 private:
  std::mt19937 random_;
};

template <typename T>
void put(std::byte* at, T value) {
  std::memcpy(at, &value, sizeof value);
}
uint16_t half_of(int value) { return float_to_half(static_cast<float>(value)); }

// The scales from `at` to `end`.
void fill_scales(DType type, std::byte* at, const std::byte* end, Bytes& bytes) {
  const PackedFormat format = packed_format(type);
  while (at < end) {
    if (format.row_scale) {
      put(at, static_cast<float>(1 << bytes.number(0, 2)));
      at += sizeof(float);
    } else if (type == DType::kQ4_K || type == DType::kQ5_K) {
      put(at, static_cast<uint8_t>(1 << bytes.number(0, 2)));
      put(at + 1, static_cast<uint8_t>(bytes.number(0, 15)));
      at += 2;
    } else if (type == DType::kQ6_K) {
      put(at, static_cast<int8_t>(bytes.number(-2, 2)));
      at += 1;
    } else {
      put(at, half_of(bytes.number(1, 2)));
      if (format.scale_bytes == 4) put(at + 2, half_of(bytes.number(-7, 7)));
      at += format.scale_bytes;
    }
  }
}

void fill_weights(const PackedLayout& layout, std::byte* packed, Bytes& bytes) {
  const PackedFormat format = packed_format(layout.type);
  std::memset(packed, 0, static_cast<size_t>(layout.bytes));
  std::byte* end = packed + layout.quants_bytes;
  for (std::byte* at = packed; at < end;) {
    const auto value = static_cast<float>(bytes.number(-8, 8));
    switch (layout.type) {
      case DType::kBF16:
        put(at, float_to_bf16(value));
        at += 2;
        break;
      case DType::kF16:
        put(at, float_to_half(value));
        at += 2;
        break;
      case DType::kF8_E4M3:
        put(at, float_to_f8(value));
        at += 1;
        break;
      default:
        *at++ = bytes.any();
    }
  }
  const int64_t high_bytes = layout.rows_padded * layout.cols_padded * format.high_bits / 8;
  for (int64_t i = 0; i < high_bytes; ++i) packed[layout.high_offset + i] = bytes.any();
  const int64_t groups = format.group_cols == 0 ? 0 : layout.cols_padded / format.group_cols;
  const int64_t scale_bytes =
      layout.rows_padded *
      (format.row_scale ? static_cast<int64_t>(sizeof(float)) : groups * format.scale_bytes);
  std::byte* scales = packed + layout.scales_offset;
  fill_scales(layout.type, scales, scales + scale_bytes, bytes);
  const int64_t halves = layout.rows_padded * (layout.cols_padded / 256) * format.super_bytes / 2;
  for (int64_t i = 0; i < halves; ++i) put(packed + layout.supers_offset + 2 * i, half_of(1));
}

enum class Form { kPlain, kAdded, kGated };

struct Way {
  int32_t block_tokens;
  int32_t splits;
};

// One format: its matrix, activations, and outputs of both products, on the device and on the host.
class FormatCheck {
 public:
  FormatCheck(const PackedLayout& layout, Stream stream) : layout_(layout), stream_(stream) {}

  Result<WarpgroupVerdict> run() {
    if (auto ready = prepare(); !ready) return ready.error();
    std::vector<Form> forms = {Form::kPlain};
    std::vector<Way> ways = {{128, 1}, {256, 1}};
    if (layout_.type == DType::kBF16 || layout_.type == DType::kF8_E4M3) {
      forms = {Form::kPlain, Form::kAdded, Form::kGated};
      ways = {{128, 1}, {256, 1}, {128, 2}, {256, kSplits}};
    }
    for (const Form form : forms) {
      if (auto ran = expect(form); !ran) return ran.error();
      for (const Way& way : ways) {
        auto verdict = compare(form, way);
        if (!verdict || !verdict->right) return verdict;
      }
    }
    return WarpgroupVerdict{true, ""};
  }

 private:
  static constexpr int32_t kSplits = 3;  // the most; the stages do not go into it
  static constexpr size_t kOutputBytes = size_t{kRows} * kTokens * sizeof(float);

  Result<void> prepare() {
    const auto weight_bytes = static_cast<size_t>(layout_.bytes);
    const size_t x_bytes = static_cast<size_t>(layout_.cols) * kTokens * sizeof(Bf16);
    const size_t partial_bytes = warpgroup_gemm_partial_bytes(layout_, kTokens, kSplits);
    const size_t bytes =
        weight_bytes + 2 * x_bytes + 2 * kOutputBytes + kSkinnyCounterBytes + partial_bytes + 1024;
    auto device = DeviceMemory::allocate(bytes, "check of the warpgroup product");
    if (!device) return device.error();
    auto host = PinnedMemory::allocate(bytes, "check of the warpgroup product");
    if (!host) return host.error();
    device_ = std::move(*device);
    host_ = std::move(*host);
    Bytes numbers(static_cast<uint32_t>(layout_.type) + 1);
    fill_weights(layout_, host_.data(), numbers);
    x_ = weight_bytes;  // layout.bytes is a multiple of 256
    auto* x = reinterpret_cast<Bf16*>(host_.data() + x_);
    for (int64_t i = 0; i < layout_.cols * kTokens; ++i) {
      x[i] = {float_to_bf16(static_cast<float>(numbers.number(-4, 4)))};
    }
    arranged_ = (x_ + x_bytes + 255) / 256 * 256;
    outputs_[0] = (arranged_ + x_bytes + 255) / 256 * 256;
    outputs_[1] = outputs_[0] + kOutputBytes;
    counters_ = (outputs_[1] + kOutputBytes + 255) / 256 * 256;
    if (auto filled = fill(device_.data() + counters_, 0, kSkinnyCounterBytes, stream_); !filled)
      return filled;
    return copy_to_device(device_.data(), host_.data(), arranged_, stream_);
  }

  SkinnyGemm product(Form form, int which) const {
    SkinnyGemm op;
    op.layout = layout_;
    op.layout.gated = form == Form::kGated;
    if (op.layout.gated) op.layout.rows = kRows / 32 * 32;
    op.weight = device_.data();
    op.x = reinterpret_cast<const Bf16*>(device_.data() + x_);
    op.x_stride = layout_.cols;
    op.tokens = kTokens;
    std::byte* y = device_.data() + outputs_[which];
    if (form == Form::kGated) {
      op.y_bf16 = reinterpret_cast<Bf16*>(y);
    } else {
      op.y_f32 = reinterpret_cast<float*>(y);
    }
    op.y_stride = kRows;
    op.accumulate = form == Form::kAdded;
    return op;
  }

  // Filled with what is no zero: what is added to counts, and what is not written is seen.
  Result<void> fill_output(int which) {
    return fill(device_.data() + outputs_[which], 0x40, kOutputBytes, stream_);
  }

  Result<void> expect(Form form) {
    if (auto filled = fill_output(0); !filled) return filled;
    return run_tile_gemm(product(form, 0), stream_);
  }

  Result<WarpgroupVerdict> compare(Form form, const Way& way) {
    if (auto filled = fill_output(1); !filled) return filled.error();
    WarpgroupGemm op;
    op.product = product(form, 1);
    op.arranged = reinterpret_cast<Bf16*>(device_.data() + arranged_);
    op.block_tokens = way.block_tokens;
    op.splits = way.splits;
    op.counters = reinterpret_cast<uint32_t*>(device_.data() + counters_);
    op.partial = device_.data() + counters_ + kSkinnyCounterBytes;
    if (auto ran = run_warpgroup_gemm(op, stream_); !ran) return ran.error();
    if (auto copied = copy_to_host(host_.data() + outputs_[0], device_.data() + outputs_[0],
                                   2 * kOutputBytes, stream_);
        !copied) {
      return copied.error();
    }
    if (auto done = wait(stream_); !done) return done.error();
    return form == Form::kGated ? judge<uint16_t>(form, way) : judge<float>(form, way);
  }

  template <typename T>
  Result<WarpgroupVerdict> judge(Form form, const Way& way) const {
    const auto* expected = reinterpret_cast<const T*>(host_.data() + outputs_[0]);
    const auto* got = reinterpret_cast<const T*>(host_.data() + outputs_[1]);
    for (int64_t i = 0; i < kRows * kTokens; ++i) {
      if (got[i] == expected[i]) continue;  // never true of NaN
      static constexpr const char* kNames[] = {"", ", added", ", gated"};
      return WarpgroupVerdict{
          false, std::string(dtype_info(layout_.type).name) + kNames[static_cast<int>(form)] +
                     ", blocks of " + std::to_string(way.block_tokens) + " tokens, " +
                     std::to_string(way.splits) + " splits: token " + std::to_string(i / kRows) +
                     ", row " + std::to_string(i % kRows) + " is " + std::to_string(got[i]) +
                     " in place of " + std::to_string(expected[i])};
    }
    return WarpgroupVerdict{true, ""};
  }

  const PackedLayout layout_;
  const Stream stream_;
  DeviceMemory device_;
  PinnedMemory host_;
  size_t x_ = 0;  // byte offsets in both
  size_t arranged_ = 0;
  size_t outputs_[2] = {};
  size_t counters_ = 0;  // and the sums of splits behind them
};

}  // namespace

Result<WarpgroupVerdict> check_warpgroup_gemm(Stream stream) {
  for (const DType type : kFormats) {
    const auto layout =
        PackedLayout::of(type, kRows, packed_format(type).super_bytes != 0 ? kColsOfSupers : kCols);
    if (!layout) return layout.error();
    auto verdict = FormatCheck(*layout, stream).run();
    if (!verdict || !verdict->right) return verdict;
  }
  return WarpgroupVerdict{true, ""};
}

}  // namespace updraft::cuda
