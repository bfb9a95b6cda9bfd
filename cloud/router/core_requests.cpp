// A request's way through the router's core: taken in, placed or queued, dispatched, perhaps placed
// anew, ended once.
#include <algorithm>
#include <limits>
#include <optional>

#include "cloud/router/core.h"
#include "common/base/bytes.h"
#include "common/base/clock.h"
#include "common/base/plant.h"
#include "common/message/memory_refusal.h"
#include "common/message/prefix_chain.h"
#include "common/message/request_check.h"

namespace updraft {
namespace {

constexpr int32_t kBusyRetryMs = 1000;
constexpr int32_t kRetryMsMin = 1000;
constexpr int32_t kRetryMsMax = 60'000;
// The node enforces the deadline itself and says so; the router steps in only when it does not.
constexpr int64_t kNodeDeadlineSlackNs = 250 * kNsPerMs;
constexpr size_t kModelsListed = 10;
// A request waits for so long for room that comes by itself.
constexpr int64_t kWantAfterNs = 500 * kNsPerMs;

int64_t payload_bytes(const Request& request) {
  int64_t bytes = prompt_text_bytes(request);
  for (const ChatMessage& message : request.messages) {
    for (const ContentPart& part : message.parts) bytes += static_cast<int64_t>(part.bytes.size());
  }
  for (const std::vector<int32_t>& ids : request.prompt_ids)
    bytes += static_cast<int64_t>(ids.size() * sizeof(int32_t));
  for (const PromptPart& part : request.prompt_parts)
    bytes += static_cast<int64_t>(part.ids.size() * sizeof(int32_t) + part.rows.bytes.size());
  return bytes;
}

size_t outcome_index(const Event& event) {
  const auto* error = std::get_if<RequestError>(&event);
  return error == nullptr ? 0 : 1 + static_cast<size_t>(error->code);
}

bool keeps_in_cloud(Reason reason) {
  return reason == Reason::kTooLongForEdge || reason == Reason::kEdgeBusy ||
         reason == Reason::kDeadline || reason == Reason::kImages || reason == Reason::kSession ||
         reason == Reason::kRisen;
}

}  // namespace

void RouterCore::submit(Request request, ClientId client, int64_t now_ns, Actions& out) {
  take_in(std::move(request), Requester{client, {}, 0}, kNoNode, now_ns, out);
}

std::optional<RequestError> RouterCore::admit(const Request& request, int64_t bytes,
                                              ModelIndex model, bool rises, int64_t now_ns) {
  if (stopping_) return error_of(ErrorCode::kOverloaded, "the router is stopping", kBusyRetryMs);
  if (auto refusal = memory_refusal(memory_, request.hints.priority)) {
    ++stats_.memory_refused[static_cast<size_t>(memory_)];
    return refusal;
  }
  if (streams_.find(request.id) != nullptr) {
    return error_of(ErrorCode::kInvalidRequest,
                    "request id '" + printable(request.id) + "' is already in use");
  }
  if (rises && request.hints.local_only) {
    RequestError error =
        error_of(ErrorCode::kInvalidRequest, "a local-only request does not leave its gateway");
    error.param = "x-updraft-residency";
    return error;
  }
  if (std::optional<RequestError> error = check_crossing(request)) return error;
  if (has_embeddings(request)) {
    RequestError error = error_of(
        ErrorCode::kUnsupported,
        "input embeddings mean something to one model alone and do not leave their gateway");
    error.param = "prompt";
    return error;
  }
  const int32_t choices = total_choices(request);
  if (choices < 1 || choices > config_.choices_max) {
    return error_of(ErrorCode::kInvalidRequest, "the request asks for " + std::to_string(choices) +
                                                    " answers in all, not 1 to " +
                                                    std::to_string(config_.choices_max));
  }
  if (model == kNoModel) return unknown_model(request.model, now_ns);
  if (streams_.full()) {
    return error_of(
        ErrorCode::kOverloaded,
        "the router has " + std::to_string(streams_.size()) + " requests in hand, its limit",
        kBusyRetryMs);
  }
  if (streams_.payload_bytes() + bytes > config_.payload_bytes_max) {
    return error_of(ErrorCode::kOverloaded,
                    "the router holds " + std::to_string(streams_.payload_bytes() >> 20) +
                        " MiB of prompts, its limit",
                    kBusyRetryMs);
  }
  return std::nullopt;
}

RequestError RouterCore::unknown_model(const std::string& name, int64_t now_ns) const {
  if (!registry_.ever_joined()) {
    return error_of(ErrorCode::kOverloaded, "no node has joined the pool yet", kBusyRetryMs);
  }
  if (now_ns - start_ns_ < config_.start_grace_ms * kNsPerMs) {
    return error_of(ErrorCode::kOverloaded,
                    "model '" + printable(name) + "' is not here yet, the pool is still gathering",
                    kBusyRetryMs);
  }
  std::string served;
  for (size_t i = 0; i < pool_models_.size() && i < kModelsListed; ++i) {
    served += (i > 0 ? ", '" : "'") + pool_models_[i].id + "'";
  }
  if (pool_models_.size() > kModelsListed) served += ", ...";
  RequestError error = error_of(ErrorCode::kModelNotFound, "model '" + printable(name) +
                                                               "' is not served here; served: " +
                                                               (served.empty() ? "none" : served));
  error.param = "model";
  return error;
}

void RouterCore::refuse(const RequestId& id, const Requester& requester, RequestError error,
                        Actions& out) {
  ++stats_.refused[1 + static_cast<size_t>(error.code)];
  ++stats_.ended[0][1 + static_cast<size_t>(error.code)];
  if (requester.peer.empty()) {
    out.push_back(Deliver{requester.client, std::move(error)});
  } else {
    out.push_back(Send{requester.peer, Rejected{id, requester.epoch, std::move(error)}});
  }
}

void RouterCore::take_in(Request request, const Requester& requester, NodeIndex origin,
                         int64_t now_ns, Actions& out) {
  ++stats_.submitted;
  retry_budget_ = std::min(kRetryBudgetMax, retry_budget_ + kRetryShare);
  const int64_t bytes = payload_bytes(request);
  const ModelIndex model = registry_.find_model(request.model);
  if (std::optional<RequestError> error = admit(request, bytes, model, origin != kNoNode, now_ns)) {
    refuse(request.id, requester, std::move(*error), out);
    return;
  }
  Stream& stream = streams_.create(std::move(request), bytes);
  const Hints& hints = stream.request.hints;
  Wish& wish = stream.wish;
  wish.model = model;
  wish.estimate = estimate_request(stream.request);
  wish.tier = hints.tier;
  wish.local_only = hints.local_only;
  wish.priority = hints.priority;
  wish.deadline_ns = hints.deadline_ms > 0 ? now_ns + hints.deadline_ms * kNsPerMs : 0;
  if (!hints.session.empty()) wish.session = stream.request.tenant + '\0' + hints.session;
  wish.payload_bytes = bytes;
  if (!affinity_.empty()) wish.chain = prefix_chain(stream.request);
  stream.client = requester.client;
  stream.origin_epoch = requester.epoch;
  if (origin != kNoNode) streams_.set_origin(stream, registry_.ref(origin));
  stream.arrived_ns = now_ns;
  stream.queue_until_ns = now_ns + config_.queue_timeout_ms * kNsPerMs;
  stream.queue_key = {wish.priority,
                      wish.deadline_ns > 0 ? wish.deadline_ns : std::numeric_limits<int64_t>::max(),
                      next_order_++, stream.slot};
  stream.choices.resize(static_cast<size_t>(wish.estimate.choice_count));
  place(stream, now_ns, out);
}

// Dispatches, queues or ends it. The stream is on no node and not in the queue.
void RouterCore::place(Stream& stream, int64_t now_ns, Actions& out) {
  Placement placement =
      placer_.place(stream.wish, sessions_.find(stream.wish.session, now_ns), now_ns);
  switch (placement.kind) {
    case Placement::Kind::kNode:
      if (!must_wait_behind_others(stream, placement.node)) {
        dispatch(stream, placement.node, &placement, now_ns, out);
        return;
      }
      break;
    case Placement::Kind::kWait:
      break;
    case Placement::Kind::kNever:
      // Once a node has had it, it waits for another to come back rather than to be refused.
      if (stream.epoch > 0 && placement.error.code == ErrorCode::kOverloaded) break;
      if (stream.failure && placement.error.code == ErrorCode::kNodeLost)
        placement.error = std::move(*stream.failure);
      end(stream, std::move(placement.error), now_ns, out);
      return;
  }
  enqueue(stream, now_ns, out);
}

// A node's room belongs to those that wait for it, in their order.
bool RouterCore::must_wait_behind_others(const Stream& stream, NodeIndex node) const {
  return queue_.any_ahead(stream.queue_key, stream.request.tenant, [&](const WaitQueue::Key& key) {
    const Wish& waiting = streams_.at(key.slot).wish;
    const Serving* serving = registry_.find_serving(waiting.model, node);
    return serving != nullptr && placer_.capable(waiting, *serving);
  });
}

void RouterCore::enqueue(Stream& stream, int64_t now_ns, Actions& out) {
  if (queue_.full() && stream.epoch == 0 && !UPDRAFT_PLANT(kQueueUnbounded)) {
    const int32_t wait_ms = retry_after_ms(stream.wish);
    const std::string why =
        "the queue is full: " + std::to_string(queue_.size()) + " requests are waiting for a node";
    const auto other = queue_.gives_way(stream.wish.priority, stream.request.tenant);
    // Only a request that no node has had yet is pushed out.
    const bool pushes_out = other && streams_.at(other->slot).epoch == 0;
    end(pushes_out ? streams_.at(other->slot) : stream,
        error_of(ErrorCode::kRateLimited, why, wait_ms), now_ns, out);
    if (!pushes_out) return;
  }
  stream.state = Stream::State::kQueued;
  stream.waiting = true;
  queue_.insert(stream.queue_key, stream.request.tenant, stream.wish.kv_tokens);
  ++service(stream.wish.model).waiting[static_cast<size_t>(stream.wish.priority)];
  arm(stream);
}

void QueueWaits::add(double wait_s) {
  ++counts[static_cast<size_t>(std::lower_bound(kBounds.begin(), kBounds.end(), wait_s) -
                               kBounds.begin())];
  seconds += wait_s;
}

void RouterCore::count_wait(const Stream& stream, int64_t now_ns) {
  stats_.waits.add(static_cast<double>(now_ns - stream.arrived_ns) / 1e9);
}

void RouterCore::leave_queue(Stream& stream) {
  if (!stream.waiting) return;
  stream.waiting = false;
  queue_.erase(stream.queue_key, stream.request.tenant);
  --service(stream.wish.model).waiting[static_cast<size_t>(stream.wish.priority)];
}

RouterCore::Service& RouterCore::service(ModelIndex model) {
  if (services_.size() <= model) services_.resize(model + 1);
  return services_[model];
}

void RouterCore::set_decision_hook(DecisionHook hook) {
  decided_ = std::move(hook);
  placer_.keep_records();
}

void RouterCore::dispatch(Stream& stream, NodeIndex node, const Placement* placement,
                          int64_t now_ns, Actions& out) {
  const Registry::Node& target = registry_.node(node);
  const Tier tier = registry_.load(node).tier;
  const Reason reason = placer_.reason(stream.wish, node);
  if (decided_) {
    DecisionRecord record = placement == nullptr ? placer_.record_pulled(stream.wish, node)
                                                 : placer_.record(stream.wish, tier);
    record.reason = reason_label(reason);
    decided_(stream.request.id, target.hello.node_id, record);
  }
  stream.assigned_slots = placer_.slots_needed(stream.wish, node);
  stream.assigned_kv_tokens = placer_.kv_needed(stream.wish, node);
  const int64_t cached_tokens = placement == nullptr ? 0 : placement->cached_tokens;
  stream.assignment_seq = registry_.assign(node, stream.assigned_slots, stream.assigned_kv_tokens,
                                           stream.wish.prompt_tokens - cached_tokens, now_ns);
  if (stream.epoch == 0) count_wait(stream, now_ns);
  streams_.attach(stream, node);
  stream.probe = breakers_.dispatched(node, stream.wish.model, now_ns);
  stream.node_boot_epoch = target.hello.boot_epoch;
  stream.tier_served = tier;
  stream.state = Stream::State::kDispatched;
  stream.dispatched_ns = now_ns;
  stream.epoch = ++last_epoch_;
  stream.reason = reason;
  ++stats_.dispatched[static_cast<size_t>(tier)][static_cast<size_t>(reason)];
  sessions_.served(stream.wish.session, registry_.ref(node), tier, keeps_in_cloud(reason), now_ns);
  Submit submit{stream.request, stream.epoch, stream.assignment_seq, stream.assigned_slots};
  if (stream.wish.deadline_ns > 0) {
    submit.request.hints.deadline_ms =
        std::max<int64_t>(1, (stream.wish.deadline_ns - now_ns) / kNsPerMs);
  }
  out.push_back(Send{target.peer, std::move(submit)});
  arm(stream);
}

// The node has room or has reported: those that wait for it go there, in their order.
void RouterCore::serve_queue(NodeIndex node, int64_t now_ns, Actions& out) {
  const NodeLoad& load = registry_.load(node);
  if (queue_.empty() || !load.takes_work() || load.freshness > Freshness::kSuspect) return;
  WaitQueue::Walk walk(queue_);
  while (load.free_slots(now_ns) > 0) {
    const WaitQueue::Key* next = walk.next();
    if (next == nullptr) return;
    Stream& stream = streams_.at(next->slot);
    // One whose deadline is over is ended by its timer.
    const bool late = stream.wish.deadline_ns > 0 && stream.wish.deadline_ns <= now_ns &&
                      !UPDRAFT_PLANT(kDeadlineIgnored);
    const Serving* serving = registry_.find_serving(stream.wish.model, node);
    if (late || serving == nullptr || !placer_.capable(stream.wish, *serving) ||
        !placer_.admits(stream.wish, node, now_ns)) {
      walk.skip();
      continue;
    }
    if (!placer_.has_room(stream.wish, node, now_ns))
      return want_room(stream, node, now_ns, out);  // kept for it, else a big one waits for ever
    walk.take();
    stream.waiting = false;
    --service(stream.wish.model).waiting[static_cast<size_t>(stream.wish.priority)];
    dispatch(stream, node, nullptr, now_ns, out);
  }
}

// Other routers have parts of this node. One that has to hold them back for the sake of a waiting
// request is enough.
void RouterCore::want_room(Stream& stream, NodeIndex node, int64_t now_ns, Actions& out) {
  const NodeLoad& load = registry_.load(node);
  const int32_t slots = placer_.slots_needed(stream.wish, node);
  const int64_t kv_tokens = placer_.kv_needed(stream.wish, node);
  if (!load.grants || now_ns - stream.arrived_ns < kWantAfterNs) return;
  const bool elsewhere = now_ns < stream.wanted_until_ns && registry_.same(stream.wanted_at) &&
                         stream.wanted_at.index != node;
  if (elsewhere) return;
  stream.wanted_at = registry_.ref(node);
  stream.wanted_until_ns = now_ns + load.lease_ms * kNsPerMs;
  Welcome welcome{config_.router_id, config_.router_epoch, pool_models_, true, config_.echo_ms};
  welcome.wanted_slots = slots;
  welcome.wanted_kv_tokens = kv_tokens;
  out.push_back(Send{registry_.node(node).peer, std::move(welcome)});
}

void RouterCore::leave_node(Stream& stream, bool give_back, BreakerTable::Outcome outcome,
                            int64_t now_ns) {
  if (stream.node == kNoNode) return;
  breakers_.score(stream.node, stream.wish.model, outcome, std::exchange(stream.probe, false),
                  now_ns);
  if (UPDRAFT_PLANT(kSlotKept)) return streams_.detach(stream);
  registry_.release(stream.node, stream.assignment_seq, stream.assigned_slots,
                    stream.assigned_kv_tokens, give_back);
  streams_.detach(stream);
}

void RouterCore::cancel_on_node(const Stream& stream, Actions& out) {
  if (stream.node == kNoNode || registry_.node(stream.node).peer.empty()) return;
  out.push_back(Send{registry_.node(stream.node).peer, Cancel{stream.request.id, stream.epoch}});
}

void RouterCore::lose(Stream& stream, const std::string& why, Loss loss,
                      BreakerTable::Outcome outcome, int64_t now_ns, Actions& out) {
  const NodeIndex node = stream.node;
  const std::string node_id = registry_.node(node).hello.node_id;
  if (loss != Loss::kGone && !UPDRAFT_PLANT(kFailedNodeAgain))
    stream.wish.excluded.push_back({registry_.ref(node), stream.node_boot_epoch});
  leave_node(stream, loss == Loss::kAnswered, outcome, now_ns);
  if (stream.tokens_sent || stream.retries >= config_.retries_max) {
    const std::string when = stream.tokens_sent ? " while it was answering"
                                                : " before the first token, after " +
                                                      std::to_string(stream.retries) + " retries";
    end(stream, error_of(ErrorCode::kNodeLost, "node '" + node_id + "' " + why + when), now_ns,
        out);
    return;
  }
  ++stream.retries;
  ++stats_.retried;
  stream.wish.moved = true;
  stream.queue_until_ns = now_ns + config_.queue_timeout_ms * kNsPerMs;
  place_anew(stream, now_ns, out);
}

void RouterCore::place_anew(Stream& stream, int64_t now_ns, Actions& out) {
  for (Stream::Choice& choice : stream.choices) choice = {};
  if (stream.wish.deadline_ns > 0 && stream.wish.deadline_ns <= now_ns) {
    expire(stream, now_ns, out);
    return;
  }
  place(stream, now_ns, out);
}

// Towards the client, or as messages to the edge node from which it rose.
void RouterCore::deliver(Stream& stream, Event event, Actions& out) {
  if (!stream.rose()) {
    out.push_back(Deliver{stream.client, std::move(event)});
    return;
  }
  const NodeRef origin = stream.wish.origin;
  if (!registry_.same(origin) || registry_.load(origin.index).freshness == Freshness::kDead) return;
  const PeerId& peer = registry_.node(origin.index).peer;
  if (peer.empty()) return;
  const RequestId& id = stream.request.id;
  const uint32_t epoch = stream.origin_epoch;
  if (auto* started = std::get_if<Started>(&event)) {
    out.push_back(Send{peer, Accepted{id, epoch, stream.prompt_tokens, std::move(*started)}});
  } else if (auto* chunk = std::get_if<TokenChunk>(&event)) {
    Tokens tokens{id, epoch, {}};
    tokens.chunks.push_back(std::move(*chunk));
    out.push_back(Send{peer, std::move(tokens)});
  } else if (auto* finished = std::get_if<Finished>(&event)) {
    out.push_back(Send{peer, Done{id, epoch, std::move(*finished)}});
  } else if (stream.started) {
    out.push_back(Send{peer, Failed{id, epoch, std::move(std::get<RequestError>(event))}});
  } else {
    out.push_back(Send{peer, Rejected{id, epoch, std::move(std::get<RequestError>(event))}});
  }
}

void RouterCore::end(Stream& stream, Event event, int64_t now_ns, Actions& out) {
  const size_t outcome = outcome_index(event);
  ++stats_.ended[static_cast<size_t>(stream.tier_served)][outcome];
  if (outcome > 0 && !stream.started) ++stats_.refused[outcome];
  const NodeIndex node = stream.node;
  const bool finished_there = node != kNoNode && outcome == 0;
  if (finished_there) {
    const double seconds = static_cast<double>(now_ns - stream.dispatched_ns) / 1e9;
    double& average = service(stream.wish.model).seconds;
    average += 0.1 * (seconds - average);
  }
  if (stream.waiting && stream.epoch == 0) count_wait(stream, now_ns);
  if (!UPDRAFT_PLANT(kQueueLeak)) leave_queue(stream);
  leave_node(stream, finished_there,
             finished_there ? BreakerTable::Outcome::kSuccess : BreakerTable::Outcome::kNeutral,
             now_ns);
  if (UPDRAFT_PLANT(kEndTwice)) deliver(stream, event, out);
  deliver(stream, std::move(event), out);
  remember_risen(stream);
  streams_.erase(stream);
  if (finished_there) serve_queue(node, now_ns, out);
}

// Nobody is left to answer: the node from which it rose is gone or has restarted.
void RouterCore::end_unanswered(Stream& stream, int64_t now_ns, Actions& out) {
  ++stats_.ended[static_cast<size_t>(stream.tier_served)]
                [1 + static_cast<size_t>(ErrorCode::kCancelled)];
  leave_queue(stream);
  cancel_on_node(stream, out);
  leave_node(stream, false, BreakerTable::Outcome::kNeutral, now_ns);
  remember_risen(stream);
  streams_.erase(stream);
}

void RouterCore::cancel(const RequestId& id, int64_t now_ns, Actions& out) {
  Stream* stream = streams_.find(id);
  if (stream == nullptr || stream->rose() || UPDRAFT_PLANT(kCancelIgnored)) return;
  cancel_on_node(*stream, out);
  end(*stream, error_of(ErrorCode::kCancelled, "the client left"), now_ns, out);
}

void RouterCore::end_all(int64_t now_ns, Actions& out) {
  stopping_ = true;
  for (uint32_t slot = 0; streams_.size() > 0; ++slot) {
    Stream& stream = streams_.at(slot);
    if (!stream.live) continue;
    cancel_on_node(stream, out);
    end(stream, error_of(ErrorCode::kOverloaded, "the router is stopping", kBusyRetryMs), now_ns,
        out);
  }
}

// --- time ---

int64_t RouterCore::due_ns(const Stream& stream) const {
  const int64_t deadline_ns = stream.wish.deadline_ns;
  if (stream.state != Stream::State::kQueued)
    return deadline_ns > 0 ? deadline_ns + kNodeDeadlineSlackNs : 0;
  if (UPDRAFT_PLANT(kDeadlineIgnored)) return stream.queue_until_ns;
  return deadline_ns > 0 ? std::min(deadline_ns, stream.queue_until_ns) : stream.queue_until_ns;
}

void RouterCore::arm(Stream& stream) {
  const int64_t at_ns = due_ns(stream);
  if (at_ns == 0 || (stream.timer_ns > 0 && stream.timer_ns <= at_ns)) return;
  stream.timer_ns = at_ns;
  timers_.push({at_ns, stream.slot, stream.generation});
}

void RouterCore::expire(Stream& stream, int64_t now_ns, Actions& out) {
  if (stream.wish.deadline_ns > 0 && stream.wish.deadline_ns <= now_ns) {
    cancel_on_node(stream, out);
    const int64_t given_ms = (stream.wish.deadline_ns - stream.arrived_ns) / kNsPerMs;
    end(stream,
        error_of(ErrorCode::kDeadline,
                 "the deadline of " + std::to_string(given_ms) + " ms is over"),
        now_ns, out);
    return;
  }
  const int64_t waited_ms = (now_ns - stream.arrived_ns) / kNsPerMs;
  end(stream,
      error_of(ErrorCode::kOverloaded,
               "no node had room within " + std::to_string(waited_ms) + " ms",
               retry_after_ms(stream.wish)),
      now_ns, out);
}

// As long as it takes the nodes of its model to work off those before it, at the pace of late.
int32_t RouterCore::retry_after_ms(const Wish& wish) const {
  const Service unknown;
  const Service& of_model = wish.model < services_.size() ? services_[wish.model] : unknown;
  int64_t ahead = 0;
  for (size_t i = 0; i <= static_cast<size_t>(wish.priority); ++i) ahead += of_model.waiting[i];
  const double slots = static_cast<double>(std::max<int64_t>(1, wish.slots_total));
  const double rounds = (static_cast<double>(ahead) + 1.0) / slots;
  const double wait_ms = rounds * of_model.seconds * 1000.0;
  return static_cast<int32_t>(std::clamp<double>(wait_ms, kRetryMsMin, kRetryMsMax));
}

}  // namespace updraft
