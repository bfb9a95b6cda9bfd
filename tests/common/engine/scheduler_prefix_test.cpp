// Sequences that share pages under the scheduler: named situations, then random worlds in which the
// KV memory keeps for each position a digest of everything that it depends on, so that a page of
// another prefix or tenant, or one that was overwritten while shared, shows at the next read.
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

// A scheduler with the ids of its sequences, run as the engine runs it.
struct Harness {
  explicit Harness(const SchedulerConfig& config) : scheduler(config) {}

  void add(uint64_t id, std::vector<int32_t> prompt, int32_t answer, const std::string& salt = "",
           Priority priority = Priority::kDefault, int32_t logit_tokens = 0) {
    ScheduledSequence info;
    info.id = id;
    info.token_count = static_cast<int32_t>(prompt.size());
    info.token_limit = info.token_count + answer;
    info.priority = priority;
    info.logit_tokens = logit_tokens;
    info.salt = salt;
    info.ids = &(ids[id] = std::move(prompt));
    scheduler.add(info, now_ns++);
  }
  // One step; every sample is `next`.
  StepPlan step(int32_t next = 1000, int32_t prefill_tokens_max = 0) {
    StepPlan plan = scheduler.plan(now_ns++, prefill_tokens_max);
    scheduler.commit(plan);
    for (const StepSlice& slice : plan.slices) {
      rows[slice.id] += slice.count;
      if (!slice.samples) continue;
      ids.at(slice.id).push_back(next);
      scheduler.append(slice.id);
    }
    return plan;
  }
  // Steps until the sequence has sampled `answer` tokens, then ends it.
  void run_to_end(uint64_t id, int32_t answer, int32_t next = 1000) {
    const size_t wanted = ids.at(id).size() + static_cast<size_t>(answer);
    while (ids.at(id).size() < wanted) step(next);
    scheduler.finish(id);
  }

  Scheduler scheduler;
  std::map<uint64_t, std::vector<int32_t>> ids;
  std::map<uint64_t, int32_t> rows;  // computed for each
  int64_t now_ns = 1;
};

}  // namespace

TEST_CASE("a prompt seen before is computed from its last page on, and its last token always") {
  Harness h(small_config());
  h.add(1, numbers(0, 16), 4);
  h.run_to_end(1, 2);
  CHECK(h.rows[1] == 17);
  h.add(2, numbers(0, 16), 4);  // the fourth page holds the last token, whose logits are wanted
  CHECK(h.step().slices == std::vector<StepSlice>{{2, 12, 4, true}});
  CHECK(h.scheduler.found_count(2) == 12);
  h.add(3, numbers(0, 17), 4);
  const StepPlan plan = h.step();
  CHECK(plan.slices == std::vector<StepSlice>{{2, 16, 1, true}, {3, 16, 1, true}});
  const PrefixCacheStats stats = h.scheduler.prefix_stats();
  CHECK(stats.queried_tokens == 16 + 16 + 17);
  CHECK(stats.hit_tokens == 12 + 16);
}

TEST_CASE("the next turn finds the answer of the one before, page by page") {
  Harness h(small_config());
  h.add(1, numbers(0, 6), 20);
  h.run_to_end(1, 11, 77);  // 17 tokens, the last of them never computed
  std::vector<int32_t> turn = h.ids[1];
  turn.insert(turn.end(), {5, 6, 7});
  h.add(2, turn, 4);
  CHECK(h.step().slices == std::vector<StepSlice>{{2, 16, 4, true}});
}

