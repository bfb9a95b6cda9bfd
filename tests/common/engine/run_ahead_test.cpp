// Steps that sample on the device and run ahead of the host: the same tokens as an engine that
// waits for every step, whatever comes and goes meanwhile, and no wait where none is needed.
#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "tests/common/engine/async_backend.h"
#include "tests/common/engine/core_runner.h"
#include "tests/common/engine/reference_backend.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

using Did = AsyncBackend::Did;

std::unique_ptr<AsyncBackend> behind(int32_t steps_in_flight = 2) {
  return std::make_unique<AsyncBackend>(std::make_unique<ReferenceBackend>(), steps_in_flight);
}

std::shared_ptr<const Model> tiny_model() {
  static const auto model = random_model(tiny_hyperparameters(), 31);
  return model;
}

// The step that the call at `index` belongs to is read after the next one was begun.
bool overlaps(const std::vector<AsyncBackend::Call>& calls, int64_t step) {
  const auto at = [&](Did did, int64_t of) {
    return std::find_if(calls.begin(), calls.end(), [&](const AsyncBackend::Call& call) {
      return call.did == did && call.step == of;
    });
  };
  const auto read = at(Did::kReadTokens, step);
  const auto next = at(Did::kBegin, step + 1);
  return read != calls.end() && next != calls.end() && next < read;
}

// Any kind of request: greedy or drawn, cut or not, now and then one that only the host can sample.
SequenceRequest any_request(std::mt19937& random, uint64_t id, int32_t vocab, int32_t context) {
  const auto pick = [&](int32_t low, int32_t high) {
    return low + static_cast<int32_t>(random() % static_cast<uint32_t>(high - low + 1));
  };
  SequenceRequest request;
  request.id = id;
  // Of few beginnings, so that prefixes are found.
  const int32_t beginning = pick(0, 2);
  const int32_t prompt_count = pick(1, context / 2);
  for (int32_t i = 0; i < prompt_count; ++i)
    request.prompt.push_back(i < 20 ? (beginning * 17 + 5 * i) % vocab : pick(0, vocab - 1));
  request.sampling.max_tokens = pick(1, 24);
  request.sampling.temperature = pick(0, 2) == 0 ? 0.0F : 0.9F;
  if (pick(0, 2) == 0) request.sampling.top_p = 0.8F;
  if (pick(0, 2) == 0) request.sampling.top_k = pick(1, 20);
  if (pick(0, 3) == 0) request.sampling.min_p = 0.05F;
  if (pick(0, 5) == 0) request.sampling.frequency_penalty = 0.5F;
  if (pick(0, 9) == 0) request.sampling.logit_bias.emplace_back(pick(0, vocab - 1), 3.0F);
  if (pick(0, 9) == 0) request.sampling.logprobs = true;
  if (pick(0, 11) == 0) request.prompt_logprobs = true;
  request.seed = random();
  request.priority = static_cast<Priority>(pick(0, 3));
  while (pick(0, 2) != 0) request.stop_ids.push_back(pick(0, vocab - 1));
  request.tenant = pick(0, 3) == 0 ? "other" : "";
  return request;
}

struct Answer {
  std::vector<int32_t> ids;
  SequenceEnd end = SequenceEnd::kStop;
};

// Alone, with ample memory, on a backend that the host waits for.
Answer alone(const SequenceRequest& request, size_t sink_stops_at) {
  CoreRunner runner(core_config(tiny_hyperparameters()), *tiny_model(),
                    std::make_unique<ReferenceBackend>());
  const auto recorder = runner.add(request);
  recorder->keep_going = [=](const Recorder& r) { return r.tokens.size() < sink_stops_at; };
  runner.finish();
  return {recorder->ids(), recorder->end};
}

struct World {
  int64_t preemptions = 0;
  int64_t overlapped = 0;
  int64_t cancelled = 0;
  int64_t ends[6] = {};
  int64_t drafts = 0;
  int64_t swaps_in = 0;
};

