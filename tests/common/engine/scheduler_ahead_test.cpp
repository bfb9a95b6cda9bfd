// A scheduler whose caller reads tokens late, and sequences that are swapped instead of computed
// again: named situations, then random worlds. In those the KV memory and the swap space keep for
// each position a digest of everything that it depends on, so that a page indexed by tokens that
// nobody knew, moved to the wrong place or fetched too late shows at the next row that looks back
// on it.
#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/common/engine/small_scheduler.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

ScheduledSequence sequence(uint64_t id, int32_t prompt, int32_t answer,
                           const std::vector<int32_t>* ids = nullptr) {
  ScheduledSequence out;
  out.id = id;
  out.token_count = prompt;
  out.token_limit = prompt + answer;
  out.ids = ids;
  return out;
}

// A step whose samples stay unread.
StepPlan start(Scheduler& scheduler, int64_t now_ns = 0) {
  StepPlan plan = scheduler.plan(now_ns, 0);
  scheduler.commit(plan);
  for (const StepSlice& slice : plan.slices) {
    if (slice.samples) scheduler.append_unread(slice.id);
  }
  return plan;
}

}  // namespace

TEST_CASE("a step is planned behind a token that nobody has read") {
  Scheduler scheduler(small_config());
  scheduler.add(sequence(1, 3, 5), 0);
  CHECK(start(scheduler).slices == std::vector<StepSlice>{{1, 0, 3, true}});
  CHECK(start(scheduler).slices == std::vector<StepSlice>{{1, 3, 1, true}});
  scheduler.read(1);
  CHECK(start(scheduler).slices == std::vector<StepSlice>{{1, 4, 1, true}});
  CHECK(scheduler.decode_tokens_reserved() == 2);
}

TEST_CASE("the last token that a sequence may have needs no row, no page and no victim") {
  SchedulerConfig config = small_config();
  config.page_count = 3;
  Scheduler scheduler(config);
  scheduler.add(sequence(1, 4, 1), 0);
  scheduler.add(sequence(2, 4, 4), 1);
  CHECK(start(scheduler).slices.size() == 2);
  CHECK(scheduler.decoding_count() == 1);
  // The first one's fifth token would take the page that the second one needs.
  const StepPlan plan = start(scheduler);
  CHECK(plan.preempted.empty());
  CHECK(plan.slices == std::vector<StepSlice>{{2, 4, 1, true}});
  scheduler.read(1);
  scheduler.finish(1);
  CHECK(scheduler.pages_free() == 1);
}

TEST_CASE("what gave way with an unread token waits until that is read") {
  SchedulerConfig config = small_config();
  config.page_count = 3;
  Scheduler scheduler(config);
  scheduler.add(sequence(1, 4, 8), 0);
  scheduler.add(sequence(2, 4, 4), 1);
  CHECK(start(scheduler).slices.size() == 2);
  const StepPlan plan = start(scheduler);
  CHECK(plan.preempted == std::vector<uint64_t>{2});
  CHECK(plan.slices == std::vector<StepSlice>{{1, 4, 1, true}});
  scheduler.finish(1);
  CHECK(scheduler.plan(3, 0).slices.empty());
  scheduler.read(2);
  CHECK(scheduler.plan(3, 0).slices == std::vector<StepSlice>{{2, 0, 5, true}});
}

TEST_CASE("a page with an unread token is found by others once that token is read") {
  Scheduler scheduler(small_config());
  std::vector<int32_t> ids = numbers(0, 3);
  scheduler.add(sequence(1, 3, 9, &ids), 0);
  start(scheduler);
  start(scheduler);  // the fourth token, unread, fills the page
  CHECK(scheduler.pages_cached() == 0);
  ids.push_back(3);
  scheduler.read(1);
  scheduler.finish(1);
  CHECK(scheduler.pages_cached() == 1);
  const std::vector<int32_t> other = numbers(0, 6);
  scheduler.add(sequence(2, 6, 3, &other), 1);
  CHECK(scheduler.plan(2, 0).slices == std::vector<StepSlice>{{2, 4, 2, true}});
}

