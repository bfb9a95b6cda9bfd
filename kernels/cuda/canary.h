// One launch of each family of kernels, with a result that is known: a module whose machine code
// does not fit the GPU is found out when it is opened, not in the middle of an answer.
#pragma once

#include "common/base/result.h"
#include "kernels/cuda/gemm_device.h"
#include "kernels/cuda/types.h"

namespace updraft::cuda {

// On the calling thread's current device. `captured`: by a graph of them, after they ran without.
// Errors: which family, and what came in place of what; of graphs what the driver says.
Result<void> run_canaries(GemmDevice& device, Stream stream, bool captured);

}  // namespace updraft::cuda
