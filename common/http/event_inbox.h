// How a service's events reach the loop's thread: any thread pushes, the loop's thread takes them in
// batches. The inbox may outlive its connection and the whole server (a service may hold its sink
// for as long as it likes): once closed, it swallows what comes.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "common/message/event.h"

namespace updraft {

class EventInbox : public std::enable_shared_from_this<EventInbox> {
 public:
  // deliver: runs on the loop's thread with one or more events, oldest first.
  EventInbox(boost::asio::io_context& io, std::function<void(std::vector<Event>)> deliver)
      : io_(&io), deliver_(std::move(deliver)) {}

  // Any thread.
  void push(Event event) {
    const std::lock_guard lock(mutex_);
    if (io_ == nullptr) return;
    events_.push_back(std::move(event));
    if (posted_) return;
    posted_ = true;
    // Under the lock: close() must not return (and the io context not go) between the check and the
    // post.
    boost::asio::post(*io_, [self = shared_from_this()] { self->hand_over(); });
  }

  // The loop's thread, or any thread after that has ended. Nothing is delivered afterwards.
  void close() {
    const std::lock_guard lock(mutex_);
    io_ = nullptr;
    events_.clear();
    deliver_ = nullptr;
  }

 private:
  // The loop's thread.
  void hand_over() {
    std::vector<Event> events;
    std::function<void(std::vector<Event>)> deliver;
    {
      const std::lock_guard lock(mutex_);
      posted_ = false;
      events.swap(events_);
      deliver = deliver_;  // a copy: delivering may close the inbox
    }
    if (deliver && !events.empty()) deliver(std::move(events));
  }

  std::mutex mutex_;  // guards all below
  boost::asio::io_context* io_;
  std::function<void(std::vector<Event>)> deliver_;
  std::vector<Event> events_;
  bool posted_ = false;
};

}  // namespace updraft
