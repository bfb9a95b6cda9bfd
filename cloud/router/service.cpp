// Requests from any thread into the relay's turns. See service.h.
#include "cloud/router/service.h"

#include <utility>

#include "common/message/memory_refusal.h"

namespace updraft {
namespace {

constexpr int32_t kRetryAfterMs = 1000;

RequestError overloaded(std::string message) {
  return error_of(ErrorCode::kOverloaded, std::move(message), kRetryAfterMs);
}

}  // namespace

RouterService::RouterService(size_t submissions_max, size_t cancels_max, MemoryWatch& memory,
                             std::function<void()> wake)
    : memory_(memory), submissions_(submissions_max, wake), cancels_(cancels_max, wake) {}

void RouterService::submit(Request request, EventSink sink) {
  if (stopping_.load(std::memory_order_relaxed)) {
    sink(overloaded("the router is stopping"));
    return;
  }
  Submission submission{std::move(request), std::move(sink)};
  if (submissions_.push(std::move(submission))) return;
  submission.sink(submissions_.closed()
                      ? overloaded("the router is stopping")
                      : overloaded("the router has " + std::to_string(submissions_.capacity()) +
                                   " new requests waiting, its limit"));
}

void RouterService::cancel(const RequestId& id) {
  // Full only when clients cancel what they never submitted; then the deadline or the node's end
  // comes first.
  (void)cancels_.push(id);
}

void RouterService::take(std::vector<Submission>& submissions, std::vector<RequestId>& cancels) {
  // In this order: whoever cancels has submitted before, so that submit is in the mailbox by the
  // time this drains it.
  cancels = cancels_.drain();
  submissions = submissions_.drain();
}

void RouterService::close() {
  submissions_.close();
  cancels_.close();
}

void RouterService::publish(const std::vector<ModelInfo>& models, int64_t nodes_fresh,
                            int64_t nodes_known) {
  const std::lock_guard lock(mutex_);
  models_ = models;
  nodes_fresh_ = nodes_fresh;
  nodes_known_ = nodes_known;
}

std::vector<ModelInfo> RouterService::models() const {
  const std::lock_guard lock(mutex_);
  return models_;
}

std::optional<RequestError> RouterService::short_of_memory() const {
  return memory_refusal(memory_.level(), Priority::kSystem);
}

bool RouterService::ready(std::string* why_not) const {
  if (stopping_.load(std::memory_order_relaxed)) {
    if (why_not != nullptr) *why_not = "the router is stopping";
    return false;
  }
  if (const auto refusal = short_of_memory()) {
    if (why_not != nullptr) *why_not = refusal->message;
    return false;
  }
  const std::lock_guard lock(mutex_);
  if (nodes_fresh_ > 0) return true;
  if (why_not != nullptr) {
    *why_not = nodes_known_ == 0 ? "no node has joined the pool"
                                 : "none of " + std::to_string(nodes_known_) + " nodes is ready";
  }
  return false;
}

}  // namespace updraft
