// See the header.
#include "tools/sim/world.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <utility>

#include "common/base/clock.h"

namespace updraft::sim {
namespace {

template <size_t kBytes>
void copy_cut(std::array<char, kBytes>& out, std::string_view text) {
  const size_t bytes = std::min(text.size(), kBytes - 1);
  std::memcpy(out.data(), text.data(), bytes);
  out[bytes] = '\0';
}

}  // namespace

void Trace::note(int64_t now_ns, std::string_view what, std::string_view who, uint64_t a,
                 uint64_t b) {
  uint64_t hash = hash_text(what, hash_ ^ static_cast<uint64_t>(now_ns));
  hash = hash_text(who, hash);
  hash_ = mix(hash ^ mix(a) ^ (mix(b) << 1));
  Entry& entry = last_[event_count_ % kLastEvents];
  ++event_count_;
  entry.now_ns = now_ns;
  copy_cut(entry.what, what);
  copy_cut(entry.who, who);
  entry.a = a;
  entry.b = b;
  if (print_) std::printf("%s\n", text_of(entry).c_str());
}

std::string Trace::text_of(const Entry& entry) {
  char line[160];
  std::snprintf(line, sizeof line, "%12.6f  %-20s %-32s %" PRIu64 " %" PRIu64,
                static_cast<double>(entry.now_ns) / kNsPerSecond, entry.what.data(),
                entry.who.data(), entry.a, entry.b);
  return line;
}

std::vector<std::string> Trace::last_events() const {
  std::vector<std::string> lines;
  const uint64_t count = std::min<uint64_t>(event_count_, kLastEvents);
  for (uint64_t i = event_count_ - count; i < event_count_; ++i)
    lines.push_back(text_of(last_[i % kLastEvents]));
  return lines;
}

void World::at(int64_t at_ns, std::function<void()> what) {
  events_.push_back({std::max(at_ns, now_ns_), next_order_++, std::move(what)});
  std::push_heap(events_.begin(), events_.end());
}

void World::run_until(int64_t until_ns) {
  while (!events_.empty() && events_.front().at_ns <= until_ns && !broken()) {
    std::pop_heap(events_.begin(), events_.end());
    Event event = std::move(events_.back());
    events_.pop_back();
    now_ns_ = event.at_ns;
    event.what();
  }
  if (!broken()) now_ns_ = std::max(now_ns_, until_ns);
}

void World::violate(std::string_view invariant, std::string what) {
  note("violation", invariant);
  if (violations_.empty())
    violations_.push_back({std::string(invariant), std::move(what), now_ns_});
}

}  // namespace updraft::sim
