// mbarrier objects and the copies that they hear of.
#include <algorithm>

#include "kernels/simt/hopper_ops.h"

namespace updraft::simt {
namespace {

constexpr uint32_t kRowBytes = 128;  // of a swizzled box
constexpr uint32_t kUnitBytes = 16;
constexpr uint32_t kArrivalsMax = (1U << 20) - 1;
constexpr int64_t kBytesMax = (1 << 20) - 1;  // that a phase lacks

// What the eight bytes hold: whoever writes over them is found out.
uint64_t mark_of(const void* barrier, uint64_t phase) {
  return reinterpret_cast<uintptr_t>(barrier) * 0x9E3779B97F4A7C15ULL ^ phase;
}

void check_barrier_address(const char* name, const uint64_t* barrier, const Place& place) {
  check_access(name, barrier, sizeof *barrier, Space::kShared, place);
}

TransactionBarrier& barrier_at(const char* name, const uint64_t* barrier, const Place& place) {
  check_barrier_address(name, barrier, place);
  const auto found = block().transaction_barriers.find(barrier);
  if (found == block().transaction_barriers.end()) {
    stop(std::string(name) + " of an mbarrier that nobody initialised", place);
  }
  if (*barrier != mark_of(barrier, found->second.phase)) {
    stop(std::string(name) + " of an mbarrier that something was written over", place);
  }
  return found->second;
}

void end_phase_if_complete(const void* at, TransactionBarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  barrier.pending = barrier.arrivals;
  ++barrier.phase;
  // Only barrier_at()'s addresses come here.
  *const_cast<uint64_t*>(static_cast<const uint64_t*>(at)) = mark_of(at, barrier.phase);
}

void arrive(const char* name, uint64_t* at, uint32_t bytes, const Place& place) {
  TransactionBarrier& barrier = barrier_at(name, at, place);
  if (barrier.pending == 0) {
    stop(std::string(name) + " of one more than the " + std::to_string(barrier.arrivals) +
             " of an mbarrier's phase",
         place);
  }
  barrier.bytes += bytes;
  if (barrier.bytes > kBytesMax) {
    stop(std::string(name) + ": a phase that lacks " + std::to_string(barrier.bytes) +
             " bytes (up to " + std::to_string(kBytesMax) + ")",
         place);
  }
  --barrier.pending;
  end_phase_if_complete(at, barrier);
  pause();
}

// Before a copy is put together: what stop() leaves behind is never freed.
void check_known_to_copies(const char* name, const uint64_t* at, const Place& place) {
  if (!barrier_at(name, at, place).fenced) {
    stop(std::string(name) + " with an mbarrier before publish_barriers()", place);
  }
}

void start(BulkCopy&& copy) {
  if (block().schedule.landing == Landing::kAtIssue) {
    land(copy);
  } else {
    block().copies_under_way.push_back(std::move(copy));
  }
}

// What of a box lies within the matrix lies within a buffer.
void check_box_rows(const TensorMap& in, int32_t column, int32_t row, const Place& place) {
  const int64_t begin = std::max<int64_t>(column, 0);
  const int64_t end = std::min(int64_t{column} + in.box_cols, static_cast<int64_t>(in.cols));
  if (begin >= end) return;
  for (int64_t r = std::max<int64_t>(row, 0); r < int64_t{row} + in.box_rows; ++r) {
    if (r >= static_cast<int64_t>(in.rows)) return;
    const std::byte* first = in.data + r * static_cast<int64_t>(in.row_bytes) + begin * 2;
    if (auto error = range_error(first, static_cast<size_t>(end - begin) * 2)) {
      error->insert(0, "cp.async.bulk.tensor of a row of ");
      stop(std::move(*error), place);
    }
  }
}

uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7U) << 4; }

}  // namespace

std::byte* in_async_view(const std::byte* at) {
  std::vector<std::byte>& view = block().async_view;
  const MemoryBlock& memory = *block().dynamic_shared;
  if (view.empty()) view.assign(memory.bytes(), std::byte{0xFF});
  return view.data() + (at - memory.data());
}

bool phase_is_over(const PhaseWait& wait) {
  return (block().transaction_barriers.at(wait.barrier).phase & 1U) != wait.parity;
}

void land(const BulkCopy& copy) {
  for (const BulkCopy::Piece& piece : copy.pieces) {
    if (piece.from != nullptr) {
      std::memcpy(piece.to, piece.from, piece.bytes);
    } else {
      std::memset(piece.to, 0, piece.bytes);
    }
    std::memcpy(in_async_view(piece.to), piece.to, piece.bytes);
  }
  TransactionBarrier& barrier = block().transaction_barriers.at(copy.barrier);
  barrier.bytes -= copy.bytes;
  end_phase_if_complete(copy.barrier, barrier);
}

void init_barrier(uint64_t* barrier, uint32_t arrivals, Place place) {
  check_barrier_address("mbarrier.init", barrier, place);
  if (arrivals == 0 || arrivals > kArrivalsMax) {
    stop("mbarrier.init for " + std::to_string(arrivals) + " arrivals", place);
  }
  TransactionBarrier fresh;
  fresh.arrivals = fresh.pending = arrivals;
  block().transaction_barriers[barrier] = fresh;
  *barrier = mark_of(barrier, 0);
}

