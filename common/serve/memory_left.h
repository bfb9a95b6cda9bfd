// How much memory this process may still take, from what Linux says: the machine's and, in a
// container, the group's limit.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace updraft {

// The smaller of /proc/meminfo's MemAvailable and what the control group leaves; 0: not known.
uint64_t memory_left_bytes();

// MemAvailable of a meminfo text, in bytes.
std::optional<uint64_t> parse_mem_available(std::string_view meminfo);
// What a cgroup v2 leaves: memory.max ("max": no limit) minus what is in use beyond the reclaimable
// page cache (memory.current, inactive_file of memory.stat).
std::optional<uint64_t> parse_cgroup_left(std::string_view max, std::string_view current,
                                          std::string_view stat);

}  // namespace updraft
