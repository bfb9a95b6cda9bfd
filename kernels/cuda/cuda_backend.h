// The Backend on one NVIDIA GPU, or on the emulator where that is linked. Activations are bfloat16,
// the residual stream is f32, K and V are as KvShape says.
//
// An operation may wait for the one behind it and run with it in one kernel: an addition to the
// residual stream and its norm with the product in front, the preparation of q, k and v with
// attention. What one operation writes and the next reads is then not there to be read in the end;
// what the last operations of a step leave is.
//
// A step's rows go to the device in one copy (step_metadata.h); then its operations are given to
// one stream as they are named. Steps of single rows are padded to a few sizes; of each size the
// operations are captured once and replayed from then on. Tokens are chosen on the device and stay
// there for the step behind, so two steps can be under way.
#pragma once

#include <memory>

#include "kernels/backend.h"
#include "kernels/module/cuda_config.h"

namespace updraft::cuda {

// Errors: no driver or GPU, a GPU too old for what was compiled, too little memory.
Result<std::unique_ptr<Backend>> open_cuda_backend(const CudaConfig& config);

// How many rows a step of `rows` single rows is padded to: 1, 2, 4, 8, then by 8 up to 256; 0: it
// is not padded.
int32_t decode_bucket(int32_t rows);

// What a backend of open_cuda_backend() did so far.
struct CudaCounters {
  int64_t graphs = 0;  // that are kept
  int64_t replayed_steps = 0;
};
CudaCounters cuda_counters(const Backend& backend);

}  // namespace updraft::cuda