TEST_CASE("a page is not found by a token that ended its sequence unread") {
  Scheduler scheduler(small_config());
  std::vector<int32_t> ids = numbers(0, 3);
  scheduler.add(sequence(1, 3, 9, &ids), 0);
  start(scheduler);
  start(scheduler);
  scheduler.finish(1);  // its fourth token was a stop token
  CHECK(scheduler.pages_cached() == 0);
  CHECK(scheduler.pages_free() == 16);
}

TEST_CASE("nobody waits for a page that another fills with tokens that are unread") {
  SchedulerConfig config = small_config();
  config.step_tokens_max = 16;
  Scheduler scheduler(config);
  std::vector<int32_t> ids = numbers(0, 8);
  ids.pop_back();  // whoever looks behind the end of what is known sees the very token
  scheduler.add(sequence(1, 7, 9, &ids), 0);
  start(scheduler);
  const std::vector<int32_t> other = numbers(0, 9);
  scheduler.add(sequence(2, 9, 3, &other), 1);
  // The second page of the first may hold the same tokens; who knows.
  CHECK(scheduler.plan(2, 0).slices == std::vector<StepSlice>{{1, 7, 1, true}, {2, 4, 5, true}});
}

TEST_CASE("what gives way goes to the swap space and comes back where it stood") {
  SchedulerConfig config = small_config();
  config.page_count = 4;
  config.swap_slots = 4;
  Scheduler scheduler(config);
  scheduler.set_swap_costs(1000, 1000);
  scheduler.add(sequence(1, 4, 12), 0);
  scheduler.add(sequence(2, 4, 8), 1);
  std::vector<StepPlan::Swap> out;
  std::vector<int32_t> pages;
  for (int step = 0; out.empty(); ++step) {
    REQUIRE(step < 12);
    if (step > 0) pages.assign(scheduler.pages(2).begin(), scheduler.pages(2).end());
    StepPlan plan = scheduler.plan(2, 0);
    out = plan.swaps;
    scheduler.commit(plan);
    for (const StepSlice& slice : plan.slices) scheduler.append(slice.id);
  }
  REQUIRE(out.size() == 2);
  for (size_t i = 0; i < 2; ++i) {
    CHECK(out[i].out);
    CHECK(out[i].page == pages[i]);
  }
  CHECK(scheduler.swapped_pages(2) == 2);
  CHECK(scheduler.swap_slots_free() == 2);
  CHECK(scheduler.prefill_tokens_queued() == 1);  // all but its newest token is there
  scheduler.finish(1);
  const StepPlan back = scheduler.plan(3, 0);
  REQUIRE(back.swaps.size() == 2);
  for (size_t i = 0; i < 2; ++i) {
    CHECK_FALSE(back.swaps[i].out);
    CHECK(back.swaps[i].slot == out[i].slot);
    CHECK(back.swaps[i].page == scheduler.pages(2)[i]);
  }
  REQUIRE(back.slices.size() == 1);
  CHECK(back.slices[0].first == 8);
  CHECK(back.slices[0].count == 1);
  CHECK(scheduler.swap_slots_free() == 4);
}

TEST_CASE("a swap that takes longer than computing again, or finds no room, is not made") {
  for (const bool room : {true, false}) {
    SchedulerConfig config = small_config();
    config.slots = 1;
    config.swap_slots = room ? 8 : 1;
    Scheduler scheduler(config);
    // Two pages there and back are 4 ms; eight positions, 4 ms and a little less.
    scheduler.set_swap_costs(1e6, room ? 0.49e6 : 10e6);
    ScheduledSequence bulk = sequence(1, 8, 8);
    bulk.priority = Priority::kBulk;
    scheduler.add(bulk, 0);
    StepPlan plan = scheduler.plan(0, 0);
    scheduler.commit(plan);
    scheduler.append(1);
    ScheduledSequence urgent = sequence(2, 2, 4);
    urgent.priority = Priority::kInteractive;
    scheduler.add(urgent, 1);
    plan = scheduler.plan(2, 0);
    CHECK(plan.preempted == std::vector<uint64_t>{1});
    CHECK(plan.swaps.empty());
    CHECK(scheduler.swap_slots_free() == config.swap_slots);
    scheduler.commit(plan);
    scheduler.append(2);
    scheduler.finish(2);
    CHECK(scheduler.plan(3, 0).slices == std::vector<StepSlice>{{1, 0, 8, false}});
  }
}

