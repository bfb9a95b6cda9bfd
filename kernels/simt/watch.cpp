// What launches change is found by comparing all global memory before and after each.
#include "kernels/simt/watch.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <utility>

#include "common/base/check.h"
#include "kernels/simt/memory.h"

namespace updraft::simt {
namespace {

thread_local LaunchLog* g_log = nullptr;
thread_local Overlap* g_overlap = nullptr;
thread_local EmptyKernels* g_empty = nullptr;

// What is hidden: whole vectors, so that no half of a number remains.
constexpr size_t kGranuleBytes = 16;

struct Run {
  std::byte* at;
  size_t bytes;
};

}  // namespace

LaunchLog::LaunchLog() {
  UPDRAFT_CHECK(g_log == nullptr, "one log of launches");
  g_log = this;
}
LaunchLog::~LaunchLog() { g_log = nullptr; }
LaunchLog* launch_log() { return g_log; }

EmptyKernels::EmptyKernels(std::string part) : part_(std::move(part)) {
  UPDRAFT_CHECK(g_empty == nullptr, "one set of empty kernels");
  g_empty = this;
}
EmptyKernels::~EmptyKernels() { g_empty = nullptr; }
EmptyKernels* empty_kernels() { return g_empty; }

struct Overlap::State {
  std::map<std::byte*, std::vector<bool>> changed;  // of a block, by granule
  std::map<std::byte*, std::vector<std::byte>> before;
  std::vector<Run> runs;           // of `changed`, while a launch runs
  std::vector<std::byte> content;  // of the runs, while they are hidden
};

Overlap::Overlap() : state_(std::make_unique<State>()) {
  UPDRAFT_CHECK(g_overlap == nullptr, "one overlap of launches");
  g_overlap = this;
}
Overlap::~Overlap() { g_overlap = nullptr; }
Overlap* overlap() { return g_overlap; }

void Overlap::all_ended() { state_->changed.clear(); }

void Overlap::begin_launch(bool early_start) {
  State& s = *state_;
  if (!early_start) s.changed.clear();
  s.runs.clear();
  s.before.clear();
  for (const MemoryRange& block : global_memory()) {  // by address, and so are the runs
    s.before[block.data].assign(block.data, block.data + block.bytes);
    const auto found = s.changed.find(block.data);
    if (found == s.changed.end()) continue;
    const std::vector<bool>& granules = found->second;
    for (size_t i = 0; i < granules.size(); ++i) {
      if (!granules[i]) continue;
      std::byte* at = block.data + i * kGranuleBytes;
      const size_t bytes = std::min(kGranuleBytes, block.bytes - i * kGranuleBytes);
      if (!s.runs.empty() && s.runs.back().at + s.runs.back().bytes == at) {
        s.runs.back().bytes += bytes;
      } else {
        s.runs.push_back({at, bytes});
      }
    }
  }
}

void Overlap::end_launch() {
  State& s = *state_;
  for (const MemoryRange& block : global_memory()) {
    const auto found = s.before.find(block.data);
    if (found == s.before.end() || found->second.size() != block.bytes) continue;
    const std::vector<std::byte>& before = found->second;
    if (std::memcmp(before.data(), block.data, block.bytes) == 0) continue;
    std::vector<bool>& granules = s.changed[block.data];
    granules.resize((block.bytes + kGranuleBytes - 1) / kGranuleBytes);
    for (size_t i = 0; i < block.bytes; ++i) {
      if (before[i] != block.data[i]) granules[i / kGranuleBytes] = true;
    }
  }
  s.before.clear();
  s.runs.clear();
}

bool Overlap::changed_in_front(const void* at, size_t bytes) const {
  const auto* first = static_cast<const std::byte*>(at);
  // The first run that ends behind `at`.
  const auto run =
      std::upper_bound(state_->runs.begin(), state_->runs.end(), first,
                       [](const std::byte* p, const Run& r) { return p < r.at + r.bytes; });
  return run != state_->runs.end() && run->at < first + bytes;
}

void Overlap::hide() {
  State& s = *state_;
  s.content.clear();
  for (const Run& run : s.runs) {
    s.content.insert(s.content.end(), run.at, run.at + run.bytes);
    std::memset(run.at, 0xFF, run.bytes);
  }
}

std::optional<std::string> Overlap::show() {
  State& s = *state_;
  std::optional<std::string> written;
  const std::byte* from = s.content.data();
  for (const Run& run : s.runs) {
    for (size_t i = 0; i < run.bytes; ++i) {
      if (run.at[i] == std::byte{0xFF} || written) continue;
      written = "a write before wait_for_previous() to " + place_in_global_memory(run.at + i) +
                ", which a launch in front has written";
    }
    std::memcpy(run.at, from, run.bytes);
    from += run.bytes;
  }
  return written;
}

}  // namespace updraft::simt
