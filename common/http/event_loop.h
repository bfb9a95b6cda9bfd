// One thread on which several parts of a program live without locks between them: each hands it
// tasks, descriptors to watch and timers, and everything runs one after the other in the order in
// which it became due.
//
// The one idea: what belongs to one request stays on one thread, so that no step of it waits for
// another thread to wake. Therefore a task is short (below a few milliseconds) and never blocks;
// who has more to do does a part and posts itself again, behind whoever else is due.
//
// Threads: start() and stop() by the owner; post() and on_loop() by any; what a task, a watch or a
// timer calls runs on the loop's thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace boost::asio {
class io_context;
}

namespace updraft {

class EventLoop {
 public:
  static std::unique_ptr<EventLoop> start();
  virtual ~EventLoop() = default;  // stops

  // Runs `task` soon. From a task of the loop this costs no system call. After stop() tasks are
  // dropped unrun.
  virtual void post(std::function<void()> task) = 0;
  virtual bool on_loop() const = 0;

  // Calls back until it is destroyed, which the loop's thread does, or anybody after stop().
  class Subscription {
   public:
    virtual ~Subscription() = default;
  };
  // Loop's thread. Whenever `fd` is readable; it stays the caller's and must outlive the
  // subscription. A readable descriptor is told again until it is read.
  virtual std::unique_ptr<Subscription> watch(int fd, std::function<void()> on_readable) = 0;
  // Loop's thread. Every `interval_ms` (> 0), counted from the end of the last call.
  virtual std::unique_ptr<Subscription> every(int interval_ms, std::function<void()> task) = 0;

  // Ends the thread after the task that runs; nothing runs afterwards. Not on the loop's thread.
  virtual void stop() = 0;

  // For those that speak Asio themselves.
  virtual boost::asio::io_context& io() = 0;
};

}  // namespace updraft
