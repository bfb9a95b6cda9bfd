// See the header.
#include "cloud/router/breaker.h"

#include <algorithm>

#include "common/base/clock.h"

namespace updraft {

const char* breaker_state_name(BreakerTable::State state) {
  switch (state) {
    case BreakerTable::State::kClosed:
      return "closed";
    case BreakerTable::State::kOpen:
      return "open";
    case BreakerTable::State::kHalfOpen:
      return "half-open";
  }
  return "unknown";
}

// --- the table ---

const BreakerTable::Breaker* BreakerTable::find(NodeIndex node, ModelIndex model) const {
  const auto it = breakers_.find(key(node, model));
  // An entry of another node that had this slot before says nothing.
  if (it == breakers_.end() || it->second.generation != registry_.node(node).generation)
    return nullptr;
  return &it->second;
}

BreakerTable::Breaker* BreakerTable::find(NodeIndex node, ModelIndex model) {
  return const_cast<Breaker*>(std::as_const(*this).find(node, model));
}

BreakerTable::Breaker& BreakerTable::at(NodeIndex node, ModelIndex model) {
  Breaker& breaker = breakers_[key(node, model)];
  const uint32_t generation = registry_.node(node).generation;
  if (breaker.generation == generation) return breaker;
  if (breaker.state != State::kClosed) --tripped_count_;
  breaker = Breaker{};
  breaker.generation = generation;
  return breaker;
}

// Open turns half-open by time alone.
BreakerTable::State BreakerTable::state_of(const Breaker& breaker, int64_t now_ns) const {
  return breaker.state == State::kOpen && now_ns >= breaker.open_until_ns ? State::kHalfOpen
                                                                          : breaker.state;
}

BreakerTable::State BreakerTable::state(NodeIndex node, ModelIndex model, int64_t now_ns) const {
  const Breaker* breaker = find(node, model);
  return breaker == nullptr ? State::kClosed : state_of(*breaker, now_ns);
}

// --- the window ---

void BreakerTable::count(Breaker& breaker, bool fault, int64_t now_ns) {
  const int64_t now_s = now_ns / kNsPerSecond;
  Second& second = breaker.window[static_cast<size_t>(now_s % kWindowSeconds)];
  if (second.at != now_s) second = {now_s, 0, 0};
  second.faults += fault ? 1 : 0;
  ++second.requests;
}

void BreakerTable::sum(const Breaker& breaker, int64_t now_ns, int32_t* faults,
                       int32_t* requests) const {
  *faults = *requests = 0;
  for (const Second& second : breaker.window) {
    if (second.at < 0 || second.at <= now_ns / kNsPerSecond - kWindowSeconds) continue;
    *faults += second.faults;
    *requests += second.requests;
  }
}

// --- asking and scoring ---

bool BreakerTable::admits(NodeIndex node, ModelIndex model, int64_t now_ns) const {
  const Breaker* breaker = find(node, model);
  if (breaker == nullptr) return true;
  switch (state_of(*breaker, now_ns)) {
    case State::kClosed:
      return true;
    case State::kOpen:
      return false;
    case State::kHalfOpen:
      return !breaker->probing;
  }
  return true;
}

bool BreakerTable::dispatched(NodeIndex node, ModelIndex model, int64_t now_ns) {
  Breaker* breaker = any_tripped() ? find(node, model) : nullptr;
  if (breaker == nullptr || state_of(*breaker, now_ns) != State::kHalfOpen || breaker->probing)
    return false;
  breaker->state = State::kHalfOpen;
  return breaker->probing = true;
}

void BreakerTable::score(NodeIndex node, ModelIndex model, Outcome outcome, bool probe,
                         int64_t now_ns) {
  if (outcome == Outcome::kNeutral && !probe) return;
  Breaker& breaker = at(node, model);
  // A probe of an earlier life of the breaker: it was closed or opened anew meanwhile.
  const bool proves = probe && breaker.state == State::kHalfOpen && breaker.probing;
  if (proves) breaker.probing = false;
  if (outcome == Outcome::kNeutral) return;
  const bool fault = outcome != Outcome::kSuccess;
  count(breaker, fault, now_ns);
  breaker.connect_faults = outcome == Outcome::kConnectFault ? breaker.connect_faults + 1 : 0;
  if (breaker.state == State::kHalfOpen) {
    // What was sent before it opened and ends only now is no answer to the probe.
    if (!proves) return;
    if (fault) {
      open(breaker, now_ns);
    } else if (++breaker.successes >= rules_.successes_to_close) {
      close(breaker);
    }
    return;
  }
  if (breaker.state != State::kClosed || !fault) return;
  int32_t faults = 0;
  int32_t requests = 0;
  sum(breaker, now_ns, &faults, &requests);
  const bool trips = breaker.connect_faults >= rules_.connect_faults_max ||
                     (faults >= rules_.faults_min && faults >= rules_.fault_share_min * requests);
  if (trips && may_eject(model)) open(breaker, now_ns);
}

size_t BreakerTable::ejected(ModelIndex model) const {
  if (!any_tripped()) return 0;
  const std::vector<Serving>& serving = registry_.serving(model);
  return static_cast<size_t>(
      std::count_if(serving.begin(), serving.end(), [&](const Serving& entry) {
        const Breaker* breaker = find(entry.node, model);
        return breaker != nullptr && breaker->state != State::kClosed;
      }));
}

bool BreakerTable::may_eject(ModelIndex model) const {
  return 2 * (ejected(model) + 1) <= registry_.serving(model).size();
}

void BreakerTable::open(Breaker& breaker, int64_t now_ns) {
  if (breaker.state == State::kClosed) ++tripped_count_;
  breaker.state = State::kOpen;
  breaker.probing = false;
  breaker.successes = 0;
  const int32_t doublings = std::min(breaker.opened++, 16);
  const double plain_ms = std::min<double>(
      rules_.open_ms_max, static_cast<double>(rules_.open_ms_first) * (1 << doublings));
  const double factor = 1.0 + rules_.jitter * (2.0 * next_random() - 1.0);
  breaker.opened_ns = now_ns;
  breaker.open_until_ns = now_ns + static_cast<int64_t>(plain_ms * factor * kNsPerMs);
  ++opened_total_;
}

void BreakerTable::close(Breaker& breaker) {
  --tripped_count_;
  const uint32_t generation = breaker.generation;
  breaker = Breaker{};
  breaker.generation = generation;
}

void BreakerTable::rebooted(NodeIndex node, int64_t now_ns) {
  if (!any_tripped()) return;
  for (const Registry::Node::Served& served : registry_.node(node).served) {
    Breaker* breaker = find(node, served.model);
    if (breaker == nullptr || breaker->state == State::kClosed) continue;
    breaker->state = State::kHalfOpen;
    breaker->open_until_ns = now_ns;
    breaker->probing = false;
    breaker->successes = 0;
  }
}

void BreakerTable::nodes_changed(ModelIndex model) {
  for (size_t out = ejected(model); out > 0 && 2 * out > registry_.serving(model).size(); --out) {
    Breaker* longest = nullptr;
    for (const Serving& entry : registry_.serving(model)) {
      Breaker* breaker = find(entry.node, model);
      if (breaker == nullptr || breaker->state == State::kClosed) continue;
      if (longest == nullptr || breaker->opened_ns < longest->opened_ns) longest = breaker;
    }
    close(*longest);
  }
}

// --- views ---

std::vector<BreakerTable::View> BreakerTable::views(int64_t now_ns) const {
  std::vector<View> out;
  for (const auto& [id, breaker] : breakers_) {
    View view{static_cast<NodeIndex>(id), static_cast<ModelIndex>(id >> 32), {}, 0, 0, 0};
    if (breaker.generation != registry_.node(view.node).generation) continue;
    sum(breaker, now_ns, &view.faults, &view.requests);
    view.state = state_of(breaker, now_ns);
    if (view.state == State::kClosed && view.faults == 0) continue;
    if (view.state == State::kOpen) view.retry_ms = (breaker.open_until_ns - now_ns) / kNsPerMs;
    out.push_back(view);
  }
  std::sort(out.begin(), out.end(), [](const View& a, const View& b) {
    return a.node != b.node ? a.node < b.node : a.model < b.model;
  });
  return out;
}

size_t BreakerTable::open_count(int64_t now_ns) const {
  if (!any_tripped()) return 0;
  return static_cast<size_t>(std::count_if(
      breakers_.begin(), breakers_.end(),
      [&](const auto& entry) { return state_of(entry.second, now_ns) == State::kOpen; }));
}

double BreakerTable::next_random() {  // splitmix64, [0, 1)
  uint64_t z = (random_ += 0x9E3779B97F4A7C15ULL);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1.0p-53;
}

}  // namespace updraft
