// The engine's shell: opens the device and takes the memory, owns the thread, carries mail to
// EngineCore (the step itself is engine_core.cpp). Idle means blocked on the mailbox: no CPU time
// without work.
#include "common/engine/engine.h"

#include <algorithm>
#include <atomic>
#include <cctype>
#include <chrono>
#include <limits>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>
#include <variant>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/mailbox.h"
#include "common/engine/engine_core.h"
#include "common/engine/memory_plan.h"

namespace updraft {
namespace {

// Rows with logits beyond one per slot, for drafts and where the logits of prompt tokens are asked
// for (echo + logprobs): few, because each costs a vocabulary of floats.
constexpr int32_t kSpareLogitRows = 16;

int32_t logit_rows_max(const EngineConfig& config) {
  return config.slots + std::max(kSpareLogitRows, config.draft_tokens_max);
}

// How long expect() keeps the engine awake: longer than a small request takes to be read and
// tokenized, shorter than anybody would notice as load.
constexpr int64_t kExpectNs = 100 * kNsPerUs;

struct Incoming {
  SequenceRequest request;
  std::shared_ptr<SequenceSink> sink;
};
struct CancelMail {
  uint64_t id = 0;
};
// Whether it is to pause or to go on stands in the engine's table: the last word counts.
struct FlowMail {
  uint64_t id = 0;
};
using Mail = std::variant<Incoming, CancelMail, FlowMail>;

// What other threads want of a live sequence, and whether mail about it is on its way.
struct Wish {
  bool cancel_mailed = false;
  bool paused = false;
  bool flow_mailed = false;
};

// Host memory for pages, and what it takes to move one there or back.
struct SwapSpace {
  int32_t page_count = 0;
  double page_ns = 0.0;
};

class ThreadedEngine final : public Engine {
 public:
  ThreadedEngine(const EngineConfig& config, const MemoryPlan& plan, const Hyperparameters& h,
                 Forward forward, std::unique_ptr<Backend> backend, const SwapSpace& swap,
                 std::string description)
      : live_max_(static_cast<size_t>(config.slots) + static_cast<size_t>(config.waiting_max)),
        context_tokens_(plan.context_tokens),
        vocab_count_(h.vocab_count),
        hidden_dim_(h.hidden_dim),
        kv_tokens_total_(int64_t{plan.page_count} * config.page_tokens),
        description_(std::move(description)),
        device_(backend->description()),
        mailbox_(3 * live_max_,  // of each live one: itself, one cancel, one about its flow
                 [this] { wake_from_origin(); }),
        core_({{config.slots, plan.page_count, config.page_tokens, config.step_tokens_max,
                logit_rows_max(config), swap.page_count, config.prefix_cache},
               plan.context_tokens,
               h.vocab_count,
               h.hidden_dim,
               config.mixed_step_ms,
               config.draft_tokens_max,
               config.step_clock ? config.step_clock : monotonic_ns,
               config.banned_ids,
               swap.page_ns},
              std::move(forward), std::move(backend)),
        load_(core_.load()) {
    thread_ = std::thread([this] { run(); });
  }

  ~ThreadedEngine() override { close(); }

  void close() override {
    mailbox_.close();
    if (thread_.joinable()) thread_.join();
  }

  bool submit(SequenceRequest request, std::shared_ptr<SequenceSink> sink) override {
    check_request(request);
    const auto prompt_tokens = static_cast<int64_t>(request.prompt.size());
    const uint64_t id = request.id;
    {
      const std::lock_guard lock(mutex_);
      if (live_.size() >= live_max_) return false;
      UPDRAFT_CHECK(live_.emplace(id, Wish{}).second, "two live sequences with one id");
      mailed_tokens_ += prompt_tokens;
    }
    if (mailbox_.push(Mail(Incoming{std::move(request), std::move(sink)}))) return true;
    // Closed: the engine is going away.
    const std::lock_guard lock(mutex_);
    live_.erase(id);
    mailed_tokens_ -= prompt_tokens;
    return false;
  }

  void cancel(uint64_t sequence_id) override {
    {
      const std::lock_guard lock(mutex_);
      const auto found = live_.find(sequence_id);
      if (found == live_.end() || std::exchange(found->second.cancel_mailed, true)) return;
    }
    // Refused only when closed, and then everything is being cancelled.
    (void)mailbox_.push(Mail(CancelMail{sequence_id}));
  }

  void expect() override {
    // What runs is awake anyway, and so is what expects already.
    if (!asleep_.exchange(false, std::memory_order_relaxed)) return;
    expected_until_ns_.store(monotonic_ns() + kExpectNs, std::memory_order_relaxed);
    mailbox_.nudge();
    wake_from_origin();
  }

