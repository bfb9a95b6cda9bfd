// One matrix after the other: its scale's form, then its bytes by all threads.
#include "common/model/fp8_weights.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "kernels/quant/quant.h"

namespace updraft {
namespace {

constexpr int64_t kBytesPerThread = int64_t{4} << 20;  // less is not worth one
constexpr unsigned kThreadsMax = 16;

std::string quoted(const std::string& name) { return "\"" + printable(name) + "\""; }

// work(row_first, row_end) over all rows.
template <typename Work>
void for_rows(int64_t rows, int64_t cols, Work work) {
  const int64_t wanted = std::max<int64_t>(1, rows * cols / kBytesPerThread);
  const int64_t count = std::min(
      {wanted, rows,
       static_cast<int64_t>(std::clamp(std::thread::hardware_concurrency(), 1U, kThreadsMax))});
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < count; ++i) {
    threads.emplace_back([=] { work(rows * i / count, rows * (i + 1) / count); });
  }
  work(0, rows / count);
  for (std::thread& thread : threads) thread.join();
}

Error wrong(const std::string& name, const std::string& what) {
  return fail("tensor " + quoted(name) + " " + what);
}

// The first byte that is NaN.
Result<void> check_bytes(const std::string& name, const StoredTensor& tensor) {
  const int64_t rows = tensor.shape[0];
  const int64_t cols = tensor.shape[1];
  std::atomic<int64_t> first{rows * cols};
  for_rows(rows, cols, [&](int64_t row_first, int64_t row_end) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(tensor.bytes.data());
    for (int64_t row = row_first; row < row_end; ++row) {
      const uint8_t* at = bytes + row * cols;
      unsigned any = 0;  // without a branch: the compiler makes vectors of it
      for (int64_t c = 0; c < cols; ++c) any |= (at[c] & 0x7FU) == 0x7FU ? 1U : 0U;
      if (any == 0) continue;
      int64_t c = 0;
      while ((at[c] & 0x7FU) != 0x7FU) ++c;
      int64_t least = first.load();
      while (row * cols + c < least && !first.compare_exchange_weak(least, row * cols + c)) {
      }
      return;
    }
  });
  if (first == rows * cols) return {};
  const int64_t at = first;
  return wrong(
      name, "has the byte " +
                std::string(static_cast<uint8_t>(tensor.bytes[static_cast<size_t>(at)]) == 0x7F
                                ? "0x7f"
                                : "0xff") +
                " at row " + std::to_string(at / cols) + ", column " + std::to_string(at % cols) +
                ": NaN in e4m3");
}

Result<std::vector<float>> read_scales(const std::string& name, const StoredTensor& tensor) {
  const bool is_float =
      tensor.type &&
      (*tensor.type == DType::kF32 || *tensor.type == DType::kF16 || *tensor.type == DType::kBF16);
  if (!is_float)
    return wrong(name, "has format " + tensor.type_name + ", scales are F32, F16 or BF16");
  std::vector<float> out(tensor.bytes.size() /
                         static_cast<size_t>(dtype_info(*tensor.type).block_bytes));
  dequantize_row(*tensor.type, tensor.bytes.data(), out);
  for (size_t i = 0; i < out.size(); ++i) {
    if (std::isfinite(out[i]) && out[i] >= 0.0F) continue;
    return wrong(name,
                 "has the scale " + std::to_string(out[i]) + " at index " + std::to_string(i));
  }
  return out;
}

int64_t blocks_of(int64_t size, int64_t block) { return (size + block - 1) / block; }

std::shared_ptr<const void> to_bf16(StoredTensor& tensor, const std::vector<float>& scales,
                                    const std::array<int64_t, 2>& block) {
  const int64_t rows = tensor.shape[0];
  const int64_t cols = tensor.shape[1];
  const auto count = static_cast<size_t>(rows * cols);
  const std::shared_ptr<uint16_t[]> out(new uint16_t[count]);
  const auto* bytes = reinterpret_cast<const uint8_t*>(tensor.bytes.data());
  const int64_t scale_cols = blocks_of(cols, block[1]);
  std::array<float, 256> values;
  for (size_t i = 0; i < values.size(); ++i) values[i] = f8_to_float(static_cast<uint8_t>(i));
  for_rows(rows, cols, [&](int64_t row_first, int64_t row_end) {
    for (int64_t r = row_first; r < row_end; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        const float scale = scales[static_cast<size_t>(r / block[0] * scale_cols + c / block[1])];
        out[static_cast<size_t>(r * cols + c)] = float_to_bf16(values[bytes[r * cols + c]] * scale);
      }
    }
  });
  tensor.type = DType::kBF16;
  tensor.bytes = {reinterpret_cast<const std::byte*>(out.get()), count * sizeof(uint16_t)};
  return out;
}

