// What is asked of the CUDA engine when it is opened; known on both sides of the module's border.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "common/base/progress.h"
#include "kernels/parallel/comm.h"

namespace updraft {

enum class CudaActivations : uint8_t {
  kBf16,
  kInt8,  // W8A8
  kFp8,   // e4m3; from compute capability 9.0
};
// As the configuration has it.
constexpr const char* cuda_activations_name(CudaActivations activations) {
  return activations == CudaActivations::kInt8  ? "int8"
         : activations == CudaActivations::kFp8 ? "fp8"
                                                : "bf16";
}

struct CudaConfig {
  int32_t device = 0;             // index of the GPU, as the driver counts
  uint64_t max_memory_bytes = 0;  // of the GPU's memory at most; 0: what is free
  std::shared_ptr<Comm> comm;     // of the group that the GPU is in; null: alone
  bool fp8_weights = false;       // float weights of layers are kept in e4m3, with a scale per row
  // What products of layers read. Other than bf16: float weights of layers are kept in the same
  // format and multiplied in it; the rows between them get one scale each. Weights that are
  // quantised in the file stay as they are and read bf16.
  CudaActivations activations = CudaActivations::kBf16;
  bool graphs = true;        // decode steps are captured and replayed
  // On capability 9.0: the kernels for it are checked when the GPU is opened, and may be taken.
  bool warpgroups = true;
  int32_t pack_threads = 0;  // that bring weights into the device's order; 0: one per core
  // At start-up the ways of each product are timed and the fastest is kept, in a file of this
  // folder too, so that the next start reads it; empty: measured at each start.
  bool tune = true;
  std::string tune_folder;
  // One line about what is no error and yet worth knowing. From the thread that loads.
  std::function<void(const std::string&)> note;
  Progress progress;  // of tuning
};

}  // namespace updraft
