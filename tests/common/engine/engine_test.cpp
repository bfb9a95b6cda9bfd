// The engine end to end: the reference model's known answer from both containers, and the promises
// that no schedule may break: batch, chunk size and preemption do not change a greedy answer,
// everything ends once, pages come back.
#include "common/engine/engine.h"

#include <doctest/doctest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <fstream>
#include <iterator>
#include <random>
#include <regex>
#include <set>

#include "common/base/clock.h"
#include "tests/common/engine/engine_runner.h"
#include "tests/common/engine/memory_model.h"
#include "tests/common/engine/scripted_backend.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

// The numbers of one array in a JSON file of our own.
std::vector<int32_t> read_ids(const std::string& path, const std::string& key) {
  std::ifstream in(path);
  REQUIRE(in.good());
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const size_t at = text.find("\"" + key + "\"");
  REQUIRE(at != std::string::npos);
  const size_t open = text.find('[', at);
  const std::string array = text.substr(open + 1, text.find(']', open) - open - 1);
  std::vector<int32_t> out;
  const std::regex number("-?[0-9]+");
  for (std::sregex_iterator it(array.begin(), array.end(), number), end; it != end; ++it) {
    out.push_back(std::stoi(it->str()));
  }
  return out;
}

std::shared_ptr<const Model> open_or_fail(const std::string& path) {
  auto model = open_model(path);
  REQUIRE_MESSAGE(model.ok(), model.message());
  return *model;
}

std::vector<SequenceRequest> random_requests(int count, uint32_t seed, int32_t prompt_max,
                                             int32_t answer) {
  std::mt19937 random(seed);
  std::vector<SequenceRequest> out;
  for (int i = 0; i < count; ++i) {
    std::vector<int32_t> prompt(1 + random() % static_cast<uint32_t>(prompt_max));
    for (int32_t& id : prompt) id = static_cast<int32_t>(random() % 96);
    out.push_back(greedy_request(static_cast<uint64_t>(i) + 1, std::move(prompt), answer));
  }
  return out;
}

// Each alone in a fresh engine with ample memory, whole prompt in one step.
std::vector<std::vector<int32_t>> alone(std::shared_ptr<const Model> model,
                                        const std::vector<SequenceRequest>& requests) {
  EngineConfig config = small_engine();
  config.slots = 1;
  config.step_tokens_max = 256;
  const auto engine = open_engine(config, model);
  std::vector<std::vector<int32_t>> out;
  for (const SequenceRequest& request : requests) out.push_back(run_all(*engine, {request})[0]);
  return out;
}

}  // namespace

TEST_CASE("stories260K tells its known story from both containers") {
  const auto reference = shared_data("weights/stories260K-greedy200.json");
  if (!reference) return;
  const auto prompt = read_ids(*reference, "prompt_ids");
  const auto expected = read_ids(*reference, "greedy_ids");
  REQUIRE(expected.size() == 200);
  for (const char* name : {"weights/stories260K-f32.gguf", "weights/stories260K-hf"}) {
    const auto path = shared_data(name);
    if (!path) return;
    CAPTURE(name);
    const auto model = open_or_fail(*path);
    for (const bool exact : {true, false}) {
      CAPTURE(exact);
      CpuConfig cpu;
      cpu.exact = exact;
      cpu.pin = false;
      auto backend = open_cpu_backend(cpu);
      REQUIRE_MESSAGE(backend.ok(), backend.message());
      const auto engine = open_engine(small_engine(), model, std::move(*backend));
      CHECK(run_all(*engine, {greedy_request(1, prompt, 200)})[0] == expected);
    }
  }
}

