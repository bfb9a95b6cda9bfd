// What becomes of a submission: who reads it, whether it may start, and the way of its answer back.
#include <algorithm>

#include "common/base/clock.h"
#include "common/log/log.h"
#include "common/message/request_check.h"
#include "edge/local_payload.h"
#include "edge/local_server_class.h"

namespace updraft {

using namespace ipc;

namespace {

constexpr int kSubmissionsPerTurn = 32;  // fairness between sessions

}  // namespace

void LocalServerImpl::answer_bell(uint64_t id) {
  const auto it = sessions_.find(id);
  if (it == sessions_.end() || !it->second->mapped) return;
  if (hear_bell(*it->second)) (void)take_small(id);
}

bool LocalServerImpl::take_small(uint64_t id) {
  const auto it = sessions_.find(id);
  if (it == sessions_.end()) return false;
  LocalSession& session = *it->second;
  LocalSession::Mapped& mapped = *session.mapped;
  const bool taken = mapped.submit.maybe_ready() && session.next_is_small();
  if (taken && !take_submissions(session, 1)) return true;
  // Nobody looks from here on: the next one rings, and one that is there already has to.
  if (!mapped.submit.prepare_wait()) mapped.daemon_bell.ring();
  return taken;
}

// Sessions whose requests were taken since the last look are likely to submit again.
bool LocalServerImpl::begin_look() {
  for_recent([](LocalSession& session) { session.mapped->submit.stop_waiting(); });
  return !recent_.empty();
}

bool LocalServerImpl::look_once() {
  for (size_t i = 0; i < recent_.size(); ++i) {
    const auto it = sessions_.find(recent_[i]);
    if (it != sessions_.end() && it->second->mapped->submit.maybe_ready())
      return take_small(recent_[i]);
  }
  return false;
}

// What came at the last moment is the server's thread's.
void LocalServerImpl::end_look(bool found) {
  for_recent([](LocalSession& session) {
    LocalSession::Mapped& mapped = *session.mapped;
    if (!mapped.submit.prepare_wait()) mapped.daemon_bell.ring();
  });
  if (!found) recent_.clear();
}

void LocalServerImpl::handle_doorbell(uint64_t id) {
  const auto it = sessions_.find(id);
  if (it == sessions_.end() || !it->second->mapped) return;
  if (hear_bell(*it->second)) take_submissions(id);
}

bool LocalServerImpl::hear_bell(LocalSession& session) {
  session.mapped->daemon_bell.clear();
  if (auto flushed = session.outbox->flush(); !flushed) {
    break_session(session.id, flushed.message());
    return false;
  }
  change_flow(session.id);
  return true;
}

void LocalServerImpl::take_submissions(uint64_t id) {
  LocalSession& session = *sessions_.at(id);
  // The engine's wake-up runs beside the reading of the request.
  if (session.mapped->submit.maybe_ready()) service_.expect();
  if (!take_submissions(session, kSubmissionsPerTurn)) return;
  if (!std::exchange(session.hot, true)) hot_.push_back(id);
}

bool LocalServerImpl::take_submissions(LocalSession& session, int count_max) {
  for (int taken = 0; taken < count_max; ++taken) {
    Result<std::optional<LocalSession::Submission>> submission = session.next_submission();
    if (!submission) {
      break_session(session.id, submission.message());
      return false;
    }
    if (!*submission) break;
    start(session, std::move(**submission));
    awake_until_ns_ = rings_->used() ? 0 : monotonic_ns() + config_.spin_us * kNsPerUs;
    if (recent_.size() < kSpinSessionsMax &&
        std::find(recent_.begin(), recent_.end(), session.id) == recent_.end())
      recent_.push_back(session.id);
  }
  return true;
}

void LocalServerImpl::start(LocalSession& session, LocalSession::Submission submission) {
  Request& request = submission.request;
  const RequestId service_id = new_request_id();
  // Empty: the frame could not be read.
  const RequestId client_id = request.id.empty() ? service_id : request.id;
  request.id = service_id;
  request.tenant = "uid:" + std::to_string(session.peer.uid);
  const LocalTicket ticket = submission.ticket;
  if (!submission.refused) {
    submission.refused = over_quota(session);
    if (submission.refused) over_quota_.fetch_add(1, std::memory_order_relaxed);
  }
  uint64_t digest = 0;
  if (session.mapped && session.resume_ms > 0 && !submission.refused) {
    digest = content_digest(request);
    if (const auto known = answers_.find(session.peer.uid, client_id)) {
      if (known->digest() == digest) return give_again(session, ticket, client_id, known);
      submission.refused =
          error_of(ErrorCode::kInvalidRequest,
                   "request id \"" + printable(client_id) +
                       "\" stands for another request, which was handed over less than a minute "
                       "ago");
    }
  }
  session.outbox->open(ticket, client_id, service_id);
  // Pairs with the acquire in stats(): whoever sees it taken sees it in flight, or ended.
  taken_.fetch_add(1, std::memory_order_release);
  if (session.mapped && session.resume_ms > 0 && !submission.refused) {
    start_resumable(session, ticket, client_id, digest, std::move(submission));
  } else if (session.mapped) {
    start_mapped(session, ticket, std::move(submission));
  } else {
    start_unmapped(session, ticket, std::move(submission));
  }
}

std::optional<RequestError> LocalServerImpl::over_quota(const LocalSession& session) const {
  if (session.outbox->in_flight() >= kRequestsPerSessionMax) {
    return error_of(ErrorCode::kRateLimited,
                    "this session has " + std::to_string(kRequestsPerSessionMax) +
                        " requests in flight already",
                    100);
  }
  // Counting goes over all sessions: only when the daemon's sum leaves a doubt.
  if (requests_->load(std::memory_order_relaxed) < config_.requests_per_uid_max)
    return std::nullopt;
  int64_t of_user = 0;
  for (const auto& [id, other] : sessions_) {
    if (other->peer.uid == session.peer.uid)
      of_user += static_cast<int64_t>(other->outbox->in_flight());
  }
  if (of_user < config_.requests_per_uid_max) return std::nullopt;
  return error_of(ErrorCode::kRateLimited,
                  "user " + std::to_string(session.peer.uid) + " has " +
                      std::to_string(config_.requests_per_uid_max) + " requests in flight already",
                  100);
}

LocalAnswer::Deliver LocalServerImpl::into_ring(const LocalSession& session, LocalTicket ticket) {
  return [outbox = session.outbox, posted = posted_, id = session.id, ticket](Event event) {
    LocalOutbox::Outcome outcome = outbox->deliver(ticket, std::move(event));
    if (outcome.asks_for_something())
      (void)posted->push_reserved(Posted{id, ticket, std::move(outcome)});
  };
}

void LocalServerImpl::start_resumable(const LocalSession& session, LocalTicket ticket,
                                      const RequestId& client_id, uint64_t digest,
                                      LocalSession::Submission submission) {
  auto answer = std::make_shared<LocalAnswer>(submission.request.id, digest);
  answer->session_id = session.id;
  answer->ticket = ticket;
  (void)answer->attach(into_ring(session, ticket));
  answers_.add(session.peer.uid, client_id, answer, monotonic_ns());
  service_.submit(std::move(submission.request),
                  [answer](Event event) { answer->take(std::move(event)); });
}

void LocalServerImpl::give_again(const LocalSession& session, LocalTicket ticket,
                                 const RequestId& client_id,
                                 const std::shared_ptr<LocalAnswer>& answer) {
  session.outbox->open(ticket, client_id, answer->service_id());
  taken_.fetch_add(1, std::memory_order_release);
  const LocalAnswer::Deliver here = into_ring(session, ticket);
  if (!answer->attach(here)) {
    return here(error_of(ErrorCode::kNodeLost,
                         "the answer had more than " + std::to_string(LocalAnswer::kKeptBytesMax) +
                             " bytes when its session was lost and cannot be given again"));
  }
  std::erase_if(orphans_,
                [&](const Orphan& orphan) { return orphan.service_id == answer->service_id(); });
  // Handed over twice by sessions that both live: the first one's ends, by word.
  if (const auto before = sessions_.find(answer->session_id); before != sessions_.end()) {
    into_ring(*before->second, answer->ticket)(error_of(
        ErrorCode::kCancelled, "the same request was handed over again, and is answered there"));
  }
  answer->session_id = session.id;
  answer->ticket = ticket;
}

void LocalServerImpl::start_mapped(const LocalSession& session, LocalTicket ticket,
                                   LocalSession::Submission submission) {
  const LocalAnswer::Deliver sink = into_ring(session, ticket);
  if (submission.refused) return sink(std::move(*submission.refused));
  service_.submit(std::move(submission.request), sink);
}

void LocalServerImpl::start_unmapped(const LocalSession& session, LocalTicket ticket,
                                     LocalSession::Submission submission) {
  auto sink = [outbox = session.outbox, posted = posted_, id = session.id, ticket](Event event) {
    const bool end = is_end(event);
    Posted value{id, ticket, std::move(event)};
    // One end per admitted request, so ends are bounded. A chunk that finds the mailbox full
    // leaves a gap: the stream ends with an error then, never with a hole.
    if (end) {
      (void)posted->push_reserved(std::move(value));
    } else if (!posted->push(std::move(value))) {
      LocalOutbox::Outcome lost{outbox->lose(ticket), false, {}};
      if (lost.asks_for_something())
        (void)posted->push_reserved(Posted{id, ticket, std::move(lost)});
    }
  };
  if (submission.refused) return sink(std::move(*submission.refused));
  service_.submit(std::move(submission.request), std::move(sink));
}

void LocalServerImpl::deliver_posted() {
  wake_->clear();
  for (const uint64_t id : rings_->take_left()) handle_doorbell(id);
  for (Posted& posted : posted_->drain()) {
    const auto it = sessions_.find(posted.session_id);
    if (it == sessions_.end()) continue;
    if (auto* event = std::get_if<Event>(&posted.what)) {
      const auto frame = it->second->outbox->frame_of(posted.ticket, std::move(*event));
      if (frame) (void)control_->send(it->second->control_peer, *frame);
    } else {
      look_after(it->first, std::get<LocalOutbox::Outcome>(posted.what));
    }
  }
}

void LocalServerImpl::look_after(uint64_t id, const LocalOutbox::Outcome& outcome) {
  if (outcome.to_cancel) service_.cancel(*outcome.to_cancel);
  if (outcome.flow) change_flow(id);
  if (!outcome.broken.empty()) break_session(id, outcome.broken);
}

void LocalServerImpl::change_flow(uint64_t id) {
  LocalOutbox& outbox = *sessions_.at(id)->outbox;
  const LocalOutbox::FlowChanges changes = outbox.flow_changes();
  for (const RequestId& request : changes.to_pause) service_.pause(request);
  for (const RequestId& request : changes.to_resume) service_.resume(request);
  if (outbox.stalled_since_ns()) watched_.insert(id);
}

void LocalServerImpl::end_stalled_streams() {
  const int64_t now_ns = monotonic_ns();
  for (auto it = watched_.begin(); it != watched_.end();) {
    const uint64_t id = *it;
    LocalOutbox& outbox = *sessions_.at(id)->outbox;
    const std::optional<int64_t> since_ns = outbox.stalled_since_ns();
    const bool stalled = since_ns && now_ns - *since_ns > config_.stall_ms * kNsPerMs;
    if (stalled) {
      const std::vector<RequestId> given_up = outbox.give_up();
      stalled_.fetch_add(static_cast<int64_t>(given_up.size()), std::memory_order_relaxed);
      for (const RequestId& request : given_up) service_.cancel(request);
      if (!given_up.empty()) {
        log_info("local client does not read",
                 {{"session", id}, {"requests_ended", given_up.size()}});
      }
    }
    it = since_ns ? std::next(it) : watched_.erase(it);
  }
}

}  // namespace updraft
