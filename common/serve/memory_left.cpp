// Reading three small files of the kernel; nothing is cached, because the answer is asked for once,
// at load.
#include "common/serve/memory_left.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <iterator>
#include <string>

namespace updraft {
namespace {

std::string read_text(const char* path) {
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

// The number behind `key` at the beginning of a line.
std::optional<uint64_t> field(std::string_view text, std::string_view key) {
  for (size_t at = text.find(key); at != std::string_view::npos; at = text.find(key, at + 1)) {
    if (at == 0 || text[at - 1] == '\n') return leading_number(text.substr(at + key.size()));
  }
  return std::nullopt;
}

}  // namespace

std::optional<uint64_t> parse_mem_available(std::string_view meminfo) {
  const auto kib = field(meminfo, "MemAvailable:");
  if (!kib || *kib > UINT64_MAX / 1024) return std::nullopt;
  return *kib * 1024;
}

std::optional<uint64_t> parse_cgroup_left(std::string_view max, std::string_view current,
                                          std::string_view stat) {
  const auto limit = leading_number(max);
  const auto used = leading_number(current);
  if (!limit || !used) return std::nullopt;
  const uint64_t reclaimable = std::min(field(stat, "inactive_file ").value_or(0), *used);
  const uint64_t held = *used - reclaimable;
  return held < *limit ? *limit - held : 0;
}

uint64_t memory_left_bytes() {
  const auto machine = parse_mem_available(read_text("/proc/meminfo"));
  const auto group = parse_cgroup_left(read_text("/sys/fs/cgroup/memory.max"),
                                       read_text("/sys/fs/cgroup/memory.current"),
                                       read_text("/sys/fs/cgroup/memory.stat"));
  if (!machine) return group.value_or(0);
  return group ? std::min(*machine, *group) : *machine;
}

}  // namespace updraft