// One random world on a device that runs behind; everything that is asserted is in here.
void run_world(uint32_t seed, World& sum) {
  std::mt19937 random(seed);
  const auto pick = [&](int32_t low, int32_t high) {
    return low + static_cast<int32_t>(random() % static_cast<uint32_t>(high - low + 1));
  };
  const Hyperparameters h = tiny_hyperparameters();
  EngineCoreConfig config = core_config(h);
  config.scheduler.slots = pick(1, 6);
  config.scheduler.page_tokens = pick(1, 8);
  config.scheduler.page_count =
      (h.context_tokens + config.scheduler.page_tokens - 1) / config.scheduler.page_tokens +
      pick(0, 8);
  config.scheduler.step_tokens_max = pick(config.scheduler.slots, 40);
  config.scheduler.logit_rows_max = config.scheduler.slots + pick(0, 8);
  config.scheduler.prefix_cache = pick(0, 3) != 0;
  if (pick(0, 2) == 0) {
    config.draft_tokens_max = 4;
    config.step_clock = [now = int64_t{0}]() mutable { return now += 1000; };
  }
  if (pick(0, 1) == 0) config.scheduler.swap_slots = pick(1, 40);
  auto backend = behind();
  AsyncBackend& device = *backend;
  std::mt19937 pace(seed);
  device.before_run = [&](int64_t) {
    for (uint32_t i = pace() % 20; i > 0; --i) std::this_thread::yield();
  };
  struct Job {
    SequenceRequest request;
    std::shared_ptr<Recorder> recorder;
    size_t sink_stops_at = SIZE_MAX;
    bool cancelled = false;
    bool paused = false;
  };
  std::map<uint64_t, Job> jobs;
  {
    CoreRunner runner(config, *tiny_model(), std::move(backend), config.scheduler.swap_slots);
    const auto wanted = static_cast<size_t>(pick(3, 12));
    size_t added = 0;
    uint64_t next_id = 1;
    int64_t steps = 0;
    while (added < wanted || !runner.core().idle()) {
      REQUIRE(++steps < 20'000);
      while (added < wanted && pick(0, 3) == 0) {
        Job job;
        job.request = any_request(random, next_id++, h.vocab_count, h.context_tokens);
        if (pick(0, 7) == 0) job.sink_stops_at = static_cast<size_t>(pick(1, 5));
        job.recorder = runner.add(job.request);
        job.recorder->keep_going = [n = job.sink_stops_at](const Recorder& r) {
          return r.tokens.size() < n;
        };
        jobs.emplace(job.request.id, std::move(job));
        ++added;
      }
      for (auto& [id, job] : jobs) {
        if (job.recorder->ends > 0) continue;
        if (pick(0, 99) == 0) {
          job.cancelled = true;
          runner.core().cancel(id);
        }
        if (pick(0, 29) == 0 || (job.paused && pick(0, 4) == 0)) {
          job.paused = !job.paused;
          job.paused ? runner.core().pause(id) : runner.core().resume(id);
        }
      }
      runner.step();
    }
    runner.finish();
    sum.preemptions += runner.core().load().preemptions;
    sum.drafts += runner.core().load().draft_tokens;
    sum.swaps_in += device.swaps_in;
    CHECK(runner.core().load().pages_swapped_in == device.swaps_in);
    CHECK(runner.core().load().pages_swapped_out == device.swaps_out);
    std::set<uint64_t> ended(runner.ended().begin(), runner.ended().end());
    CHECK(ended.size() == wanted);
    CHECK(runner.ended().size() == wanted);
    for (int64_t step = 0; step < 1000; ++step) sum.overlapped += overlaps(device.calls, step);
  }
  for (const auto& [id, job] : jobs) {
    CAPTURE(id);
    CHECK(job.recorder->ends == 1);
    const Answer expected = alone(job.request, job.sink_stops_at);
    const std::vector<int32_t> ids = job.recorder->ids();
    ++sum.ends[static_cast<size_t>(job.recorder->end)];
    if (job.recorder->end == SequenceEnd::kCancelled) {
      CHECK(job.cancelled);
      ++sum.cancelled;
      REQUIRE(ids.size() <= expected.ids.size());
      CHECK(std::equal(ids.begin(), ids.end(), expected.ids.begin()));
    } else {
      CHECK(ids == expected.ids);
      CHECK(job.recorder->end == expected.end);
    }
  }
}

// Every page takes a microsecond.
class TimedSwaps final : public ReferenceBackend {
 public:
  void swap_out(int32_t page, int32_t slot) override {
    ++moves_;
    ReferenceBackend::swap_out(page, slot);
  }
  void swap_in(int32_t slot, int32_t page) override {
    ++moves_;
    ReferenceBackend::swap_in(slot, page);
  }
  int64_t swap_ns() override { return 1000 * moves_; }

 private:
  int64_t moves_ = 0;
};

}  // namespace

