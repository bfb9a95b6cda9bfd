// The scheduler: fibers of one block at a time, what they wait for, and the report when nothing can
// go on.
#include "kernels/simt/launch.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <optional>
#include <random>
#include <string_view>
#include <utility>

#include "kernels/simt/group_products.h"
#include "kernels/simt/sanitizers.h"
#include "kernels/simt/thread.h"
#include "kernels/simt/watch.h"

namespace updraft::simt {
namespace {

constexpr uint64_t kThreadsMax = 1024;
constexpr uint32_t kBarrierCount = 16;
constexpr size_t kStackBytes = kAddressSanitizer ? 256 << 10 : 64 << 10;

std::string to_string(const Dim3& d) {
  return "(" + std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z) + ")";
}

std::string hex(uint32_t mask) {
  char text[16];
  std::snprintf(text, sizeof text, "%08x", mask);
  return text;
}

bool same(const Place& a, const Place& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         std::string_view(a.file_name()) == b.file_name();
}

struct Barrier {
  uint32_t thread_count = 0;  // wanted; 0: nobody has arrived
  uint32_t arrived_count = 0;
  Place place;
};

// One launch at a time per operating-system thread. Fibers are kept from launch to launch.
class Machine {
 public:
  Result<void> launch(const LaunchShape& shape, const Schedule& schedule,
                      const std::function<void()>& kernel);

  Thread& current() { return *current_; }
  Block& block() { return block_; }
  void give_way() { Fiber::switch_to(current_->fiber, scheduler_); }
  void pause() {
    change_warps_ = true;
    give_way();
  }
  [[noreturn]] void stop(std::string&& what, const Place& place);

 private:
  static void run_thread(void* argument);
  void run_block(const Dim3& index);
  void run_warp(uint32_t warp, uint32_t turns);
  void resume(Thread& thread);
  void arrive(Thread& thread);
  void join_warp_operation(const Thread& thread);
  bool warp_is_ready(uint32_t warp) const;
  bool previous_ends();
  bool pass_phases();
  bool land_some_copy(bool now);
  bool give_up_phases();
  void end_block();
  std::string stuck_report() const;
  std::string position(const Thread& thread) const;
  Thread& lane(uint32_t warp, uint32_t lane) const { return *threads_[warp * kWarpLanes + lane]; }
  uint32_t lanes_of(uint32_t warp) const {
    return std::min(kWarpLanes, thread_count_ - warp * kWarpLanes);
  }
  uint32_t warp_count() const { return (thread_count_ + kWarpLanes - 1) / kWarpLanes; }

