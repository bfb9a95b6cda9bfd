// The scheduler: named situations first, then thousands of random worlds under a virtual model that
// records which token sits at which place of KV memory, so that a page shared by mistake or
// computed out of order shows as a wrong token.
#include "common/engine/scheduler.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "tests/common/engine/small_scheduler.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

constexpr int64_t kMs = 1'000'000;

ScheduledSequence sequence(uint64_t id, int32_t prompt, int32_t answer,
                           Priority priority = Priority::kDefault) {
  ScheduledSequence out;
  out.id = id;
  out.token_count = prompt;
  out.token_limit = prompt + answer;
  out.priority = priority;
  return out;
}

// Runs a plan as the engine would: everything sampled is appended.
void run(Scheduler& scheduler, const StepPlan& plan) {
  scheduler.commit(plan);
  for (const StepSlice& slice : plan.slices) {
    if (slice.samples) scheduler.append(slice.id);
  }
}

}  // namespace

TEST_CASE("a long prompt runs in chunks of the budget and samples only at its end") {
  Scheduler scheduler(small_config());
  scheduler.add(sequence(1, 19, 5), 0);
  StepPlan plan = scheduler.plan(0, 0);
  CHECK(plan.slices == std::vector<StepSlice>{{1, 0, 8, false}});
  scheduler.commit(plan);
  plan = scheduler.plan(0, 0);
  CHECK(plan.slices == std::vector<StepSlice>{{1, 8, 8, false}});
  scheduler.commit(plan);
  plan = scheduler.plan(0, 0);
  CHECK(plan.slices == std::vector<StepSlice>{{1, 16, 3, true}});
  run(scheduler, plan);
  plan = scheduler.plan(0, 0);
  CHECK(plan.slices == std::vector<StepSlice>{{1, 19, 1, true}});
}

TEST_CASE("decodes come before prompts, and a prompt gets what is left of the budget") {
  Scheduler scheduler(small_config());
  scheduler.add(sequence(1, 2, 10), 0);
  scheduler.add(sequence(2, 2, 10), 1);
  run(scheduler, scheduler.plan(2, 0));
  scheduler.add(sequence(3, 20, 10), 3);
  const StepPlan plan = scheduler.plan(4, 0);
  CHECK(plan.slices == std::vector<StepSlice>{{1, 2, 1, true}, {2, 2, 1, true}, {3, 0, 6, false}});
}

TEST_CASE("the caller may shorten a prompt's chunk to spare the decodes") {
  Scheduler scheduler(small_config());
  scheduler.add(sequence(1, 2, 10), 0);
  run(scheduler, scheduler.plan(0, 0));
  scheduler.add(sequence(2, 20, 10), 1);
  const StepPlan plan = scheduler.plan(2, 3);
  CHECK(plan.slices == std::vector<StepSlice>{{1, 2, 1, true}, {2, 0, 3, false}});
}

TEST_CASE("decodes that could fill every step leave a prompt one row") {
  SchedulerConfig config = small_config();
  config.step_tokens_max = 2;
  Scheduler scheduler(config);
  for (uint64_t id = 1; id <= 2; ++id) scheduler.add(sequence(id, 1, 20), 0);
  run(scheduler, scheduler.plan(0, 0));
  scheduler.add(sequence(3, 4, 2), 1);
  const StepPlan plan = scheduler.plan(2, 0);
  CHECK(plan.slices == std::vector<StepSlice>{{1, 1, 1, true}, {3, 0, 1, false}});
}

TEST_CASE("better classes are admitted first, equal ones in order of arrival") {
  SchedulerConfig config = small_config();
  config.slots = 1;
  Scheduler scheduler(config);
  scheduler.add(sequence(1, 2, 1, Priority::kBulk), 0);
  scheduler.add(sequence(2, 2, 1, Priority::kDefault), 1);
  scheduler.add(sequence(3, 2, 1, Priority::kDefault), 2);
  scheduler.add(sequence(4, 2, 1, Priority::kSystem), 3);
  std::vector<uint64_t> order;
  while (!scheduler.idle()) {
    const StepPlan plan = scheduler.plan(10, 0);
    REQUIRE(plan.slices.size() == 1);
    order.push_back(plan.slices[0].id);
    run(scheduler, plan);
    scheduler.finish(plan.slices[0].id);
  }
  CHECK(order == std::vector<uint64_t>{4, 2, 3, 1});
}