void publish_barriers(Place) {
  for (auto& [at, barrier] : block().transaction_barriers) barrier.fenced = true;
}

void arrive_at(uint64_t* barrier, Place place) { arrive("mbarrier.arrive", barrier, 0, place); }

void arrive_expecting(uint64_t* barrier, uint32_t bytes, Place place) {
  arrive("mbarrier.arrive.expect_tx", barrier, bytes, place);
}

bool wait_phase(uint64_t* barrier, uint32_t parity, Place place) {
  barrier_at("mbarrier.try_wait", barrier, place);
  if (parity > 1) {
    stop("mbarrier.try_wait for a phase of parity " + std::to_string(parity), place);
  }
  const PhaseWait wait{barrier, parity, place, false};
  return phase_is_over(wait) || wait_for(wait);
}

void copy_bulk(void* to_shared, const void* from_global, uint32_t bytes, uint64_t* barrier,
               Place place) {
  check_waited("cp.async.bulk", place);
  if (bytes == 0 || bytes % kUnitBytes != 0) {
    stop("cp.async.bulk of " + std::to_string(bytes) + " bytes (a multiple of 16)", place);
  }
  check_access("cp.async.bulk to", to_shared, kUnitBytes, Space::kShared, place);
  check_access("cp.async.bulk from", from_global, kUnitBytes, Space::kGlobal, place);
  auto* to = static_cast<std::byte*>(to_shared);
  const auto* from = static_cast<const std::byte*>(from_global);
  check_access("cp.async.bulk to the end", to + bytes - kUnitBytes, kUnitBytes, Space::kShared,
               place);
  if (auto error = range_error(from, bytes)) {
    error->insert(0, "cp.async.bulk of ");
    stop(std::move(*error), place);
  }
  check_known_to_copies("cp.async.bulk", barrier, place);
  BulkCopy copy;
  copy.pieces.push_back({to, from, bytes});
  copy.barrier = barrier;
  copy.bytes = bytes;
  start(std::move(copy));
}

void copy_box(void* to_shared, const void* map, int32_t column, int32_t row, uint64_t* barrier,
              Place place) {
  check_waited("cp.async.bulk.tensor", place);
  TensorMap in;
  std::memcpy(&in, map, sizeof in);
  if (in.mark != TensorMap::kMark) stop("cp.async.bulk.tensor of something that is no map", place);
  auto* to = static_cast<std::byte*>(to_shared);
  const uint32_t bytes = in.box_rows * kRowBytes;
  check_access("cp.async.bulk.tensor to", to, kUnitBytes, Space::kShared, place);
  check_access("cp.async.bulk.tensor to the end", to + bytes - kUnitBytes, kUnitBytes,
               Space::kShared, place);
  const uint32_t address = shared_address(to, place);
  if (address % kRowBytes != 0) {
    stop("cp.async.bulk.tensor to an address that is no multiple of 128", place);
  }
  check_known_to_copies("cp.async.bulk.tensor", barrier, place);
  check_box_rows(in, column, row, place);
  BulkCopy copy;
  copy.barrier = barrier;
  copy.bytes = bytes;
  for (uint32_t r = 0; r < in.box_rows; ++r) {
    const int64_t at_row = int64_t{row} + r;
    for (uint32_t c = 0; c < kRowBytes / 2; ++c) {
      const int64_t at_column = int64_t{column} + c;
      const uint32_t lies_at = swizzled(address + r * kRowBytes + c * 2);
      const bool inside = at_row >= 0 && at_row < static_cast<int64_t>(in.rows) && at_column >= 0 &&
                          at_column < static_cast<int64_t>(in.cols) && c < in.box_cols;
      const std::byte* from =
          inside ? in.data + at_row * static_cast<int64_t>(in.row_bytes) + at_column * 2 : nullptr;
      std::byte* piece = to + (lies_at - address);
      // Pieces grow while both sides do.
      BulkCopy::Piece* last = copy.pieces.empty() ? nullptr : &copy.pieces.back();
      const bool goes_on =
          last != nullptr && c % (kUnitBytes / 2) != 0 && last->to + last->bytes == piece &&
          (from == nullptr ? last->from == nullptr
                           : last->from != nullptr && last->from + last->bytes == from);
      if (goes_on) {
        last->bytes += 2;
      } else {
        copy.pieces.push_back({piece, from, 2});
      }
    }
  }
  start(std::move(copy));
}

void fence_async() {
  const MemoryBlock& memory = *block().dynamic_shared;
  if (memory.bytes() == 0) return;
  std::memcpy(in_async_view(memory.data()), memory.data(), memory.bytes());
}

uint32_t shared_address(const void* at, Place place) {
  const MemoryBlock& memory = *block().dynamic_shared;
  const auto* byte = static_cast<const std::byte*>(at);
  if (byte < memory.data() || byte > memory.data() + memory.bytes()) {
    stop("an address outside dynamic shared memory", place);
  }
  return block().shared_base + static_cast<uint32_t>(byte - memory.data());
}

}  // namespace updraft::simt