TEST_CASE("a device that runs ahead gives the tokens of one that is waited for, in random worlds") {
  World sum;
  for (uint32_t seed = 1; seed <= 400; ++seed) {
    CAPTURE(seed);
    run_world(seed, sum);
  }
  // The worlds were hard enough to mean something.
  CHECK(sum.preemptions > 100);
  CHECK(sum.overlapped > 2000);
  CHECK(sum.cancelled > 20);
  CHECK(sum.drafts > 100);
  CHECK(sum.swaps_in > 100);
  CHECK(sum.ends[static_cast<size_t>(SequenceEnd::kStop)] > 100);
  CHECK(sum.ends[static_cast<size_t>(SequenceEnd::kLength)] > 100);
}

TEST_CASE("each step is begun before the tokens of the last are read, chunks beside decodes too") {
  auto backend = behind();
  AsyncBackend& device = *backend;
  EngineCoreConfig config = core_config(tiny_hyperparameters());
  config.scheduler.step_tokens_max = 8;
  CoreRunner runner(config, *tiny_model(), std::move(backend));
  const auto first = runner.add(greedy_request(1, {1, 2, 3}, 20));
  runner.step();
  CHECK(first->tokens.empty());  // begun, not read
  CHECK_FALSE(runner.core().idle());
  runner.step();
  CHECK(first->tokens.size() == 1);
  const auto second = runner.add(greedy_request(2, {4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}, 4));
  runner.finish();
  CHECK(first->ids().size() == 20);
  CHECK(second->ids().size() == 4);
  // 20 tokens, one a step and none in between: the second's chunks ran beside them. The limits were
  // known beforehand, so no row was too many.
  int64_t steps = 0;
  int32_t rows = 0;
  for (const AsyncBackend::Call& call : device.calls) {
    steps += call.did == Did::kBegin ? 1 : 0;
    rows += call.rows;
  }
  CHECK(steps == 20);
  CHECK(rows == 3 + 19 + 11 + 3);
  for (int64_t step = 0; step + 1 < steps; ++step) {
    CAPTURE(step);
    CHECK(overlaps(device.calls, step));
  }
}

TEST_CASE("a device that may not run ahead is read step by step, and samples nevertheless") {
  auto backend = behind(1);
  AsyncBackend& device = *backend;
  CoreRunner runner(core_config(tiny_hyperparameters()), *tiny_model(), std::move(backend));
  const auto recorder = runner.add(greedy_request(1, {1, 2, 3}, 6));
  runner.finish();
  CHECK(recorder->ids() == alone(greedy_request(1, {1, 2, 3}, 6), SIZE_MAX).ids);
  REQUIRE(device.calls.size() == 12);
  for (size_t i = 0; i < device.calls.size(); i += 2) {
    CHECK(device.calls[i].samples);
    CHECK(device.calls[i + 1].did == Did::kReadTokens);
  }
}

TEST_CASE("what the host must sample makes its steps wait, and only those") {
  auto backend = behind();
  AsyncBackend& device = *backend;
  CoreRunner runner(core_config(tiny_hyperparameters()), *tiny_model(), std::move(backend));
  SequenceRequest penalised = greedy_request(2, {7, 8}, 5);
  penalised.sampling.frequency_penalty = 0.7F;
  const auto first = runner.add(greedy_request(1, {1, 2, 3}, 20));
  for (int i = 0; i < 4; ++i) runner.step();
  const auto second = runner.add(penalised);
  runner.finish();
  CHECK(first->ids() == alone(greedy_request(1, {1, 2, 3}, 20), SIZE_MAX).ids);
  CHECK(second->ids() == alone(penalised, SIZE_MAX).ids);
  std::vector<int64_t> on_host;
  for (const AsyncBackend::Call& call : device.calls) {
    if (call.did == Did::kBegin && !call.samples) on_host.push_back(call.step);
  }
  CHECK(on_host == std::vector<int64_t>{4, 5, 6, 7, 8});
  CHECK(overlaps(device.calls, 2));
  CHECK(overlaps(device.calls, 3));  // the first of them is begun behind what was not read yet
  for (const int64_t step : on_host) CHECK_FALSE(overlaps(device.calls, step));
  CHECK(overlaps(device.calls, 9));
}