TEST_CASE("a bulk sequence that waited long enough is not overtaken any more") {
  SchedulerConfig config = small_config();
  config.slots = 1;
  Scheduler scheduler(config);
  scheduler.add(sequence(1, 2, 1, Priority::kBulk), 0);
  const int64_t later = 2 * kClassDelayNs + 1;
  scheduler.add(sequence(2, 2, 1, Priority::kInteractive), later);
  CHECK(scheduler.plan(later, 0).slices[0].id == 1);
}

TEST_CASE("an interactive sequence takes the slot of a bulk one when all are taken") {
  SchedulerConfig config = small_config();
  config.slots = 1;
  Scheduler scheduler(config);
  scheduler.add(sequence(1, 2, 10, Priority::kBulk), 0);
  run(scheduler, scheduler.plan(0, 0));
  scheduler.add(sequence(2, 2, 10, Priority::kBulk), 1);
  CHECK(scheduler.plan(2, 0).preempted.empty());  // its own class does not
  scheduler.add(sequence(3, 2, 10, Priority::kInteractive), 3);
  const StepPlan plan = scheduler.plan(4, 0);
  CHECK(plan.preempted == std::vector<uint64_t>{1});
  CHECK(plan.slices == std::vector<StepSlice>{{3, 0, 2, true}});
}

TEST_CASE("without pages the latest gives way and is computed again from its first token") {
  SchedulerConfig config = small_config();
  config.page_count = 4;  // 16 positions
  Scheduler scheduler(config);
  scheduler.add(sequence(1, 4, 12), 0);
  scheduler.add(sequence(2, 4, 8), 1);
  bool preempted = false;
  for (int step = 0; step < 12; ++step) {
    const StepPlan plan = scheduler.plan(2, 0);
    for (const uint64_t id : plan.preempted) {
      CHECK(id == 2);
      preempted = true;
    }
    CHECK(plan.slices[0].id == 1);  // the first is never held up
    run(scheduler, plan);
  }
  CHECK(preempted);
  scheduler.finish(1);
  const StepPlan plan = scheduler.plan(3, 0);
  REQUIRE(plan.slices.size() == 1);
  CHECK(plan.slices[0].id == 2);
  CHECK(plan.slices[0].first == 0);
  CHECK(plan.slices[0].count > 4);  // prompt and what it had sampled
}

TEST_CASE("cancel and deadline end a sequence at the next plan and free its pages") {
  Scheduler scheduler(small_config());
  scheduler.add(sequence(1, 6, 10), 0);
  ScheduledSequence late = sequence(2, 6, 10);
  late.deadline_ns = 5 * kMs;
  scheduler.add(late, 0);
  run(scheduler, scheduler.plan(0, 0));
  CHECK(scheduler.pages_free() < scheduler.page_count());
  scheduler.cancel(1);
  scheduler.cancel(99);
  StepPlan plan = scheduler.plan(1, 0);
  REQUIRE(plan.ended.size() == 1);
  CHECK(plan.ended[0].id == 1);
  CHECK(plan.ended[0].end == SequenceEnd::kCancelled);
  run(scheduler, plan);
  plan = scheduler.plan(5 * kMs, 0);
  REQUIRE(plan.ended.size() == 1);
  CHECK(plan.ended[0].id == 2);
  CHECK(plan.ended[0].end == SequenceEnd::kDeadline);
  CHECK(plan.slices.empty());
  CHECK(scheduler.idle());
  CHECK(scheduler.pages_free() == scheduler.page_count());
}

