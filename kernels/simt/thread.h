// What the emulator knows of the thread that runs now; between launch.cpp, which schedules, and the
// files that implement ops.h. Internal to kernels/simt.
#pragma once

#include <cstdint>
#include <memory>
#include <source_location>
#include <string>
#include <vector>

#include "kernels/simt/fiber.h"
#include "kernels/simt/launch.h"
#include "kernels/simt/memory.h"

namespace updraft::simt {

using Place = std::source_location;
inline constexpr uint32_t kWarpLanes = 32;
inline constexpr uint32_t kAllLanes = 0xFFFFFFFF;

// An operation that the lanes of `mask` do together: each brings one of these, and when all are
// there `execute` reads the operands and writes the results of all.
struct WarpRequest {
  const char* name;
  uint32_t mask;
  Place place;
  const void* in;
  void* out;
  // lanes[i] is null where lane i is not in the mask.
  void (*execute)(WarpRequest* const* lanes);
};

struct BarrierRequest {
  uint32_t id;
  uint32_t thread_count;
  Place place;
  bool waits;  // false: bar.arrive
};

struct AsyncCopy {
  std::byte* to;
  const std::byte* from;  // null: zeros
};

// kPrevious: at wait_for_previous(), until all threads of the block are there.
enum class State : uint8_t { kReady, kWarpOperation, kBarrier, kPrevious, kDone };

struct Thread {
  explicit Thread(size_t stack_bytes) : fiber(stack_bytes) {}
  Fiber fiber;
  uint32_t linear = 0;  // within its block
  Dim3 index;
  State state = State::kDone;
  bool waited = false;  // for the launch before, in one with early_start
  WarpRequest* warp_request = nullptr;
  BarrierRequest barrier_request{};
  std::vector<AsyncCopy> open_copies;               // issued, not committed
  std::vector<std::vector<AsyncCopy>> copy_groups;  // committed, oldest first
};

// The block that runs now.
struct Block {
  LaunchShape shape;
  Schedule schedule;
  Dim3 index;
  bool previous_hidden = false;  // what launches in front have written (watch.h)
  bool lets_next_start = false;
  MemoryBlock* dynamic_shared = nullptr;
  std::vector<std::pair<const void*, std::unique_ptr<MemoryBlock>>> static_shared;  // by key
};

Thread& self();
Block& block();
// Gives the scheduler a request; returns when it is done.
void wait_for(WarpRequest& request);
void wait_for(const BarrierRequest& request);
void wait_for_launch_before();
// Ends the launch with an error: "block (0,0,0) warp 1 lane 3: <what> at <place>". Takes the text:
// the thread is never resumed, so nothing that it holds is ever freed.
[[noreturn]] void stop(std::string&& what, const Place& place);
std::string to_string(const Place& place);

}  // namespace updraft::simt
