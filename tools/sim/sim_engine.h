// A node's engine on virtual time: the production scheduler with its pages and prefix cache, and in
// the place of the forward pass the time that one would take (by measured rates) and tokens that
// follow from the request. Stands where a LocalModel stands: requests in, events out.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/engine/scheduler.h"
#include "common/message/event.h"
#include "common/message/node_status.h"
#include "tools/sim/content.h"
#include "tools/sim/world.h"

namespace updraft::sim {

struct EngineSpec {
  int32_t slots = 4;
  int32_t queue_max = 64;
  int32_t context_tokens = 1024;
  int32_t kv_tokens = 4096;  // at least one context
  int32_t page_tokens = 16;
  int32_t kv_swap_tokens = 0;  // host memory for sequences that give way
  int32_t step_tokens_max = 512;
  int32_t mixed_step_ms = 100;
  // Rates as `updraft bench` measures them: of a prompt; of one answer alone; of all slots
  // together.
  double prefill_tokens_per_s = 1000.0;
  double decode_tokens_per_s = 30.0;
  double decode_tokens_per_s_full = 100.0;
  double swap_tokens_per_s = 500'000.0;  // of KV memory, one way
  double draft_share = 0.0;              // of decoding steps that carry drafts
  double fail_first = 0.0;   // of requests: an error after the start, before the first token
  double fail_midway = 0.0;  // an error after some tokens
  double refuse = 0.0;       // busy, although there is room
};

class SimEngine : public std::enable_shared_from_this<SimEngine> {
 public:
  using Sink = std::function<void(Event)>;
  // node_id, tier: what a Started says. Must be owned by a shared_ptr: pending steps hold it
  // weakly.
  SimEngine(World& world, const EngineSpec& spec, const SimModel& model, std::string node_id,
            Tier tier);

  // As InferenceService; the sink may be called before submit() returns.
  void submit(Request request, Sink sink);
  void cancel(const RequestId& id);
  void drain() { draining_ = true; }
  // The process stands still: steps end when it goes on.
  void set_paused(bool paused);
  // All work is slower by this factor from the next step on.
  void set_slowness(double factor) { slowness_ = factor; }
  // No more injected failures.
  void heal();

  void fill_beat(NodeBeat& beat) const;
  int32_t slots_free() const;
  int32_t waiting() const;
  int64_t kv_tokens_free() const { return int64_t{scheduler_.pages_free()} * spec_.page_tokens; }
  int64_t kv_tokens_total() const { return int64_t{scheduler_.page_count()} * spec_.page_tokens; }
  const EngineSpec& spec() const { return spec_; }
  const SimModel& model() const { return model_; }
  size_t live() const { return jobs_.size(); }
  // Pages held by sequences + pages free = pages, and so in the swap space; else a sentence that
  // says by how much not.
  std::string check_pages() const;
  int64_t generated_tokens() const { return generated_tokens_; }
  int64_t pages_swapped() const { return pages_swapped_; }
  double busy_s() const { return busy_s_; }
  // So long a cancel or a deadline may have to wait.
  int64_t longest_step_ns() const { return longest_step_ns_; }

 private:
  struct Job {
    Request request;
    Sink sink;
    uint64_t content = 0;
    int32_t generation = 0;
    int64_t received_ns = 0;
    int64_t deadline_ns = 0;
    int64_t first_step_ns = 0;
    int64_t first_token_ns = 0;
    int32_t prompt_tokens = 0;
    int32_t completion_tokens = 0;
    int32_t cached_tokens = 0;
    int32_t open_choices = 0;
    std::vector<uint64_t> sequences;
    int32_t fail_after = -1;  // tokens; -1: it does not
    bool cancelled = false;
    bool preparing = true;
    bool over = false;
  };
  using JobPtr = std::shared_ptr<Job>;
  struct Sequence {
    JobPtr job;
    int32_t choice = 0;
    std::vector<int32_t> tokens;
    int32_t prompt_count = 0;
    int32_t limit = 0;   // tokens in all
    int32_t answer = 0;  // of the answer, should nothing cut it short
    bool stops = false;  // it ends by itself there
    int32_t drafts = 0;  // right ones of the current step
  };

  void prepare(const JobPtr& job);
  void start(const JobPtr& job);
  void kick();
  void begin_step();
  void end_step();
  double step_s() const;
  void take_samples(const StepSlice& slice);
  void end_sequence(uint64_t id, FinishReason reason, int32_t drafts);
  void fail_job(const JobPtr& job, RequestError error);
  void forget_job(const JobPtr& job);
  void send(const JobPtr& job, Event event);
  void measure(double seconds, int32_t sampled);

  World& world_;
  EngineSpec spec_;
  const SimModel model_;
  const std::string node_id_;
  const Tier tier_;
  Scheduler scheduler_;
  std::multimap<RequestId, JobPtr> jobs_;
  std::map<uint64_t, Sequence> sequences_;
  StepPlan plan_;
  uint64_t next_sequence_ = 1;
  int32_t next_generation_ = 1;
  int32_t sequences_live_ = 0;
  bool stepping_ = false;
  bool step_waits_ = false;  // its end came while the process was paused
  bool paused_ = false;
  bool draining_ = false;
  double slowness_ = 1.0;
  double current_step_s_ = 0.0;
  float prefill_tokens_per_s_ = 0.0F;  // measured, moving averages
  float decode_tokens_per_s_ = 0.0F;
  float bytes_per_token_ = 0.0F;
  int64_t requests_done_ = 0;
  int64_t requests_failed_ = 0;
  int64_t generated_tokens_ = 0;
  int64_t pages_swapped_ = 0;
  double busy_s_ = 0.0;
  int64_t longest_step_ns_ = 0;
};

}  // namespace updraft::sim