TEST_CASE("a prompt whose client has left is not computed any further (Ollama #11889)") {
  Scheduler scheduler(small_config());
  scheduler.add(sequence(1, 40, 5), 0);
  StepPlan plan = scheduler.plan(0, 0);
  REQUIRE(plan.slices == std::vector<StepSlice>{{1, 0, 8, false}});
  // It leaves while a step works on its first chunk: that step is the last.
  scheduler.cancel(1);
  run(scheduler, plan);
  plan = scheduler.plan(1, 0);
  CHECK(plan.slices.empty());
  REQUIRE(plan.ended.size() == 1);
  CHECK(plan.ended[0].end == SequenceEnd::kCancelled);
  CHECK(scheduler.pages_free() == scheduler.page_count());
  CHECK(scheduler.idle());
}

TEST_CASE("a paused sequence gets no tokens, keeps its pages, and goes on where it stood") {
  Scheduler scheduler(small_config());
  scheduler.add(sequence(1, 6, 6), 0);
  scheduler.add(sequence(2, 2, 10), 1);
  run(scheduler, scheduler.plan(2, 0));
  scheduler.pause(1);
  scheduler.pause(1);  // twice is once
  const std::vector<int32_t> pages(scheduler.pages(1).begin(), scheduler.pages(1).end());
  for (int step = 0; step < 3; ++step) {
    const StepPlan plan = scheduler.plan(3, 0);
    CHECK(plan.slices == std::vector<StepSlice>{{2, 2 + step, 1, true}});
    run(scheduler, plan);
  }
  CHECK(std::vector<int32_t>(scheduler.pages(1).begin(), scheduler.pages(1).end()) == pages);
  CHECK(scheduler.decoding_count() == 1);
  CHECK_FALSE(scheduler.all_paused());
  scheduler.resume(1);
  // First again, as before: its rank came back.
  CHECK(scheduler.plan(4, 0).slices == std::vector<StepSlice>{{1, 6, 1, true}, {2, 5, 1, true}});
}

TEST_CASE("who waits gets the slot and the pages of a paused sequence of any class") {
  SchedulerConfig config = small_config();
  config.slots = 1;
  config.page_count = 4;
  Scheduler scheduler(config);
  scheduler.add(sequence(1, 8, 8, Priority::kInteractive), 0);
  run(scheduler, scheduler.plan(0, 0));
  scheduler.add(sequence(2, 8, 8, Priority::kBulk), 1);
  CHECK(scheduler.plan(1, 0).slices == std::vector<StepSlice>{{1, 8, 1, true}});
  scheduler.pause(1);
  StepPlan plan = scheduler.plan(2, 0);
  CHECK(plan.preempted == std::vector<uint64_t>{1});
  CHECK(plan.slices == std::vector<StepSlice>{{2, 0, 8, true}});
  run(scheduler, plan);
  // It does not come back by itself, and in its old place once it may.
  CHECK(scheduler.plan(3, 0).slices == std::vector<StepSlice>{{2, 8, 1, true}});
  scheduler.resume(1);
  plan = scheduler.plan(4, 0);
  CHECK(plan.preempted == std::vector<uint64_t>{2});
  CHECK(plan.slices == std::vector<StepSlice>{{1, 0, 8, false}});
}

TEST_CASE("when all are paused there is nothing to plan but cancels and deadlines") {
  Scheduler scheduler(small_config());
  CHECK_FALSE(scheduler.all_paused());
  ScheduledSequence late = sequence(1, 2, 4);
  late.deadline_ns = 100;
  scheduler.add(late, 0);
  scheduler.add(sequence(2, 2, 4), 0);
  scheduler.pause(1);
  scheduler.pause(2);
  CHECK(scheduler.all_paused());
  CHECK(scheduler.next_deadline_ns() == 100);
  // What was paused before it ran takes neither slot nor page.
  CHECK(scheduler.plan(10, 0).slices.empty());
  CHECK(scheduler.running_count() == 0);
  CHECK(scheduler.pages_free() == scheduler.page_count());
  CHECK(scheduler.plan(50, 0).slices.empty());
  StepPlan plan = scheduler.plan(100, 0);
  REQUIRE(plan.ended.size() == 1);
  CHECK(plan.ended[0].end == SequenceEnd::kDeadline);
  scheduler.cancel(2);
  CHECK_FALSE(scheduler.all_paused());
  plan = scheduler.plan(101, 0);
  REQUIRE(plan.ended.size() == 1);
  CHECK(plan.ended[0].id == 2);
  CHECK(scheduler.idle());
  CHECK(scheduler.next_deadline_ns() == 0);
}