  void look_while_idle(std::shared_ptr<IdleWork> origin) override {
    {
      const std::lock_guard lock(mutex_);
      origin_.swap(origin);
    }
    mailbox_.nudge();            // one that sleeps in its mailbox begins anew
    if (origin) origin->wake();  // and one that sleeps at the origin that it had
  }

  void pause(uint64_t sequence_id) override { set_flow(sequence_id, true); }
  void resume(uint64_t sequence_id) override { set_flow(sequence_id, false); }

  int32_t context_tokens() const override { return context_tokens_; }
  int64_t kv_tokens_total() const override { return kv_tokens_total_; }
  std::string description() const override { return description_; }
  std::string device() const override { return device_; }

  EngineLoad load() const override {
    const std::lock_guard lock(mutex_);
    EngineLoad load = load_;
    load.waiting = std::max(static_cast<int32_t>(live_.size()) - load.running, 0);
    load.prefill_tokens_queued += mailed_tokens_;
    return load;
  }

 private:
  void set_flow(uint64_t id, bool paused) {
    {
      const std::lock_guard lock(mutex_);
      const auto found = live_.find(id);
      if (found == live_.end()) return;
      found->second.paused = paused;
      if (std::exchange(found->second.flow_mailed, true)) return;
    }
    // Refused only when closed, and then everything is being cancelled.
    (void)mailbox_.push(Mail(FlowMail{id}));
  }

  void check_request(const SequenceRequest& request) const {
    UPDRAFT_CHECK(!request.prompt.empty(), "an empty prompt has no last token to go on from");
    UPDRAFT_CHECK(static_cast<int64_t>(request.prompt.size()) < context_tokens_,
                  "the caller checks the context");
    check_positions(request);
    UPDRAFT_CHECK(request.inputs.empty() || !request.prompt_logprobs,
                  "a given row is no token that could have a probability");
    for (const auto& [id, bias] : request.sampling.logit_bias)
      UPDRAFT_CHECK(id >= 0 && id < vocab_count_);
    UPDRAFT_CHECK(request.sampling.max_tokens.value_or(1) > 0);
  }

  // A token of the vocabulary, or a row of the model's width, at each position.
  void check_positions(const SequenceRequest& request) const {
    size_t position = 0;
    const auto check_tokens = [&](size_t end) {
      for (; position < end; ++position) {
        UPDRAFT_CHECK(request.prompt[position] >= 0 && request.prompt[position] < vocab_count_);
      }
    };
    for (const InputRows& input : request.inputs) {
      UPDRAFT_CHECK(input.rows.dim == hidden_dim_ && input.rows.row_count > 0);
      UPDRAFT_CHECK(static_cast<int64_t>(input.rows.bytes.size()) == embedding_bytes(input.rows));
      UPDRAFT_CHECK(input.first >= static_cast<int32_t>(position) &&
                    input.end() <= static_cast<int32_t>(request.prompt.size()));
      check_tokens(static_cast<size_t>(input.first));
      for (; position < static_cast<size_t>(input.end()); ++position)
        UPDRAFT_CHECK(request.prompt[position] == kNoToken);
    }
    check_tokens(request.prompt.size());
  }

  // --- engine thread from here on ---
  void run() {
    std::vector<uint64_t> ended;
    while (true) {
      if (core_.idle() || core_.all_paused()) wait_for_mail();
      for (Mail& mail : mailbox_.drain()) take(std::move(mail));
      if (mailbox_.closed()) break;
      if (!core_.idle()) {
        core_.plan(monotonic_ns(), ended);
        // A step may take a second; who asks for the load meanwhile sees what runs in it.
        publish(ended);
        core_.run(ended);
      }
      publish(ended);
    }
    for (Mail& mail : mailbox_.drain()) take(std::move(mail));
    core_.end_all(ended);
    publish(ended);
  }

  void wait_for_mail() {
    if (const std::shared_ptr<IdleWork> origin = current_origin()) {
      if (core_.idle()) origin->look([this] { return mailbox_.maybe_ready(); });
      wait_at(*origin);
    } else {
      asleep_.store(true, std::memory_order_relaxed);
      if (auto mail = mailbox_.wait_pop(time_to_sleep())) take(std::move(*mail));
      asleep_.store(false, std::memory_order_relaxed);
    }
    if (core_.idle()) spin_for_mail();
  }

  std::shared_ptr<IdleWork> current_origin() const {
    const std::lock_guard lock(mutex_);
    return origin_;
  }

