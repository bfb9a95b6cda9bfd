// See the header.
#include "edge/edge_service.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "common/base/bytes.h"
#include "common/base/clock.h"
#include "common/message/memory_refusal.h"
#include "common/metrics/memory_metrics.h"

namespace updraft {
namespace {

// What a chat template adds at most, in tokens: begin, default system prompt, and the marks around
// each message.
constexpr int64_t kTemplateTokens = 128;
constexpr int64_t kTemplateTokensPerMessage = 16;

// An upper bound without the tokenizer: a token has at least one byte.
int64_t prompt_tokens_at_most(const Request& request) {
  if (!request.prompt_ids.empty()) {
    size_t most = 0;
    for (const std::vector<int32_t>& ids : request.prompt_ids) most = std::max(most, ids.size());
    return static_cast<int64_t>(most) + kTemplateTokens;
  }
  int64_t exact = 0;
  for (const PromptPart& part : request.prompt_parts)
    exact += static_cast<int64_t>(part.ids.size()) + part.rows.row_count;
  return exact + prompt_text_bytes(request) + kTemplateTokens +
         kTemplateTokensPerMessage * static_cast<int64_t>(request.messages.size());
}

}  // namespace

// One request from submit() to its end. Until a side has it, it belongs to the thread that places
// it; then to that side's thread, which hands it back with an end event before the other side gets
// it. For any thread: `id` and what follows `cancelled`.
struct EdgeService::Flight {
  RequestId id;
  Request request;
  int64_t received_ns = 0;
  int64_t deadline_ms = 0;  // as received
  bool fits_here = false;
  bool may_rise = false;
  const char* reason = "";
  bool tried_local = false;
  bool tried_pool = false;
  bool started = false;
  std::atomic<bool> cancelled{false};
  std::mutex mutex;  // guards the two below; held while an event is handed on, so that none follows
                     // the end
  EventSink sink;
  bool over = false;   // its end is the client's
  int64_t due_ns = 0;  // its place in due_, under that one's mutex; 0: none