TEST_CASE("a batch of eight gives the tokens of eight runs alone, in every chunk size") {
  const auto model = random_model(small_hyperparameters(Architecture::kQwen3), 4);
  const auto requests = random_requests(8, 21, 60, 40);
  const auto expected = alone(model, requests);
  std::set<std::vector<int32_t>> distinct(expected.begin(), expected.end());
  CHECK(distinct.size() == 8);  // else the comparison says nothing
  for (const int32_t step_tokens : {1, 7, 16, 64, 512}) {
    CAPTURE(step_tokens);
    EngineConfig config = small_engine();
    config.slots = 8;
    config.step_tokens_max = step_tokens;
    const auto engine = open_engine(config, model);
    CHECK(run_all(*engine, requests) == expected);
  }
}

TEST_CASE(
    "answers survive preemption: a pool for one context serves eight sequences with the same "
    "tokens") {
  const auto model = random_model(small_hyperparameters(), 6);
  const auto requests = random_requests(8, 33, 80, 90);
  const auto expected = alone(model, requests);
  EngineConfig config = small_engine();
  config.slots = 8;
  config.kv_tokens = 256;
  const auto engine = open_engine(config, model);
  CHECK(run_all(*engine, requests) == expected);
  CHECK(engine->load().preemptions > 0);
  REQUIRE(wait_idle(*engine));
  CHECK(engine->load().kv_pages_free == engine->load().kv_pages_total);
}

TEST_CASE("sampled answers depend on the seed alone, not on what else runs or on preemption") {
  const auto model = random_model(small_hyperparameters(), 6);
  auto requests = random_requests(6, 8, 60, 80);
  for (SequenceRequest& request : requests) {
    request.sampling.temperature = 0.8F;
    request.sampling.top_p = 0.95F;
    request.sampling.frequency_penalty = 0.2F;
    request.seed = 1000 + request.id;
  }
  const auto expected = alone(model, requests);
  EngineConfig config = small_engine();
  config.kv_tokens = 256;
  config.slots = 6;
  const auto engine = open_engine(config, model);
  CHECK(run_all(*engine, requests) == expected);
  CHECK(engine->load().preemptions > 0);
  requests[0].seed = 5;
  CHECK(run_all(*engine, {requests[0]})[0] != expected[0]);
}

TEST_CASE("cancel ends a running and a waiting sequence and gives the pages back") {
  const auto model = random_model(small_hyperparameters(), 2);
  EngineConfig config = small_engine();
  config.slots = 1;
  const auto engine = open_engine(config, model);
  auto running = std::make_shared<Recorder>();
  auto waiting = std::make_shared<Recorder>();
  std::atomic<bool> hold{true};
  running->keep_going = [&](const Recorder&) {
    while (hold) std::this_thread::yield();
    return true;
  };
  REQUIRE(engine->submit(greedy_request(1, {1, 2, 3}, 200), running));
  REQUIRE(engine->submit(greedy_request(2, {4, 5, 6}, 200), waiting));
  REQUIRE(running->wait_tokens(1));
  engine->cancel(2);
  engine->cancel(1);
  engine->cancel(77);
  hold = false;
  REQUIRE(running->wait_end());
  REQUIRE(waiting->wait_end());
  CHECK(running->end == SequenceEnd::kCancelled);
  CHECK(waiting->end == SequenceEnd::kCancelled);
  CHECK(running->tokens.size() == 1);  // took effect at the next step
  CHECK(waiting->starts == 0);
  REQUIRE(wait_idle(*engine));
  CHECK(engine->load().kv_pages_free == engine->load().kv_pages_total);
}