  void wait_at(IdleWork& origin) {
    asleep_.store(true, std::memory_order_relaxed);
    at_origin_.store(true, std::memory_order_seq_cst);
    // A push before this look is seen by it; one after it sees at_origin_ (wake_from_origin()).
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const bool expects = !mailbox_.maybe_ready() && origin.wait(time_to_sleep());
    at_origin_.store(false, std::memory_order_relaxed);
    if (expects && asleep_.load(std::memory_order_relaxed))
      expected_until_ns_.store(monotonic_ns() + kExpectNs, std::memory_order_relaxed);
    asleep_.store(false, std::memory_order_relaxed);
  }

  // Until the next deadline of what is paused. Without one any time does: there is nothing to do
  // until mail arrives.
  std::chrono::nanoseconds time_to_sleep() const {
    const int64_t deadline_ns = core_.next_deadline_ns();
    if (deadline_ns == 0) return std::chrono::hours(1);
    return std::chrono::nanoseconds(std::max<int64_t>(0, deadline_ns - monotonic_ns()));
  }

  // Until what was expected is there, or the time for it is over.
  void spin_for_mail() const {
    const int64_t until_ns = expected_until_ns_.load(std::memory_order_relaxed);
    while (!mailbox_.maybe_ready() && monotonic_ns() < until_ns) {
    }
  }

  void take(Mail mail) {
    if (const auto* cancel = std::get_if<CancelMail>(&mail)) {
      core_.cancel(cancel->id);
      return;
    }
    if (const auto* flow = std::get_if<FlowMail>(&mail)) return set_core_flow(flow->id);
    Incoming& incoming = std::get<Incoming>(mail);
    {
      const std::lock_guard lock(mutex_);
      mailed_tokens_ -= static_cast<int64_t>(incoming.request.prompt.size());
    }
    core_.add(std::move(incoming.request), std::move(incoming.sink), monotonic_ns());
  }

  // Any thread, after mail or a nudge.
  void wake_from_origin() {
    // Pairs with the fence in wait_at().
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (!at_origin_.load(std::memory_order_relaxed) ||
        !at_origin_.exchange(false, std::memory_order_relaxed))
      return;
    if (const std::shared_ptr<IdleWork> origin = current_origin()) origin->wake();
  }

  void set_core_flow(uint64_t id) {
    bool paused = false;
    {
      const std::lock_guard lock(mutex_);
      const auto found = live_.find(id);
      if (found == live_.end()) return;
      found->second.flow_mailed = false;
      paused = found->second.paused;
    }
    paused ? core_.pause(id) : core_.resume(id);
  }

  void publish(std::vector<uint64_t>& ended) {
    const std::lock_guard lock(mutex_);
    for (const uint64_t id : ended) live_.erase(id);
    ended.clear();
    load_ = core_.load();
  }

  const size_t live_max_;
  const int32_t context_tokens_;
  const int32_t vocab_count_;
  const int32_t hidden_dim_;
  const int64_t kv_tokens_total_;
  const std::string description_;
  const std::string device_;
  Mailbox<Mail> mailbox_;
  EngineCore core_;  // engine thread

  // Hints between expect() and the engine thread; a missed one costs a wake-up's time, no more.
  std::atomic<bool> asleep_ = false;
  std::atomic<int64_t> expected_until_ns_ = 0;

  // The engine thread sleeps at its origin, not in its mailbox: a push must wake it there.
  std::atomic<bool> at_origin_ = false;

  mutable std::mutex mutex_;  // guards what follows
  std::shared_ptr<IdleWork> origin_;
  std::unordered_map<uint64_t, Wish> live_;  // by id
  EngineLoad load_;                          // after the last step
  int64_t mailed_tokens_ = 0;                // prompts in the mailbox

