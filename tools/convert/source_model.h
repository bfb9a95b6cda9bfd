// The input of a conversion as a list of tensors ready to be written as GGUF, whatever container
// they come from.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/model/gguf_writer.h"
#include "kernels/quant/dtype.h"
#include "tools/convert/file_type.h"

namespace updraft {

// One tensor of the output with where its rows are. Exactly one of rows and values is set.
struct SourceTensor {
  std::string name;
  std::vector<uint64_t> ne;      // fastest first
  DType type = DType::kF32;      // as stored
  std::vector<WeightView> rows;  // one below the other
  // Row r of the output is row order[r] of `rows`; empty: as they are.
  std::vector<int64_t> order;
  std::vector<float> values;  // vectors of a folder, which the model has in f32

  int64_t row_count() const;
  // Bytes of output row r, as stored.
  const std::byte* row(int64_t r) const;
};

struct SourceModel {
  std::vector<SourceTensor> tensors;
  MixContext mix;
  std::function<void(GgufWriter&)> set_keys;  // all but the two that name the format
  std::shared_ptr<const void> files;          // what the views point into
};

// Errors: see quantize_file().
Result<SourceModel> open_source(const std::string& path);

}  // namespace updraft