TEST_CASE("ids that nobody may say are left out on the device, or by the host where it cannot") {
  const SequenceRequest plain = greedy_request(1, {1, 2, 3}, 12);
  const std::vector<int32_t> said = alone(plain, SIZE_MAX).ids;
  SequenceRequest banned = plain;
  banned.banned_ids = {said[0], said[4], 1000};
  const std::vector<int32_t> expected = alone(banned, SIZE_MAX).ids;
  REQUIRE(expected != said);
  for (const bool device_can : {true, false}) {
    for (const bool same_for_all : {true, false}) {
      CAPTURE(device_can);
      CAPTURE(same_for_all);
      auto backend = behind();
      AsyncBackend& device = *backend;
      device.can_leave_out = device_can;
      EngineCoreConfig config = core_config(tiny_hyperparameters());
      if (same_for_all) config.banned_ids = banned.banned_ids;
      CoreRunner runner(config, *tiny_model(), std::move(backend));
      const auto recorder = runner.add(banned);
      runner.finish();
      CHECK(recorder->ids() == expected);
      CHECK(device.calls.front().samples == (device_can && same_for_all));
      // One that may say everything is sampled where nothing is left out.
      const size_t before = device.calls.size();
      const auto free = runner.add(plain);
      runner.finish();
      CHECK(free->ids() == said);
      CHECK(device.calls[before].samples == !(device_can && same_for_all));
    }
  }
}

TEST_CASE("an id that comes again while a step of its last bearer runs gets its own tokens") {
  auto backend = behind();
  CoreRunner runner(core_config(tiny_hyperparameters()), *tiny_model(), std::move(backend));
  const auto old = runner.add(greedy_request(1, {1, 2, 3}, 50));
  runner.step();
  runner.step();
  REQUIRE(old->tokens.size() == 1);
  runner.core().cancel(1);
  std::vector<uint64_t> ended;
  runner.core().plan(5, ended);  // a step of it runs
  CHECK(old->end == SequenceEnd::kCancelled);
  const auto young = runner.add(greedy_request(1, {9, 8}, 6));
  runner.core().run(ended);
  runner.finish();
  CHECK(old->tokens.size() == 1);
  CHECK(old->ends == 1);
  CHECK(young->ids() == alone(greedy_request(1, {9, 8}, 6), SIZE_MAX).ids);
}

TEST_CASE("a core is idle when the row too many of what ended was read") {
  const std::vector<int32_t> said = alone(greedy_request(1, {1, 2, 3}, 9), SIZE_MAX).ids;
  SequenceRequest stopping = greedy_request(1, {1, 2, 3}, 50);
  stopping.stop_ids = {said[4]};
  const auto first = std::find(said.begin(), said.end(), said[4]);
  CoreRunner runner(core_config(tiny_hyperparameters()), *tiny_model(), behind());
  const auto recorder = runner.add(stopping);
  while (recorder->ends == 0) runner.step();
  CHECK(recorder->ids() == std::vector<int32_t>(said.begin(), first));
  CHECK_FALSE(runner.core().idle());
  runner.step();
  CHECK(runner.core().idle());
  CHECK(recorder->ends == 1);
}

TEST_CASE("logits that are no numbers end a sequence that the device samples, and no other") {
  auto backend = behind();
  backend->change_logits = [](int64_t step, std::span<float> logits) {
    if (step == 3) logits[5] = std::nanf("");
  };
  CoreRunner runner(core_config(tiny_hyperparameters()), *tiny_model(), std::move(backend));
  const auto bad = runner.add(greedy_request(1, {1, 2, 3}, 20));
  const auto good = runner.add(greedy_request(2, {4, 5}, 20));
  runner.finish();
  CHECK(bad->end == SequenceEnd::kFailed);
  CHECK(bad->tokens.size() == 3);
  CHECK(bad->failure.find("position 6") != std::string::npos);
  CHECK(good->ids() == alone(greedy_request(2, {4, 5}, 20), SIZE_MAX).ids);
}

TEST_CASE("a step's time runs from its start, or the end of the one before it, to its read") {
  // A device that takes 10 ms a step, and a host whose part of a step takes 1 ms.
  int64_t now_ns = 0;
  int64_t device_free_ns = 0;
  std::map<int64_t, int64_t> done_ns;
  auto backend = behind();
  backend->on_end = [&](int64_t step) {
    now_ns += 1'000'000;
    device_free_ns = std::max(device_free_ns, now_ns) + 10'000'000;
    done_ns[step] = device_free_ns;
  };
  backend->on_read = [&](int64_t step) { now_ns = std::max(now_ns, done_ns.at(step)); };
  EngineCoreConfig config = core_config(tiny_hyperparameters());
  config.step_clock = [&] { return now_ns; };
  CoreRunner runner(config, *tiny_model(), std::move(backend));
  const auto recorder = runner.add(greedy_request(1, {1}, 90));
  for (int i = 0; i < 80; ++i) runner.step();
  CHECK(runner.core().load().decode_tokens_per_s == doctest::Approx(100.0).epsilon(0.02));
  runner.finish();
  CHECK(recorder->tokens.size() == 90);
}