TEST_CASE("stop ids end an answer unseen, the sink may end it, and the length limit does") {
  const auto model = random_model(small_hyperparameters(), 2);
  const auto engine = open_engine(small_engine(), model);
  const auto answer = run_all(*engine, {greedy_request(1, {7, 8}, 20)})[0];
  REQUIRE(answer.size() == 20);

  SequenceRequest stopping = greedy_request(2, {7, 8}, 20);
  stopping.stop_ids = {answer[5]};
  const auto first = std::find(answer.begin(), answer.end(), answer[5]);
  auto by_id = std::make_shared<Recorder>();
  REQUIRE(engine->submit(stopping, by_id));
  REQUIRE(by_id->wait_end());
  CHECK(by_id->end == SequenceEnd::kStop);
  CHECK(by_id->ids() == std::vector<int32_t>(answer.begin(), first));

  auto by_sink = std::make_shared<Recorder>();
  by_sink->keep_going = [](const Recorder& recorder) { return recorder.tokens.size() < 3; };
  REQUIRE(engine->submit(greedy_request(3, {7, 8}, 20), by_sink));
  REQUIRE(by_sink->wait_end());
  CHECK(by_sink->end == SequenceEnd::kStop);
  CHECK(by_sink->tokens.size() == 3);

  // Without max_tokens the context is the limit.
  SequenceRequest open_ended = greedy_request(4, {7, 8}, 1);
  open_ended.sampling.max_tokens.reset();
  auto by_length = std::make_shared<Recorder>();
  REQUIRE(engine->submit(open_ended, by_length));
  REQUIRE(by_length->wait_end());
  CHECK(by_length->end == SequenceEnd::kLength);
  CHECK(static_cast<int32_t>(by_length->tokens.size()) == engine->context_tokens() - 2);
}

TEST_CASE("a deadline ends a sequence that waits for a slot") {
  const auto model = random_model(small_hyperparameters(), 2);
  EngineConfig config = small_engine();
  config.slots = 1;
  const auto engine = open_engine(config, model);
  auto running = std::make_shared<Recorder>();
  auto late = std::make_shared<Recorder>();
  running->keep_going = [&](const Recorder& recorder) {
    // Busy until the other is over.
    return recorder.tokens.size() < 200 && late->ends == 0;
  };
  SequenceRequest request = greedy_request(2, {4, 5}, 10);
  request.deadline_ns = 1;  // long ago on any monotonic clock
  REQUIRE(engine->submit(greedy_request(1, {1, 2}, 250), running));
  REQUIRE(engine->submit(request, late));
  REQUIRE(late->wait_end());
  CHECK(late->end == SequenceEnd::kDeadline);
  CHECK(late->starts == 0);
  REQUIRE(running->wait_end());
}

TEST_CASE(
    "prompt log-probabilities come for each token but the first, chunked and across preemption") {
  const auto model = random_model(small_hyperparameters(), 12);
  SequenceRequest request = random_requests(1, 40, 1, 4)[0];
  std::mt19937 random(9);
  request.prompt.resize(70);
  for (int32_t& id : request.prompt) id = static_cast<int32_t>(random() % 96);
  request.prompt_logprobs = true;
  request.sampling.logprobs = true;
  request.sampling.top_logprobs = 2;
  const auto engine = open_engine(small_engine(), model);
  auto recorder = std::make_shared<Recorder>();
  REQUIRE(engine->submit(request, recorder));
  REQUIRE(recorder->wait_end());
  REQUIRE(recorder->prompt_tokens.size() == 69);

  // Each from a run of its own: the logits after the first n tokens, asked for the known next one.
  for (const size_t n : {1, 2, 17, 40, 69}) {
    CAPTURE(n);
    SequenceRequest one = greedy_request(
        100 + n, {request.prompt.begin(), request.prompt.begin() + static_cast<ptrdiff_t>(n)}, 1);
    one.sampling.logprobs = true;
    one.sampling.top_logprobs = 20;
    auto single = std::make_shared<Recorder>();
    REQUIRE(engine->submit(one, single));
    REQUIRE(single->wait_end());
    const SampledToken& found = recorder->prompt_tokens[n - 1];
    CHECK(found.id == request.prompt[n]);
    REQUIRE(found.top.size() == 2);
    CHECK(found.top[0].first == single->tokens[0].id);
    CHECK(found.top[0].second == doctest::Approx(single->tokens[0].logprob).epsilon(1e-4));
    const auto& top = single->tokens[0].top;
    const auto same = std::find_if(top.begin(), top.end(),
                                   [&](const auto& entry) { return entry.first == found.id; });
    if (same != top.end()) CHECK(found.logprob == doctest::Approx(same->second).epsilon(1e-4));
  }
}