TEST_CASE("prompt logits keep a chunk within the rows that have room for logits") {
  SchedulerConfig config = small_config();
  config.logit_rows_max = 5;
  Scheduler scheduler(config);
  ScheduledSequence echo = sequence(1, 7, 3);
  echo.logit_tokens = 7;
  scheduler.add(echo, 0);
  StepPlan plan = scheduler.plan(0, 0);
  CHECK(plan.slices == std::vector<StepSlice>{{1, 0, 5, false}});
  run(scheduler, plan);
  plan = scheduler.plan(0, 0);
  CHECK(plan.slices == std::vector<StepSlice>{{1, 5, 2, true}});
}

TEST_CASE("drafts follow a decode, and only those that were right become positions in memory") {
  Scheduler scheduler(small_config());
  scheduler.add(sequence(1, 3, 20), 0);
  run(scheduler, scheduler.plan(0, 0));
  StepPlan plan = scheduler.plan(0, 0);
  REQUIRE(plan.slices == std::vector<StepSlice>{{1, 3, 1, true}});
  CHECK(plan.draft_rows_max == 7);
  CHECK(scheduler.add_drafts(plan, plan.slices[0], 5) == 5);
  CHECK(plan.slices[0] == StepSlice{1, 3, 6, true, 5});
  CHECK(plan.draft_rows_max == 2);
  CHECK(scheduler.pages(1).size() == 3);  // positions 0..8
  scheduler.commit(plan);
  scheduler.append(1, 3);                 // two drafts were right
  CHECK(scheduler.pages(1).size() == 2);  // tokens 0..6
  CHECK(scheduler.plan(0, 0).slices == std::vector<StepSlice>{{1, 6, 1, true}});
}

TEST_CASE("drafts end where the answer must end") {
  Scheduler scheduler(small_config());
  scheduler.add(sequence(1, 3, 3), 0);
  run(scheduler, scheduler.plan(0, 0));
  StepPlan plan = scheduler.plan(0, 0);
  // Two tokens may come: the row itself gives one, one draft's row the other.
  CHECK(scheduler.add_drafts(plan, plan.slices[0], 5) == 1);
  scheduler.commit(plan);
  scheduler.append(1, 2);
  scheduler.finish(1);
  CHECK(scheduler.idle());
}

TEST_CASE("nobody gives up a page for a draft") {
  SchedulerConfig config = small_config();
  config.page_count = 3;
  Scheduler scheduler(config);
  scheduler.add(sequence(1, 3, 9), 0);
  scheduler.add(sequence(2, 2, 9), 0);
  run(scheduler, scheduler.plan(0, 0));
  StepPlan plan = scheduler.plan(0, 0);
  REQUIRE(plan.slices.size() == 2);
  CHECK(scheduler.pages_free() == 1);
  CHECK(scheduler.add_drafts(plan, plan.slices[0], 5) == 4);  // the free page's positions 4..7
  CHECK(scheduler.add_drafts(plan, plan.slices[1], 5) == 1);  // what its own page has left
  scheduler.commit(plan);
  scheduler.append(1);
  scheduler.append(2);
  CHECK(scheduler.pages_free() == 0);  // the first needs its second page now
  plan = scheduler.plan(0, 0);
  CHECK(plan.preempted.empty());
}

