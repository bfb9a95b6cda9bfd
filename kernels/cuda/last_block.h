// How blocks of one launch hand their sums to the one of them that comes last. For kernels.
#pragma once

#include "kernels/cuda/device.h"

namespace updraft::cuda {

// What the block's threads stored before is seen by all threads of the block that is told true:
// the last of `blocks` that call it. `sync` is the barrier of the calling threads, thread 0 among
// them; `counter`, in global memory, is zero before, and again for the next launch; `flag` is
// shared memory for this alone.
template <typename Sync>
UPDRAFT_DEVICE bool comes_last(uint32_t* counter, uint32_t blocks, uint32_t* flag,
                               const Sync& sync) {
  sync();
  if (thread_x() == 0) {
    *flag = atomic_add_ordered(counter, 1U) == blocks - 1 ? 1U : 0U;
    if (*flag != 0) store(counter, 0U);
  }
  sync();
  return *flag != 0;
}

}  // namespace updraft::cuda