TEST_CASE("drafts that were right before the token that ended a sequence are found as well") {
  Harness h(small_config());
  h.add(1, numbers(0, 6), 20);
  h.step(100);  // 7 tokens, 6 computed
  StepPlan plan = h.scheduler.plan(h.now_ns++, 0);
  CHECK(h.scheduler.add_drafts(plan, plan.slices[0], 6) == 6);
  h.scheduler.commit(plan);
  // Tokens 101..105 were guessed right; 106 ends it, never computed. Positions 0..11 stand in KV.
  for (const int32_t token : numbers(101, 6)) h.ids[1].push_back(token);
  h.scheduler.finish(1, 5);
  std::vector<int32_t> turn = h.ids[1];
  h.add(2, turn, 4);  // 13 tokens
  CHECK(h.step().slices == std::vector<StepSlice>{{2, 12, 1, true}});
}

TEST_CASE("without ids, with the cache off or for another tenant everything is computed") {
  SchedulerConfig off = small_config();
  off.prefix_cache = false;
  Harness without(off);
  for (uint64_t id = 1; id <= 2; ++id) {
    without.add(id, numbers(0, 12), 4);
    without.run_to_end(id, 1);
    CHECK(without.rows[id] == 12);
  }
  CHECK(without.scheduler.pages_cached() == 0);
  CHECK(without.scheduler.prefix_stats().queried_tokens == 0);

  SchedulerConfig config = small_config();
  config.prefix_hash = [](uint64_t, std::span<const int32_t>) -> uint64_t { return 1; };
  Harness h(config);
  for (const char* salt : {"alice", "bob", ""}) {
    const uint64_t id = h.rows.size() + 1;
    h.add(id, numbers(0, 12), 4, salt);
    h.run_to_end(id, 1);
    CHECK(h.rows[id] == 12);
  }
  h.add(9, numbers(0, 12), 4, "bob");
  h.run_to_end(9, 1);
  CHECK(h.rows[9] == 4);
}

TEST_CASE("two that arrive together with the same beginning compute it once") {
  SchedulerConfig config = small_config();
  config.step_tokens_max = 64;
  Harness h(config);
  h.add(1, numbers(0, 18), 4);
  h.add(2, numbers(0, 18), 4);
  std::vector<int32_t> third = numbers(0, 18);
  third[9] = 99;
  h.add(3, third, 4);
  // The second waits for the first, the third too, for the pages that they share.
  CHECK(h.step().slices == std::vector<StepSlice>{{1, 0, 18, true}});
  CHECK(h.step().slices ==
        std::vector<StepSlice>{{1, 18, 1, true}, {2, 16, 2, true}, {3, 8, 10, true}});
  CHECK(h.scheduler.found_count(1) == 0);
  CHECK(h.scheduler.found_count(2) == 16);
  CHECK(h.scheduler.found_count(3) == 8);
}

TEST_CASE("nobody waits for what another tenant computes") {
  SchedulerConfig config = small_config();
  config.step_tokens_max = 64;
  Harness h(config);
  h.add(1, numbers(0, 18), 4, "alice");
  h.add(2, numbers(0, 18), 4, "bob");
  CHECK(h.step().slices == std::vector<StepSlice>{{1, 0, 18, true}, {2, 0, 18, true}});
}

TEST_CASE("who waits for another's pages goes on alone when that one is cancelled") {
  Harness h(small_config());
  h.add(1, numbers(0, 20), 4);
  h.add(2, numbers(0, 14), 4);
  CHECK(h.step(1000, 6).slices == std::vector<StepSlice>{{1, 0, 6, false}});
  h.scheduler.cancel(1);
  CHECK(h.step().slices == std::vector<StepSlice>{{2, 4, 8, false}});
  CHECK(h.step().slices == std::vector<StepSlice>{{2, 12, 2, true}});
}

TEST_CASE("a preempted sequence finds its own pages again, and they are not counted as found") {
  SchedulerConfig config = small_config();
  config.slots = 1;
  Harness h(config);
  h.add(1, numbers(0, 10), 20, "", Priority::kBulk);
  h.step();
  h.step();
  h.step();  // 12 tokens, 11 computed
  h.add(2, numbers(50, 4), 4, "", Priority::kInteractive);
  CHECK(h.step().preempted == std::vector<uint64_t>{1});
  h.scheduler.finish(2);
  CHECK(h.step().slices == std::vector<StepSlice>{{1, 8, 4, true}});
  CHECK(h.scheduler.found_count(1) == 0);
}

