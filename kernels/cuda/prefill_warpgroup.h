// The kernel of prefill attention for capability 9.0: wgmma over bfloat16 pages that the copying
// engine brings in. For prefill_attention.cu. So far it has run under the emulator only.
#pragma once

#include "common/base/result.h"
#include "kernels/cuda/prefill_unit.h"

namespace updraft::cuda {

// `in` as run_prefill_attention() makes it, with in.split decided; `units` bounds their number.
Result<void> run_prefill_warpgroup(const PrefillAttention& op, const PrefillArguments& in,
                                   int64_t units, Stream stream);

}  // namespace updraft::cuda
