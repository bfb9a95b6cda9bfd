#include "edge/client/unmapped_client.h"

#include <algorithm>
#include <deque>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "common/base/clock.h"
#include "common/ipc/unix_socket.h"
#include "common/message/event_message.h"
#include "common/message/pool_message.h"
#include "common/net/control_socket.h"
#include "edge/client/session_start.h"

namespace updraft {

using namespace ipc;

namespace {

constexpr uint32_t kUnmappedRequestsMax = 64;

Error no_memory_here() { return fail(LocalFailure::kNoRoom, "this session has no shared memory"); }

class UnmappedClient final : public LocalClient {
 public:
  UnmappedClient(Handshaken shaken, std::unique_ptr<ControlDialer> control)
      : shaken_(std::move(shaken)), control_(std::move(control)) {}

  const LocalWelcome& welcome() const override { return shaken_.welcome; }
  Result<Buffer> allocate(uint64_t) override { return no_memory_here(); }
  Result<Buffer> allocate_once(uint64_t) override { return no_memory_here(); }
  void release(Buffer) override {}

  Result<uint32_t> submit(Request request, std::vector<PlacedPart> placed) override {
    if (!placed.empty()) return no_memory_here();
    if (gone_) return gone_error();
    if (handles_.size() >= kUnmappedRequestsMax)
      return fail(LocalFailure::kBusy, "too many requests in flight");
    if (request.id.empty()) request.id = new_request_id();
    const RequestId id = request.id;
    if (!control_->send(encode(Submit{std::move(request), 1, 0})))
      return fail(LocalFailure::kBusy, "the control channel is full");
    handles_[id] = ++last_handle_;
    return last_handle_;
  }

  Result<std::optional<std::pair<uint32_t, Event>>> next(int timeout_ms) override {
    const int64_t deadline_ns = timeout_ms < 0 ? INT64_MAX : monotonic_ns() + timeout_ms * kNsPerMs;
    while (ready_.empty()) {
      const int64_t left_ms = (deadline_ns - monotonic_ns()) / kNsPerMs;
      if (left_ms < 0) return std::optional<std::pair<uint32_t, Event>>();
      if (gone_) return gone_error();
      send_cancels();
      // The daemon's death shows on the socket, not on the control channel.
      const std::vector<std::byte> frame =
          control_->receive(static_cast<int>(std::clamp<int64_t>(left_ms, 0, 200)));
      if (!frame.empty()) {
        take_frame(frame);
        continue;
      }
      Result<SocketMessage> alive = receive_message(shaken_.socket, 0);
      if (!alive || alive->hung_up) {
        gone_ = true;
        return gone_error();
      }
      if (left_ms == 0) return std::optional<std::pair<uint32_t, Event>>();
    }
    std::optional<std::pair<uint32_t, Event>> out(std::move(ready_.front()));
    ready_.pop_front();
    return out;
  }

  Result<int> event_fd() override {
    return fail(LocalFailure::kNoRoom,
                "a session without shared memory has no event descriptor: wait in next()");
  }

  // The control channel belongs to the session's thread: next() sends it.
  void cancel(uint32_t handle) override {
    const std::lock_guard lock(cancel_mutex_);
    to_cancel_.push_back(handle);
  }

 private:
  void send_cancels() {
    std::vector<uint32_t> handles;
    {
      const std::lock_guard lock(cancel_mutex_);
      handles.swap(to_cancel_);
    }
    for (const uint32_t handle : handles) {
      for (const auto& [id, known] : handles_) {
        if (known == handle) (void)control_->send(encode(Cancel{id, 1}));
      }
    }
  }

  void take_frame(const std::vector<std::byte>& frame) {
    Result<PoolMessage> message = decode(frame);
    if (!message) return;
    std::optional<RequestEvents> events = to_events(std::move(message).value());
    if (!events) return;
    const auto it = handles_.find(events->id);
    if (it == handles_.end()) return;
    const uint32_t handle = it->second;
    for (Event& event : events->events) {
      if (is_end(event)) handles_.erase(events->id);
      ready_.emplace_back(handle, std::move(event));
    }
  }

  Handshaken shaken_;
  std::unique_ptr<ControlDialer> control_;
  std::mutex cancel_mutex_;  // guards to_cancel_
  std::vector<uint32_t> to_cancel_;
  bool gone_ = false;
  std::map<RequestId, uint32_t> handles_;
  uint32_t last_handle_ = 0;
  std::deque<std::pair<uint32_t, Event>> ready_;
};

}  // namespace

Result<std::unique_ptr<LocalClient>> connect_unmapped(const LocalClientOptions& options) {
  Result<Handshaken> shaken = shake_hands(options, {});
  if (!shaken) return shaken.error();
  Result<std::unique_ptr<ControlDialer>> control =
      ControlDialer::connect(shaken->welcome.control_endpoint, shaken->welcome.session_token);
  if (!control) return control.error();
  return std::unique_ptr<LocalClient>(
      std::make_unique<UnmappedClient>(std::move(*shaken), std::move(control).value()));
}

}  // namespace updraft