TEST_CASE(
    "with and without the prefix cache the same tokens, exact and fast, and in the next turn") {
  const auto model = random_model(small_hyperparameters(Architecture::kQwen2), 17);
  // Conversations that grow: each turn is the last one, its answer and a few tokens more. Two
  // tenants say the same.
  for (const bool exact : {true, false}) {
    CAPTURE(exact);
    std::vector<std::vector<std::vector<int32_t>>> answers;  // [cache off, on][turn]
    int64_t hits = 0;
    for (const bool prefix_cache : {false, true}) {
      CpuConfig cpu;
      cpu.exact = exact;
      cpu.pin = false;
      auto backend = open_cpu_backend(cpu);
      REQUIRE_MESSAGE(backend.ok(), backend.message());
      EngineConfig config = small_engine();
      config.prefix_cache = prefix_cache;
      config.kv_type = exact ? DType::kF32 : DType::kF16;
      const auto engine = open_engine(config, model, std::move(*backend));
      std::vector<std::vector<int32_t>> said;
      for (const char* tenant : {"a", "b"}) {
        std::mt19937 random(5);
        std::vector<int32_t> prompt;
        for (int turn = 0; turn < 5; ++turn) {
          for (int i = 0; i < 20; ++i) prompt.push_back(static_cast<int32_t>(random() % 96));
          SequenceRequest request = greedy_request(1, prompt, 21);
          request.tenant = tenant;
          auto recorder = std::make_shared<Recorder>();
          REQUIRE(engine->submit(request, recorder));
          REQUIRE(recorder->wait_end());
          said.push_back(recorder->ids());
          // All that the turn before computed, in full pages: everything but the last token.
          const auto before = static_cast<int32_t>(prompt.size()) - 20;
          CHECK(recorder->cached_tokens == (prefix_cache ? std::max(before - 1, 0) / 16 * 16 : 0));
          prompt.insert(prompt.end(), said.back().begin(), said.back().end());
          REQUIRE(wait_idle(*engine));
        }
      }
      answers.push_back(std::move(said));
      hits = engine->load().prefix_cache.hit_tokens;
      CHECK(engine->load().kv_pages_free == engine->load().kv_pages_total);
    }
    CHECK(answers[0] == answers[1]);
    CHECK(hits > 400);
    std::set<std::vector<int32_t>> distinct(answers[0].begin(), answers[0].end());
    CHECK(distinct.size() == 5);
  }
}

TEST_CASE("agents that share a beginning get their own answers from a pool that is too small") {
  const auto model = random_model(small_hyperparameters(), 23);
  auto requests = random_requests(12, 3, 40, 60);
  const auto common = random_requests(1, 4, 1, 1)[0].prompt;
  for (SequenceRequest& request : requests) {
    std::vector<int32_t> prompt;
    for (int32_t i = 0; i < 70; ++i) prompt.push_back((common[0] + 7 * i) % 96);
    prompt.insert(prompt.end(), request.prompt.begin(), request.prompt.end());
    request.prompt = std::move(prompt);
  }
  const auto expected = alone(model, requests);
  EngineConfig config = small_engine();
  config.slots = 8;
  config.kv_tokens = 256;
  const auto engine = open_engine(config, model);
  for (int round = 0; round < 2; ++round) {
    CHECK(run_all(*engine, requests) == expected);
    REQUIRE(wait_idle(*engine));
  }
  const EngineLoad load = engine->load();
  CHECK(load.preemptions > 0);
  CHECK(load.prefix_cache.evicted_pages > 0);
  CHECK(load.prefix_cache.hit_tokens > 11 * 64);
  CHECK(load.kv_pages_free == load.kv_pages_total);
}

