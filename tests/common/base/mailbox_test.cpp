// The mailbox between threads: nothing lost, nothing doubled, full and closed are answers.
#include "common/base/mailbox.h"

#include <doctest/doctest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

using namespace updraft;
using namespace std::chrono_literals;

TEST_CASE("a full mailbox refuses and leaves the value with the sender") {
  Mailbox<std::unique_ptr<int>> box(1);
  CHECK(box.push(std::make_unique<int>(1)));
  auto second = std::make_unique<int>(2);
  CHECK_FALSE(box.push(std::move(second)));
  REQUIRE(second != nullptr);
  CHECK(*second == 2);
  CHECK(**box.try_pop() == 1);
  CHECK(box.push(std::move(second)));
}

TEST_CASE("values from several senders arrive once each, in each sender's order") {
  constexpr int kSenders = 4;
  constexpr int kEach = 5000;
  Mailbox<std::pair<int, int>> box(64);
  std::vector<std::thread> senders;
  for (int s = 0; s < kSenders; ++s) {
    senders.emplace_back([&box, s] {
      for (int i = 0; i < kEach;) {
        if (box.push(std::pair{s, i})) {
          ++i;
        } else {
          std::this_thread::yield();
        }
      }
    });
  }
  std::vector<int> next(kSenders, 0);
  for (int received = 0; received < kSenders * kEach; ++received) {
    auto value = box.wait_pop(10s);
    REQUIRE(value.has_value());
    CHECK(value->second == next[static_cast<size_t>(value->first)]++);
  }
  for (auto& sender : senders) sender.join();
  CHECK_FALSE(box.try_pop().has_value());
}

TEST_CASE("closing wakes the receiver, refuses new values and keeps the old ones") {
  Mailbox<int> box(4);
  CHECK(box.push(7));
  std::atomic<bool> woke = false;
  std::thread receiver([&] {
    CHECK(box.wait_pop(10s).value() == 7);
    CHECK_FALSE(box.wait_pop(10s).has_value());
    woke = true;
  });
  std::this_thread::yield();
  box.close();
  receiver.join();
  CHECK(woke);
  CHECK_FALSE(box.push(8));
}

TEST_CASE("the push callback runs once for each value taken in") {
  int calls = 0;
  Mailbox<int> box(1, [&] { ++calls; });
  CHECK(box.push(1));
  CHECK_FALSE(box.push(2));
  CHECK(calls == 1);
}

TEST_CASE("a reserved value gets in when the mailbox is full, but not when it is closed") {
  Mailbox<int> box(1);
  CHECK(box.push(1));
  CHECK_FALSE(box.push(2));
  CHECK(box.push_reserved(3));
  CHECK(box.drain() == std::vector<int>{1, 3});
  box.close();
  CHECK_FALSE(box.push_reserved(4));
}

TEST_CASE("a nudge wakes a receiver that waits, without a value, and is kept for one that comes") {
  Mailbox<int> box(4);
  box.nudge();
  // Without the nudge these would wait for an hour.
  CHECK_FALSE(box.wait_pop(std::chrono::hours(1)).has_value());
  std::thread receiver([&] { CHECK_FALSE(box.wait_pop(std::chrono::hours(1)).has_value()); });
  box.nudge();
  receiver.join();
  CHECK(box.push(1));
  CHECK(box.wait_pop(std::chrono::hours(1)) == 1);
}

TEST_CASE("a look without the lock tells of values and of the end") {
  Mailbox<int> box(4);
  CHECK_FALSE(box.maybe_ready());
  CHECK(box.push(1));
  CHECK(box.push(2));
  CHECK(box.maybe_ready());
  CHECK(box.try_pop() == 1);
  CHECK(box.maybe_ready());
  CHECK(box.drain().size() == 1);
  CHECK_FALSE(box.maybe_ready());
  CHECK(box.push_reserved(3));
  CHECK(box.maybe_ready());
  CHECK(box.try_pop() == 3);
  CHECK_FALSE(box.maybe_ready());
  box.close();
  CHECK(box.maybe_ready());
  CHECK(box.drain().empty());
  CHECK(box.maybe_ready());
}
