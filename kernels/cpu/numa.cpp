// Nodes from sysfs, placement by mbind(2) without libnuma.
#include "kernels/cpu/numa.h"

#include <dirent.h>
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>

namespace updraft {
namespace {

constexpr int kNodesMax = 1024;
constexpr int kWordBits = 8 * sizeof(unsigned long);

// "0-3,8" holds 0, 1, 2, 3 and 8. What does not parse holds nothing.
bool list_holds(const std::string& list, int wanted) {
  const char* at = list.data();
  const char* end = at + list.size();
  while (at < end) {
    int first = 0;
    auto parsed = std::from_chars(at, end, first);
    if (parsed.ec != std::errc()) return false;
    int last = first;
    if (parsed.ptr < end && *parsed.ptr == '-') {
      parsed = std::from_chars(parsed.ptr + 1, end, last);
      if (parsed.ec != std::errc()) return false;
    }
    if (wanted >= first && wanted <= last) return true;
    at = parsed.ptr + 1;
  }
  return false;
}

}  // namespace

std::vector<int> numa_nodes_of(const std::vector<int>& cores, const std::string& folder) {
  std::vector<int> nodes;
  DIR* entries = opendir(folder.c_str());
  if (entries == nullptr) return nodes;
  while (const dirent* entry = readdir(entries)) {
    const std::string name = entry->d_name;
    int node = 0;
    if (name.compare(0, 4, "node") != 0) continue;
    const auto parsed = std::from_chars(name.data() + 4, name.data() + name.size(), node);
    if (parsed.ec != std::errc() || parsed.ptr != name.data() + name.size()) continue;
    std::string list;
    std::getline(std::ifstream(folder + "/" + name + "/cpulist"), list);
    if (std::any_of(cores.begin(), cores.end(), [&](int core) { return list_holds(list, core); }))
      nodes.push_back(node);
  }
  closedir(entries);
  std::sort(nodes.begin(), nodes.end());
  return nodes;
}

bool interleave_pages(std::byte* at, uint64_t bytes, const std::vector<int>& nodes) {
  std::array<unsigned long, kNodesMax / kWordBits> mask{};
  for (const int node : nodes) {
    if (node < 0 || node >= kNodesMax) return false;
    mask[static_cast<size_t>(node / kWordBits)] |= 1UL << (node % kWordBits);
  }
  // The kernel takes one bit less than it is told.
  return syscall(SYS_mbind, at, bytes, MPOL_INTERLEAVE, mask.data(), kNodesMax + 1UL, 0UL) == 0;
}

}  // namespace updraft
