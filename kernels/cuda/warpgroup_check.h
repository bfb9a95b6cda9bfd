// Whether the warpgroup product (warpgroup_gemm.h) is right on this device: asked once, when the
// device is opened, because it was written and tested without one.
#pragma once

#include <string>

#include "common/base/result.h"
#include "kernels/cuda/types.h"

namespace updraft::cuda {

struct WarpgroupVerdict {
  bool right = false;
  std::string why;  // not right: format, form, place, what came in place of what
};

// Multiplies small matrices of every format through both block sizes, and compares with the tile
// product (mma.sync), bit for bit: weights and activations are small integers, whose sums are exact
// in any order. A kernel that waits for what never comes gives up after seconds with NaN, which is
// not right either. On the calling thread's current device, of capability 9.0. Errors: of the
// device (a fault in the kernel is one, and the device is then lost to this process).
Result<WarpgroupVerdict> check_warpgroup_gemm(Stream stream);

}  // namespace updraft::cuda
