// What the GPU and its links can do at best, measured in the same run as whatever is held against
// it: copies for memory bandwidth, cuBLAS for arithmetic.
#pragma once

#include <cstdint>
#include <string>

#include "common/base/result.h"

namespace updraft::gpu {

struct Ceilings {
  std::string device;               // "NVIDIA H200, sm_90, 132 multiprocessors, driver 13.0"
  double copy_bytes_per_s = 0.0;    // of a large device-to-device copy, bytes read and written
  double read_bytes_per_s = 0.0;    // of a kernel that only reads
  double bf16_per_s = 0.0;          // multiply-adds times two, cuBLAS, 8192 x 8192 x 8192, f32 sums
  double int8_per_s = 0.0;          // likewise, int32 sums; 0: cuBLAS refused
  double upload_bytes_per_s = 0.0;  // from pinned host memory
  double launch_s = 0.0;            // one empty kernel in a queue of them
  double graph_launch_s = 0.0;      // one empty kernel within a graph of 400
};

// Medians of five repetitions after a warm-up, each of at least 50 ms. Errors: no driver, no GPU,
// an error of CUDA while memory was measured; what of the others fails is 0 and said on the
// standard error output.
Result<Ceilings> measure_ceilings();

}  // namespace updraft::gpu
