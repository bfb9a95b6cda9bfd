// Each planted bug is caught by the simulation, and by the invariant that is there for it.
#include <doctest/doctest.h>

#include <array>
#include <set>
#include <string>

#include "common/base/plant.h"
#include "tools/sim/simulation.h"

using namespace updraft;
using namespace updraft::sim;

namespace {

struct Expectation {
  Plant plant;
  const char* name;
  std::set<std::string> caught_by;
  uint64_t first_seed = 1;  // later where only few worlds show it
};

const std::array<Expectation, static_cast<size_t>(Plant::kCount) - 1> kPlants = {{
    {Plant::kEndTwice, "end twice", {invariant::kOneEnd}},
    {Plant::kSlotKept, "slot kept", {invariant::kRest, invariant::kHeal}},
    {Plant::kStaleBeat, "stale beat", {invariant::kNewestBeat}},
    {Plant::kEpochUnchecked, "epoch unchecked", {invariant::kOneEpoch, invariant::kOracle}},
    {Plant::kQueueLeak, "queue leak", {invariant::kOnePlace}},
    {Plant::kRetryUnbounded, "retry unbounded", {invariant::kRetries}},
    {Plant::kLeaseIgnored,
     "lease ignored",
     {invariant::kLease, invariant::kHeal, invariant::kRest}},
    {Plant::kDrainingServed, "draining served", {invariant::kDraining}},
    {Plant::kFailedNodeAgain, "failed node again", {invariant::kExcluded}},
    {Plant::kTornTokens, "torn tokens", {invariant::kOracle}},
    {Plant::kRepeatedTokens, "repeated tokens", {invariant::kOracle}},
    {Plant::kDeadlineIgnored, "deadline ignored", {invariant::kDeadline}},
    {Plant::kHintIgnored, "hint ignored", {invariant::kHints}},
    {Plant::kQueueUnbounded, "queue unbounded", {invariant::kCaps}},
    {Plant::kCancelIgnored, "cancel ignored", {invariant::kCancel}},
    {Plant::kUpwardForgotten, "upward forgotten", {invariant::kHeal, invariant::kDeadline}},
    {Plant::kGrantIgnored, "grant ignored", {invariant::kGrant}},
    {Plant::kModelIgnored, "model ignored", {invariant::kModel}},
    {Plant::kNoRetryAfter, "no retry after", {invariant::kTypedEnd}},
    {Plant::kPageKept, "page kept", {invariant::kPages}},
    {Plant::kDrainLoses, "drain loses", {invariant::kCalm}},
    {Plant::kClockSetBack, "clock set back", {invariant::kRest, invariant::kHeal}},
    {Plant::kSilenceEndless, "silence endless", {invariant::kHeal}},
    {Plant::kEndUnchecked, "end unchecked", {invariant::kOracle}},
    {Plant::kOverBegins, "over begins", {invariant::kRest}},
    {Plant::kDrainForgotten, "drain forgotten", {invariant::kDraining}},
    {Plant::kRunsTwice, "runs twice", {invariant::kTwice}},
    {Plant::kRisesTwice, "rises twice", {invariant::kOracle}, 8'100},
    {Plant::kLeavesEarly, "leaves early", {invariant::kCalm}, 28'400},
    {Plant::kMemoryIgnored, "memory ignored", {invariant::kMemory}},
    {Plant::kNeverLends, "never lends", {invariant::kWide}},
    {Plant::kReservePerRouter, "reserve per router", {invariant::kHeal, invariant::kWide}},
}};

constexpr uint64_t kSeedsMax = 4000;

}  // namespace

TEST_CASE("without a plant the planted build holds every invariant") {
  active_plant = Plant::kNone;
  for (uint64_t seed = 1; seed <= 20; ++seed) CHECK_FALSE(simulate_seed(seed, {}).violation);
}

TEST_CASE("every planted bug is caught by the invariant that is there for it") {
  for (const Expectation& expected : kPlants) {
    INFO(std::string(expected.name));
    active_plant = expected.plant;
    Report report;
    for (uint64_t i = 0; i < kSeedsMax && !report.violation; ++i)
      report = simulate_seed(expected.first_seed + i, {});
    active_plant = Plant::kNone;
    REQUIRE_MESSAGE(report.violation, "not caught");
    CHECK_MESSAGE(expected.caught_by.contains(report.violation->invariant),
                  std::string("caught by '" + report.violation->invariant + "' in seed " +
                              std::to_string(report.seed) + ": " + report.violation->what));
    MESSAGE(std::string(expected.name)
            << ": seed " << report.seed << ", '" << report.violation->invariant << "'");
  }
}
