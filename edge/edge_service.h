// The edge's InferenceService: counts a request's tokens exactly, places it (placement.h), and
// streams the answer from the local model or from the pool. Before the first event a request may
// move once to the other side, unseen by the client. Work that comes from the router does not pass
// here; it goes to the local model directly.
//
// Threads: submit() and cancel() on any. What needs counting is counted on a thread of its own, so
// that a long prompt holds up neither its sender's thread nor the small requests. Another one ends
// what is cancelled or out of time and whose side does not say so soon, because it works on a long
// step or has not been counted yet. Sinks run on the threads of the model and of the pool link, and
// on these two.
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "common/base/mailbox.h"
#include "common/base/memory_watch.h"
#include "common/metrics/metrics.h"
#include "common/serve/local_model.h"
#include "edge/placement.h"

namespace updraft {

struct EdgeServiceConfig {
  std::vector<std::string> aliases;  // names besides the model's own that mean the local model
  bool pool_configured = false;
  size_t counting_max = 256;      // requests waiting to be counted; then kOverloaded
  MemoryWatch* memory = nullptr;  // outlives the service; null: memory is never short
};

class EdgeService : public InferenceService {
 public:
  // local and pool outlive this object's last event; pool answers what rises (its ready() and
  // models() tell whether and what). to_local: the way to `local`, e.g. one that measures answers;
  // null: directly.
  EdgeService(const EdgeServiceConfig& config, LocalModel& local, InferenceService& pool,
              Metrics& metrics, InferenceService* to_local = nullptr);
  ~EdgeService() override;

  void submit(Request request, EventSink sink) override;
  void expect() override { local_.expect(); }
  void look_while_idle(std::shared_ptr<IdleWork> origin) override {
    local_.look_while_idle(std::move(origin));
  }
  void cancel(const RequestId& id) override;
  // The local model's streams; what the pool answers goes on.
  void pause(const RequestId& id) override { local_.pause(id); }
  void resume(const RequestId& id) override { local_.resume(id); }
  std::vector<ModelInfo> models() const override;  // the local model, its aliases, then the pool's
  bool ready(std::string* why_not) const override;
  // Only while none can rise either.
  std::optional<RequestError> short_of_memory() const override;

  // New requests get kOverloaded; what runs goes on.
  void drain() { draining_.store(true, std::memory_order_relaxed); }
  // Ends both threads; what waits to be counted ends with kCancelled. After it, events still pass
  // through to their sinks.
  void close();

  // How long a side may take to end a request that is cancelled or out of time.
  static constexpr int64_t kPatienceMs = 100;
  size_t in_flight() const;

 private:
  struct Flight;
  using FlightPtr = std::shared_ptr<Flight>;

  EdgeNeed need_of(const Request& request) const;
  EdgeState state_for(const Request& request) const;
  MemoryLevel memory() const;
  bool is_local_name(const std::string& model) const;
  void count_loop();
  void count(const FlightPtr& flight);
  void place(const FlightPtr& flight, const EdgeNeed& need);
  void go_local(const FlightPtr& flight);
  void go_up(const FlightPtr& flight);
  void on_event(const FlightPtr& flight, bool from_pool, Event event);
  bool try_other_side(const FlightPtr& flight, bool from_pool, const RequestError& error);
  void deliver(const FlightPtr& flight, Event event);
  bool finish(const FlightPtr& flight, Event end);  // false: it had ended before
  void watch(const FlightPtr& flight, int64_t due_ns);
  void unwatch(const FlightPtr& flight);
  void watch_loop();
  void give_up(const FlightPtr& flight);

  const EdgeServiceConfig config_;
  LocalModel& local_;
  InferenceService& to_local_;
  InferenceService& pool_;
  const ModelInfo local_info_;
  Counter& placed_local_;
  Counter& placed_pool_;
  Counter& refused_;
  Counter& moved_;
  Counter& memory_shed_;
  Counter& memory_refused_;
  std::atomic<bool> draining_{false};  // a late reader serves one request more

  mutable std::mutex mutex_;  // guards the two below
  std::unordered_multimap<RequestId, FlightPtr> flights_;
  EdgeSessions sessions_;

  std::mutex watch_mutex_;  // guards the three below
  std::condition_variable watch_changed_;
  std::multimap<int64_t, FlightPtr> due_;
  bool watch_closed_ = false;

  Mailbox<FlightPtr> to_count_;
  std::thread count_thread_;
  std::thread watch_thread_;
};

}  // namespace updraft
