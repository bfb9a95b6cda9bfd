// The weights of a backend: matrices packed on their way to the device (upload.h), or in host
// memory where the room for weights ends (weight_stream.h), and vectors of f32. Filled at load
// time, read by steps.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "common/base/result.h"
#include "kernels/backend.h"
#include "kernels/cuda/device_budget.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/upload.h"
#include "kernels/cuda/weight_layout.h"
#include "kernels/cuda/weight_stream.h"

namespace updraft::cuda {

// Rows of a matrix that are kept in one format.
struct MatrixPart {
  PackedLayout layout;
  int64_t row_first = 0;
  DeviceMemory memory;
  int32_t streamed = -1;         // its index in the weight stream, where it lies in host memory
  bool quantized_input = false;  // it reads activations in its own format, not bfloat16
};

struct Matrix {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<int64_t> part_rows;  // as they were given
  std::vector<MatrixPart> parts;   // as they are kept
  bool gated = false;              // one part, gate and up alternating
  bool of_layer = false;           // as add_matrix() was told
};

struct Vector {
  int64_t count = 0;
  DeviceMemory memory;
};

class WeightStore {
 public:
  // float_format: what float weights of layers are kept in, F8_E4M3 or I8 with a scale per row;
  // none: as they are. quantized_inputs: matrices of layers in this format read activations in it
  // too.
  WeightStore(Uploader uploader, std::optional<DType> float_format, bool quantized_inputs)
      : uploader_(std::move(uploader)),
        float_format_(float_format),
        quantized_inputs_(quantized_inputs) {}

  // Before the first matrix: bytes that matrices on the device may take, the slots of streamed ones
  // included; 0: whatever the budget has.
  void set_room(uint64_t bytes) { room_ = bytes; }

  // In which add_matrix() would keep it.
  uint64_t kept_bytes(const WeightView& view, bool of_layer) const;

  // Takes the rows of all parts, one below the other. `of_layer`: every step reads it once, in the
  // order in which such matrices were added, so it may be kept in fewer bits or in host memory;
  // what is not (embeddings, head) stays on the device as it is. Errors: parts that do not fit
  // together, a width that no product takes, too little memory.
  Result<Mat> add_matrix(std::span<const WeightView> parts, bool of_layer, DeviceBudget& budget);
  // Waits for `stream`, over which the values go.
  Result<Vec> add_vector(std::span<const float> values, DeviceBudget& budget, Stream stream);
  // After the last matrix: takes the slots of streamed ones and waits for all copies.
  Result<void> finish(DeviceBudget& budget);
  // For what was added so far.
  Result<void> wait() { return uploader_.wait(); }

  std::span<const Matrix> matrices() const { return matrices_; }
  const Matrix& matrix(Mat mat) const;
  const Vector& vector(Vec vec) const;
  // The widest matrix of gate and up that could not be packed as gated; 0: none.
  int64_t ungated_cols_max() const { return ungated_cols_max_; }
  int32_t streamed_count() const { return streamed_.matrix_count(); }
  uint64_t streamed_bytes() const { return streamed_.host_bytes(); }

  // Where the part lies for what is given to `compute` now; until release() behind it.
  Result<const std::byte*> use(const MatrixPart& part, Stream compute);
  Result<void> release(const MatrixPart& part, Stream compute);

 private:
  DType kept_format(DType file_format, bool of_layer) const;
  Result<void> place(const PackedParts& group, bool of_layer, DeviceBudget& budget,
                     MatrixPart& part);

  Uploader uploader_;
  std::optional<DType> float_format_;
  bool quantized_inputs_ = false;
  uint64_t room_ = 0;
  uint64_t device_bytes_ = 0;  // of matrices
  uint64_t largest_part_bytes_ = 0;
  int64_t ungated_cols_max_ = 0;
  WeightStream streamed_;
  std::vector<Matrix> matrices_;
  std::vector<Vector> vectors_;
};

// A small thing, once: `to` grows where it must and holds the bytes when this returns.
Result<void> send_to_device(DeviceMemory& to, const void* from, size_t bytes, const char* what,
                            DeviceBudget& budget, Stream stream);

}  // namespace updraft::cuda
