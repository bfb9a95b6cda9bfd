// Barriers, shuffles, votes, cp.async and shared memory. The matrix operations are in
// matrix_ops.cpp.
#include "kernels/simt/ops.h"

#include <algorithm>

#include "kernels/simt/watch.h"

namespace updraft::simt {
namespace {

constexpr size_t kCopyBytes = 16;
// With 32 KiB of dynamic memory they are the 48 KiB that a launch has without asking for more.
constexpr size_t kStaticSharedBytesMax = 16 << 10;

struct Exchange {
  uint64_t value;
  uint32_t from_lane;
};

void execute_exchange(WarpRequest* const* lanes) {
  for (uint32_t i = 0; i < kWarpLanes; ++i) {
    if (lanes[i] == nullptr) continue;
    const auto& wish = *static_cast<const Exchange*>(lanes[i]->in);
    const auto& source = *static_cast<const Exchange*>(lanes[wish.from_lane]->in);
    *static_cast<uint64_t*>(lanes[i]->out) = source.value;
  }
}

void execute_nothing(WarpRequest* const*) {}

void execute_ballot(WarpRequest* const* lanes) {
  uint32_t votes = 0;
  for (uint32_t i = 0; i < kWarpLanes; ++i) {
    if (lanes[i] != nullptr && *static_cast<const bool*>(lanes[i]->in)) votes |= 1U << i;
  }
  for (uint32_t i = 0; i < kWarpLanes; ++i) {
    if (lanes[i] != nullptr) *static_cast<uint32_t*>(lanes[i]->out) = votes;
  }
}

template <typename Combine>
void execute_reduce(WarpRequest* const* lanes) {
  bool any = false;
  uint32_t total = 0;
  for (uint32_t i = 0; i < kWarpLanes; ++i) {
    if (lanes[i] == nullptr) continue;
    const uint32_t value = *static_cast<const uint32_t*>(lanes[i]->in);
    total = any ? Combine()(total, value) : value;
    any = true;
  }
  for (uint32_t i = 0; i < kWarpLanes; ++i) {
    if (lanes[i] != nullptr) *static_cast<uint32_t*>(lanes[i]->out) = total;
  }
}

struct Sum {
  uint32_t operator()(uint32_t a, uint32_t b) const { return a + b; }
};
struct Larger {
  uint32_t operator()(uint32_t a, uint32_t b) const { return std::max(a, b); }
};
struct Smaller {
  uint32_t operator()(uint32_t a, uint32_t b) const { return std::min(a, b); }
};

void check_mask(const char* name, uint32_t mask, const Place& place) {
  if ((mask >> own_lane() & 1U) == 0) {
    stop(std::string(name) + " by a lane outside its own mask", place);
  }
}

uint32_t reduce(const char* name, uint32_t value, uint32_t mask, const Place& place,
                void (*execute)(WarpRequest* const*)) {
  check_mask(name, mask, place);
  uint32_t out = 0;
  WarpRequest request{name, mask, place, &value, &out, execute};
  wait_for(request);
  return out;
}

void named_barrier(uint32_t id, uint32_t threads, bool waits, const Place& place) {
  if (id == 0 || id > 15) stop("barrier " + std::to_string(id) + " (1..15)", place);
  if (threads == 0 || threads % kWarpLanes != 0 || threads > block().shape.block.count()) {
    stop("barrier " + std::to_string(id) + " of " + std::to_string(threads) +
             " threads, which is no multiple of 32 within the block",
         place);
  }
  wait_for(BarrierRequest{id, threads, place, waits});
}

void land(const AsyncCopy& copy) {
  if (copy.from != nullptr) {
    std::memcpy(copy.to, copy.from, kCopyBytes);
  } else {
    std::memset(copy.to, 0, kCopyBytes);
  }
}

}  // namespace

void sync_block(Place place) {
  wait_for(BarrierRequest{0, static_cast<uint32_t>(block().shape.block.count()), place, true});
}
void sync_named(uint32_t id, uint32_t threads, Place place) {
  named_barrier(id, threads, true, place);
}
void arrive_named(uint32_t id, uint32_t threads, Place place) {
  named_barrier(id, threads, false, place);
}
void sync_warp(uint32_t mask, Place place) {
  check_mask("sync_warp", mask, place);
  WarpRequest request{"sync_warp", mask, place, nullptr, nullptr, execute_nothing};
  wait_for(request);
}

uint64_t exchange(const char* name, uint64_t value, uint32_t from_lane, uint32_t mask,
                  Place place) {
  check_mask(name, mask, place);
  if (from_lane >= kWarpLanes || (mask >> from_lane & 1U) == 0) {
    stop(std::string(name) + " from lane " + std::to_string(from_lane) +
             ", which is not in the mask",
         place);
  }
  const Exchange in{value, from_lane};
  uint64_t out = 0;
  WarpRequest request{name, mask, place, &in, &out, execute_exchange};
  wait_for(request);
  return out;
}

uint32_t ballot(bool vote, uint32_t mask, Place place) {
  check_mask("ballot", mask, place);
  uint32_t out = 0;
  WarpRequest request{"ballot", mask, place, &vote, &out, execute_ballot};
  wait_for(request);
  return out;
}
uint32_t reduce_add(uint32_t value, uint32_t mask, Place place) {
  return reduce("reduce_add", value, mask, place, execute_reduce<Sum>);
}
uint32_t reduce_max(uint32_t value, uint32_t mask, Place place) {
  return reduce("reduce_max", value, mask, place, execute_reduce<Larger>);
}
uint32_t reduce_min(uint32_t value, uint32_t mask, Place place) {
  return reduce("reduce_min", value, mask, place, execute_reduce<Smaller>);
}

void wait_for_previous() {
  Thread& thread = self();
  if (block().previous_hidden) wait_for_launch_before();
  thread.waited = true;
}

void check_waited(const char* name, const Place& place) {
  if (!self().waited) stop(std::string(name) + " before wait_for_previous()", place);
}

void check_access(const char* name, const void* at, size_t bytes, Space space, const Place& place) {
  if (auto error = access_error(at, bytes, space)) {
    error->insert(0, std::string(name) + " of " + std::to_string(bytes) + " bytes ");
    stop(std::move(*error), place);
  }
}

void check_constant(const char* name, const void* at, size_t bytes, const Place& place) {
  if (!block().shape.early_start || overlap() == nullptr) return;
  if (!overlap()->changed_in_front(at, bytes)) return;
  // Whole before it is handed over: a thread that stops leaves its temporaries behind.
  std::string what = std::string(name) + " through the read-only path of " +
                     place_in_global_memory(at) + ", which a launch in front has written";
  stop(std::move(what), place);
}

void copy_async16(void* to_shared, const void* from_global, bool valid, Place place) {
  check_waited("cp.async", place);
  check_access("cp.async to", to_shared, kCopyBytes, Space::kShared, place);
  if (valid) check_access("cp.async from", from_global, kCopyBytes, Space::kGlobal, place);
  const AsyncCopy copy{static_cast<std::byte*>(to_shared),
                       valid ? static_cast<const std::byte*>(from_global) : nullptr};
  if (block().schedule.landing == Landing::kAtIssue) land(copy);
  self().open_copies.push_back(copy);
}

void copy_commit() {
  Thread& thread = self();
  thread.copy_groups.push_back(std::move(thread.open_copies));
  thread.open_copies.clear();
}

void wait_copies(size_t groups) {
  Thread& thread = self();
  while (thread.copy_groups.size() > groups) {
    if (block().schedule.landing == Landing::kAtWait) {
      for (const AsyncCopy& copy : thread.copy_groups.front()) land(copy);
    }
    thread.copy_groups.erase(thread.copy_groups.begin());
  }
}

// The first thread that asks makes the array; like every fresh block of memory it holds NaNs.
std::byte* static_shared(const void* key, size_t bytes) {
  auto& arrays = block().static_shared;
  size_t total = bytes;
  for (const auto& [known, memory] : arrays) {
    if (known == key) return memory->data();
    total += memory->bytes();
  }
  if (total > kStaticSharedBytesMax) {
    stop("static shared arrays of " + std::to_string(total) + " bytes, above " +
             std::to_string(kStaticSharedBytesMax),
         Place::current());
  }
  if (const size_t all = total + block().shape.shared_bytes; all > shared_bytes_max()) {
    stop("dynamic and static shared memory of " + std::to_string(all) + " bytes, above " +
             std::to_string(shared_bytes_max()),
         Place::current());
  }
  arrays.emplace_back(key, std::make_unique<MemoryBlock>("static " + std::to_string(arrays.size()),
                                                         Space::kShared, bytes));
  return arrays.back().second->data();
}

}  // namespace updraft::simt