TEST_CASE("a damaged weight ends the sequence with a reason and leaves the engine running") {
  Hyperparameters h = small_hyperparameters();
  auto model = random_model(h, 3);
  std::vector<float> head(static_cast<size_t>(h.vocab_count) * static_cast<size_t>(h.hidden_dim),
                          0.1F);
  head[5] = std::nanf("");
  model->weights().head = model->matrix(head, h.vocab_count, h.hidden_dim);
  const auto engine = open_engine(small_engine(), model);
  for (const uint64_t id : {1, 2}) {
    auto recorder = std::make_shared<Recorder>();
    REQUIRE(engine->submit(greedy_request(id, {1, 2, 3}, 5), recorder));
    REQUIRE(recorder->wait_end());
    CHECK(recorder->end == SequenceEnd::kFailed);
    CHECK(recorder->failure.find("damaged") != std::string::npos);
  }
}

TEST_CASE("a full engine refuses, and closing it ends what it holds") {
  const auto model = random_model(small_hyperparameters(), 3);
  EngineConfig config = small_engine();
  config.slots = 1;
  config.waiting_max = 2;
  auto engine = open_engine(config, model);
  std::vector<std::shared_ptr<Recorder>> recorders;
  std::atomic<bool> hold{true};
  for (uint64_t id = 1; id <= 3; ++id) {
    recorders.push_back(std::make_shared<Recorder>());
    recorders.back()->keep_going = [&](const Recorder&) {
      while (hold) std::this_thread::yield();
      return true;
    };
    REQUIRE(engine->submit(greedy_request(id, {1, 2}, 100), recorders.back()));
  }
  auto refused = std::make_shared<Recorder>();
  CHECK_FALSE(engine->submit(greedy_request(4, {1, 2}, 100), refused));
  CHECK(refused->ends == 0);
  REQUIRE(recorders[0]->wait_tokens(1));
  std::thread closer([&] { engine.reset(); });
  hold = false;
  closer.join();
  for (const auto& recorder : recorders) CHECK(recorder->ends == 1);
}

TEST_CASE("an idle engine uses no CPU time") {
  const auto model = random_model(small_hyperparameters(), 3);
  const auto engine = open_engine(small_engine(), model);
  run_all(*engine, {greedy_request(1, {1, 2}, 5)});
  REQUIRE(wait_idle(*engine));
  const auto cpu_us = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1'000'000L + usage.ru_utime.tv_usec +
           usage.ru_stime.tv_usec;
  };
  const long before = cpu_us();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  CHECK(cpu_us() - before < 30'000);
}

TEST_CASE("a paused sequence stands still while others end, and gives the same tokens afterwards") {
  const auto model = random_model(small_hyperparameters(), 3);
  const auto engine = open_engine(small_engine(), model);
  const std::vector<int32_t> alone = run_all(*engine, {greedy_request(1, {1, 2, 3}, 60)})[0];
  const auto slow = std::make_shared<Recorder>();
  // Paused from inside, at its tenth token.
  slow->keep_going = [&](const Recorder& recorder) {
    if (recorder.tokens.size() == 10) engine->pause(2);
    return true;
  };
  REQUIRE(engine->submit(greedy_request(2, {1, 2, 3}, 60), slow));
  REQUIRE(slow->wait_tokens(10));
  // Others run from begin to end meanwhile; it gets at most the tokens of the step it was paused
  // in.
  run_all(*engine, {greedy_request(3, {4, 5}, 40), greedy_request(4, {6}, 40)});
  const size_t stood_at = slow->ids().size();
  CHECK(stood_at <= 10 + 16 + 1);
  run_all(*engine, {greedy_request(5, {7, 8}, 40)});
  CHECK(slow->ids().size() == stood_at);
  CHECK(slow->ends == 0);
  engine->resume(2);
  REQUIRE(slow->wait_end());
  CHECK(slow->ids() == alone);
  CHECK(slow->starts == 1);
}

