// Mailbox<T>: how one thread hands values to another. Bounded; any number of senders, one receiving
// thread. A full mailbox refuses (push returns false and the value stays with the caller): the
// sender answers "busy", nothing is lost silently. The receiver either blocks (wait_pop) or is
// woken through a callback set once before the first push (for example to signal an eventfd that a
// poller waits on).
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "common/base/check.h"

namespace updraft {

template <typename T>
class Mailbox {
 public:
  // capacity: values held at most, > 0. on_push: called by the sender after each successful push,
  // outside the lock.
  explicit Mailbox(size_t capacity, std::function<void()> on_push = {})
      : capacity_(capacity), on_push_(std::move(on_push)) {
    UPDRAFT_CHECK(capacity > 0);
  }
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  // False when full or closed; then `value` is untouched.
  [[nodiscard]] bool push(T&& value) {
    {
      const std::lock_guard lock(mutex_);
      if (closed_ || values_.size() >= capacity_) return false;
      values_.push_back(std::move(value));
      maybe_ready_.store(true, std::memory_order_relaxed);
    }
    ready_.notify_one();
    if (on_push_) on_push_();
    return true;
  }
  [[nodiscard]] bool push(const T& value) {
    T copy = value;
    return push(std::move(copy));
  }

  // Takes the value even when full (not when closed: then false). Only for values whose number the
  // sender bounds by other means, such as the one end event of each admitted request.
  bool push_reserved(T&& value) {
    {
      const std::lock_guard lock(mutex_);
      if (closed_) return false;
      values_.push_back(std::move(value));
      maybe_ready_.store(true, std::memory_order_relaxed);
    }
    ready_.notify_one();
    if (on_push_) on_push_();
    return true;
  }

  // The oldest value, or nothing when empty.
  std::optional<T> try_pop() {
    const std::lock_guard lock(mutex_);
    return pop_locked();
  }

  // Everything that is there now, oldest first.
  std::vector<T> drain() {
    const std::lock_guard lock(mutex_);
    std::vector<T> out(std::make_move_iterator(values_.begin()),
                       std::make_move_iterator(values_.end()));
    values_.clear();
    maybe_ready_.store(closed_, std::memory_order_relaxed);
    return out;
  }

  // Waits at most `timeout`; nothing on time-out, after a nudge, or when closed and empty.
  std::optional<T> wait_pop(std::chrono::nanoseconds timeout) {
    std::unique_lock lock(mutex_);
    ready_.wait_for(lock, timeout, [&] { return closed_ || nudged_ || !values_.empty(); });
    nudged_ = false;
    return pop_locked();
  }

  // Wakes a receiver that waits, without a value: one is about to come.
  void nudge() {
    {
      const std::lock_guard lock(mutex_);
      nudged_ = true;
    }
    ready_.notify_one();
  }

  // A look without the lock, for receivers that spin: pushed or closed since the last pop that
  // left nothing.
  bool maybe_ready() const { return maybe_ready_.load(std::memory_order_relaxed); }

  // Later pushes are refused; what is there can still be popped. Wakes the receiver.
  void close() {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
      maybe_ready_.store(true, std::memory_order_relaxed);
    }
    ready_.notify_all();
    if (on_push_) on_push_();
  }

  bool closed() const {
    const std::lock_guard lock(mutex_);
    return closed_;
  }
  size_t size() const {
    const std::lock_guard lock(mutex_);
    return values_.size();
  }
  size_t capacity() const { return capacity_; }

 private:
  std::optional<T> pop_locked() {
    if (values_.empty()) return std::nullopt;
    std::optional<T> out(std::move(values_.front()));
    values_.pop_front();
    maybe_ready_.store(closed_ || !values_.empty(), std::memory_order_relaxed);
    return out;
  }

  const size_t capacity_;
  const std::function<void()> on_push_;
  mutable std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<T> values_;
  bool closed_ = false;
  bool nudged_ = false;
  std::atomic<bool> maybe_ready_ = false;  // written under the lock
};

}  // namespace updraft
