// Small files of the kernel, read whole at each call.
#include "common/base/memory_reading.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <fstream>
#include <iterator>

namespace updraft {
namespace {

constexpr const char* kGroups = "/sys/fs/cgroup";

std::string read_text(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

std::optional<uint64_t> leading_number(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return std::nullopt;
  uint64_t value = 0;
  const auto parsed = std::from_chars(text.data() + begin, text.data() + text.size(), value);
  if (parsed.ec != std::errc()) return std::nullopt;
  return value;
}

// What stands behind `key` at the beginning of a line.
std::optional<std::string_view> after(std::string_view text, std::string_view key) {
  for (size_t at = text.find(key); at != std::string_view::npos; at = text.find(key, at + 1)) {
    if (at == 0 || text[at - 1] == '\n') return text.substr(at + key.size());
  }
  return std::nullopt;
}

std::optional<uint64_t> field(std::string_view text, std::string_view key) {
  const auto rest = after(text, key);
  return rest ? leading_number(*rest) : std::nullopt;
}

}  // namespace

std::optional<MemoryUse> parse_meminfo(std::string_view meminfo) {
  const auto total_kib = field(meminfo, "MemTotal:");
  const auto available_kib = field(meminfo, "MemAvailable:");
  if (!total_kib || !available_kib || *total_kib > UINT64_MAX / 1024) return std::nullopt;
  return MemoryUse{(*total_kib - std::min(*available_kib, *total_kib)) * 1024, *total_kib * 1024};
}

std::optional<MemoryUse> parse_group_memory(std::string_view max, std::string_view current,
                                            std::string_view stat) {
  const auto limit = leading_number(max);
  const auto used = leading_number(current);
  if (!limit || !used || *limit == 0) return std::nullopt;
  const uint64_t reclaimable = std::min(field(stat, "inactive_file ").value_or(0), *used);
  return MemoryUse{*used - reclaimable, *limit};
}

std::string parse_own_group(std::string_view cgroup) {
  const auto rest = after(cgroup, "0::");
  if (!rest || rest->empty() || rest->front() != '/') return "/";
  return std::string(rest->substr(0, rest->find('\n')));
}

MemoryUse read_machine_memory(const std::string& root) {
  return parse_meminfo(read_text(root + "/proc/meminfo")).value_or(MemoryUse{});
}

std::vector<MemoryUse> read_group_memory(const std::string& root) {
  std::vector<MemoryUse> uses;
  std::string group = parse_own_group(read_text(root + "/proc/self/cgroup"));
  while (true) {
    if (group == "/") group.clear();
    const std::string folder = root + kGroups + group;
    const auto use =
        parse_group_memory(read_text(folder + "/memory.max"), read_text(folder + "/memory.current"),
                           read_text(folder + "/memory.stat"));
    if (use) uses.push_back(*use);
    if (group.empty()) return uses;
    group.erase(group.rfind('/'));
  }
}

MemoryUse read_fullest_memory(const std::string& root) {
  MemoryUse fullest = read_machine_memory(root);
  for (const MemoryUse& use : read_group_memory(root)) {
    if (use.ratio() > fullest.ratio() || fullest.limit_bytes == 0) fullest = use;
  }
  return fullest;
}

uint64_t read_memory_left_bytes(const std::string& root) {
  const MemoryUse machine = read_machine_memory(root);
  std::vector<MemoryUse> uses = read_group_memory(root);
  if (machine.limit_bytes > 0) uses.push_back(machine);
  if (uses.empty()) return 0;
  return std::min_element(
             uses.begin(), uses.end(),
             [](const MemoryUse& a, const MemoryUse& b) { return a.left_bytes() < b.left_bytes(); })
      ->left_bytes();
}

}  // namespace updraft
