// Weights on their way to the device: packed by several threads into pinned buffers, copied while
// the next ones are packed. The source is read once, from begin to end, so a mapped file comes in
// at the rate of its disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/base/result.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/weight_layout.h"

namespace updraft::cuda {

// Rows of one packed matrix, one part below the other and all of one layout; of a gated layout gate
// and up.
struct PackedParts {
  PackedLayout layout;
  std::vector<WeightView> parts;
};

class Uploader {
 public:
  // A chunk of this many packed bytes at a time, two of them in pinned memory.
  static constexpr size_t kChunkBytes = 32 << 20;

  // thread_count 0: one per core of the process, at most 16. Two pinned buffers are taken with the
  // first matrix.
  static Result<Uploader> open(int thread_count);

  // Into device memory of layout.bytes; returns with the last copies under way (wait()).
  Result<void> to_device(const PackedParts& matrix, std::byte* to);
  // Into host memory of layout.bytes.
  Result<void> to_host(const PackedParts& matrix, std::span<std::byte> to) const;
  Result<void> wait();

 private:
  struct Buffer {
    PinnedMemory memory;
    Event copied;
  };
  void pack(std::span<const WeightView> rows, const PackedLayout& layout,
            std::span<std::byte> to) const;
  Result<Buffer*> next_buffer(size_t bytes);

  int thread_count_ = 1;
  OwnedStream stream_;
  Buffer buffers_[2];
  int next_ = 0;
};

}  // namespace updraft::cuda
