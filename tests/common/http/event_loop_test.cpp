// The loop that parts of a program share: order, descriptors that stay readable, ends.
#include "common/http/event_loop.h"

#include <doctest/doctest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <future>
#include <memory>
#include <vector>

using namespace updraft;

namespace {

// Runs `task` on the loop and waits for it.
void run_on(EventLoop& loop, const std::function<void()>& task) {
  std::promise<void> done;
  loop.post([&] {
    task();
    done.set_value();
  });
  done.get_future().wait();
}

struct Counter {
  Counter() : fd(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) { REQUIRE(fd >= 0); }
  ~Counter() { close(fd); }
  void add() const {
    const uint64_t one = 1;
    REQUIRE(write(fd, &one, sizeof one) == sizeof one);
  }
  void read_all() const {
    uint64_t count = 0;
    (void)!read(fd, &count, sizeof count);
  }
  const int fd;
};

}  // namespace

TEST_CASE("tasks run on the loop's thread, in the order in which they were posted") {
  const auto loop = EventLoop::start();
  CHECK_FALSE(loop->on_loop());
  std::vector<int> order;
  bool on_loop = false;
  std::promise<void> last;
  run_on(*loop, [&] {
    on_loop = loop->on_loop();
    loop->post([&] { order.push_back(1); });
    loop->post([&] {
      order.push_back(2);
      last.set_value();
    });
    order.push_back(0);
  });
  last.get_future().wait();
  CHECK(on_loop);
  CHECK(order == std::vector<int>{0, 1, 2});
}

TEST_CASE("a descriptor that stays readable is told again, and not after its watch has gone") {
  const auto loop = EventLoop::start();
  const Counter counter;
  counter.add();
  int calls = 0;
  std::promise<void> third;
  std::unique_ptr<EventLoop::Subscription> watch;
  run_on(*loop, [&] {
    watch = loop->watch(counter.fd, [&] {
      if (++calls == 3) {
        watch.reset();  // from inside
        third.set_value();
      }
    });
  });
  third.get_future().wait();
  counter.add();
  for (int i = 0; i < 10; ++i) run_on(*loop, [] {});
  run_on(*loop, [&] { CHECK(calls == 3); });
  counter.read_all();  // the descriptor is still ours and open
}

TEST_CASE("a descriptor that never rests does not keep posted tasks and timers waiting") {
  const auto loop = EventLoop::start();
  const Counter counter;
  counter.add();
  std::unique_ptr<EventLoop::Subscription> watch;
  std::unique_ptr<EventLoop::Subscription> timer;
  std::promise<void> fired;
  int ticks = 0;
  run_on(*loop, [&] {
    watch = loop->watch(counter.fd, [] {});
    timer = loop->every(1, [&] {
      if (++ticks == 3) fired.set_value();
    });
  });
  fired.get_future().wait();
  run_on(*loop, [&] {
    watch.reset();
    timer.reset();
  });
}

TEST_CASE("after stop() nothing runs any more, and what was subscribed may go in any order") {
  const auto loop = EventLoop::start();
  const Counter counter;
  std::atomic<int> calls{0};
  std::unique_ptr<EventLoop::Subscription> watch;
  std::unique_ptr<EventLoop::Subscription> timer;
  run_on(*loop, [&] {
    watch = loop->watch(counter.fd, [&] { ++calls; });
    timer = loop->every(1, [&] { ++calls; });
  });
  loop->stop();
  const int before = calls.load();
  counter.add();
  loop->post([&] { ++calls; });
  loop->stop();
  watch.reset();
  timer.reset();
  CHECK(calls.load() == before);
}