  std::thread thread_;
};

// "f16": as configurations spell it.
std::string kv_type_name(DType type) {
  if (type == DType::kQ8_0) return "int8";
  std::string name = dtype_info(type).name;
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return name;
}

Result<void> check_config(const EngineConfig& config) {
  const auto range = [](const char* name, int64_t value, int64_t low,
                        int64_t high) -> Result<void> {
    if (value >= low && value <= high) return {};
    return fail(std::string(name) + " = " + std::to_string(value) + " is outside " +
                std::to_string(low) + ".." + std::to_string(high));
  };
  if (auto ok = range("slots", config.slots, 1, 4096); !ok) return ok;
  if (auto ok = range("waiting_max", config.waiting_max, 1, 1 << 24); !ok) return ok;
  if (auto ok = range("page_tokens", config.page_tokens, 1, 4096); !ok) return ok;
  if (auto ok = range("step_tokens_max", config.step_tokens_max, 1, 1 << 16); !ok) return ok;
  if (auto ok = range("draft_tokens_max", config.draft_tokens_max, 0, 64); !ok) return ok;
  return range("mixed_step_ms", config.mixed_step_ms, 0, 60'000);
}

// Takes the memory, and measures on pages that nobody uses yet.
Result<SwapSpace> make_swap_space(const EngineConfig& config, const KvShape& shape,
                                  const Forward& forward, Backend& backend) {
  constexpr int32_t kPagesMeasured = 64;
  SwapSpace swap;
  if (config.kv_swap_bytes == 0) return swap;
  const uint64_t page_bytes = backend.kv_page_bytes(shape);
  const uint64_t pages = config.kv_swap_bytes / page_bytes;
  if (pages == 0) {
    return fail("kv_swap = " + format_bytes(config.kv_swap_bytes) + " holds no page of " +
                format_bytes(page_bytes));
  }
  swap.page_count =
      static_cast<int32_t>(std::min<uint64_t>(pages, std::numeric_limits<int32_t>::max()));
  if (const auto made = backend.make_swap_space(swap.page_count); !made) return made.error();
  std::vector<float> row(static_cast<size_t>(forward.hidden_dim()));
  const int32_t count = std::min({kPagesMeasured, swap.page_count, shape.page_count});
  // A read waits for all that was asked for before it.
  backend.read_activation(forward.final_hidden(), 1, row);
  const int64_t before_ns = monotonic_ns();
  for (int32_t i = 0; i < count; ++i) backend.swap_out(i, i);
  for (int32_t i = 0; i < count; ++i) backend.swap_in(i, i);
  backend.read_activation(forward.final_hidden(), 1, row);
  swap.page_ns = static_cast<double>(std::max<int64_t>(monotonic_ns() - before_ns, 1)) /
                 (2.0 * static_cast<double>(count));
  return swap;
}

}  // namespace

Result<std::unique_ptr<Engine>> Engine::open(const EngineConfig& config,
                                             std::shared_ptr<const Model> model,
                                             std::unique_ptr<Backend> backend,
                                             const Progress& progress) {
  if (const auto checked = check_config(config); !checked) return checked.error("engine");
  const Hyperparameters& h = model->hyperparameters();
  // Every slot decodes in one step, whatever budget was asked for.
  const ForwardLimits limits{std::max(config.step_tokens_max, config.slots),
                             logit_rows_max(config)};
  KvShape shape = Forward::kv_shape(h);
  shape.page_tokens = config.page_tokens;
  shape.page_count = 1;
  shape.type = config.kv_type;

  MemoryNeeds needs;
  needs.model_name = model->name();
  needs.model_context_tokens = h.context_tokens;
  shape.context_tokens = config.context_tokens > 0 ? config.context_tokens : h.context_tokens;
  needs.activation_bytes = Forward::activation_bytes(h, limits);
  const std::vector<DeviceNeeds> devices =
      backend->needs(weight_bytes(model->weights(),
                                  [&](const WeightView& view, bool of_layer) {
                                    return backend->kept_bytes(view, of_layer);
                                  }),
                     shape, limits.rows_max);
  const auto plan = plan_memory(needs, devices, config);
  if (!plan) return plan.error();

  if (plan->weight_outside_bytes > 0) {
    if (!backend->keeps_weights_outside()) {
      return fail("offload: " + backend->description() + " keeps all weights in its memory");
    }
    backend->set_weight_rooms(plan->weight_rooms);
  }
  auto forward = Forward::create(*model, *backend, limits, progress);
  if (!forward) return forward.error();
  shape.page_count = plan->page_count;
  shape.context_tokens = plan->context_tokens;
  if (const auto made = backend->make_kv_pool(shape); !made) return made.error("KV pool");
  const auto swap = make_swap_space(config, shape, *forward, *backend);
  if (!swap) return swap.error();

  EngineConfig effective = config;
  effective.step_tokens_max = limits.rows_max;
  const std::string description =
      "KV " + std::to_string(int64_t{plan->page_count} * config.page_tokens) + " tokens " +
      kv_type_name(config.kv_type) + " (" + format_bytes(plan->kv_bytes) + "), " +
      std::to_string(config.slots) + " slots of " + std::to_string(plan->context_tokens) +
      " tokens" +
      (swap->page_count == 0
           ? ""
           : ", swap " + std::to_string(int64_t{swap->page_count} * config.page_tokens) +
                 " tokens");
  return std::unique_ptr<Engine>(std::make_unique<ThreadedEngine>(
      effective, *plan, h, std::move(*forward), std::move(backend), *swap, description));
}

}  // namespace updraft