  Fiber scheduler_;
  std::vector<std::unique_ptr<Thread>> threads_;
  uint32_t fresh_from_ = 0;  // threads before this one wait at the end of their kernel
  const std::function<void()>* kernel_ = nullptr;
  Block block_;
  Thread* current_ = nullptr;
  uint32_t thread_count_ = 0;
  uint32_t done_count_ = 0;
  std::array<Barrier, kBarrierCount> barriers_;
  std::mt19937_64 random_;
  bool change_warps_ = false;
  std::optional<std::string> error_;
};

Machine& machine() {
  static thread_local Machine instance;
  return instance;
}

thread_local Schedule g_schedule;
thread_local size_t g_shared_bytes_max = kSharedBytesMax;

void Machine::run_thread(void* argument) {
  auto& thread = *static_cast<Thread*>(argument);
  Machine& m = machine();
  for (;;) {
    (*m.kernel_)();
    thread.state = State::kDone;
    m.give_way();
  }
}

std::string Machine::position(const Thread& thread) const {
  return "block " + to_string(block_.index) + " warp " +
         std::to_string(thread.linear / kWarpLanes) + " lane " +
         std::to_string(thread.linear % kWarpLanes);
}

void Machine::stop(std::string&& what, const Place& place) {
  error_ = position(*current_) + ": " + what + " at " + simt::to_string(place);
  std::string().swap(what);
  give_way();
  UPDRAFT_CHECK(false, "a stopped launch is never resumed");
}

// All lanes that the request names have come to the same operation: do it.
void Machine::join_warp_operation(const Thread& thread) {
  const WarpRequest& request = *thread.warp_request;
  const uint32_t warp = thread.linear / kWarpLanes;
  std::array<WarpRequest*, kWarpLanes> together{};
  for (uint32_t i = 0; i < kWarpLanes; ++i) {
    if ((request.mask >> i & 1U) == 0) continue;
    if (i >= lanes_of(warp) || lane(warp, i).state != State::kWarpOperation) return;
    WarpRequest* other = lane(warp, i).warp_request;
    if (other->mask != request.mask || std::string_view(other->name) != request.name ||
        !same(other->place, request.place)) {
      return;  // they differ: if nothing resolves it, the report of what is stuck says so
    }
    together[i] = other;
  }
  for (uint32_t i = 0; i < kWarpLanes; ++i) {
    if (together[i] != nullptr) lane(warp, i).state = State::kReady;
  }
  request.execute(together.data());
}

void Machine::arrive(Thread& thread) {
  const BarrierRequest& request = thread.barrier_request;
  Barrier& barrier = barriers_[request.id];
  if (barrier.thread_count == 0) {
    barrier = {request.thread_count, 0, request.place};
  } else if (barrier.thread_count != request.thread_count) {
    error_ = position(thread) + ": barrier " + std::to_string(request.id) + " wants " +
             std::to_string(request.thread_count) + " threads at " +
             simt::to_string(request.place) + " and " + std::to_string(barrier.thread_count) +
             " at " + simt::to_string(barrier.place);
    return;
  } else if (request.id == 0 && !same(barrier.place, request.place)) {
    error_ = position(thread) + ": divergent barrier: this thread waits at " +
             simt::to_string(request.place) + " while others wait at " +
             simt::to_string(barrier.place);
    return;
  }
  if (!request.waits) thread.state = State::kReady;
  if (++barrier.arrived_count < barrier.thread_count) return;
  barrier = {};
  for (uint32_t i = 0; i < thread_count_; ++i) {
    Thread& other = *threads_[i];
    if (other.state == State::kBarrier && other.barrier_request.id == request.id) {
      other.state = State::kReady;
    }
  }
}

void Machine::resume(Thread& thread) {
  current_ = &thread;
  Fiber::switch_to(scheduler_, thread.fiber);
  if (error_) return;
  switch (thread.state) {
    case State::kReady:
      return;
    case State::kWarpOperation:
      return join_warp_operation(thread);
    case State::kBarrier:
      return arrive(thread);
    case State::kPrevious:
    case State::kPhase:
      return;
    case State::kDone:
      ++done_count_;
      if (!thread.waited) error_ = position(thread) + ": ended without wait_for_previous()";
      if (!thread.open_copies.empty() || !thread.copy_groups.empty()) {
        error_ = position(thread) + ": ended with a cp.async that it did not wait for";
      }
      return;
  }
}

bool Machine::warp_is_ready(uint32_t warp) const {
  for (uint32_t i = 0; i < lanes_of(warp); ++i) {
    if (lane(warp, i).state == State::kReady) return true;
  }
  return false;
}

// When the threads that can go on have come to wait_for_previous(): the launches in front end.
bool Machine::previous_ends() {
  if (!block_.previous_hidden) return false;
  block_.previous_hidden = false;
  auto written = overlap()->show();
  if (written && !error_) error_ = "block " + to_string(block_.index) + ": " + *written;
  if (error_) return false;
  for (uint32_t i = 0; i < thread_count_; ++i) {
    if (threads_[i]->state == State::kPrevious) threads_[i]->state = State::kReady;
  }
  return true;
}

// Threads whose phase is over go on.
bool Machine::pass_phases() {
  bool any = false;
  for (uint32_t i = 0; i < thread_count_; ++i) {
    Thread& thread = *threads_[i];
    if (thread.state != State::kPhase || !phase_is_over(thread.phase_wait)) continue;
    thread.phase_wait.passed = true;
    thread.state = State::kReady;
    any = true;
  }
  return any;
}

// One of the copies under way, whichever; unless `now`, only sometimes.
bool Machine::land_some_copy(bool now) {
  std::vector<BulkCopy>& copies = block_.copies_under_way;
  if (copies.empty() || (!now && random_() % 8 != 0)) return false;
  const auto one = copies.begin() + static_cast<ptrdiff_t>(random_() % copies.size());
  land(*one);
  copies.erase(one);
  return true;
}

// Nothing can move any more.
bool Machine::give_up_phases() {
  if (block_.schedule.stuck != Stuck::kGiveUp) return false;
  bool any = false;
  for (uint32_t i = 0; i < thread_count_; ++i) {
    Thread& thread = *threads_[i];
    if (thread.state != State::kPhase) continue;
    thread.phase_wait.passed = false;
    thread.state = State::kReady;
    any = true;
  }
  return any;
}

// Each turn lets every ready lane go on to its next operation, from a random one on.
void Machine::run_warp(uint32_t warp, uint32_t turns) {
  change_warps_ = false;
  for (uint32_t turn = 0; turn < turns && !change_warps_ && warp_is_ready(warp); ++turn) {
    const uint32_t count = lanes_of(warp);
    const auto first = static_cast<uint32_t>(random_() % count);
    for (uint32_t i = 0; i < count; ++i) {
      Thread& thread = lane(warp, (first + i) % count);
      if (thread.state != State::kReady) continue;
      resume(thread);
      if (error_) return;
    }
  }
}

std::string Machine::stuck_report() const {
  std::string out = "deadlock in block " + to_string(block_.index) + ":";
  for (uint32_t warp = 0; warp < warp_count(); ++warp) {
    // Lanes that wait for the same thing are named together.
    std::vector<std::pair<std::string, uint32_t>> groups;
    for (uint32_t i = 0; i < lanes_of(warp); ++i) {
      const Thread& thread = lane(warp, i);
      std::string what = "have left the kernel";
      if (thread.state == State::kWarpOperation) {
        const WarpRequest& request = *thread.warp_request;
        what = std::string("wait at ") + request.name + " with mask " + hex(request.mask) + " at " +
               simt::to_string(request.place);
      } else if (thread.state == State::kBarrier) {
        const BarrierRequest& request = thread.barrier_request;
        const Barrier& barrier = barriers_[request.id];
        what = "wait at barrier " + std::to_string(request.id) + ", where " +
               std::to_string(barrier.arrived_count) + " of " +
               std::to_string(barrier.thread_count) + " threads have arrived, at " +
               simt::to_string(request.place);
      } else if (thread.state == State::kPhase) {
        const PhaseWait& wait = thread.phase_wait;
        const TransactionBarrier& barrier = block_.transaction_barriers.at(wait.barrier);
        what = "wait for phase " + std::to_string(barrier.phase) + " of an mbarrier that lacks " +
               std::to_string(barrier.pending) + " arrivals and " + std::to_string(barrier.bytes) +
               " bytes, at " + simt::to_string(wait.place);
      }
      if (groups.empty() || groups.back().first != what) {
        const auto found = std::find_if(groups.begin(), groups.end(),
                                        [&](const auto& group) { return group.first == what; });
        if (found != groups.end()) {
          found->second |= 1U << i;
          continue;
        }
        groups.emplace_back(what, 0);
      }
      groups.back().second |= 1U << i;
    }
    for (const auto& [what, mask] : groups) {
      out += " warp " + std::to_string(warp) + ": lanes " + hex(mask) + " " + what + ";";
    }
  }
  out.pop_back();
  return out;
}

void Machine::run_block(const Dim3& index) {
  block_.index = index;
  block_.static_shared.clear();
  MemoryBlock dynamic_shared("dynamic", Space::kShared, block_.shape.shared_bytes);
  block_.dynamic_shared = &dynamic_shared;
  block_.lets_next_start = false;
  block_.previous_hidden = block_.shape.early_start && overlap() != nullptr;
  if (block_.previous_hidden) overlap()->hide();
  block_.shared_base = 128 * (8 + static_cast<uint32_t>(random_() % 8));
  block_.async_view.clear();
  block_.transaction_barriers.clear();
  block_.copies_under_way.clear();
  block_.products = std::make_unique<GroupProducts>(warp_count());
  barriers_ = {};
  done_count_ = 0;
  for (uint32_t i = 0; i < thread_count_; ++i) {
    Thread& thread = *threads_[i];
    thread.state = State::kReady;
    thread.waited = !block_.shape.early_start;
    thread.linear = i;
    const Dim3& size = block_.shape.block;
    thread.index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    if (i >= fresh_from_) thread.fiber.prepare(&Machine::run_thread, &thread);
  }
  fresh_from_ = std::max(fresh_from_, thread_count_);

  std::vector<uint32_t> ready;
  while (!error_ && done_count_ < thread_count_) {
    ready.clear();
    land_some_copy(false);
    pass_phases();
    for (uint32_t warp = 0; warp < warp_count(); ++warp) {
      if (warp_is_ready(warp)) ready.push_back(warp);
    }
    if (ready.empty()) {
      if (land_some_copy(true) || previous_ends() || give_up_phases()) continue;
      if (!error_) error_ = stuck_report();
      break;
    }
    // A warp runs as far as it can, or one or three operations: the first meets bytes that are not
    // there yet, the others those that are no longer there.
    static constexpr std::array<uint32_t, 4> kTurns = {UINT32_MAX, UINT32_MAX, 3, 1};
    const uint32_t warp = ready[random_() % ready.size()];
    run_warp(warp, kTurns[random_() % kTurns.size()]);
  }
  (void)previous_ends();  // of a block whose threads all ended, or one of them with an error
  if (!error_) end_block();
  block_.static_shared.clear();
  block_.dynamic_shared = nullptr;
}

void Machine::end_block() {
  error_ = guard_damage();
  if (error_ || block_.schedule.stuck == Stuck::kGiveUp) return;
  const std::string where = "block " + to_string(block_.index) + ": ";
  if (!block_.copies_under_way.empty()) {
    error_ = where + "ended with a bulk copy that nobody waited for";
  } else if (auto unfinished = unfinished_products()) {
    error_ = where + *unfinished;
  } else if (auto registers = wrong_registers()) {
    error_ = where + *registers;
  }
}

Result<void> Machine::launch(const LaunchShape& shape, const Schedule& schedule,
                             const std::function<void()>& kernel) {
  const uint64_t threads = shape.block.count();
  if (threads == 0 || threads > kThreadsMax) {
    return fail("launch: a block of " + std::to_string(threads) + " threads (1.." +
                std::to_string(kThreadsMax) + ")");
  }
  if (shape.grid.count() == 0 || shape.grid.y > 65535 || shape.grid.z > 65535) {
    return fail("launch: a grid of " + to_string(shape.grid) + " blocks");
  }
  if (shape.shared_bytes > shared_bytes_max()) {
    return fail("launch: " + std::to_string(shape.shared_bytes) +
                " bytes of shared memory, above " + std::to_string(shared_bytes_max()));
  }
  if (empty_kernels() != nullptr && empty_kernels()->holds(shape.kernel)) return {};
  kernel_ = &kernel;
  block_.shape = shape;
  block_.schedule = schedule;
  thread_count_ = static_cast<uint32_t>(threads);
  random_.seed(schedule.seed);
  error_.reset();
  while (threads_.size() < threads) threads_.push_back(std::make_unique<Thread>(kStackBytes));

  LaunchRecord record{shape.kernel, shape.early_start, true};
  if (overlap() != nullptr) overlap()->begin_launch(shape.early_start);

  std::vector<uint64_t> order(shape.grid.count());
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random_);
  for (const uint64_t i : order) {
    run_block({static_cast<uint32_t>(i % shape.grid.x),
               static_cast<uint32_t>(i / shape.grid.x % shape.grid.y),
               static_cast<uint32_t>(i / shape.grid.x / shape.grid.y)});
    if (error_) break;
    record.lets_next_start = record.lets_next_start && block_.lets_next_start;
  }
  if (overlap() != nullptr) overlap()->end_launch();
  if (launch_log() != nullptr) launch_log()->add(std::move(record));
  kernel_ = nullptr;
  if (!error_) return {};
  fresh_from_ = 0;  // the threads stand somewhere inside the kernel that failed
  for (auto& thread : threads_) {
    thread->open_copies.clear();
    thread->copy_groups.clear();
  }
  return fail(*error_);
}

}  // namespace