  // What a side gets, with the time that is left. The payload may be megabytes: it is copied only
  // while the other side may still have to get it.
  Request for_side(int64_t now_ns, bool other_side_may_follow) {
    Request out;
    if (other_side_may_follow) {
      out = request;
    } else {
      out = std::move(request);
      request = {};
      request.id = out.id;
      request.hints = out.hints;
    }
    if (deadline_ms > 0) {
      out.hints.deadline_ms = std::max<int64_t>(1, deadline_ms - (now_ns - received_ns) / kNsPerMs);
    }
    return out;
  }
};

EdgeService::EdgeService(const EdgeServiceConfig& config, LocalModel& local, InferenceService& pool,
                         Metrics& metrics, InferenceService* to_local)
    : config_(config),
      local_(local),
      to_local_(to_local == nullptr ? local : *to_local),
      pool_(pool),
      local_info_(local.models().at(0)),
      placed_local_(metrics.counter("updraft_edge_placed_total",
                                    "Requests of local clients by where they were sent first.",
                                    {{"place", "local"}})),
      placed_pool_(metrics.counter("updraft_edge_placed_total", "", {{"place", "pool"}})),
      refused_(metrics.counter("updraft_edge_placed_total", "", {{"place", "refused"}})),
      moved_(metrics.counter("updraft_edge_moved_total",
                             "Requests that one side refused and the other took.")),
      memory_shed_(memory_refused(metrics, "shed")),
      memory_refused_(memory_refused(metrics, "refuse")),
      to_count_(config.counting_max),
      count_thread_([this] { count_loop(); }),
      watch_thread_([this] { watch_loop(); }) {}

EdgeService::~EdgeService() { close(); }

void EdgeService::close() {
  drain();
  to_count_.close();
  if (count_thread_.joinable()) count_thread_.join();
  {
    const std::lock_guard lock(watch_mutex_);
    watch_closed_ = true;
    due_.clear();
  }
  watch_changed_.notify_one();
  if (watch_thread_.joinable()) watch_thread_.join();
}

void EdgeService::submit(Request request, EventSink sink) {
  auto flight = std::make_shared<Flight>();
  flight->received_ns = monotonic_ns();
  flight->deadline_ms = request.hints.deadline_ms;
  flight->id = request.id;
  flight->request = std::move(request);
  flight->sink = std::move(sink);
  {
    const std::lock_guard lock(mutex_);
    flights_.emplace(flight->id, flight);
  }
  if (flight->deadline_ms > 0)
    watch(flight, flight->received_ns + (flight->deadline_ms + kPatienceMs) * kNsPerMs);
  // For most requests the bytes decide as the exact count would; only the others pay for counting.
  const EdgeState state = state_for(flight->request);
  EdgeNeed need = need_of(flight->request);
  need.prompt_tokens = prompt_tokens_at_most(flight->request);
  const Hints& hints = flight->request.hints;
  const bool known_without_counting =
      !state.model_here || (hints.tier == Tier::kCloud && !hints.local_only);
  const bool fits_by_bytes =
      fits_edge(need, state) && (kv_granted(need, state) || !state.pool_connected);
  if (known_without_counting || fits_by_bytes) return place(flight, need);
  if (!to_count_.push(flight)) {
    finish(flight,
           error_of(ErrorCode::kOverloaded, "too many long requests wait to be counted", 1000));
  }
}

void EdgeService::cancel(const RequestId& id) {
  {
    const std::lock_guard lock(mutex_);
    const auto [begin, end] = flights_.equal_range(id);
    if (begin == end) return;
    for (auto at = begin; at != end; ++at) {
      at->second->cancelled.store(true);
      watch(at->second, monotonic_ns() + kPatienceMs * kNsPerMs);
    }
  }
  local_.cancel(id);
  pool_.cancel(id);
}

std::vector<ModelInfo> EdgeService::models() const {
  std::vector<ModelInfo> all = {local_info_};
  for (const std::string& alias : config_.aliases) {
    all.push_back(local_info_);
    all.back().id = alias;
  }
  for (ModelInfo& model : pool_.models()) {
    const bool known =
        std::any_of(all.begin(), all.end(), [&](const ModelInfo& m) { return m.id == model.id; });
    if (!known) all.push_back(std::move(model));
  }
  return all;
}

// The edge serves short requests whether or not the router is there.
bool EdgeService::ready(std::string* why_not) const {
  if (draining_.load(std::memory_order_relaxed)) {
    if (why_not != nullptr) *why_not = "draining";
    return false;
  }
  if (const auto refusal = short_of_memory()) {
    if (why_not != nullptr) *why_not = refusal->message;
    return false;
  }
  return local_.ready(why_not);
}

MemoryLevel EdgeService::memory() const {
  return config_.memory == nullptr ? MemoryLevel::kNormal : config_.memory->level();
}

std::optional<RequestError> EdgeService::short_of_memory() const {
  const MemoryLevel level = memory();
  if (level != MemoryLevel::kRefuse || pool_.ready(nullptr)) return std::nullopt;
  return memory_refusal(level, Priority::kSystem);
}

size_t EdgeService::in_flight() const {
  const std::lock_guard lock(mutex_);
  return flights_.size();
}

bool EdgeService::is_local_name(const std::string& model) const {
  return model.empty() || model == local_info_.id ||
         std::find(config_.aliases.begin(), config_.aliases.end(), model) != config_.aliases.end();
}

EdgeNeed EdgeService::need_of(const Request& request) const {
  EdgeNeed need;
  need.wanted_tokens = request.sampling.max_tokens.value_or(0);
  need.choice_count = std::max(1, total_choices(request));
  need.has_image = has_image(request);
  need.has_embeddings = has_embeddings(request);
  need.is_chat = request.kind == Request::Kind::kChat;
  return need;
}

EdgeState EdgeService::state_for(const Request& request) const {
  const ServiceLoad load = local_.load();
  EdgeState state;
  state.model_here = is_local_name(request.model);
  state.chat_here = local_.has_chat_template();
  state.images_here = local_info_.images;
  state.draining = draining_.load(std::memory_order_relaxed);
  state.memory = memory();
  state.context_tokens = local_info_.context_tokens;
  state.slots_total = load.slots_total;
  state.slots_free = load.slots_free;
  state.waiting = load.waiting;
  state.kv_tokens_total = load.kv_tokens_total;
  state.kv_tokens_free = load.kv_tokens_free;
  state.pool_configured = config_.pool_configured;
  state.pool_connected = pool_.ready(nullptr);
  if (state.pool_connected) {
    for (const ModelInfo& model : pool_.models()) {
      state.model_in_pool = state.model_in_pool || model.id == request.model ||
                            (state.model_here && model.id == local_info_.id);
    }
  }
  return state;
}

void EdgeService::count_loop() {
  while (true) {
    if (auto flight = to_count_.wait_pop(std::chrono::seconds(60))) {
      if (to_count_.closed()) {
        finish(*flight, error_of(ErrorCode::kCancelled, "this gateway is stopping"));
      } else {
        count(*flight);
      }
    } else if (to_count_.closed()) {
      return;
    }
  }
}

void EdgeService::count(const FlightPtr& flight) {
  if (flight->cancelled.load())
    return void(finish(flight, error_of(ErrorCode::kCancelled, "the client left")));
  EdgeNeed need = need_of(flight->request);
  const Result<LocalModel::Size> size = local_.measure(flight->request);
  need.countable = size.ok();
  if (size) need.prompt_tokens = size->prompt_tokens;
  place(flight, need);
}

void EdgeService::place(const FlightPtr& flight, const EdgeNeed& need) {
  if (flight->cancelled.load())
    return void(finish(flight, error_of(ErrorCode::kCancelled, "the client left")));
  const Request& request = flight->request;
  const EdgeState state = state_for(request);
  SessionPast past = SessionPast::kNone;
  {
    const std::lock_guard lock(mutex_);
    past = sessions_.past(request.hints.session, monotonic_ns());
  }
  EdgeDecision decision = place_at_edge(request.hints, need, state, past);
  const bool bound_here =
      request.hints.local_only || request.hints.tier == Tier::kEdge || need.has_embeddings;
  flight->reason = decision.reason;
  flight->fits_here =
      state.model_here && request.hints.tier != Tier::kCloud && fits_edge(need, state);
  flight->may_rise = !bound_here && config_.pool_configured;
  switch (decision.place) {
    case EdgeDecision::Place::kLocal:
      placed_local_.add();
      return go_local(flight);
    case EdgeDecision::Place::kRise:
      placed_pool_.add();
      return go_up(flight);
    case EdgeDecision::Place::kRefuse:
      refused_.add();
      if (decision.for_memory)
        (state.memory == MemoryLevel::kShed ? memory_shed_ : memory_refused_).add();
      if (decision.error.code == ErrorCode::kModelNotFound) {
        decision.error.message =
            "model \"" + printable(request.model) + "\": " + decision.error.message;
        decision.error.param = "model";
      }
      return void(finish(flight, std::move(decision.error)));
  }
}

void EdgeService::go_local(const FlightPtr& flight) {
  flight->tried_local = true;
  const RequestId id = flight->request.id;
  const bool may_move = flight->may_rise && !flight->tried_pool;
  to_local_.submit(flight->for_side(monotonic_ns(), may_move),
                   [this, flight](Event event) { on_event(flight, false, std::move(event)); });
  if (flight->cancelled.load())
    local_.cancel(id);  // a cancel that came before the model knew the request
}

void EdgeService::go_up(const FlightPtr& flight) {
  flight->tried_pool = true;
  const RequestId id = flight->request.id;
  Request request = flight->for_side(monotonic_ns(), flight->fits_here && !flight->tried_local);
  if (is_local_name(request.model)) {
    // An alias means something here only; above it goes under the served name unless the pool knows
    // it, too.
    const std::vector<ModelInfo> models = pool_.models();
    const bool known = std::any_of(models.begin(), models.end(),
                                   [&](const ModelInfo& m) { return m.id == request.model; });
    if (!known) request.model = local_info_.id;
  }
  pool_.submit(std::move(request),
               [this, flight](Event event) { on_event(flight, true, std::move(event)); });
  if (flight->cancelled.load()) pool_.cancel(id);
}

void EdgeService::on_event(const FlightPtr& flight, bool from_pool, Event event) {
  if (auto* started = std::get_if<Started>(&event)) {
    if (!flight->started) {
      const std::lock_guard lock(mutex_);
      sessions_.note(flight->request.hints.session, from_pool, monotonic_ns());
    }
    flight->started = true;
    // It stays where it is from here on: the payload is no longer needed.
    flight->request.messages = {};
    flight->request.prompts = {};
    flight->request.prompt_ids = {};
    flight->request.prompt_parts = {};
    if (started->decision.empty()) started->decision = flight->reason;
  }
  if (const auto* error = std::get_if<RequestError>(&event)) {
    if (!flight->started && try_other_side(flight, from_pool, *error)) return;
  }
  if (is_end(event)) return void(finish(flight, std::move(event)));
  deliver(flight, std::move(event));
}

// A side refused before it began: the other one may do, once.
bool EdgeService::try_other_side(const FlightPtr& flight, bool from_pool,
                                 const RequestError& error) {
  if (flight->cancelled.load()) return false;
  if (from_pool) {
    const bool elsewhere =
        error.code == ErrorCode::kOverloaded || error.code == ErrorCode::kModelNotFound ||
        error.code == ErrorCode::kNodeLost || error.code == ErrorCode::kRateLimited;
    if (!elsewhere || flight->tried_local || !flight->fits_here) return false;
    if (memory_refusal(memory(), flight->request.hints.priority)) return false;
    flight->reason = "the pool had no room";
    moved_.add();
    go_local(flight);
    return true;
  }
  const bool elsewhere = error.code == ErrorCode::kOverloaded ||
                         error.code == ErrorCode::kContextLength ||
                         error.code == ErrorCode::kUnsupported;
  if (!elsewhere || flight->tried_pool || !flight->may_rise) return false;
  if (draining_.load(std::memory_order_relaxed) || !pool_.ready(nullptr)) return false;
  flight->reason = "the edge had no room";
  moved_.add();
  go_up(flight);
  return true;
}

void EdgeService::deliver(const FlightPtr& flight, Event event) {
  const std::lock_guard lock(flight->mutex);
  if (!flight->over) flight->sink(std::move(event));
}

bool EdgeService::finish(const FlightPtr& flight, Event end) {
  EventSink sink;
  {
    const std::lock_guard lock(flight->mutex);
    if (flight->over) return false;
    flight->over = true;
    sink = std::move(flight->sink);
  }
  unwatch(flight);
  {
    const std::lock_guard lock(mutex_);
    const auto [begin, last] = flights_.equal_range(flight->id);
    const auto at =
        std::find_if(begin, last, [&](const auto& entry) { return entry.second == flight; });
    if (at != last) flights_.erase(at);
  }
  sink(std::move(end));
  return true;
}

// --- what does not end by itself in time ---

void EdgeService::watch(const FlightPtr& flight, int64_t due_ns) {
  unwatch(flight);
  const std::lock_guard lock(watch_mutex_);
  if (watch_closed_) return;
  flight->due_ns = due_ns;
  due_.emplace(due_ns, flight);
  if (due_.begin()->second == flight) watch_changed_.notify_one();
}

void EdgeService::unwatch(const FlightPtr& flight) {
  const std::lock_guard lock(watch_mutex_);
  if (flight->due_ns == 0) return;
  const auto [begin, end] = due_.equal_range(flight->due_ns);
  const auto at =
      std::find_if(begin, end, [&](const auto& entry) { return entry.second == flight; });
  if (at != end) due_.erase(at);
  flight->due_ns = 0;
}

void EdgeService::watch_loop() {
  std::unique_lock lock(watch_mutex_);
  while (!watch_closed_) {
    if (due_.empty()) {
      watch_changed_.wait(lock);
      continue;
    }
    const int64_t left_ns = due_.begin()->first - monotonic_ns();
    if (left_ns > 0) {
      watch_changed_.wait_for(lock, std::chrono::nanoseconds(left_ns));
      continue;
    }
    const FlightPtr flight = due_.begin()->second;
    due_.erase(due_.begin());
    flight->due_ns = 0;
    lock.unlock();
    give_up(flight);
    lock.lock();
  }
}

// The client hears of it now; the side learns that nobody wants the answer any more.
void EdgeService::give_up(const FlightPtr& flight) {
  const bool left = flight->cancelled.exchange(true);
  const RequestError end =
      left ? error_of(ErrorCode::kCancelled, "the client left")
           : error_of(ErrorCode::kDeadline,
                      "the deadline of " + std::to_string(flight->deadline_ms) + " ms has passed");
  if (!finish(flight, end)) return;
  local_.cancel(flight->id);
  pool_.cancel(flight->id);
}

}  // namespace updraft
