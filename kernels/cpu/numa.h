// Memory nodes of machines that have several: weights and KV pages are spread over the nodes of the
// cores that work on them, page by page, so that a step reads from all memory controllers at once
// wherever its threads run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace updraft {

inline constexpr const char* kNumaFolder = "/sys/devices/system/node";

// The nodes that own any of these cores, ascending; empty where the system does not say. Source:
// Linux, Documentation/ABI/stable/sysfs-devices-node (node<N>/cpulist).
std::vector<int> numa_nodes_of(const std::vector<int>& cores,
                               const std::string& folder = kNumaFolder);

// Pages of [at, at + bytes) that are touched from now on are taken from the nodes in turn. `at` is
// page-aligned. False when the system refuses: then the kernel's own choice remains. Source:
// mbind(2), MPOL_INTERLEAVE.
bool interleave_pages(std::byte* at, uint64_t bytes, const std::vector<int>& nodes);

}  // namespace updraft