Block::Block() = default;
Block::~Block() = default;

Thread& self() { return machine().current(); }
Block& block() { return machine().block(); }

void wait_for(WarpRequest& request) {
  Thread& thread = self();
  thread.warp_request = &request;
  thread.state = State::kWarpOperation;
  machine().give_way();
}

void wait_for(const BarrierRequest& request) {
  Thread& thread = self();
  thread.barrier_request = request;
  thread.state = State::kBarrier;
  machine().give_way();
}

void wait_for_launch_before() {
  self().state = State::kPrevious;
  machine().give_way();
}

void pause() { machine().pause(); }

bool wait_for(const PhaseWait& wait) {
  Thread& thread = self();
  thread.phase_wait = wait;
  thread.state = State::kPhase;
  machine().give_way();
  return thread.phase_wait.passed;
}

void stop(std::string&& what, const Place& place) { machine().stop(std::move(what), place); }

std::string to_string(const Place& place) {
  std::string_view file = place.file_name();
  file.remove_prefix(file.find_last_of('/') + 1);
  return std::string(file) + ":" + std::to_string(place.line());
}

SharedLimit::SharedLimit(size_t bytes) : before_(std::exchange(g_shared_bytes_max, bytes)) {}
SharedLimit::~SharedLimit() { g_shared_bytes_max = before_; }
size_t shared_bytes_max() { return g_shared_bytes_max; }

ScheduleScope::ScheduleScope(const Schedule& schedule) : before_(g_schedule) {
  g_schedule = schedule;
}
ScheduleScope::~ScheduleScope() { g_schedule = before_; }
const Schedule& current_schedule() { return g_schedule; }

Result<void> launch(const LaunchShape& shape, const Schedule& schedule,
                    const std::function<void()>& kernel) {
  return machine().launch(shape, schedule, kernel);
}

}  // namespace updraft::simt
