// Answers kept by the client's Idempotency-Key, so that a request sent again is answered by what
// was answered before instead of being computed anew. Pure: time comes in as now_ns. One owner (the
// HTTP server's loop).
//
//   begin() -> kRun: answer it, then finish() with the answer or abandon() without one
//           -> kInFlight: 409    -> kOtherRequest: 422    -> kStored: replay
//
// Bounded: entries and bytes, in all and of one tenant; the oldest answers give way. Requests in
// flight never do, the connections bound their number.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace updraft {

struct IdempotencyLimits {
  size_t entries_max = 10'000;
  size_t bytes_max = 64 << 20;
  size_t answer_bytes_max = 2 << 20;  // a longer one is not kept
  int64_t keep_ms = 3'600'000;        // an answer, from its end
};

// What is needed to send an answer again.
struct StoredAnswer {
  int status = 200;
  std::string headers;  // of the answer itself: content type and what our headers say
  std::string body;     // of a stream: its events
  bool is_stream = false;
};

class IdempotencyStore {
 public:
  explicit IdempotencyStore(IdempotencyLimits limits) : limits_(limits) {}

  enum class Verdict { kRun, kInFlight, kOtherRequest, kStored };
  struct Begun {
    Verdict verdict = Verdict::kRun;
    std::shared_ptr<const StoredAnswer> stored;  // kStored
  };
  // digest: of all that makes the request what it is.
  Begun begin(std::string_view tenant, std::string_view key, std::string_view digest,
              int64_t now_ns);
  // The answer of what begin() said to run. Too long ones are forgotten.
  void finish(std::string_view tenant, std::string_view key, StoredAnswer answer, int64_t now_ns);
  // There is no answer to keep: the next one with that key runs.
  void abandon(std::string_view tenant, std::string_view key);

  // Smaller limits take effect at once.
  void set_limits(IdempotencyLimits limits, int64_t now_ns);
  const IdempotencyLimits& limits() const { return limits_; }
  size_t entries() const { return entries_.size(); }
  size_t bytes() const { return bytes_; }  // of stored answers

 private:
  using Order = std::list<std::string>;  // ids of stored answers, oldest first
  struct Entry {
    std::string tenant, digest;
    std::shared_ptr<const StoredAnswer> answer;  // none: in flight
    int64_t expires_ns = 0;
    size_t bytes = 0;
    Order::iterator in_all, in_tenant;  // of stored answers
  };
  struct Share {
    Order order;
    size_t bytes = 0;
  };
  // Parts of all that one tenant may fill.
  static constexpr size_t kTenantShare = 4;

  void drop(const std::string& id);
  void make_room(const std::string& tenant, int64_t now_ns);

  IdempotencyLimits limits_;
  std::unordered_map<std::string, Entry> entries_;  // by tenant and key
  std::unordered_map<std::string, Share> tenants_;
  Order order_;
  size_t bytes_ = 0;
};

// 1 to 255 visible ASCII characters.
bool is_idempotency_key(std::string_view key);

}  // namespace updraft