TEST_CASE(
    "an engine whose sequences are all paused sleeps, and wakes for a cancel and a deadline") {
  const auto engine = open_engine(small_engine(), random_model(small_hyperparameters(), 3));
  const auto cancelled = std::make_shared<Recorder>();
  const auto late = std::make_shared<Recorder>();
  for (const auto& [id, recorder] : {std::pair(1, cancelled), std::pair(2, late)}) {
    recorder->keep_going = [&engine, id](const Recorder&) {
      engine->pause(static_cast<uint64_t>(id));
      return true;
    };
    SequenceRequest request = greedy_request(static_cast<uint64_t>(id), {1, 2}, 100);
    if (id == 2) request.deadline_ns = monotonic_ns() + 500'000'000;
    REQUIRE(engine->submit(request, recorder));
  }
  REQUIRE(cancelled->wait_tokens(1));
  REQUIRE(late->wait_tokens(1));
  rusage before{}, after{};
  getrusage(RUSAGE_SELF, &before);
  REQUIRE(late->wait_end());
  getrusage(RUSAGE_SELF, &after);
  CHECK(late->end == SequenceEnd::kDeadline);
  CHECK(after.ru_utime.tv_sec * 1'000'000 + after.ru_utime.tv_usec -
            before.ru_utime.tv_sec * 1'000'000 - before.ru_utime.tv_usec <
        250'000);
  CHECK(cancelled->ends == 0);
  engine->cancel(1);
  REQUIRE(cancelled->wait_end());
  CHECK(cancelled->end == SequenceEnd::kCancelled);
}

TEST_CASE(
    "a step tells the device which rows are an answer's, guesses and those computed again too") {
  constexpr int32_t kPrompt = 21;
  struct Seen {
    bool prompt = false, last_of_prompt = false, answer = false, both = false, guesses = false;
  } seen;
  auto backend = std::make_unique<ScriptedBackend>(exact_cpu(),
                                                   std::vector<int32_t>(400, 7));  // easily guessed
  bool right = true;
  backend->on_begin = [&](const Batch& batch) {
    for (const SequenceSlice& slice : batch.sequences) {
      const int32_t end = slice.cached_count + slice.row_count;
      const int32_t answer = std::min(std::max(0, end - kPrompt), slice.row_count);
      right = right && slice.answer_count == answer;
      seen.prompt |= answer == 0;
      seen.last_of_prompt |= slice.row_count - answer == 1;
      seen.answer |= slice.row_count == 1 && answer == 1;
      seen.both |= answer > 0 && slice.row_count - answer > 1;
      seen.guesses |= answer > 1 && answer == slice.row_count;
    }
  };
  EngineConfig config = small_engine();
  config.step_tokens_max = 20;
  config.kv_tokens = 256;
  config.prefix_cache = false;
  config.draft_tokens_max = 4;
  const auto engine =
      open_engine(config, random_model(small_hyperparameters(), 3), std::move(backend));
  std::vector<std::shared_ptr<Recorder>> recorders;
  for (int i = 0; i < 4; ++i) recorders.push_back(std::make_shared<Recorder>());
  const auto ask = [&](size_t i) {
    return engine->submit(greedy_request(i + 1, std::vector<int32_t>(kPrompt, 7), 100),
                          recorders[i]);
  };
  // The others come while the first is at its first tokens.
  bool others = false;
  recorders[0]->keep_going = [&](const Recorder&) {
    if (!std::exchange(others, true)) CHECK((ask(1) && ask(2) && ask(3)));
    return true;
  };
  REQUIRE(ask(0));
  for (const auto& recorder : recorders) REQUIRE(recorder->wait_end());
  CHECK(engine->load().preemptions > 0);
  engine->close();
  CHECK(right);
  CHECK(seen.prompt);
  CHECK(seen.last_of_prompt);
  CHECK(seen.answer);
  CHECK(seen.both);
  CHECK(seen.guesses);
}

TEST_CASE("a prompt beside a running answer gets shorter chunks as soon as one took too long") {
  // Rows from position 80 on take four times as long as those before.
  constexpr int64_t kRowNs = 1'000'000;
  int64_t now_ns = 0;
  std::vector<int32_t> chunks;  // rows of a prompt beside another sequence
  auto backend = std::make_unique<ScriptedBackend>(exact_cpu(), std::vector<int32_t>());
  backend->on_begin = [&](const Batch& batch) {
    for (const int32_t position : batch.positions) now_ns += position < 80 ? kRowNs : 4 * kRowNs;
    if (batch.sequences.size() < 2) return;
    for (const SequenceSlice& slice : batch.sequences) {
      if (slice.row_count > 1) chunks.push_back(slice.row_count);
    }
  };
  EngineConfig config = small_engine();
  config.mixed_step_ms = 40;
  config.draft_tokens_max = 0;
  config.step_clock = [&] { return now_ns; };
  Hyperparameters h = small_hyperparameters();
  h.context_tokens = 1024;
  const auto engine = open_engine(config, random_model(h, 3), std::move(backend));
  run_all(*engine, {greedy_request(1, std::vector<int32_t>(40, 7), 1)});  // measures 1 ms a row
  const auto running = std::make_shared<Recorder>();
  const auto arriving = std::make_shared<Recorder>();
  running->keep_going = [&](const Recorder& seen) {
    return seen.tokens.size() > 1 ||
           engine->submit(greedy_request(3, std::vector<int32_t>(200, 5), 1), arriving);
  };
  REQUIRE(engine->submit(greedy_request(2, {1, 2}, 1000), running));
  REQUIRE(arriving->wait_end());
  engine->cancel(2);
  REQUIRE(running->wait_end());
  engine->close();
  REQUIRE(chunks.size() > 4);
  CHECK(chunks[1] >= 38);
  CHECK(chunks[2] >= 38);  // the first with slow rows: nobody could know
  // The least that a chunk is. The last one is what is left.
  for (size_t i = 3; i < chunks.size(); ++i) CHECK(chunks[i] <= 16);
}

TEST_CASE("an engine that was told to expect something serves it, and sleeps again without it") {
  const auto engine = open_engine(small_engine(), random_model(small_hyperparameters(), 3));
  for (int i = 0; i < 50; ++i) {
    engine->expect();
    if (i % 2 == 0) run_all(*engine, {greedy_request(static_cast<uint64_t>(i) + 1, {1, 2}, 2)});
  }
  REQUIRE(wait_idle(*engine));
  // One hint is worth 100 us awake at most, a hundred of them in a row no more than their sum.
  rusage before{}, after{};
  getrusage(RUSAGE_SELF, &before);
  for (int i = 0; i < 100; ++i) engine->expect();
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  getrusage(RUSAGE_SELF, &after);
  const auto us = [](const timeval& t) { return t.tv_sec * 1'000'000 + t.tv_usec; };
  CHECK(us(after.ru_utime) - us(before.ru_utime) < 50'000);
}

namespace {

// Work that the test offers, taken by whoever waits.
class Origin final : public IdleWork {
 public:
  bool wait(std::chrono::nanoseconds timeout) override {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, timeout, [&] { return woken_ || offered_; });
    woken_ = false;
    const std::function<void()> work = std::exchange(offered_, {});
    lock.unlock();
    if (work) work();
    return work != nullptr;
  }
  void wake() override {
    const std::lock_guard lock(mutex_);
    woken_ = true;
    ++wakes_;
    changed_.notify_all();
  }
  void look(const std::function<bool()>& enough) override {
    (void)enough();
    const std::lock_guard lock(mutex_);
    ++looks_;
    changed_.notify_all();
  }
  void offer(std::function<void()> work) {
    const std::lock_guard lock(mutex_);
    offered_ = std::move(work);
    changed_.notify_all();
  }
  bool looked(int times) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [&] { return looks_ >= times; });
  }
  int wakes() {
    const std::lock_guard lock(mutex_);
    return wakes_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> offered_;
  bool woken_ = false;
  int wakes_ = 0;
  int looks_ = 0;
};

}  // namespace

