// Sums between the GPUs of one machine, by NCCL. The library is looked for when a group is opened
// (libnccl.so.2), so a machine with one GPU needs none. Source: NCCL's user guide, "Communicator
// creation and management".
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "kernels/parallel/comm.h"

namespace updraft::cuda {

// One end for each of these GPUs, in their order, at least one. From one thread, before the
// backends are opened. Errors: no NCCL, no such GPU, what NCCL says; each names the device or the
// library.
Result<std::vector<std::shared_ptr<Comm>>> open_nccl_comms(std::span<const int32_t> devices);

// NCCL's version as a number (21800 + ... as ncclGetVersion() has it) in words, with what to beware
// of.
std::string describe_nccl(int version);

}  // namespace updraft::cuda
