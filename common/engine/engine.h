// The engine: token ids in, token ids out. Owns the device, the KV pages and the sequences; knows no text.
// One thread (the engine's) runs step() after step(): scheduler -> forward pass -> sampler -> sinks.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/base/idle_work.h"
#include "common/base/progress.h"
#include "common/base/result.h"
#include "common/engine/input_rows.h"
#include "common/message/event.h"
#include "common/message/request.h"
#include "common/model/model.h"
#include "kernels/backend.h"

namespace updraft {

struct EngineConfig {
  int32_t context_tokens = 0;      // prompt + answer of one sequence at most; 0: the model's
  int32_t slots = 8;               // sequences running at once
  int32_t waiting_max = 256;       // sequences waiting at most; slots + waiting_max can be live
  int32_t page_tokens = 32;
  DType kv_type = DType::kF16;
  int64_t kv_tokens = 0;           // KV pool; 0: slots * context, or less where memory is short (at least one context)
  int32_t step_tokens_max = 512;   // rows of one step
  // Prompt chunks beside running answers are cut so that a step takes about this long: the longest pause that one
  // client's prompt puts between two tokens of another. 0: chunks as long as the budget.
  int32_t mixed_step_ms = 100;
  // Full KV pages are kept and found again by prompts of the same tenant that begin the same.
  bool prefix_cache = true;
  // Guessed tokens (drafts) that a sequence may verify in one step, 0: none. Answers are the same with and without;
  // prompt_lookup.h guesses, draft_control.h decides how many are worth their time.
  int32_t draft_tokens_max = 16;
  // What most sequences must never say (SequenceRequest::banned_ids): a device that samples knows
  // these ids from the start; sequences with others are sampled on the host.
  std::vector<int32_t> banned_ids;
  // What steps are timed with, in ns; empty: monotonic_ns(). A test's clock makes what follows from it repeatable.
  std::function<int64_t()> step_clock;
  // Host memory for the KV pages of sequences that give way to others, on devices with a memory of their
  // own: what is cheaper to bring back than to compute again is kept there. 0: none.
  uint64_t kv_swap_bytes = 0;
  // Weights that a device with memory of its own has no room for stay in host memory.
  bool offload = false;
  uint64_t max_memory_bytes = 0;        // weights, KV and activations together at most; 0: what is available
  uint64_t available_memory_bytes = 0;  // what the device has left now; 0: not known, nothing is refused for it
};

// One generation. Ids are chosen by the caller and unique among live sequences.
struct SequenceRequest {
  uint64_t id = 0;
  std::vector<int32_t> prompt;  // ids, not empty; kNoToken where `inputs` says what stands there
  std::vector<InputRows>
      inputs;  // in order of position, apart from each other; dim is the model's hidden size
  Sampling sampling;                     // stop strings are the sink's business; max_tokens resolved by the engine
  std::vector<int32_t> stop_ids;         // end the sequence; never handed out
  std::vector<int32_t> banned_ids;
  Priority priority = Priority::kDefault;
  int64_t deadline_ns = 0;               // monotonic; 0: none
  std::string tenant;                    // who authenticated; only sequences of one tenant share KV pages
  uint64_t seed = 0;                     // resolved by the caller; the counter-based generator's key
  bool prompt_logprobs =
      false;  // on_prompt_token() for every prompt token (echo + logprobs); not with inputs
};

struct SampledToken {
  int32_t id = 0;
  float logprob = 0.0F;                                  // of the chosen token, natural log, when asked for
  std::vector<std::pair<int32_t, float>> top;            // best first, when asked for
};

// kFailed: the model gave logits that are no numbers (see Sampler); on_failure() said why.
// kBadInput: a given row held a value that is no finite number when it was its turn; on_failure()
// said where.
enum class SequenceEnd : uint8_t { kStop, kLength, kCancelled, kDeadline, kFailed, kBadInput };

// Called on the engine thread; must not block. May call Engine::submit(), cancel(), pause() and resume().
class SequenceSink {
 public:
  virtual ~SequenceSink() = default;
  // The first step that works on it is about to run.
  virtual void on_start() = 0;
  // With prompt_logprobs, before the first on_token(): the prompt's tokens from the second on (the first has no
  // probability), each with its logprob and, when asked for, the likeliest tokens at its place.
  virtual void on_prompt_token(const SampledToken& token) { (void)token; }
  // A new token. False: stop here (a stop string matched); the sequence ends with kStop.
  virtual bool on_token(const SampledToken& token) = 0;
  // Before on_end(kFailed) and on_end(kBadInput): one sentence.
  virtual void on_failure(const std::string& why) { (void)why; }
  // Exactly once, last. cached_tokens: prompt tokens that the prefix cache spared.
  virtual void on_end(SequenceEnd end, int32_t cached_tokens) = 0;
};

// What the prefix cache did since the start.
struct PrefixCacheStats {
  int64_t queried_tokens = 0;  // prompts, but for those whose every logit is wanted
  int64_t hit_tokens = 0;      // of those, found instead of computed
  int64_t evicted_pages = 0;
};

struct EngineLoad {
  int32_t slots_total = 0, running = 0, waiting = 0;
  // Free: what sequences could get without a preemption; of those, the cached ones hold prefixes until then.
  int64_t kv_pages_total = 0, kv_pages_free = 0, kv_pages_cached = 0;
  int64_t prefill_tokens_queued = 0, decode_tokens_reserved = 0;
  // Moving averages, 0 while unknown; decode is per sequence.
  float prefill_tokens_per_s = 0.0F, decode_tokens_per_s = 0.0F;
  int64_t steps = 0, preemptions = 0;
  // KV pages of page_bytes that went to the swap space and came back, and the time that this took the device.
  int64_t pages_swapped_out = 0, pages_swapped_in = 0, page_bytes = 0, swap_ns = 0;
  PrefixCacheStats prefix_cache;
  int64_t draft_tokens = 0, draft_tokens_accepted = 0;  // guesses that ran, and those that became tokens
};

class Engine {
 public:
  virtual ~Engine() = default;  // after close()