TEST_CASE("prompt logits that are still wanted are computed, later ones of the prompt are found") {
  Harness h(small_config());
  h.add(1, numbers(0, 8), 4);
  h.run_to_end(1, 1);
  h.add(2, numbers(0, 8), 4, "", Priority::kDefault, 7);
  CHECK(h.step().slices == std::vector<StepSlice>{{2, 0, 8, true}});
  CHECK(h.scheduler.found_count(2) == 0);
  h.scheduler.finish(2);
  // Preempted after its logits were given, it needs none a second time.
  SchedulerConfig config = small_config();
  config.slots = 1;
  Harness p(config);
  p.add(1, numbers(0, 9), 20, "", Priority::kBulk, 8);
  while (p.ids[1].size() == 9) p.step();
  p.add(2, numbers(50, 4), 4, "", Priority::kInteractive);
  CHECK(p.step().preempted == std::vector<uint64_t>{1});
  p.scheduler.finish(2);
  CHECK(p.step().slices == std::vector<StepSlice>{{1, 8, 2, true}});
}

TEST_CASE("cached pages count as free and are given up for whoever needs them") {
  SchedulerConfig config = small_config();
  config.page_count = 8;
  Harness h(config);
  h.add(1, numbers(0, 20), 4);
  h.run_to_end(1, 1);
  CHECK(h.scheduler.pages_free() == 8);
  CHECK(h.scheduler.pages_cached() == 5);
  h.add(2, numbers(100, 30), 2);
  h.run_to_end(2, 2);
  CHECK(h.rows[2] == 31);
  CHECK(h.scheduler.prefix_stats().evicted_pages == 5);
  h.add(3, numbers(0, 20), 4);
  h.run_to_end(3, 1);
  CHECK(h.rows[3] == 20);  // nothing of it is left
}

TEST_CASE("an arrival whose pages others hold needs only the rest, and a shared page frees once") {
  SchedulerConfig config = small_config();
  config.page_count = 7;
  Harness h(config);
  h.add(1, numbers(0, 10), 10, "", Priority::kBulk);  // 3 pages, two of them shared below
  while (h.ids[1].size() == 10) h.step();
  h.add(2, numbers(0, 9), 10, "", Priority::kBulk);  // one page of its own
  while (h.ids[2].size() == 9) h.step();
  CHECK(h.scheduler.pages_free() == 3);
  // Three pages of which two are held already: it fits beside both.
  h.add(3, numbers(0, 9), 4, "", Priority::kBulk);
  StepPlan plan = h.step();
  CHECK(plan.preempted.empty());
  CHECK(h.scheduler.running_count() == 3);
  h.scheduler.finish(3);
  // Six pages: the two that both share come back only when the second of them goes as well.
  h.add(4, numbers(200, 24), 4, "", Priority::kInteractive);
  plan = h.step();
  CHECK(plan.preempted == std::vector<uint64_t>{2, 1});
  CHECK(h.rows[4] == 8);
}

namespace {

// One position in KV memory: what its K and V depend on, the tenant and all tokens up to it.
uint64_t digest(const std::string& salt, const std::vector<int32_t>& ids, size_t count) {
  uint64_t hash = 14695981039346656037ULL;
  const auto mix = [&](uint64_t value) { hash = (hash ^ value) * 1099511628211ULL; };
  for (const char c : salt) mix(static_cast<uint8_t>(c) + 1000U);
  for (size_t i = 0; i < count; ++i) mix(static_cast<uint32_t>(ids[i]));
  return hash;
}

struct Live {
  std::string salt;
  std::vector<int32_t> ids;
  int32_t prompt = 0;
  int32_t limit = 0;
  int32_t logit_tokens = 0;
  std::set<int32_t> computed;  // positions, by itself
  bool cancelled = false;
};

}  // namespace

