// Targets are judged from the lines of one run, each against its limit and on the right side of it.
#include "tools/bench/ipc_targets.h"

#include <doctest/doctest.h>

using namespace updraft;

namespace {

IpcLine line(IpcTest test, uint64_t bytes, const char* peer, bool spins, double p50_us) {
  IpcLine out;
  out.test = test;
  out.bytes = bytes;
  out.peer = peer;
  out.spins = spins;
  out.p50_us = p50_us;
  return out;
}

const IpcTarget& named(const std::vector<IpcTarget>& targets, const std::string& name) {
  for (const IpcTarget& target : targets) {
    if (target.name == name) return target;
  }
  FAIL("no target ", name);
  return targets.front();
}

}  // namespace

TEST_CASE("a handed-over payload is held to its time, its tail and its evenness over sizes") {
  std::vector<IpcLine> lines = {line(IpcTest::kHand, 64, "updraft", true, 0.2),
                                line(IpcTest::kHand, 1 << 20, "updraft", true, 0.25),
                                line(IpcTest::kHand, 64, "updraft", false, 40),
                                line(IpcTest::kHand, 64, "cache line", true, 0.1)};
  lines[0].p99_us = 0.6;
  const auto targets = ipc_targets(lines, {}, std::nullopt);
  REQUIRE(targets.size() == 3);
  CHECK(named(targets, "handed over, 64 B, p50").met());
  CHECK(named(targets, "handed over, 64 B, p50").floor == 0.1);
  CHECK_FALSE(named(targets, "handed over, 64 B, p99").met());
  CHECK(named(targets, "handed over, slowest size / fastest").measured == doctest::Approx(1.25));
  CHECK_FALSE(named(targets, "handed over, slowest size / fastest").met());
}

TEST_CASE("rates must reach their limit, ratios and times must not pass it") {
  std::vector<IpcLine> lines = {line(IpcTest::kRate, 64, "updraft", true, 0.1),
                                line(IpcTest::kSparse, 64, "updraft", false, 60),
                                line(IpcTest::kSparse, 64, "eventfd", false, 50),
                                line(IpcTest::kFill, 1 << 20, "updraft", true, 30),
                                line(IpcTest::kIdle, 64, "updraft", false, 0)};
  lines[0].per_s = 9.9e6;
  lines[3].gb_per_s = 31;
  lines[4].cpu_share = 0.002;
  const auto targets = ipc_targets(lines, {}, std::nullopt);
  CHECK_FALSE(named(targets, "descriptors one way").met());
  CHECK_FALSE(named(targets, "sparse and blocking / raw eventfd").met());
  CHECK(named(targets, "filled one way, 1 MiB").met());
  CHECK_FALSE(named(targets, "idle channel, of a core").met());
}

TEST_CASE("the daemon is held to each way of the handoff by itself, asleep and busy") {
  DaemonLine blocking;
  blocking.pace = DaemonPace::kBlocking;
  blocking.first_step_p50_us = 55;
  blocking.token_back_p50_us = 70;
  DaemonLine busy;
  busy.pace = DaemonPace::kBusy;
  busy.first_step_p50_us = 6;
  busy.token_back_p50_us = 2;
  const auto targets =
      ipc_targets({line(IpcTest::kSparse, 64, "eventfd", false, 50)}, {blocking, busy}, 0.0005);
  CHECK(named(targets, "daemon asleep: submit to first step").measured == 55);
  CHECK(named(targets, "daemon asleep: submit to first step").met());
  CHECK(named(targets, "daemon asleep: submit to first step").floor == 25);
  CHECK(named(targets, "token to a sleeping client").measured == 70);
  CHECK_FALSE(named(targets, "token to a sleeping client").met());
  CHECK(named(targets, "daemon busy: submit to first step").measured == 6);
  CHECK_FALSE(named(targets, "daemon busy: submit to first step").met());
  CHECK(named(targets, "idle daemon with a session, of a core").met());
}
