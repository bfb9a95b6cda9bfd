// Answers that can be given twice. A client that lost its session (not its process) connects again
// and hands the same request over under the same id: it is not run a second time, the answer so far
// is repeated from its beginning and then goes on; one that has ended is repeated whole.
//
// An id under which another request is handed over meanwhile is refused, not answered with what
// somebody else asked: each answer knows a digest of its request.
//
// Kept only for sessions that asked for it (LocalHello::resume_ms), by user and request id.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "common/message/event.h"
#include "common/message/request.h"
#include "edge/local_outbox.h"

namespace updraft {

// Of all that a request says but its id and tenant; image bytes are read where they lie. Not for
// anything that an enemy must not forge: the ids of a user are its own business.
uint64_t content_digest(const Request& request);

// One request's answer. Threads: take() on the service's, everything else on the server's.
class LocalAnswer {
 public:
  static constexpr size_t kKeptBytesMax = 256 * 1024;
  using Deliver = std::function<void(Event)>;

  explicit LocalAnswer(RequestId service_id, uint64_t digest = 0)
      : service_id_(std::move(service_id)), digest_(digest) {}

  const RequestId& service_id() const { return service_id_; }
  uint64_t digest() const { return digest_; }  // of its request
  // Keeps the event and passes it on.
  void take(Event event);
  // From now on events go to `to`: what came so far at once, in order. False: the answer has become
  // too long to be kept; nothing changed.
  bool attach(Deliver to);
  bool ended() const;
  size_t kept_bytes() const;

  // Where it went last, for the server alone.
  uint64_t session_id = 0;
  LocalTicket ticket;

 private:
  const RequestId service_id_;
  const uint64_t digest_;
  mutable std::mutex mutex_;  // guards what follows; held while an event is passed on
  std::vector<Event> kept_;
  size_t kept_bytes_ = 0;
  bool too_long_ = false;
  bool ended_ = false;
  Deliver to_;  // empty after the end
};

// The answers of all resumable sessions. Owned by the server's thread.
class LocalAnswers {
 public:
  static constexpr size_t kAnswersMax = 256;
  static constexpr size_t kBytesMax = 4 << 20;
  static constexpr int64_t kKeptNs = 60'000'000'000;  // since they were asked for

  // Null: unknown, or forgotten.
  std::shared_ptr<LocalAnswer> find(uid_t uid, const RequestId& client_id) const;
  // Ended ones that are old, or beyond the limits (oldest first), make room. What still runs stays.
  void add(uid_t uid, const RequestId& client_id, std::shared_ptr<LocalAnswer> answer,
           int64_t now_ns);
  size_t count() const { return answers_.size(); }

 private:
  using Key = std::pair<uid_t, RequestId>;
  struct Kept {
    Key key;
    std::shared_ptr<LocalAnswer> answer;
    int64_t since_ns = 0;
  };
  std::list<Kept> answers_;  // oldest first
  std::map<Key, std::list<Kept>::iterator> by_key_;
};

}  // namespace updraft