TEST_CASE(
    "random worlds: shared pages are never written, hold what their readers expect, and all come "
    "back") {
  int64_t preemptions = 0;
  int64_t shared = 0;
  int64_t drafted = 0;
  PrefixCacheStats sum;
  for (uint32_t seed = 1; seed <= 250; ++seed) {
    CAPTURE(seed);
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
    if (seed % 3 == 1)
      config.prefix_hash = [](uint64_t, std::span<const int32_t>) -> uint64_t { return 3; };
    if (seed % 3 == 2)
      config.prefix_hash = [](uint64_t before, std::span<const int32_t> ids) {
        return hash_prefix(before, ids) & 1;
      };
    Scheduler scheduler(config);
    const int32_t context = std::min(config.page_count * config.page_tokens, pick(8, 100));
    std::map<uint64_t, Live> live;
    std::vector<std::pair<std::string, std::vector<int32_t>>> said;  // conversations to go on with
    std::map<std::pair<int32_t, int32_t>, uint64_t> kv;              // (page, offset) -> digest
    uint64_t next_id = 1;
    int64_t now_ns = 0;
    const uint64_t wanted = static_cast<uint64_t>(pick(10, 40));
    int64_t steps_left = 100'000;

    while (next_id <= wanted || !scheduler.idle()) {
      REQUIRE(--steps_left > 0);
      now_ns += 1'000'000;
      while (next_id <= wanted && pick(0, 2) == 0) {
        Live entry;
        if (!said.empty() && pick(0, 2) != 0) {
          std::tie(entry.salt, entry.ids) =
              said[static_cast<size_t>(pick(0, static_cast<int32_t>(said.size()) - 1))];
          const auto keep = static_cast<size_t>(pick(1, static_cast<int32_t>(entry.ids.size())));
          if (pick(0, 1) == 0) entry.ids.resize(keep);
          if (pick(0, 5) == 0) entry.salt += "x";  // the same text from somebody else
        } else {
          entry.salt = std::string(pick(0, 1) == 0 ? "" : "a");
        }
        const auto room = static_cast<size_t>(context - 1);
        if (entry.ids.size() > room) entry.ids.resize(room);
        const int32_t more =
            pick(entry.ids.empty() ? 1 : 0, static_cast<int32_t>(room - entry.ids.size()) / 2 + 1);
        for (int32_t i = 0; i < more && entry.ids.size() < room; ++i)
          entry.ids.push_back(pick(0, 1));
        entry.prompt = static_cast<int32_t>(entry.ids.size());
        entry.limit = pick(entry.prompt + 1, context);
        if (pick(0, 5) == 0) entry.logit_tokens = entry.prompt - 1;
        ScheduledSequence info;
        info.id = next_id;
        info.token_count = entry.prompt;
        info.token_limit = entry.limit;
        info.priority = static_cast<Priority>(pick(0, 3));
        info.logit_tokens = entry.logit_tokens;
        info.salt = entry.salt;
        said.emplace_back(entry.salt, entry.ids);
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

      StepPlan plan = scheduler.plan(now_ns, pick(0, 1) == 0 ? 0 : pick(1, 10));
      preemptions += static_cast<int64_t>(plan.preempted.size());
      for (const StepPlan::Ended& ended : plan.ended) {
        REQUIRE(live.at(ended.id).cancelled);
        live.erase(ended.id);
      }
      REQUIRE((!plan.slices.empty() || live.empty()));
      std::map<uint64_t, std::vector<int32_t>> drafts;
      for (StepSlice& slice : plan.slices) {
        if (!slice.samples || slice.count != 1 || pick(0, 1) == 0) continue;
        const int32_t count = scheduler.add_drafts(plan, slice, pick(1, 8));
        for (int32_t i = 0; i < count; ++i) drafts[slice.id].push_back(pick(0, 1));
      }

      std::map<int32_t, int32_t> holders;
      for (const auto& [id, entry] : live) {
        std::set<int32_t> own;
        for (const int32_t page : scheduler.pages(id)) {
          REQUIRE(own.insert(page).second);
          ++holders[page];
        }
      }
      for (const auto& [page, count] : holders) shared += count > 1 ? 1 : 0;
      REQUIRE(static_cast<int32_t>(holders.size()) + scheduler.pages_free() == config.page_count);
      REQUIRE(scheduler.pages_cached() <= scheduler.pages_free());

      int32_t rows = 0;
      for (const StepSlice& slice : plan.slices) {
        Live& entry = live.at(slice.id);
        const auto pages = scheduler.pages(slice.id);
        rows += slice.count;
        std::vector<int32_t> with_drafts = entry.ids;
        const auto& guessed = drafts[slice.id];
        with_drafts.insert(with_drafts.end(), guessed.begin(), guessed.end());
        for (int32_t p = slice.first; p < slice.first + slice.count; ++p) {
          const int32_t page = pages[static_cast<size_t>(p / config.page_tokens)];
          REQUIRE(holders.at(page) == 1);
          kv[{page, p % config.page_tokens}] =
              digest(entry.salt, with_drafts, static_cast<size_t>(p) + 1);
          entry.computed.insert(p);
        }
      }
      REQUIRE(rows <= config.step_tokens_max);
      scheduler.commit(plan);
      for (const StepSlice& slice : plan.slices) {
        Live& entry = live.at(slice.id);
        // What the slice's last row before any drafts attends to, as it stands in memory.
        const auto pages = scheduler.pages(slice.id);
        const int32_t known = slice.first + slice.count - slice.drafts;
        for (int32_t p = 0; p < known; ++p) {
          REQUIRE(
              kv.at({pages[static_cast<size_t>(p / config.page_tokens)], p % config.page_tokens}) ==
              digest(entry.salt, entry.ids, static_cast<size_t>(p) + 1));
        }
        if (!slice.samples) continue;
        REQUIRE(known == static_cast<int32_t>(entry.ids.size()));
        for (int32_t p = 0; p < entry.logit_tokens; ++p) REQUIRE(entry.computed.contains(p));
        // The sample, and one more for each draft that it or the one before made right.
        const auto& guessed = drafts[slice.id];
        int32_t count = 0;
        do {
          entry.ids.push_back(pick(0, 1));
          ++count;
        } while (count <= slice.drafts &&
                 guessed[static_cast<size_t>(count) - 1] == entry.ids.back() &&
                 static_cast<int32_t>(entry.ids.size()) < entry.limit);
        drafted += count - 1;
        if (pick(0, 30) == 0 || static_cast<int32_t>(entry.ids.size()) == entry.limit) {
          REQUIRE(scheduler.found_count(slice.id) < entry.prompt);
          for (int32_t p = 0; p < entry.prompt; ++p) {
            if (!entry.computed.contains(p)) REQUIRE(scheduler.found_count(slice.id) > 0);
          }
          said.emplace_back(entry.salt, entry.ids);
          scheduler.finish(slice.id);
          live.erase(slice.id);
        } else {
          scheduler.append(slice.id, count);
        }
      }
    }
    CHECK(scheduler.pages_free() == config.page_count);  // nobody holds a page any more
    const PrefixCacheStats stats = scheduler.prefix_stats();
    CHECK(stats.hit_tokens <= stats.queried_tokens);
    sum.queried_tokens += stats.queried_tokens;
    sum.hit_tokens += stats.hit_tokens;
    sum.evicted_pages += stats.evicted_pages;
  }
  // The worlds were hard enough to mean something.
  CHECK(preemptions > 500);
  CHECK(shared > 5000);
  CHECK(drafted > 2000);
  CHECK(sum.hit_tokens > 8000);
  CHECK(sum.evicted_pages > 5000);
}
