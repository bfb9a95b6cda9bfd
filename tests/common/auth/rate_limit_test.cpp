// Limits on a virtual clock: no sleeping, no chance.
#include "common/auth/rate_limit.h"

#include <doctest/doctest.h>

#include <optional>
#include <string>
#include <vector>

#include "common/base/clock.h"

using namespace updraft;

namespace {

struct Door {
  explicit Door(size_t tenants_max = 100) : limits(tenants_max) {}

  RateLimits limits;
  int64_t now_ns = 1'000'000 * kNsPerSecond;

  std::optional<RateLimits::Ticket> enter(const std::string& who, const KeyLimits& of,
                                          int64_t tokens = 0) {
    auto answer = limits.admit(who, of, tokens, now_ns);
    if (auto* ticket = std::get_if<RateLimits::Ticket>(&answer)) return *ticket;
    refusal = std::get<RateLimits::Refusal>(answer);
    return std::nullopt;
  }
  void wait_ms(int64_t ms) { now_ns += ms * kNsPerMs; }

  RateLimits::Refusal refusal;
};

}  // namespace

TEST_CASE("a minute's requests may come at once, then one for each share of the minute") {
  Door door;
  const KeyLimits six{6, 0, 0};
  for (int i = 0; i < 6; ++i) REQUIRE(door.enter("a", six));
  CHECK_FALSE(door.enter("a", six));
  CHECK(std::string(door.refusal.what) == "requests per minute");
  CHECK(door.refusal.limit == 6);
  CHECK(door.refusal.retry_after_ms == 10'000);
  CHECK(door.enter("b", six));  // another tenant has its own
  door.wait_ms(door.refusal.retry_after_ms - 1);
  CHECK_FALSE(door.enter("a", six));
  door.wait_ms(1);
  CHECK(door.enter("a", six));
  CHECK_FALSE(door.enter("a", six));
}

TEST_CASE("what is left of a limit is told: how much, and until when it is whole again") {
  Door door;
  const KeyLimits limits{6, 1000, 0};
  const auto room = [&] { return door.limits.room("a", limits, door.now_ns); };
  CHECK(room().requests.limit == 6);
  CHECK(room().requests.remaining == 6);
  CHECK(room().requests.reset_ms == 0);
  CHECK(room().tokens.limit == 1000);
  CHECK(room().tokens.remaining == 1000);
  const auto ticket = door.enter("a", limits, 300);
  REQUIRE(ticket);
  CHECK(room().requests.remaining == 5);
  CHECK(room().requests.reset_ms == 10'000);
  CHECK(room().tokens.remaining == 700);
  CHECK(room().tokens.reset_ms == 18'000);
  // It used less than was assumed.
  door.limits.settle(*ticket, 100, door.now_ns);
  CHECK(room().tokens.remaining == 900);
  door.wait_ms(5000);
  CHECK(room().requests.remaining == 5);
  CHECK(room().requests.reset_ms == 5000);
  CHECK(room().tokens.remaining == 983);
  // As many more as it says pass, and no further one.
  for (int i = 0; i < 5; ++i) REQUIRE(door.enter("a", limits, 1));
  CHECK(room().requests.remaining == 0);
  CHECK_FALSE(door.enter("a", limits, 1));
  // More used than a minute allows: nothing is left, for longer than a minute.
  const auto large = door.enter("b", {0, 1000, 0}, 1000);
  REQUIRE(large);
  door.limits.settle(*large, 2000, door.now_ns);
  const auto of_b = door.limits.room("b", {0, 1000, 0}, door.now_ns);
  CHECK(of_b.tokens.remaining == 0);
  CHECK(of_b.tokens.reset_ms == 120'000);
  CHECK(of_b.requests.limit == 0);
}

TEST_CASE("over any stretch of time no more passes than the limit allows, and never less") {
  Door door;
  const KeyLimits limits{60, 0, 0};
  int passed = 0;
  for (int i = 0; i < 600'000 / 7; ++i) {  // ten minutes, one knock every 7 ms
    if (auto ticket = door.enter("a", limits)) {
      door.limits.settle(*ticket, 0, door.now_ns);
      ++passed;
    }
    door.wait_ms(7);
  }
  CHECK(passed >= 60 + 598);
  CHECK(passed <= 60 + 600);
}

TEST_CASE("the time to wait is honest: then it fits, a moment earlier it does not") {
  Door door;
  const KeyLimits limits{30, 3000, 0};
  uint32_t random = 12345;
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    random = random * 1664525 + 1013904223;
    const int64_t tokens = random % 700;
    if (auto ticket = door.enter("a", limits, tokens)) {
      door.limits.settle(*ticket, tokens, door.now_ns);
    } else {
      ++refused;
      door.wait_ms(door.refusal.retry_after_ms - 1);
      if (door.refusal.retry_after_ms > 1) CHECK_FALSE(door.enter("a", limits, tokens));
      door.wait_ms(1);
      auto later = door.enter("a", limits, tokens);
      REQUIRE(later);
      door.limits.settle(*later, tokens, door.now_ns);
    }
    door.wait_ms(random % 50);
  }
  CHECK(refused > 500);
}

TEST_CASE("tokens are charged by the estimate and settled by what was used") {
  Door door;
  const KeyLimits limits{0, 1000, 0};
  const auto first = door.enter("a", limits, 900);
  REQUIRE(first);
  CHECK_FALSE(door.enter("a", limits, 200));
  CHECK(std::string(door.refusal.what) == "tokens per minute");
  CHECK(door.refusal.retry_after_ms == 6000);
  door.limits.settle(*first, 100, door.now_ns);  // 800 come back
  const auto second = door.enter("a", limits, 200);
  REQUIRE(second);
  // Three times what a minute has, against an estimate of 200: paid by waiting.
  door.limits.settle(*second, 3000, door.now_ns);
  CHECK_FALSE(door.enter("a", limits, 1));
  CHECK(door.refusal.retry_after_ms == 126'060);
}

TEST_CASE("a request larger than a minute's allowance passes when nothing is spoken for") {
  Door door;
  const KeyLimits limits{0, 1000, 0};
  const auto large = door.enter("a", limits, 5000);
  REQUIRE(large);
  CHECK_FALSE(door.enter("a", limits, 1));
  door.limits.settle(*large, 5000, door.now_ns);
  door.wait_ms(4 * 60'000 + 60);
  CHECK(door.enter("a", limits, 1));
}

TEST_CASE("requests at once: the next waits until one has ended, whatever it used") {
  Door door;
  const KeyLimits two{0, 0, 2};
  const auto first = door.enter("a", two);
  const auto second = door.enter("a", two);
  REQUIRE((first && second));
  CHECK_FALSE(door.enter("a", two));
  CHECK(std::string(door.refusal.what) == "requests at once");
  CHECK(door.refusal.retry_after_ms >= 100);
  door.wait_ms(3000);
  door.limits.settle(*first, 0, door.now_ns);
  CHECK(door.enter("a", two));
  CHECK_FALSE(door.enter("a", two));
}

TEST_CASE("limits that change while a request runs do not confuse its end") {
  Door door;
  const KeyLimits two{0, 0, 2};
  const auto unlimited = door.enter("a", {});
  const auto limited = door.enter("a", two);
  REQUIRE((unlimited && limited));
  door.limits.settle(*unlimited, 10, door.now_ns);
  door.limits.settle(*limited, 10, door.now_ns);
  CHECK(door.enter("a", two));
  CHECK(door.enter("a", two));
  CHECK_FALSE(door.enter("a", two));
}

TEST_CASE("memory of tenants is bounded; those at rest give way, those in use do not") {
  Door door(3);
  const KeyLimits limits{60, 0, 0};
  std::vector<RateLimits::Ticket> open;
  for (const char* who : {"a", "b", "c"}) open.push_back(*door.enter(who, limits));
  CHECK_FALSE(door.enter("d", limits));
  CHECK(door.refusal.retry_after_ms > 0);
  door.limits.settle(open[0], 0, door.now_ns);
  CHECK_FALSE(door.enter("d", limits));  // a's second is not over
  door.wait_ms(1000);
  CHECK(door.enter("d", limits));
  CHECK(door.limits.tenants() == 3);
  CHECK(door.enter("b", limits));
  CHECK(door.enter("nobody", {}));  // who has no limits is not remembered
  CHECK(door.limits.tenants() == 3);
}