TEST_CASE("drafts leave the rows with logits that prompts may need") {
  SchedulerConfig config = small_config();
  config.slots = 3;
  config.logit_rows_max = 4;
  config.step_tokens_max = 16;
  Scheduler scheduler(config);
  scheduler.add(sequence(1, 2, 20), 0);
  run(scheduler, scheduler.plan(0, 0));
  scheduler.add(sequence(2, 5, 20), 1);
  StepPlan plan = scheduler.plan(2, 0);
  REQUIRE(plan.slices.size() == 2);
  CHECK(plan.draft_rows_max == 2);  // 4 less one for the decode and one for the prompt's end
}

TEST_CASE("the load counts what is still to compute and what may still be generated") {
  Scheduler scheduler(small_config());
  scheduler.add(sequence(1, 10, 6), 0);
  scheduler.add(sequence(2, 5, 3), 0);
  CHECK(scheduler.prefill_tokens_queued() == 15);
  CHECK(scheduler.decode_tokens_reserved() == 9);
  run(scheduler, scheduler.plan(0, 0));
  CHECK(scheduler.prefill_tokens_queued() == 7);
}

namespace {

// A model of which only the order of computation matters: the next token is a hash of all tokens
// before it, read back from the KV memory through the sequence's pages.
struct World {
  explicit World(uint32_t seed) : random(seed) {}

  struct Live {
    std::vector<uint32_t> tokens;
    int32_t prompt = 0;
    int32_t limit = 0;
    int32_t logit_tokens = 0;
    int32_t logits_done = 0;
    int64_t deadline_ns = 0;
    bool cancelled = false;
    bool paused = false;
    uint64_t seed = 0;
  };

  static uint32_t next_token(const std::vector<uint32_t>& tokens) {
    uint32_t hash = 2166136261U;
    for (const uint32_t token : tokens) hash = (hash ^ token) * 16777619U;
    // Stirred, or a token would cancel the hash that it is, and every answer end at its second.
    return (hash ^ hash >> 15) * 2246822519U;
  }

  std::mt19937 random;
  std::map<uint64_t, Live> live;
  std::map<uint64_t, int> ends;  // id -> times ended
  std::map<std::pair<int32_t, int32_t>, uint32_t>
      kv;  // (page, position in page) -> token computed there
};

}  // namespace

