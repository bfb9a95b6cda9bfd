// Whether the kernels for capability 9.0 (warpgroup_gemm.h, prefill_attention.h) are right on this
// device: asked once, when the device is opened, because they were written and tested without one.
// Inputs are such that every sum is exact in any order: so the results must be those of the kernels
// that every device has, bit for bit. A kernel that waits for what never comes gives up after
// seconds with NaN, which is not right either.
#pragma once

#include <string>

#include "common/base/result.h"
#include "kernels/cuda/types.h"

namespace updraft::cuda {

struct WarpgroupVerdict {
  bool right = false;
  std::string why;  // not right: which case, place, what came in place of what
};

// All on the calling thread's current device, of capability 9.0. Errors: of the device (a fault in
// a kernel is one, and the device is then lost to this process).

// Small matrices of every format through both block sizes, against the tile product; some also with
// their columns shared by blocks.
Result<WarpgroupVerdict> check_warpgroup_gemm(Stream stream);
// A few sequences of both head sizes against the kernel of mma.sync.
Result<WarpgroupVerdict> check_warpgroup_attention(Stream stream);

// Which of them to use.
struct WarpgroupUse {
  bool products = false;   // may be: tune_gemm() decides for each shape
  bool attention = false;  // is right, and was faster on a prompt of 2,048 tokens
  std::string wrong;       // what was not right; empty: all was
};
Result<WarpgroupUse> ask_for_warpgroups(int32_t multiprocessor_count, Stream stream);

}  // namespace updraft::cuda