  // Hands the weights to the backend, takes all memory, starts the thread. Too little memory: an error with the figures
  // (weights, KV, needed, allowed) and the plan that would fit. The model is not needed afterwards.
  static Result<std::unique_ptr<Engine>> open(const EngineConfig& config, std::shared_ptr<const Model> model,
                                              std::unique_ptr<Backend> backend, const Progress& progress);

  // Any thread. False when the queue is full (the sink is not called). The prompt must fit: prompt.size() < context_tokens().
  virtual bool submit(SequenceRequest request, std::shared_ptr<SequenceSink> sink) = 0;
  // Any thread. A sequence is likely to be submitted within some tens of microseconds: an engine
  // that sleeps wakes up now and waits for it awake (kExpectNs), so that its wake-up does not come
  // on top of what the caller still does. A hint without a promise.
  virtual void expect() = 0;
  // Any thread. The engine thread sleeps and looks there while nothing runs (idle_work.h); null:
  // not any more. Its calls may submit.
  virtual void look_while_idle(std::shared_ptr<IdleWork> origin) = 0;
  // Any thread. Takes effect at the next step.
  virtual void cancel(uint64_t sequence_id) = 0;
  // Any thread. The sequence's reader does not keep up: from the next step on it gets no tokens until
  // resume(), but for that of the step which a device that runs ahead has begun. It keeps its KV pages
  // unless others need them (then it is computed again, or swapped, as after a preemption), and holds
  // nobody up. Of calls in quick succession the last one counts. Unknown ids are ignored.
  virtual void pause(uint64_t sequence_id) = 0;
  virtual void resume(uint64_t sequence_id) = 0;
  // Ends everything as cancelled and joins the thread; submit() refuses from then on. Not from a sink. Twice is once.
  virtual void close() = 0;

  virtual int32_t context_tokens() const = 0;      // as served
  virtual int64_t kv_tokens_total() const = 0;
  virtual EngineLoad load() const = 0;             // any thread, a snapshot
  virtual std::string description() const = 0;
  virtual std::string device() const = 0;  // the backend's description, with what it holds
};

}  // namespace updraft
