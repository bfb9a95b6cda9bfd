// Which format a matrix is kept in, which of its parts lie together, and on which side of the bus.
#include "kernels/cuda/weight_store.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "common/base/check.h"

namespace updraft::cuda {
namespace {

constexpr int64_t kProductCols = 32;  // that a product reads at once

}  // namespace

const Matrix& WeightStore::matrix(Mat mat) const {
  UPDRAFT_CHECK(static_cast<size_t>(mat) < matrices_.size(), "a matrix of this backend");
  return matrices_[static_cast<size_t>(mat)];
}

const Vector& WeightStore::vector(Vec vec) const {
  UPDRAFT_CHECK(static_cast<size_t>(vec) < vectors_.size(), "a vector of this backend");
  return vectors_[static_cast<size_t>(vec)];
}

// Of a layer's float weights, where the configuration wants them in fewer bits.
DType WeightStore::kept_format(DType file_format, bool of_layer) const {
  const bool is_float =
      file_format == DType::kF32 || file_format == DType::kF16 || file_format == DType::kBF16;
  if (of_layer && is_float && float_format_) return *float_format_;
  return packed_type(file_format);
}

uint64_t WeightStore::kept_bytes(const WeightView& view, bool of_layer) const {
  const auto layout = PackedLayout::of(kept_format(view.type, of_layer), view.rows, view.cols);
  // A shape that add_matrix() will refuse.
  if (!layout) return 0;
  return static_cast<uint64_t>(layout->bytes);
}

// Neighbours that are kept in one format lie in one packed matrix, as long as bands of rows do not
// cross them; gate and up alternate in it.
Result<Mat> WeightStore::add_matrix(std::span<const WeightView> parts, bool of_layer,
                                    DeviceBudget& budget) {
  if (parts.empty()) return fail("matrix: no parts given");
  Matrix out;
  out.cols = parts[0].cols;
  out.of_layer = of_layer;
  if (out.cols % kProductCols != 0) {
    return fail("matrix of " + std::to_string(out.cols) +
                " columns: the GPU's products take them in " + std::to_string(kProductCols) +
                "s (run this model on the CPU)");
  }
  std::vector<PackedParts> groups;
  for (const WeightView& part : parts) {
    if (part.cols != out.cols || part.rows <= 0) {
      return fail("matrix: a part of " + std::to_string(part.rows) + " x " +
                  std::to_string(part.cols) + " beside " + std::to_string(out.cols) + " columns");
    }
    const DType kept = kept_format(part.type, of_layer);
    const bool joins = !groups.empty() && groups.back().layout.type == kept &&
                       groups.back().layout.rows % kTileRows == 0;
    if (!joins) groups.push_back({{.type = kept}, {}});
    groups.back().parts.push_back(part);
    groups.back().layout.rows += part.rows;
    out.part_rows.push_back(part.rows);
    out.rows += part.rows;
  }
  const bool two_alike = parts.size() == 2 && parts[0].rows == parts[1].rows;
  out.gated = two_alike && groups.size() == 1 && parts[0].type == parts[1].type &&
              parts[0].rows % kTileRows == 0;
  if (two_alike && !out.gated) ungated_cols_max_ = std::max(ungated_cols_max_, out.rows);
  int64_t row_first = 0;
  for (PackedParts& group : groups) {
    const auto layout = PackedLayout::of(group.layout.type, group.layout.rows, out.cols, out.gated);
    if (!layout) return layout.error();
    group.layout = *layout;
    out.parts.push_back({*layout, row_first, {}, -1, false});
    out.parts.back().quantized_input =
        of_layer && quantized_inputs_ && layout->type == float_format_;
    if (auto placed = place(group, of_layer, budget, out.parts.back()); !placed) {
      (void)uploader_.wait();  // what was placed before is given back
      return placed.error();
    }
    row_first += layout->rows;
  }
  matrices_.push_back(std::move(out));
  return static_cast<Mat>(matrices_.size() - 1);
}

// On the device, or in host memory where the room for weights ends.
Result<void> WeightStore::place(const PackedParts& group, bool of_layer, DeviceBudget& budget,
                                MatrixPart& part) {
  const auto bytes = static_cast<uint64_t>(group.layout.bytes);
  largest_part_bytes_ = std::max(largest_part_bytes_, bytes);
  const uint64_t slots = WeightStream::kSlots * largest_part_bytes_;
  const bool fits = room_ == 0 || device_bytes_ + bytes + slots <= room_;
  if (of_layer && !fits) {
    auto memory = PinnedMemory::allocate(bytes, "weights in host memory");
    if (!memory) return memory.error();
    if (auto packed = uploader_.to_host(group, {memory->data(), bytes}); !packed) return packed;
    part.streamed = streamed_.add(std::move(*memory));
    return {};
  }
  auto memory = budget.take(bytes, "weights");
  if (!memory) return memory.error();
  device_bytes_ += bytes;
  part.memory = std::move(*memory);
  return uploader_.to_device(group, part.memory.data());
}

Result<Vec> WeightStore::add_vector(std::span<const float> values, DeviceBudget& budget,
                                    Stream stream) {
  if (values.empty()) return fail("vector: no values given");
  Vector out{static_cast<int64_t>(values.size()), {}};
  if (auto sent =
          send_to_device(out.memory, values.data(), values.size_bytes(), "vector", budget, stream);
      !sent) {
    return sent.error();
  }
  vectors_.push_back(std::move(out));
  return static_cast<Vec>(vectors_.size() - 1);
}

Result<void> WeightStore::finish(DeviceBudget& budget) {
  if (auto taken = streamed_.take_slots(budget); !taken) return taken;
  return uploader_.wait();
}

Result<const std::byte*> WeightStore::use(const MatrixPart& part, Stream compute) {
  if (part.streamed >= 0) return streamed_.use(part.streamed, compute);
  return static_cast<const std::byte*>(part.memory.data());
}

Result<void> WeightStore::release(const MatrixPart& part, Stream compute) {
  if (part.streamed < 0) return {};
  return streamed_.release(part.streamed, compute);
}

Result<void> send_to_device(DeviceMemory& to, const void* from, size_t bytes, const char* what,
                            DeviceBudget& budget, Stream stream) {
  if (auto grown = budget.grow(to, bytes, what); !grown) return grown;
  auto staging = PinnedMemory::allocate(bytes, what);
  if (!staging) return staging.error();
  std::memcpy(staging->data(), from, bytes);
  if (auto sent = copy_to_device(to.data(), staging->data(), bytes, stream); !sent) return sent;
  return wait(stream);
}

}  // namespace updraft::cuda