TEST_CASE("an idle engine sleeps where its work comes from, and does what it finds there") {
  const auto engine = open_engine(small_engine(), random_model(small_hyperparameters(), 3));
  const auto origin = std::make_shared<Origin>();
  engine->look_while_idle(origin);
  REQUIRE(origin->looked(1));
  // What comes past the origin wakes it there.
  run_all(*engine, {greedy_request(1, {1, 2}, 2)});
  REQUIRE(origin->looked(2));
  std::thread::id submitted_on;
  auto found = std::make_shared<Recorder>();
  origin->offer([&] {
    submitted_on = std::this_thread::get_id();
    CHECK(engine->submit(greedy_request(2, {1, 2}, 2), found));
  });
  REQUIRE(found->wait_end());
  CHECK(submitted_on != std::this_thread::get_id());
  REQUIRE(origin->looked(3));
  // An announcement wakes it, too: it can only sleep there, or be about to.
  const int wakes = origin->wakes();
  const int64_t until_ns = monotonic_ns() + 20 * kNsPerSecond;
  while (origin->wakes() == wakes && monotonic_ns() < until_ns) engine->expect();
  CHECK(origin->wakes() > wakes);
  // Another origin, and none: the old one is left for good.
  const auto other = std::make_shared<Origin>();
  engine->look_while_idle(other);
  REQUIRE(other->looked(1));
  engine->look_while_idle(nullptr);
  run_all(*engine, {greedy_request(3, {1, 2}, 2)});
  REQUIRE(wait_idle(*engine));
  CHECK(origin.use_count() == 1);
}

