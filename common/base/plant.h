// Bugs planted on purpose, to prove that the simulation would find the like. They exist only in a
// library built with UPDRAFT_PLANTS, which only tests/sim/planted links; everywhere else
// UPDRAFT_PLANT(name) is the constant false.
#pragma once

#include <cstdint>

namespace updraft {

enum class Plant : uint8_t {
  kNone,
  kEndTwice,         // a client gets its end twice
  kSlotKept,         // an ended assignment is not given back
  kStaleBeat,        // an older beat replaces a newer one
  kEpochUnchecked,   // answers of any node and epoch count
  kQueueLeak,        // what ends while it waits stays in the queue
  kRetryUnbounded,   // retries after failures know no budget
  kLeaseIgnored,     // a silent node never dies
  kDrainingServed,   // a draining node gets work
  kFailedNodeAgain,  // the node that failed is not excluded
  kTornTokens,       // a gap in the tokens is let through
  kRepeatedTokens,   // so is a repeat
  kDeadlineIgnored,  // what waits in the queue has no deadline
  kHintIgnored,      // any tier will do
  kQueueUnbounded,   // the queue has no limit
  kCancelIgnored,    // a client that leaves is not noticed
  kUpwardForgotten,  // what rose over a broken link has no end
  kGrantIgnored,     // what a node shows free counts as granted
  kModelIgnored,     // a request goes where another model is served
  kNoRetryAfter,     // a refusal does not say when to come back
  kPageKept,         // a preempted sequence gives all of its pages back but one
  kDrainLoses,       // what runs on a draining node is given up
  // Bugs that were real until the simulation found them.
  kClockSetBack,      // a node whose clock was set back is shut out
  kSilenceEndless,    // a risen answer whose end was lost stays open
  kEndUnchecked,      // and one that lacks its last tokens counts as whole
  kOverBegins,        // the word that ended a session begins one
  kDrainForgotten,    // a node's silence undoes an operator's drain
  kRunsTwice,         // a Submit that comes twice runs twice
  kRisesTwice,        // and so does one from an edge
  kReservePerRouter,  // each router keeps an edge's whole reserve out of its part
  kLeavesEarly,       // a node ends while work against its grants is still under way
  kMemoryIgnored,     // a node whose memory is almost full takes what it granted before
  kNeverLends,        // a request wider than its router's part of a node waits for ever
  kCount,
};

#ifdef UPDRAFT_PLANTS
inline Plant active_plant = Plant::kNone;  // one test's thread sets and reads it
inline bool planted(Plant plant) { return active_plant == plant; }
#else
constexpr bool planted(Plant) { return false; }
#endif

}  // namespace updraft

#define UPDRAFT_PLANT(name) ::updraft::planted(::updraft::Plant::name)