TEST_CASE("a cancelled sequence gives its slots back") {
  SchedulerConfig config = small_config();
  config.slots = 1;
  config.swap_slots = 8;
  Scheduler scheduler(config);
  ScheduledSequence bulk = sequence(1, 8, 8);
  bulk.priority = Priority::kBulk;
  scheduler.add(bulk, 0);
  start(scheduler);
  ScheduledSequence urgent = sequence(2, 2, 4);
  urgent.priority = Priority::kInteractive;
  scheduler.add(urgent, 1);
  CHECK(scheduler.plan(2, 0).swaps.size() == 2);
  CHECK(scheduler.swap_slots_free() == 6);
  scheduler.cancel(1);
  scheduler.plan(3, 0);
  CHECK(scheduler.swap_slots_free() == 8);
}

TEST_CASE("pages that others hold are not swapped but found again") {
  SchedulerConfig config = small_config();
  config.slots = 2;
  config.swap_slots = 8;
  config.step_tokens_max = 32;
  config.logit_rows_max = 8;
  Scheduler scheduler(config);
  std::vector<int32_t> first = numbers(0, 9);
  std::vector<int32_t> second = numbers(0, 8);
  second.push_back(50);
  for (std::vector<int32_t>* ids : {&first, &second}) ids->reserve(16);
  scheduler.add(sequence(1, 9, 6, &first), 0);
  StepPlan plan = scheduler.plan(0, 0);
  scheduler.commit(plan);
  first.push_back(9);
  scheduler.append(1);
  ScheduledSequence bulk = sequence(2, 9, 6, &second);
  bulk.priority = Priority::kBulk;
  scheduler.add(bulk, 1);
  plan = scheduler.plan(1, 0);
  CHECK(plan.slices == std::vector<StepSlice>{{1, 9, 1, true}, {2, 8, 1, true}});
  scheduler.commit(plan);
  first.push_back(10);
  scheduler.append(1);
  second.push_back(51);
  scheduler.append(2);
  const int32_t own_page = scheduler.pages(2)[2];
  const std::vector<int32_t> third = numbers(70, 4);
  ScheduledSequence urgent = sequence(3, 4, 2, &third);
  urgent.priority = Priority::kInteractive;
  scheduler.add(urgent, 2);
  plan = scheduler.plan(2, 0);
  REQUIRE(plan.preempted == std::vector<uint64_t>{2});
  REQUIRE(plan.swaps.size() == 1);
  CHECK(plan.swaps[0].page == own_page);
  scheduler.commit(plan);
  for (const StepSlice& slice : plan.slices) {
    if (slice.id == 1) first.push_back(11);
    if (slice.samples && slice.id == 1) scheduler.append(1);
  }
  scheduler.finish(3);
  plan = scheduler.plan(3, 0);
  REQUIRE(plan.swaps.size() == 1);
  CHECK(plan.swaps[0].page == scheduler.pages(2)[2]);
  CHECK(scheduler.pages(2)[0] == scheduler.pages(1)[0]);
  CHECK(plan.slices.back() == StepSlice{2, 9, 1, true});
}

namespace {

struct Live {
  std::vector<int32_t> ids;     // that the host knows
  std::vector<int32_t> unread;  // that the device sampled and the host has not read
  std::string salt;
  int32_t prompt = 0;
  int32_t limit = 0;
  bool cancelled = false;
  bool paused = false;

