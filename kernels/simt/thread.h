// What the emulator knows of the thread that runs now; between launch.cpp, which schedules, and the
// files that implement ops.h. Internal to kernels/simt.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
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

// mbarrier.try_wait.parity: until the phase of this parity is over.
struct PhaseWait {
  const void* barrier;
  uint32_t parity;
  Place place;
  bool passed;  // the answer
};

// An mbarrier object; the eight bytes in shared memory hold a mark of it and of its phase.
struct TransactionBarrier {
  uint32_t arrivals = 0;  // of a phase
  uint32_t pending = 0;   // arrivals that this phase still lacks
  int64_t bytes = 0;      // expected less landed
  uint64_t phase = 0;
  bool fenced = false;  // known to what copies
};

// A copy of the engine beside the cores: its bytes land at once, some time before `barrier` hears
// of them.
struct BulkCopy {
  struct Piece {
    std::byte* to;
    const std::byte* from;  // null: zeros
    uint32_t bytes;
  };
  std::vector<Piece> pieces;
  const void* barrier;
  int64_t bytes;  // that the barrier hears of
};

// Where in the block's async_view what lies at `at` in dynamic shared memory is.
std::byte* in_async_view(const std::byte* at);

// kPrevious: at wait_for_previous(), until all threads of the block are there.
enum class State : uint8_t { kReady, kWarpOperation, kBarrier, kPhase, kPrevious, kDone };

struct Thread {
  explicit Thread(size_t stack_bytes) : fiber(stack_bytes) {}
  Fiber fiber;
  uint32_t linear = 0;  // within its block
  Dim3 index;
  State state = State::kDone;
  bool waited = false;  // for the launch before, in one with early_start
  WarpRequest* warp_request = nullptr;
  BarrierRequest barrier_request{};
  PhaseWait phase_wait{};
  std::vector<AsyncCopy> open_copies;               // issued, not committed
  std::vector<std::vector<AsyncCopy>> copy_groups;  // committed, oldest first
};

struct GroupProducts;  // of the warps of a block (group_products.h)

// The block that runs now.
struct Block {
  Block();
  ~Block();

  LaunchShape shape;
  Schedule schedule;
  Dim3 index;
  bool previous_hidden = false;  // what launches in front have written (watch.h)
  bool lets_next_start = false;
  MemoryBlock* dynamic_shared = nullptr;
  std::vector<std::pair<const void*, std::unique_ptr<MemoryBlock>>> static_shared;  // by key
  // Where dynamic shared memory begins in the shared window: a multiple of 128 that the seed
  // chooses, so nobody may take it for one of 1024.
  uint32_t shared_base = 0;
  // Dynamic shared memory as copies and products find it: what copies brought, and what threads
  // wrote before a fence_async(). Empty until somebody asks.
  std::vector<std::byte> async_view;
  std::map<const void*, TransactionBarrier> transaction_barriers;
  std::vector<BulkCopy> copies_under_way;
  std::unique_ptr<GroupProducts> products;
};

Thread& self();
Block& block();
// Gives the scheduler a request; returns when it is done.
void wait_for(WarpRequest& request);
void wait_for(const BarrierRequest& request);
void wait_for_launch_before();
// Another warp may go on before this one does.
void pause();
// False: it gave up, as it would on a GPU after a long time.
bool wait_for(const PhaseWait& wait);
// In async_ops.cpp: whether a wait can be passed, and what a copy under way does when it lands.
bool phase_is_over(const PhaseWait& wait);
void land(const BulkCopy& copy);
// In group_ops.cpp: what is wrong at the end of a block; nothing when all warps of a group did the
// same and waited for it.
std::optional<std::string> unfinished_products();
// Likewise: registers that the groups of a block have not, or not all warps of a group.
std::optional<std::string> wrong_registers();
// Ends the launch with an error: "block (0,0,0) warp 1 lane 3: <what> at <place>". Takes the text:
// the thread is never resumed, so nothing that it holds is ever freed.
[[noreturn]] void stop(std::string&& what, const Place& place);
std::string to_string(const Place& place);

}  // namespace updraft::simt