TEST_CASE(
    "random worlds, with drafts and without: pages belong to one, budgets hold, everyone ends "
    "once, tokens are those of a "
    "run alone") {
  int64_t preemptions = 0;
  int64_t finished = 0;
  int64_t accepted = 0;
  for (uint32_t seed = 1; seed <= 600; ++seed) {
    CAPTURE(seed);
    World world(seed);
    auto pick = [&](int32_t low, int32_t high) {
      return low + static_cast<int32_t>(world.random() % static_cast<uint32_t>(high - low + 1));
    };
    SchedulerConfig config;
    config.slots = pick(1, 8);
    config.page_tokens = pick(1, 8);
    config.page_count = pick(3, 24);
    config.step_tokens_max = pick(1, 24);
    config.logit_rows_max = config.slots + pick(0, 12);
    const bool with_drafts = pick(0, 2) > 0;
    const bool with_pauses = pick(0, 2) > 0;
    Scheduler scheduler(config);
    const int32_t context = std::min(config.page_count * config.page_tokens, pick(8, 120));
    const int32_t wanted = pick(5, 40);
    int64_t now_ns = 0;
    uint64_t next_id = 1;
    int64_t steps_left = 200'000;

    while (static_cast<int32_t>(next_id) <= wanted || !scheduler.idle()) {
      REQUIRE(--steps_left > 0);  // nobody starves
      now_ns += pick(1, 20) * kMs;
      while (static_cast<int32_t>(next_id) <= wanted && world.random() % 3 == 0) {
        World::Live entry;
        entry.prompt = pick(1, context - 1);
        entry.limit = pick(entry.prompt + 1, context);
        for (int32_t i = 0; i < entry.prompt; ++i) entry.tokens.push_back(world.random());
        ScheduledSequence info = sequence(next_id, entry.prompt, entry.limit - entry.prompt,
                                          static_cast<Priority>(pick(0, 3)));
        if (pick(0, 9) == 0) entry.deadline_ns = info.deadline_ns = now_ns + pick(1, 500) * kMs;
        if (pick(0, 4) == 0) entry.logit_tokens = info.logit_tokens = entry.prompt;
        scheduler.add(info, now_ns);
        world.live.emplace(next_id++, std::move(entry));
      }
      if (!world.live.empty() && pick(0, 19) == 0) {
        auto victim = world.live.begin();
        std::advance(victim, world.random() % world.live.size());
        victim->second.cancelled = true;
        scheduler.cancel(victim->first);
      }

      if (with_pauses && !world.live.empty() && pick(0, 9) == 0) {
        auto slow = world.live.begin();
        std::advance(slow, world.random() % world.live.size());
        slow->second.paused = !slow->second.paused;
        slow->second.paused ? scheduler.pause(slow->first) : scheduler.resume(slow->first);
      }

      const int32_t prefill_max = pick(0, 1) == 0 ? 0 : pick(1, 10);
      StepPlan plan = scheduler.plan(now_ns, prefill_max);
      preemptions += static_cast<int64_t>(plan.preempted.size());
      for (const StepPlan::Ended& ended : plan.ended) {
        const World::Live& entry = world.live.at(ended.id);
        REQUIRE((ended.end == SequenceEnd::kCancelled
                     ? entry.cancelled
                     : entry.deadline_ns != 0 && entry.deadline_ns <= now_ns));
        ++world.ends[ended.id];
        world.live.erase(ended.id);
      }
      for (const auto& [id, entry] : world.live) REQUIRE_FALSE(entry.cancelled);
      const bool all_paused = std::all_of(world.live.begin(), world.live.end(),
                                          [](const auto& e) { return e.second.paused; });
      REQUIRE(scheduler.all_paused() == (all_paused && !world.live.empty()));
      REQUIRE(plan.slices.empty() == all_paused);
      for (const StepSlice& slice : plan.slices) REQUIRE_FALSE(world.live.at(slice.id).paused);

      // Guesses behind some of the decodes: right up to a random place, then wrong.
      std::map<uint64_t, std::vector<uint32_t>> drafts;
      const int32_t free_before = scheduler.pages_free();
      for (StepSlice& slice : plan.slices) {
        if (!with_drafts || !slice.samples || slice.count != 1 || pick(0, 2) == 0) continue;
        const int32_t wanted = pick(1, 9);
        const int32_t given = scheduler.add_drafts(plan, slice, wanted);
        REQUIRE(given >= 0);
        REQUIRE(given <= wanted);
        std::vector<uint32_t> ahead = world.live.at(slice.id).tokens;
        const int32_t right = pick(0, given);
        for (int32_t i = 0; i < given; ++i) {
          ahead.push_back(i < right ? World::next_token(ahead) : world.random());
          drafts[slice.id].push_back(ahead.back());
        }
        REQUIRE(slice.count == 1 + given);
        REQUIRE(slice.drafts == given);
      }
      REQUIRE(scheduler.pages_free() <= free_before);

      int32_t rows = 0;
      int32_t prefill_rows = 0;
      int32_t logit_rows = 0;
      std::set<int32_t> owned;
      std::set<uint64_t> in_step;
      for (const StepSlice& slice : plan.slices) {
        World::Live& entry = world.live.at(slice.id);
        REQUIRE(in_step.insert(slice.id).second);
        REQUIRE(slice.count > 0);
        rows += slice.count;
        const bool decode =
            slice.samples && slice.count - slice.drafts == 1 && slice.first >= entry.prompt;
        if (!decode) prefill_rows += slice.count - slice.drafts;
        const int32_t logit_end = std::min(slice.first + slice.count, entry.logit_tokens);
        const int32_t logit_first = std::max(slice.first, entry.logits_done);
        const int32_t with_logits = std::max(0, logit_end - logit_first);
        logit_rows += with_logits;
        const int32_t newest = slice.first + slice.count - slice.drafts;
        if (slice.samples && !(with_logits > 0 && logit_end == newest)) ++logit_rows;
        logit_rows += slice.drafts;
        entry.logits_done = std::max(entry.logits_done, logit_end);
        const auto pages = scheduler.pages(slice.id);
        REQUIRE(static_cast<int32_t>(pages.size()) * config.page_tokens >=
                slice.first + slice.count);
        for (const int32_t page : pages) REQUIRE(owned.insert(page).second);
        for (int32_t p = slice.first; p < slice.first + slice.count; ++p) {
          const auto known = entry.tokens.size();
          world.kv[{pages[static_cast<size_t>(p / config.page_tokens)], p % config.page_tokens}] =
              static_cast<size_t>(p) < known ? entry.tokens[static_cast<size_t>(p)]
                                             : drafts.at(slice.id)[static_cast<size_t>(p) - known];
        }
      }
      REQUIRE(rows <= config.step_tokens_max);
      REQUIRE(logit_rows <= config.logit_rows_max);
      REQUIRE(scheduler.running_count() <= config.slots);
      if (prefill_max > 0) {
        // One row of a prompt's end counts as a decode here when a preempted sequence lacks exactly
        // one token.
        REQUIRE(prefill_rows <= prefill_max + config.slots);
      }

      scheduler.commit(plan);
      for (const StepSlice& slice : plan.slices) {
        if (!slice.samples) continue;
        World::Live& entry = world.live.at(slice.id);
        REQUIRE(slice.first + slice.count - slice.drafts ==
                static_cast<int32_t>(entry.tokens.size()));
        const auto pages = scheduler.pages(slice.id);
        int32_t sampled = 0;
        bool over = false;
        while (true) {
          // What a device attended to: every position as it stands in KV memory now.
          std::vector<uint32_t> seen;
          for (size_t p = 0; p < entry.tokens.size(); ++p) {
            const auto at = static_cast<int32_t>(p);
            seen.push_back(world.kv.at(
                {pages[p / static_cast<size_t>(config.page_tokens)], at % config.page_tokens}));
          }
          REQUIRE(seen == entry.tokens);
          const uint32_t token = World::next_token(seen);
          entry.tokens.push_back(token);
          ++sampled;
          over = token % 37 == 0 || static_cast<int32_t>(entry.tokens.size()) == entry.limit;
          if (over || sampled > slice.drafts) break;
          if (drafts.at(slice.id)[static_cast<size_t>(sampled) - 1] != token) break;
          ++accepted;
        }
        if (over) {
          REQUIRE(entry.logits_done >= entry.logit_tokens);
          scheduler.finish(slice.id);
          ++world.ends[slice.id];
          ++finished;
          world.live.erase(slice.id);
        } else {
          scheduler.append(slice.id, sampled);
          // Pages that only wrong drafts needed are back, so they cannot push anybody out.
          REQUIRE(static_cast<int64_t>(scheduler.pages(slice.id).size() - 1) * config.page_tokens <
                  static_cast<int64_t>(entry.tokens.size()));
        }
      }
      int32_t held = 0;
      for (const auto& [id, entry] : world.live)
        held += static_cast<int32_t>(scheduler.pages(id).size());
      REQUIRE(held + scheduler.pages_free() == scheduler.page_count());
    }
    CHECK(scheduler.pages_free() == scheduler.page_count());
    REQUIRE(static_cast<int32_t>(world.ends.size()) == wanted);
    for (const auto& [id, times] : world.ends) CHECK(times == 1);
  }
  // The worlds were hard enough to mean something.
  CHECK(preemptions > 1000);
  CHECK(finished > 5000);
  CHECK(accepted > 500);
}