TEST_CASE("many threads submit and cancel at once and every sequence ends once") {
  const auto model = random_model(small_hyperparameters(), 3);
  EngineConfig config = small_engine();
  config.kv_tokens = 300;
  const auto engine = open_engine(config, model);
  std::vector<std::thread> clients;
  std::atomic<int> wrong{0};
  for (uint32_t c = 0; c < 4; ++c) {
    clients.emplace_back([&, c] {
      std::mt19937 random(c);
      for (uint64_t i = 0; i < 25; ++i) {
        const uint64_t id = c * 1000 + i;
        auto recorder = std::make_shared<Recorder>();
        if (!engine->submit(greedy_request(id, {1, 2, static_cast<int32_t>(random() % 96)},
                                           1 + static_cast<int32_t>(random() % 40)),
                            recorder)) {
          ++wrong;
          continue;
        }
        if (random() % 2 == 0) engine->cancel(id);
        if (!recorder->wait_end() || recorder->ends != 1) ++wrong;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  CHECK(wrong == 0);
  REQUIRE(wait_idle(*engine));
  CHECK(engine->load().kv_pages_free == engine->load().kv_pages_total);
}

TEST_CASE("settings that cannot work are refused with the name and the value") {
  const auto model = random_model(small_hyperparameters(), 3);
  const auto message = [&](auto change) {
    EngineConfig config = small_engine();
    change(config);
    const auto engine = Engine::open(config, model, std::make_unique<ReferenceBackend>(), {});
    REQUIRE_FALSE(engine.ok());
    return engine.message();
  };
  CHECK(message([](EngineConfig& c) { c.slots = 0; }).find("slots = 0") != std::string::npos);
  CHECK(message([](EngineConfig& c) { c.context_tokens = 300; }).find("300") != std::string::npos);
  CHECK(message([](EngineConfig& c) { c.page_tokens = 0; }).find("page_tokens = 0") !=
        std::string::npos);
  CHECK(message([](EngineConfig& c) { c.max_memory_bytes = 1000; }).find("max_memory") !=
        std::string::npos);
}