class Joiner {
 public:
  Joiner(TensorTable& table, const std::array<int64_t, 2>& block) : table_(table), block_(block) {}

  Result<void> join(const std::string& name) {
    StoredTensor& tensor = table_.at(name);
    constexpr std::string_view kSuffix = ".weight";
    if (!name.ends_with(kSuffix) || tensor.shape.size() != 2 || tensor.bytes.empty()) {
      return wrong(name, "has format F8_E4M3 and the shape " + shape_text(tensor.shape) +
                             ", e4m3 is read of matrices named *.weight alone");
    }
    const std::string plain = name + "_scale";
    const std::string inverse = name + "_scale_inv";
    const bool has_plain = table_.contains(plain);
    if (has_plain == table_.contains(inverse)) {
      return wrong(name, std::string("has format F8_E4M3 and ") +
                             (has_plain ? "both " : "neither ") + quoted(plain) +
                             (has_plain ? " and " : " nor ") + quoted(inverse) + " beside it");
    }
    const std::string& scale_name = has_plain ? plain : inverse;
    if (auto read = join(name, tensor, scale_name); !read) return read;
    table_.erase(scale_name);
    // Of activations, measured beforehand.
    const std::string layer = name.substr(0, name.size() - kSuffix.size());
    for (const char* fixed : {".input_scale", ".activation_scale", ".input_scale_ub"}) {
      table_.erase(layer + fixed);
    }
    return {};
  }

  std::vector<std::shared_ptr<const void>> take_memory() { return std::move(memory_); }

 private:
  Result<void> join(const std::string& name, StoredTensor& tensor, const std::string& scale_name) {
    const StoredTensor& stored = table_.at(scale_name);
    auto scales = read_scales(scale_name, stored);
    if (!scales) return scales.error();
    if (auto checked = check_bytes(name, tensor); !checked) return checked;
    const int64_t rows = tensor.shape[0];
    const int64_t cols = tensor.shape[1];
    const std::vector<int64_t> in_blocks = {blocks_of(rows, block_[0]), blocks_of(cols, block_[1])};
    const bool of_rows =
        stored.shape == std::vector<int64_t>{rows} || stored.shape == std::vector<int64_t>{rows, 1};
    if (scales->size() == 1) {
      scales->assign(static_cast<size_t>(rows), scales->front());
    } else if (!of_rows && stored.shape == in_blocks) {
      memory_.push_back(to_bf16(tensor, *scales, block_));
      return {};
    } else if (!of_rows) {
      return wrong(scale_name, "has the shape " + shape_text(stored.shape) + "; of " +
                                   shape_text(tensor.shape) + " weights it is one value, " +
                                   shape_text({rows, 1}) + " for rows or " + shape_text(in_blocks) +
                                   " for blocks");
    }
    const auto kept = std::make_shared<const std::vector<float>>(std::move(*scales));
    tensor.type = DType::kF8_E4M3;
    tensor.row_scales = kept->data();
    memory_.push_back(kept);
    return {};
  }

  TensorTable& table_;
  const std::array<int64_t, 2> block_;
  std::vector<std::shared_ptr<const void>> memory_;
};

}  // namespace

Result<std::vector<std::shared_ptr<const void>>> join_fp8_scales(
    TensorTable& table, bool expected, const std::array<int64_t, 2>& block) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : table) {
    if (tensor.type_name == dtype_info(DType::kF8_E4M3).name) names.push_back(name);
  }
  std::sort(names.begin(), names.end());  // the same message for the same file
  if (!names.empty() && !expected) {
    return wrong(names.front(),
                 "has format F8_E4M3, config.json has no quantization_config of an fp8 kind");
  }
  Joiner joiner(table, block);
  for (const std::string& name : names) {
    if (auto joined = joiner.join(name); !joined) return joined.error();
  }
  return joiner.take_memory();
}

}  // namespace updraft
