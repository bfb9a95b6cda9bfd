// Virtual time: what happens next, in which order, and a hash of all that happened. Nothing here
// or in what it drives looks at a real clock, so two runs of one seed are the same run.
//
// One thread.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "tools/sim/random.h"

namespace updraft::sim {

// A broken invariant. `invariant` is one of the names in ledger.h.
struct Violation {
  std::string invariant;
  std::string what;  // one sentence with the ids and values
  int64_t at_ns = 0;
};

// Everything that happens goes through note(): into the hash, into the last events, and to
// standard output when asked.
class Trace {
 public:
  static constexpr size_t kLastEvents = 40;

  explicit Trace(bool print) : print_(print) {}
  // `what` names the event, `who` the thing; a and b are whatever numbers tell it apart.
  void note(int64_t now_ns, std::string_view what, std::string_view who, uint64_t a = 0,
            uint64_t b = 0);
  uint64_t hash() const { return hash_; }
  uint64_t event_count() const { return event_count_; }
  // Oldest first, one line each.
  std::vector<std::string> last_events() const;

 private:
  struct Entry {
    int64_t now_ns = 0;
    std::array<char, 24> what{};
    std::array<char, 40> who{};
    uint64_t a = 0;
    uint64_t b = 0;
  };
  static std::string text_of(const Entry& entry);

  const bool print_;
  uint64_t hash_ = 0;
  uint64_t event_count_ = 0;
  std::array<Entry, kLastEvents> last_{};  // a ring
};

class World {
 public:
  World(uint64_t seed, bool print_trace) : random(seed), trace(print_trace) {}

  int64_t now_ns() const { return now_ns_; }
  // Calls `what` at that time (or now, when it is past). Events of one time run in the order in
  // which they were asked for.
  void at(int64_t at_ns, std::function<void()> what);
  void after(int64_t delay_ns, std::function<void()> what) {
    at(now_ns_ + delay_ns, std::move(what));
  }
  // Runs everything due until then; stops early at a violation.
  void run_until(int64_t until_ns);

  // The first violation counts; the run ends with the current event.
  void violate(std::string_view invariant, std::string what);
  const std::vector<Violation>& violations() const { return violations_; }
  bool broken() const { return !violations_.empty(); }

  void note(std::string_view what, std::string_view who, uint64_t a = 0, uint64_t b = 0) {
    trace.note(now_ns_, what, who, a, b);
  }

  Random random;
  Trace trace;

 private:
  struct Event {
    int64_t at_ns = 0;
    uint64_t order = 0;
    std::function<void()> what;
    bool operator<(const Event& other) const {  // a heap's top is its largest
      return at_ns != other.at_ns ? at_ns > other.at_ns : order > other.order;
    }
  };
  int64_t now_ns_ = 0;
  uint64_t next_order_ = 0;
  std::vector<Event> events_;  // a heap
  std::vector<Violation> violations_;
};

}  // namespace updraft::sim