  int32_t token(size_t position) const {
    return position < ids.size() ? ids[position] : unread.at(position - ids.size());
  }
  size_t count() const { return ids.size() + unread.size(); }
};

uint64_t mix(uint64_t before, uint64_t value) {
  uint64_t x = (before ^ value) * 0x9E3779B97F4A7C15U;
  return x ^ x >> 29;
}

// What K and V at each position depend on.
std::vector<uint64_t> digests(const Live& live, size_t count) {
  std::vector<uint64_t> out;
  uint64_t digest = 1;
  for (size_t p = 0; p < count; ++p) {
    digest = mix(digest, static_cast<uint64_t>(live.token(p)) + 7);
    out.push_back(digest);
  }
  return out;
}

struct Sums {
  int64_t preemptions = 0, swapped_out = 0, swapped_in = 0, shared = 0, wasted = 0,
          unread_waits = 0;
};

void run_world(uint32_t seed, Sums& sums) {
  std::mt19937 random(seed);
  const auto pick = [&](int32_t low, int32_t high) {
    return low + static_cast<int32_t>(random() % static_cast<uint32_t>(high - low + 1));
  };
  SchedulerConfig config;
  config.slots = pick(1, 8);
  config.page_tokens = pick(1, 6);
  config.page_count = pick(3, 30);
  config.step_tokens_max = pick(1, 30);
  config.logit_rows_max = config.slots + pick(0, 4);
  config.swap_slots = pick(0, 2) == 0 ? 0 : pick(1, 40);
  const bool ahead = pick(0, 3) != 0;
  Scheduler scheduler(config);
  const int32_t context = std::min(config.page_count * config.page_tokens, pick(8, 100));
  std::map<uint64_t, Live> live;
  std::map<std::pair<int32_t, int32_t>, uint64_t> kv;       // (page, offset) -> digest
  std::map<std::pair<int32_t, int32_t>, uint64_t> swapped;  // (slot, offset) -> digest
  std::vector<std::vector<int32_t>> said;
  std::vector<uint64_t> in_flight;  // who sampled in the last step
  const auto wanted = static_cast<uint64_t>(pick(10, 40));
  uint64_t next_id = 1;
  uint64_t ends = 0;
  int64_t now_ns = 0;
  int64_t steps_left = 100'000;
  StepPlan plan;

  const auto read = [&] {
    for (const uint64_t id : in_flight) {
      const auto found = live.find(id);
      if (found == live.end()) {
        ++sums.wasted;
        continue;
      }
      Live& entry = found->second;
      const int32_t token = entry.unread.front();
      entry.unread.erase(entry.unread.begin());
      const bool stop = token % 23 == 0;
      if (!stop) {
        entry.ids.push_back(token);
        scheduler.read(id);
      }
      if (stop || static_cast<int32_t>(entry.ids.size()) == entry.limit) {
        scheduler.finish(id);
        live.erase(found);
        ++ends;
      }
    }
    in_flight.clear();
  };

  while (next_id <= wanted || !scheduler.idle()) {
    REQUIRE(--steps_left > 0);  // nobody starves
    now_ns += 1'000'000;
    while (next_id <= wanted && pick(0, 2) == 0) {
      Live entry;
      if (!said.empty() && pick(0, 2) != 0) {
        entry.ids = said[static_cast<size_t>(pick(0, static_cast<int32_t>(said.size()) - 1))];
        entry.ids.resize(static_cast<size_t>(pick(1, static_cast<int32_t>(entry.ids.size()))));
      }
      const auto room = static_cast<size_t>(context - 1);
      if (entry.ids.size() > room) entry.ids.resize(room);
      const auto more = static_cast<size_t>(pick(1, 12));
      for (size_t i = 0; (i < more && entry.ids.size() < room) || entry.ids.empty(); ++i)
        entry.ids.push_back(pick(0, 1));
      entry.prompt = static_cast<int32_t>(entry.ids.size());
      entry.limit = pick(entry.prompt + 1, context);
      said.push_back(entry.ids);
      ScheduledSequence info = sequence(next_id, entry.prompt, entry.limit - entry.prompt);
      info.priority = static_cast<Priority>(pick(0, 3));
      Live& kept = live.emplace(next_id++, std::move(entry)).first->second;
      info.ids = &kept.ids;
      scheduler.add(info, now_ns);
    }
    if (!live.empty() && pick(0, 29) == 0) {
      auto victim = live.begin();
      std::advance(victim, pick(0, static_cast<int32_t>(live.size()) - 1));
      victim->second.cancelled = true;
      scheduler.cancel(victim->first);
    }
    if (!live.empty() && pick(0, 9) == 0) {
      auto slow = live.begin();
      std::advance(slow, pick(0, static_cast<int32_t>(live.size()) - 1));
      slow->second.paused = !slow->second.paused;
      slow->second.paused ? scheduler.pause(slow->first) : scheduler.resume(slow->first);
    }

    scheduler.set_swap_costs(pick(0, 2000), pick(0, 1000));
    scheduler.plan(now_ns, pick(0, 1) == 0 ? 0 : pick(1, 10), plan);
    sums.preemptions += static_cast<int64_t>(plan.preempted.size());
    for (const StepPlan::Ended& ended : plan.ended) {
      REQUIRE(live.at(ended.id).cancelled);
      live.erase(ended.id);
      ++ends;
    }
    const bool nobody_can = std::all_of(live.begin(), live.end(), [](const auto& e) {
      return e.second.paused || !e.second.unread.empty();
    });
    if (plan.slices.empty()) {
      REQUIRE((nobody_can || std::any_of(live.begin(), live.end(), [](const auto& e) {
                 return !e.second.unread.empty();  // one that waits with it holds up those behind
               })));
      sums.unread_waits += nobody_can ? 0 : 1;
    }

    // The device: the moves in their order, then the step.
    for (const StepPlan::Swap& swap : plan.swaps) {
      REQUIRE(swap.page < config.page_count);
      REQUIRE(swap.slot < config.swap_slots);
      for (int32_t offset = 0; offset < config.page_tokens; ++offset) {
        if (swap.out) {
          swapped[{swap.slot, offset}] = kv[{swap.page, offset}];
        } else {
          kv[{swap.page, offset}] = swapped[{swap.slot, offset}];
        }
      }
      ++(swap.out ? sums.swapped_out : sums.swapped_in);
    }
    std::vector<uint64_t> sampling;
    std::map<int32_t, int> holders;
    for (const auto& [id, entry] : live) {
      for (const int32_t page : scheduler.pages(id)) ++holders[page];
    }
    for (const StepSlice& slice : plan.slices) {
      Live& entry = live.at(slice.id);
      REQUIRE_FALSE(entry.paused);
      const auto end = static_cast<size_t>(slice.first + slice.count);
      REQUIRE(end <= entry.count());
      const auto expected = digests(entry, end);
      const auto pages = scheduler.pages(slice.id);
      REQUIRE(pages.size() * static_cast<size_t>(config.page_tokens) >= end);
      for (size_t p = 0; p < end; ++p) {
        const auto at = static_cast<int32_t>(p);
        const int32_t page = pages[p / static_cast<size_t>(config.page_tokens)];
        if (at < slice.first) {
          REQUIRE(kv[{page, at % config.page_tokens}] == expected[p]);
          sums.shared += holders[page] > 1 ? 1 : 0;
        } else {
          REQUIRE(holders[page] == 1);
          kv[{page, at % config.page_tokens}] = expected[p];
        }
      }
      if (slice.samples) {
        REQUIRE(end == entry.count());
        sampling.push_back(slice.id);
      }
    }
    scheduler.commit(plan);
    for (const uint64_t id : sampling) {
      Live& entry = live.at(id);
      scheduler.append_unread(id);
      entry.unread.push_back(static_cast<int32_t>(digests(entry, entry.count()).back() % 46));
    }
    // Ahead: the tokens of the step before are read now, behind the start of this one.
    if (ahead && !plan.slices.empty()) {
      read();
      in_flight = sampling;
    } else {
      read();
      in_flight = sampling;
      read();
    }
    std::set<int32_t> held;
    int32_t slots = 0;
    for (const auto& [id, entry] : live) {
      for (const int32_t page : scheduler.pages(id)) held.insert(page);
      slots += scheduler.swapped_pages(id);
    }
    REQUIRE(static_cast<int32_t>(held.size()) + scheduler.pages_free() == scheduler.page_count());
    REQUIRE(slots + scheduler.swap_slots_free() == config.swap_slots);
  }
  read();
  CHECK(ends == wanted);
  CHECK(scheduler.pages_free() == scheduler.page_count());
  CHECK(scheduler.swap_slots_free() == config.swap_slots);
}

}  // namespace

TEST_CASE(
    "random worlds of tokens read late and pages swapped: every row looks back on what it should, "
    "and pages and slots all come back") {
  Sums sums;
  for (uint32_t seed = 1; seed <= 400; ++seed) {
    CAPTURE(seed);
    run_world(seed, sums);
  }
  // The worlds were hard enough to mean something.
  CHECK(sums.preemptions > 1000);
  CHECK(sums.swapped_out > 1000);
  CHECK(sums.swapped_in > 500);
  CHECK(sums.shared > 1000);
  CHECK(sums.wasted > 300);
}
