// What is asked of the CUDA engine when it is opened; known on both sides of the module's border.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/parallel/comm.h"

namespace updraft {

struct CudaConfig {
  int32_t device = 0;             // index of the GPU, as the driver counts
  uint64_t max_memory_bytes = 0;  // of the GPU's memory at most; 0: what is free
  std::shared_ptr<Comm> comm;     // of the group that the GPU is in; null: alone
  bool fp8_weights = false;       // float weights of layers are kept in e4m3, with a scale per row
  bool graphs = true;             // decode steps are captured and replayed
  // On capability 9.0: the kernels for it are checked when the GPU is opened, and may be taken.
  bool warpgroups = true;
  int32_t pack_threads = 0;       // that bring weights into the device's order; 0: one per core
};

}  // namespace updraft
