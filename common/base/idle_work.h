// IdleWork: where a thread's work comes from, for the thread to look at by itself while it has
// none. A hand-over through another thread costs two wake-ups one after the other; this way the
// worker is woken by the same event as the other thread, and whoever is awake first does it.
//
// Threads: wait() and look() are called by the worker alone and may hand it work (its own mailbox
// has it when they return); wake() by any.
#pragma once

#include <chrono>
#include <functional>

namespace updraft {

class IdleWork {
 public:
  virtual ~IdleWork() = default;
  // Sleeps until wake(), at most `timeout`, or until work shows at its origin. True: it does; what
  // is not in the worker's hands when this returns will be there soon.
  virtual bool wait(std::chrono::nanoseconds timeout) = 0;
  // Ends the wait() that runs, or the next one.
  virtual void wake() = 0;
  // Looks at the origin awake, for as long as more work is likely there; until it found some or
  // `enough` says so.
  virtual void look(const std::function<bool()>& enough) = 0;
};

}  // namespace updraft
