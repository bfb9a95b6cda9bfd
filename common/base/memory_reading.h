// What Linux says of memory: the machine's, and that of the control groups (v2) in which this
// process runs, where they have a limit.
//
// Sources: proc(5), /proc/meminfo; cgroups(7); the kernel's
// Documentation/admin-guide/cgroup-v2.rst.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/memory_level.h"

namespace updraft {

// MemTotal and MemAvailable: in use is what could not be had without swapping.
std::optional<MemoryUse> parse_meminfo(std::string_view meminfo);
// memory.max, memory.current, memory.stat: in use is what goes beyond the page cache that nobody
// has touched of late (inactive_file), for the kernel takes that back first. Nothing without a
// limit ("max").
std::optional<MemoryUse> parse_group_memory(std::string_view max, std::string_view current,
                                            std::string_view stat);
// /proc/self/cgroup -> the path of this process's group, "/" when none is told.
std::string parse_own_group(std::string_view cgroup);

// root: stands before /proc and /sys, for tests. limit_bytes 0: not known.
MemoryUse read_machine_memory(const std::string& root = "");
// Of this process's own group and those around it, each that has a limit. Where the path is
// another namespace's, the groups that are there count: a container's own is at the top.
std::vector<MemoryUse> read_group_memory(const std::string& root = "");
// The fullest of all of these: whichever is full first, the kernel kills for it.
MemoryUse read_fullest_memory(const std::string& root = "");
// What may still be taken before any of them is full; 0: not known.
uint64_t read_memory_left_bytes(const std::string& root = "");

}  // namespace updraft