TEST_CASE("closing while a step runs ends everything once and leaves no step behind") {
  auto backend = behind();
  CoreRunner runner(core_config(tiny_hyperparameters()), *tiny_model(), std::move(backend));
  const auto recorder = runner.add(greedy_request(1, {1, 2, 3}, 50));
  runner.step();
  runner.step();
  std::vector<uint64_t> ended;
  runner.core().end_all(ended);
  CHECK(runner.core().idle());
  CHECK(ended == std::vector<uint64_t>{1});
  CHECK(recorder->ends == 1);
  CHECK(recorder->end == SequenceEnd::kCancelled);
}

TEST_CASE("an engine on a device that runs ahead sleeps only when the last step is read") {
  const auto model = random_model(small_hyperparameters(Architecture::kQwen2), 4);
  const auto engine = open_engine(small_engine(), model, behind());
  const auto plain = open_engine(small_engine(), model, std::make_unique<ReferenceBackend>());
  std::vector<SequenceRequest> requests;
  for (uint64_t id = 1; id <= 6; ++id) {
    requests.push_back(greedy_request(id, {static_cast<int32_t>(id), 9, 11}, 15));
    requests.back().sampling.temperature = id % 2 == 0 ? 0.8F : 0.0F;
    requests.back().seed = id;
  }
  CHECK(run_all(*engine, requests) == run_all(*plain, requests));
  // Paused in the middle: the step that runs is read, then nothing comes until it is resumed.
  auto recorder = std::make_shared<Recorder>();
  REQUIRE(engine->submit(greedy_request(10, {5, 6}, 200), recorder));
  REQUIRE(recorder->wait_tokens(3));
  engine->pause(10);
  engine->resume(10);
  REQUIRE(recorder->wait_end());
  CHECK(recorder->ids().size() == 200);
}

TEST_CASE("an engine with a swap space brings back what gave way, and says how much it moved") {
  const auto model = random_model(small_hyperparameters(), 6);
  std::vector<SequenceRequest> requests;
  for (uint64_t id = 1; id <= 8; ++id) {
    std::vector<int32_t> prompt;
    for (int32_t i = 0; i < 60; ++i) prompt.push_back((static_cast<int32_t>(id) * 31 + 7 * i) % 96);
    requests.push_back(greedy_request(id, std::move(prompt), 90));
  }
  EngineConfig config = small_engine();
  config.slots = 8;
  config.prefix_cache = false;
  const auto ample = open_engine(config, model, std::make_unique<ReferenceBackend>());
  config.kv_tokens = 256;
  config.kv_swap_bytes = uint64_t{1} << 30;
  auto timed = std::make_unique<TimedSwaps>();
  const uint64_t page_bytes = timed->kv_page_bytes([&] {
    KvShape shape = Forward::kv_shape(model->hyperparameters());
    shape.page_tokens = config.page_tokens;
    return shape;
  }());
  const auto engine = open_engine(config, model, std::move(timed));
  CHECK(engine->description().find("swap") != std::string::npos);
  CHECK(run_all(*engine, requests) == run_all(*ample, requests));
  const EngineLoad load = engine->load();
  CHECK(load.preemptions > 0);
  CHECK(load.pages_swapped_out > 0);
  CHECK(load.pages_swapped_in > 0);
  // What was moved to measure the device before the first step is not among it.
  CHECK(load.swap_ns == 1000 * (load.pages_swapped_out + load.pages_swapped_in));
  CHECK(load.page_bytes == static_cast<int64_t>(page_bytes));
  CHECK(ample->load().swap_ns == 0);
}

TEST_CASE("a swap space that is none is refused by name") {
  const auto model = random_model(small_hyperparameters(), 6);
  EngineConfig config = small_engine();
  config.kv_swap_bytes = uint64_t{1} << 20;
  auto on_cpu = Engine::open(config, model, exact_cpu(), {});
  REQUIRE_FALSE(on_cpu.ok());
  CHECK(on_cpu.message().find("host memory") != std::string::npos);
  config.kv_swap_bytes = 100;
  auto too_small = Engine::open(config, model, std::make_unique<ReferenceBackend>(), {});
  REQUIRE_FALSE(too_small.ok());
  CHECK(too_small.message().find("holds no page") != std::string::npos);
}
