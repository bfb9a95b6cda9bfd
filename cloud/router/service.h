// RouterService: the router as an InferenceService. Any thread hands requests in and gets refused
// at once when the relay is behind; events come back through the sink on the relay's loop.
//
// Threads: any, through mailboxes and one mutex around the published view.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "common/base/mailbox.h"
#include "common/base/memory_watch.h"
#include "common/message/service.h"

namespace updraft {

struct Submission {
  Request request;
  EventSink sink;
};

class RouterService : public InferenceService {
 public:
  // wake: called after each hand-in, from the caller's thread. memory: outlives the service.
  RouterService(size_t submissions_max, size_t cancels_max, MemoryWatch& memory,
                std::function<void()> wake);

  void submit(Request request, EventSink sink) override;
  void cancel(const RequestId& id) override;
  std::vector<ModelInfo> models() const override;
  bool ready(std::string* why_not) const override;
  std::optional<RequestError> short_of_memory() const override;

  void stop_taking() {
    stopping_.store(true, std::memory_order_relaxed);
  }  // a flag alone, orders nothing

  // --- the relay ---
  // Requests and cancels since the last call. A cancel never comes before its submit.
  void take(std::vector<Submission>& submissions, std::vector<RequestId>& cancels);
  // Refuses later hand-ins.
  void close();
  void publish(const std::vector<ModelInfo>& models, int64_t nodes_fresh, int64_t nodes_known);

 private:
  MemoryWatch& memory_;
  Mailbox<Submission> submissions_;
  Mailbox<RequestId> cancels_;
  std::atomic<bool> stopping_{false};
  mutable std::mutex mutex_;  // guards what follows
  std::vector<ModelInfo> models_;
  int64_t nodes_fresh_ = 0;
  int64_t nodes_known_ = 0;
};

}  // namespace updraft
