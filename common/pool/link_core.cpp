// See the header.
#include "common/pool/link_core.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/plant.h"
#include "common/message/prefix_chain.h"
#include "common/message/request_check.h"

namespace updraft {
namespace {

constexpr int64_t kHelloRepeatNs = kNsPerSecond;      // until a Welcome comes
constexpr int64_t kUnwelcomedNs = 10 * kNsPerSecond;  // a connection that leads to no session
constexpr int kSilentEchoes = 4;                      // that a router must miss to count as gone
constexpr int64_t kCoalesceNs = 20 * kNsPerMs;        // changes within this time go out in one beat
constexpr size_t kSmallFramesMax = 64;                // then token streams wait and merge
constexpr size_t kMergedIdsMax = 1024;                // ids of one merged chunk
constexpr int32_t kRetryAfterMs = 2000;
// The router is told all prefixes anew so often, should it ever have lost a beat's change.
constexpr int64_t kPrefixesAnewNs = 30 * kNsPerSecond;
constexpr float kBytesPerTokenAssumed = 3.0F;
constexpr size_t kEndedMax = 1024;
constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

// Joins what follows on directly; keeps chunks of different choices and past a finish apart.
void append_chunk(std::vector<TokenChunk>& chunks, TokenChunk&& chunk) {
  for (auto last = chunks.rbegin(); last != chunks.rend(); ++last) {
    if (last->choice != chunk.choice) continue;
    // A chunk without ids in front is an echoed prompt; its logprobs are the prompt's and stay
    // apart.
    const bool joins =
        !last->finish && !last->ids.empty() &&
        last->ids.size() + chunk.ids.size() <= kMergedIdsMax &&
        int64_t{last->offset} + static_cast<int64_t>(last->ids.size()) == chunk.offset &&
        last->text.size() + chunk.text.size() <= kChunkBytes / 2;
    if (!joins) break;
    last->ids.insert(last->ids.end(), chunk.ids.begin(), chunk.ids.end());
    last->text += chunk.text;
    std::move(chunk.logprobs.begin(), chunk.logprobs.end(), std::back_inserter(last->logprobs));
    last->finish = chunk.finish;
    return;
  }
  chunks.push_back(std::move(chunk));
}

float in_range(float value, float max) {
  return value >= 0.0F ? std::min(value, max) : 0.0F;
}  // NaN: 0

int32_t slots_of(const Submit& submit) {
  return submit.slots > 0 ? submit.slots : std::max(1, total_choices(submit.request));
}

}  // namespace

LinkCore::LinkCore(LinkCoreConfig config)
    : config_(std::move(config)),
      grants_(config_.grants != nullptr
                  ? config_.grants
                  : std::make_shared<GrantLedger>(kGrantBeats * config_.beat_interval_ms)) {}

// ---------------------------------------------------------------- the connection

void LinkCore::on_connected(int64_t now_ns) {
  UPDRAFT_CHECK(!connected_);
  connected_ = true;
  over_epoch_ = 0;
  ++connection_;
  heard_ns_ = now_ns;
  ended_.clear();
  ended_order_.clear();
  say_hello(now_ns);
}

void LinkCore::on_disconnected(int64_t /*now_ns*/) {
  connected_ = false;
  end_session();
}

void LinkCore::say_hello(int64_t now_ns) {
  NodeHello hello = config_.hello;
  hello.wants_echo = true;
  outgoing_.push_urgent(hello);
  hello_due_ns_ = now_ns + kHelloRepeatNs;
}

// Both sides forget what was under way. Work keeps its entry until the local service says that it
// has ended, so that the same id can be taken anew only then.
void LinkCore::end_session() {
  outgoing_.clear();
  reader_.clear();
  welcomed_ = false;
  // What it still holds is being cancelled; until that is done the service reports it.
  if (grant_link_ != 0) grants_->leave(std::exchange(grant_link_, 0));
  for (auto& [id, work] : works_) {
    work.next.reset();
    mute(id, work);
  }
  std::erase_if(works_, [this](const auto& entry) {
    if (!entry.second.end) return false;
    remember_end(entry.first, entry.second.epoch, entry.second.connection);
    return true;
  });
  std::map<RequestId, Upward> upward = std::exchange(upward_, {});
  for (auto& [id, entry] : upward) {
    if (UPDRAFT_PLANT(kUpwardForgotten)) continue;
    deliver(entry,
            entry.started
                ? error_of(ErrorCode::kNodeLost,
                           "the connection to the router ended while the answer was being written")
                : error_of(ErrorCode::kOverloaded, "the connection to the router ended",
                           kRetryAfterMs));
  }
}

Result<void> LinkCore::on_frame(ByteView frame, int64_t now_ns) {
  now_ns_ = now_ns;
  heard_ns_ = now_ns;
  Result<std::optional<PoolMessage>> message = reader_.add(frame);
  if (!message) return message.error();
  if (message->has_value()) on_message(std::move(**message), now_ns);
  return {};
}

void LinkCore::on_message(PoolMessage&& message, int64_t now_ns) {
  if (auto* welcome = std::get_if<Welcome>(&message))
    return on_welcome(std::move(*welcome), now_ns);
  if (!welcomed_) return;  // nothing else is ours before the router has taken this hello
  if (auto* submit = std::get_if<Submit>(&message)) {
    on_submit(std::move(*submit), now_ns);
  } else if (const auto* cancel = std::get_if<Cancel>(&message)) {
    on_cancel(*cancel);
  } else if (const auto* drain = std::get_if<Drain>(&message)) {
    on_drain(*drain, now_ns);
  } else if (auto* accepted = std::get_if<Accepted>(&message)) {
    on_accepted(std::move(*accepted), now_ns);
  } else if (auto* tokens = std::get_if<Tokens>(&message)) {
    on_tokens(std::move(*tokens), now_ns);
  } else if (auto* done = std::get_if<Done>(&message)) {
    on_done(std::move(*done));
  } else if (auto* failed = std::get_if<Failed>(&message)) {
    if (upward_of(failed->id, failed->epoch) != nullptr)
      end_upward(failed->id, std::move(failed->error));
  } else if (auto* rejected = std::get_if<Rejected>(&message)) {
    if (upward_of(rejected->id, rejected->epoch) != nullptr)
      end_upward(rejected->id, std::move(rejected->error));
  }
  // An Echo has said all by coming. Hello and Beat are a node's words; from a router they mean
  // nothing.
}

// A router drains and resumes; what the node itself has decided stands.
void LinkCore::on_drain(const Drain& drain, int64_t now_ns) {
  if (drained_by_router_ == !drain.resume) return;
  drained_by_router_ = !drain.resume;
  beat_soon(now_ns);
}

void LinkCore::on_welcome(Welcome&& welcome, int64_t now_ns) {
  if (welcomed_ && welcome.router_epoch != router_epoch_) {
    // Another router took over this connection (it restarted behind a load balancer) and knows
    // nothing of us.
    end_session();
    over_epoch_ = welcome.router_epoch;
    say_hello(now_ns);
    return;
  }
  // Each beat that was still under way is answered like that; the hello's answer is another.
  if (!welcomed_ && welcome.router_epoch == over_epoch_ && !UPDRAFT_PLANT(kOverBegins)) return;
  router_epoch_ = welcome.router_epoch;
  router_id_ = std::move(welcome.router_id);
  pool_models_ = std::move(welcome.pool_models);
  ++welcome_count_;
  silence_ns_ = kSilentEchoes * welcome.echo_ms * kNsPerMs;
  if (welcomed_ && grant_link_ != 0 && welcome.wanted_slots > 0) {
    grants_->want(grant_link_, welcome.wanted_slots, welcome.wanted_kv_tokens, now_ns);
  }
  if (!welcomed_) {
    welcomed_ = true;
    last_assignment_seq_ = 0;
    if (welcome.credits) grant_link_ = grants_->join(now_ns);
    prefixes_.restart();
    prefixes_told_ns_ = now_ns;
    beat_due_ns_ = now_ns;
  }
}

// ---------------------------------------------------------------- work of the router's

// The work runs, waits or has ended under this epoch or a newer one.
bool LinkCore::said_before(const Submit& submit) const {
  if (const auto ended = ended_.find(submit.request.id);
      ended != ended_.end() && submit.epoch <= ended->second) {
    return true;
  }
  const auto at = works_.find(submit.request.id);
  if (at == works_.end()) return false;
  const Work& work = at->second;
  if (work.next) return submit.epoch <= work.next->epoch;
  return (!work.muted || work.connection == connection_) && submit.epoch <= work.epoch;
}

void LinkCore::remember_end(const RequestId& id, uint32_t epoch, uint64_t connection) {
  if (connection != connection_) return;
  const auto [at, is_new] = ended_.try_emplace(id, epoch);
  at->second = std::max(at->second, epoch);
  if (is_new) ended_order_.push_back(id);
  if (ended_order_.size() <= kEndedMax) return;
  ended_.erase(ended_order_.front());
  ended_order_.pop_front();
}

void LinkCore::on_submit(Submit&& submit, int64_t now_ns) {
  last_assignment_seq_ = std::max(last_assignment_seq_, submit.assignment_seq);
  if (said_before(submit) && !UPDRAFT_PLANT(kRunsTwice)) return;
  if (grant_link_ != 0 && !grants_->take(grant_link_, slots_of(submit), now_ns)) {
    beat_soon(now_ns);
    return reject(submit.request.id, submit.epoch,
                  error_of(ErrorCode::kRejectedBusy,
                           "node " + config_.hello.node_id + " has granted no slot for it"));
  }
  const auto at = works_.find(submit.request.id);
  if (at == works_.end()) return begin_work(std::move(submit), now_ns);
  Work& work = at->second;
  const RequestId id = submit.request.id;
  if (work.next) grants_->give(grant_link_, slots_of(*work.next));
  work.next = std::move(submit);
  mute(id, work);
  if (work.end) {  // ended, only its answer was still unsent
    Submit next = std::move(*work.next);
    works_.erase(at);
    begin_work(std::move(next), now_ns);
  }
}

void LinkCore::begin_work(Submit&& submit, int64_t now_ns) {
  const RequestId id = submit.request.id;
  if (state() != NodeState::kReady) {
    grants_->give(grant_link_, slots_of(submit));
    const char* why = state() == NodeState::kDraining ? " is draining" : " is loading its model";
    return reject(
        id, submit.epoch,
        error_of(ErrorCode::kOverloaded, "node " + config_.hello.node_id + why, kRetryAfterMs));
  }
  if (grants_->memory() == MemoryLevel::kRefuse && !UPDRAFT_PLANT(kMemoryIgnored)) {
    grants_->give(grant_link_, slots_of(submit));
    beat_soon(now_ns);
    return reject(id, submit.epoch,
                  error_of(ErrorCode::kRejectedBusy,
                           "node " + config_.hello.node_id + " is short of memory"));
  }
  Work work;
  work.serial = next_serial_++;
  work.connection = connection_;
  work.epoch = submit.epoch;
  work.arrived_ns = now_ns;
  work.chain = prefix_chain(submit.request);
  work.slots = slots_of(submit);
  work.grant_link = grant_link_;
  effects_.push_back(SubmitLocal{std::move(submit.request), work.serial});
  works_.insert_or_assign(id, std::move(work));
  beat_soon(now_ns);
}

void LinkCore::on_cancel(const Cancel& cancel) {
  const auto at = works_.find(cancel.id);
  if (at == works_.end()) return;
  Work& work = at->second;
  if (work.next && cancel.epoch >= work.next->epoch) {
    const uint32_t epoch = work.next->epoch;
    grants_->give(grant_link_, slots_of(*work.next));
    work.next.reset();
    reject(cancel.id, epoch, error_of(ErrorCode::kCancelled, "cancelled before it began"));
  } else if (!work.muted && !work.end && cancel.epoch >= work.epoch) {
    effects_.push_back(CancelLocal{cancel.id});  // its end comes as an event
  }
}

void LinkCore::mute(const RequestId& id, Work& work) {
  if (!work.muted && !work.end) effects_.push_back(CancelLocal{id});
  work.muted = true;
  work.started.reset();
  work.chunks.clear();
}

void LinkCore::reject(const RequestId& id, uint32_t epoch, RequestError error) {
  remember_end(id, epoch, connection_);
  UPDRAFT_CHECK(outgoing_.push(id, Rejected{id, epoch, std::move(error), fresh_credit()}),
                "a rejection is small");
}

void LinkCore::on_local_event(const RequestId& id, uint64_t serial, Event event, int64_t now_ns) {
  now_ns_ = now_ns;
  const auto at = works_.find(id);
  if (at == works_.end() || at->second.serial != serial || at->second.end) return;
  Work& work = at->second;
  if (!is_end(event)) {
    if (work.muted) return;
    if (auto* chunk = std::get_if<TokenChunk>(&event)) {
      // With its first token the whole prompt has been computed.
      prefixes_.note(std::exchange(work.chain, {}));
      append_chunk(work.chunks, std::move(*chunk));
    } else if (auto* started = std::get_if<Started>(&event)) {
      work.started = std::move(*started);
      work.started_ns = now_ns;
    }
    return;
  }
  beat_soon(now_ns);
  grants_->give(work.grant_link, work.slots);
  if (!work.muted) {
    work.end = std::move(event);
    return;
  }
  std::optional<Submit> next = std::move(work.next);
  remember_end(id, work.epoch, work.connection);
  works_.erase(at);
  if (next) begin_work(std::move(*next), now_ns);
}

// Begins where the last call had to stop, so that under pressure every work has its turn.
void LinkCore::pump() {
  auto at = works_.upper_bound(pumped_last_);
  for (size_t left = works_.size(); left > 0 && outgoing_.small_count() < kSmallFramesMax; --left) {
    if (at == works_.end()) at = works_.begin();
    pumped_last_ = at->first;
    if (pump_one(at->first, at->second)) {
      remember_end(at->first, at->second.epoch, at->second.connection);
      at = works_.erase(at);
    } else {
      ++at;
    }
  }
}

// Queues what this work has ready. True when its end was queued.
bool LinkCore::pump_one(const RequestId& id, Work& work) {
  if (work.muted) return false;
  if (work.started) {
    const int64_t held_us = (work.started_ns - work.arrived_ns) / 1000;
    Accepted accepted{
        id, work.epoch, work.started->prompt_tokens, std::move(*work.started),
        static_cast<int32_t>(std::clamp<int64_t>(held_us, 0, std::numeric_limits<int32_t>::max()))};
    work.started.reset();
    work.accepted = true;
    UPDRAFT_CHECK(outgoing_.push(id, accepted), "an Accepted is small");
  }
  if (!work.chunks.empty()) {
    Tokens tokens{id, work.epoch, std::exchange(work.chunks, {})};
    if (!outgoing_.push(id, tokens)) {
      effects_.push_back(CancelLocal{id});
      grants_->give(work.grant_link, work.slots);
      work.end = error_of(ErrorCode::kInternal,
                          "a part of the answer is larger than a pool message may be");
    }
  }
  if (!work.end) return false;
  if (const auto* finished = std::get_if<Finished>(&*work.end)) {
    UPDRAFT_CHECK(outgoing_.push(id, Done{id, work.epoch, *finished, fresh_credit()}),
                  "a Done is small");
    return true;
  }
  RequestError error = std::get<RequestError>(std::move(*work.end));
  if (work.accepted) {
    UPDRAFT_CHECK(outgoing_.push(id, Failed{id, work.epoch, std::move(error), fresh_credit()}),
                  "a Failed is small");
    return true;
  }
  if (error.code == ErrorCode::kContextLength) error.code = ErrorCode::kRejectedTooLong;
  if (error.code == ErrorCode::kOverloaded) error.code = ErrorCode::kRejectedBusy;
  reject(id, work.epoch, std::move(error));
  return true;
}

// What the engine has let go was the least recently used, as it is here.
std::optional<PrefixDelta> LinkCore::prefix_delta(const NodeBeat& load, int64_t now_ns) {
  const float bytes_per_token =
      load.bytes_per_token > 0 ? load.bytes_per_token : kBytesPerTokenAssumed;
  const int64_t tokens = load.kv_tokens_total - load.kv_tokens_free + load.kv_tokens_cached;
  prefixes_.shrink_to(static_cast<int64_t>(static_cast<float>(tokens) * bytes_per_token));
  if (now_ns - prefixes_told_ns_ >= kPrefixesAnewNs) {
    prefixes_told_ns_ = now_ns;
    prefixes_.restart();
  }
  return prefixes_.delta(!outgoing_.beat_waiting());
}

std::optional<Credit> LinkCore::fresh_credit() {
  if (grant_link_ == 0) return std::nullopt;
  grants_->set_taking(state() == NodeState::kReady);
  return grants_->grant(grant_link_, now_ns_);
}

void LinkCore::abandon_work() {
  for (auto& [id, work] : works_) {
    if (work.next) {
      reject(id, work.next->epoch,
             error_of(ErrorCode::kOverloaded, "node " + config_.hello.node_id + " is stopping",
                      kRetryAfterMs));
      grants_->give(grant_link_, slots_of(*work.next));
      work.next.reset();
    }
    if (work.muted || work.end) continue;
    grants_->give(work.grant_link, work.slots);
    effects_.push_back(CancelLocal{id});
    work.end = error_of(ErrorCode::kNodeLost, "node " + config_.hello.node_id + " is stopping");
  }
  std::erase_if(works_, [](const auto& entry) { return entry.second.muted; });
}

// ---------------------------------------------------------------- requests that rise

void LinkCore::on_upward(Request request, EventSink sink, int64_t now_ns) {
  const auto refuse = [&](RequestError error) {
    effects_.push_back(Deliver{std::move(sink), std::move(error)});
  };
  if (!welcomed_)
    return refuse(error_of(ErrorCode::kOverloaded, "the router cannot be reached", kRetryAfterMs));
  if (request.hints.local_only) {
    return refuse(
        error_of(ErrorCode::kInvalidRequest, "a local-only request does not leave the gateway"));
  }
  if (auto error = check_crossing(request)) return refuse(std::move(*error));
  if (upward_.contains(request.id)) {
    return refuse(
        error_of(ErrorCode::kInvalidRequest, "request id " + request.id + " is already under way"));
  }
  if (upward_.size() >= config_.upward_max || outgoing_.bytes() >= config_.queued_bytes_max) {
    return refuse(
        error_of(ErrorCode::kOverloaded, "too much is under way to the router", kRetryAfterMs));
  }
  Upward upward;
  upward.open_choices = std::max(1, total_choices(request));
  upward.answer_due_ns = now_ns + config_.answer_timeout_ms * kNsPerMs;
  if (request.hints.deadline_ms > 0)
    upward.deadline_ns = now_ns + (request.hints.deadline_ms + 1000) * kNsPerMs;
  request.hints.tier = Tier::kCloud;  // never back to where it came from
  const RequestId id = request.id;
  if (!outgoing_.push(id, Submit{std::move(request), upward.epoch, 0})) {
    return refuse(
        error_of(ErrorCode::kPayloadTooLarge, "the request is larger than a pool message may be"));
  }
  upward.sink = std::move(sink);
  upward_.emplace(id, std::move(upward));
}

void LinkCore::on_upward_cancel(const RequestId& id) {
  const auto at = upward_.find(id);
  if (at == upward_.end()) return;
  const uint32_t epoch = at->second.epoch;
  end_upward(id, error_of(ErrorCode::kCancelled, "the client left"));
  UPDRAFT_CHECK(outgoing_.push(id, Cancel{id, epoch}), "a Cancel is small");
}

LinkCore::Upward* LinkCore::upward_of(const RequestId& id, uint32_t epoch) {
  const auto at = upward_.find(id);
  if (at == upward_.end() || epoch < at->second.epoch) return nullptr;
  at->second.epoch = epoch;
  return &at->second;
}

void LinkCore::deliver(Upward& upward, Event event) {
  effects_.push_back(is_end(event) ? Deliver{std::move(upward.sink), std::move(event)}
                                   : Deliver{upward.sink, std::move(event)});
}

void LinkCore::end_upward(const RequestId& id, Event end) {
  const auto at = upward_.find(id);
  if (auto* error = std::get_if<RequestError>(&end)) {
    // What stands between node and router only becomes what a client can understand.
    if (error->code == ErrorCode::kRejectedTooLong) error->code = ErrorCode::kContextLength;
    if (error->code == ErrorCode::kRejectedBusy) error->code = ErrorCode::kOverloaded;
    if (error->code == ErrorCode::kOverloaded && error->retry_after_ms == 0)
      error->retry_after_ms = kRetryAfterMs;
  }
  deliver(at->second, std::move(end));
  upward_.erase(at);
}

void LinkCore::on_accepted(Accepted&& message, int64_t now_ns) {
  Upward* upward = upward_of(message.id, message.epoch);
  if (upward == nullptr) return;
  upward->answer_due_ns = now_ns + config_.silence_timeout_ms * kNsPerMs;
  // A request moves before its first token alone: this is an earlier node's, repeated on its way.
  if (!upward->choices.empty()) return;
  upward->started = true;
  if (message.started.prompt_tokens == 0) message.started.prompt_tokens = message.prompt_tokens;
  deliver(*upward, std::move(message.started));
}

void LinkCore::on_tokens(Tokens&& message, int64_t now_ns) {
  Upward* upward = upward_of(message.id, message.epoch);
  if (upward == nullptr) return;
  upward->answer_due_ns = now_ns + config_.silence_timeout_ms * kNsPerMs;
  if (!upward->started) {
    upward->started = true;
    Started started;
    started.node_id = router_id_;
    started.tier = Tier::kCloud;
    deliver(*upward, std::move(started));
  }
  for (TokenChunk& chunk : message.chunks) {
    Upward::Choice& choice = upward->choices[chunk.choice];
    int64_t& next = choice.next_offset;
    const int64_t end = chunk.offset + static_cast<int64_t>(chunk.ids.size());
    if (choice.finished || (chunk.offset < next && end <= next)) continue;  // already seen
    if (chunk.offset != next) {
      const uint32_t epoch = upward->epoch;
      end_upward(message.id,
                 error_of(ErrorCode::kNodeLost, "tokens " + std::to_string(next) + ".." +
                                                    std::to_string(chunk.offset) +
                                                    " of the answer were lost"));
      UPDRAFT_CHECK(outgoing_.push(message.id, Cancel{message.id, epoch}), "a Cancel is small");
      return;
    }
    next = end;
    choice.finished = chunk.finish.has_value();
    if (choice.finished) --upward->open_choices;
    deliver(*upward, std::move(chunk));
  }
}

void LinkCore::on_done(Done&& message) {
  const Upward* upward = upward_of(message.id, message.epoch);
  if (upward == nullptr) return;
  if (upward->open_choices <= 0 || UPDRAFT_PLANT(kEndUnchecked))
    return end_upward(message.id, message.finished);
  end_upward(message.id, error_of(ErrorCode::kNodeLost, "the end of the answer was lost"));
}

// ---------------------------------------------------------------- state and time

void LinkCore::beat_soon(int64_t now_ns) {
  beat_due_ns_ = std::min(beat_due_ns_, now_ns + kCoalesceNs);
}

void LinkCore::set_state(NodeState state, int64_t now_ns) {
  if (state == state_) return;
  state_ = state;
  beat_soon(now_ns);
}

void LinkCore::drain(int32_t grace_ms, int64_t now_ns) {
  set_state(NodeState::kDraining, now_ns);
  if (welcomed_) outgoing_.push_urgent(Drain{grace_ms});
}

void LinkCore::stop() {
  end_session();
  works_.clear();
}

void LinkCore::tick(int64_t now_ns) {
  now_ns_ = now_ns;
  if (connected_ && !welcomed_ && now_ns >= hello_due_ns_) say_hello(now_ns);
  std::vector<RequestId> late;
  for (const auto& [id, upward] : upward_) {
    const bool silent =
        now_ns >= upward.answer_due_ns && !(upward.started && UPDRAFT_PLANT(kSilenceEndless));
    if (silent || (upward.deadline_ns > 0 && now_ns >= upward.deadline_ns)) late.push_back(id);
  }
  for (const RequestId& id : late) {
    const Upward& upward = upward_.at(id);
    const uint32_t epoch = upward.epoch;
    const bool deadline = upward.deadline_ns > 0 && now_ns >= upward.deadline_ns;
    RequestError error =
        error_of(ErrorCode::kOverloaded, "the router did not answer", kRetryAfterMs);
    if (upward.started) error = error_of(ErrorCode::kNodeLost, "the answer did not go on");
    if (deadline) error = error_of(ErrorCode::kDeadline, "the deadline passed");
    end_upward(id, std::move(error));
    UPDRAFT_CHECK(outgoing_.push(id, Cancel{id, epoch}), "a Cancel is small");
  }
}

bool LinkCore::router_silent(int64_t now_ns) const {
  if (!connected_) return false;
  if (!welcomed_) return now_ns - heard_ns_ >= kUnwelcomedNs;
  return silence_ns_ > 0 && now_ns - heard_ns_ >= silence_ns_;
}

void LinkCore::send_beat(NodeBeat load, int64_t now_ns) {
  constexpr int32_t kSequencesMax = 1 << 20;
  constexpr int64_t kTokensMax = int64_t{1} << 40;
  constexpr int64_t kBytesMax = int64_t{1} << 50;
  constexpr float kRateMax = 1e9F;
  load.boot_epoch = config_.hello.boot_epoch;
  load.seq = ++beat_seq_;
  load.sender_mono_ns = now_ns;
  load.interval_ms = config_.beat_interval_ms;
  load.lease_ttl_ms = config_.lease_ttl_ms;
  load.state = state();
  load.last_assignment_seq = last_assignment_seq_;
  load.slots_total = std::clamp(load.slots_total, 0, kSequencesMax);
  load.slots_free = std::clamp(load.slots_free, 0, load.slots_total);
  load.running = std::clamp(load.running, 0, kSequencesMax);
  load.waiting = std::clamp(load.waiting, 0, kSequencesMax);
  load.kv_tokens_total = std::clamp<int64_t>(load.kv_tokens_total, 0, kTokensMax);
  load.kv_tokens_free = std::clamp<int64_t>(load.kv_tokens_free, 0, load.kv_tokens_total);
  load.prefill_tokens_queued = std::clamp<int64_t>(load.prefill_tokens_queued, 0, kTokensMax);
  load.decode_tokens_reserved = std::clamp<int64_t>(load.decode_tokens_reserved, 0, kTokensMax);
  load.prefill_tokens_per_s = in_range(load.prefill_tokens_per_s, kRateMax);
  load.decode_tokens_per_s = in_range(load.decode_tokens_per_s, kRateMax);
  load.bytes_per_token = in_range(load.bytes_per_token, 1e6F);
  load.requests_done = std::max<int64_t>(load.requests_done, 0);
  load.requests_failed = std::max<int64_t>(load.requests_failed, 0);
  load.cpu_load = in_range(load.cpu_load, 1.0F);
  load.memory_free_bytes = std::clamp<int64_t>(load.memory_free_bytes, 0, kBytesMax);
  load.memory_total_bytes = std::clamp<int64_t>(load.memory_total_bytes, 0, kBytesMax);
  now_ns_ = now_ns;
  grants_->report(load.slots_total,
                  std::max(load.running + load.waiting, load.slots_total - load.slots_free),
                  load.kv_tokens_free);
  load.credit = fresh_credit();
  // To a router without grants these are what it may use.
  if (grant_link_ == 0 && grants_->memory() != MemoryLevel::kNormal) load.slots_free = 0;
  load.prefixes = prefix_delta(load, now_ns);
  outgoing_.set_beat(load);
  beat_due_ns_ = now_ns + config_.beat_interval_ms * kNsPerMs;
}

int64_t LinkCore::next_due_ns() const {
  int64_t due = kNever;
  if (connected_ && !welcomed_) due = std::min(due, hello_due_ns_);
  if (welcomed_) due = std::min(due, beat_due_ns_);
  for (const auto& [id, upward] : upward_) {
    due = std::min(due, upward.answer_due_ns);
    if (upward.deadline_ns > 0) due = std::min(due, upward.deadline_ns);
  }
  return due;
}

}  // namespace updraft
