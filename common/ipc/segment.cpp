// Making and adopting segments: what a peer sent is checked here before anything else is read.
#include "common/ipc/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <boost/interprocess/mapped_region.hpp>
#include <cstring>
#include <new>

#include "common/ipc/memfd.h"

namespace updraft::ipc {
namespace {

namespace bip = boost::interprocess;

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

uint64_t round_up(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

bool is_ring_size(uint64_t bytes, uint64_t bytes_min) {
  return std::has_single_bit(bytes) && bytes >= bytes_min && bytes <= kRingBytesMax;
}

Result<void> check_area(const char* name, uint64_t offset, uint64_t bytes, uint64_t after,
                        uint64_t segment_bytes) {
  const auto end = checked_add(offset, bytes);
  if (offset % kCacheLineBytes != 0 || offset < after || !end || *end > segment_bytes) {
    return fail(std::string("segment header: ") + name + " [" + std::to_string(offset) + ", +" +
                std::to_string(bytes) + ") is not a 64-byte aligned area between " +
                std::to_string(after) + " and " + std::to_string(segment_bytes));
  }
  return {};
}

Result<void> check_header(const SegmentHeader& h, uint64_t segment_bytes) {
  if (h.magic != kSegmentMagic)
    return fail("segment header: wrong magic, this is no Updraft segment");
  if (h.abi_version != kAbiVersion) {
    return fail("segment header: ABI version " + std::to_string(h.abi_version) +
                ", this daemon speaks " + std::to_string(kAbiVersion));
  }
  if (h.segment_bytes != segment_bytes) {
    return fail("segment header: says " + std::to_string(h.segment_bytes) +
                " bytes, the descriptor has " + std::to_string(segment_bytes));
  }
  if (h.slot_count == 0 || h.slot_count > kSlotCountMax) {
    return fail("segment header: slot_count " + std::to_string(h.slot_count) + " is not in 1.." +
                std::to_string(kSlotCountMax));
  }
  if (!is_ring_size(h.submit_bytes, kSubmitRingBytesMin) ||
      !is_ring_size(h.complete_bytes, kCompleteRingBytesMin)) {
    return fail("segment header: ring sizes " + std::to_string(h.submit_bytes) + " and " +
                std::to_string(h.complete_bytes) +
                " must be powers of two, at least 4096 and 65536, at most 67108864");
  }
  // The areas stand in this order and do not overlap.
  uint64_t after = sizeof(SegmentHeader);
  if (auto ok = check_area("submit ring", h.submit_offset, sizeof(RingIndices) + h.submit_bytes,
                           after, segment_bytes);
      !ok)
    return ok;
  after = h.submit_offset + sizeof(RingIndices) + h.submit_bytes;
  if (auto ok = check_area("complete ring", h.complete_offset,
                           sizeof(RingIndices) + h.complete_bytes, after, segment_bytes);
      !ok)
    return ok;
  after = h.complete_offset + sizeof(RingIndices) + h.complete_bytes;
  const uint64_t slots_bytes = h.slot_count * sizeof(SlotState);
  if (auto ok = check_area("slots", h.slots_offset, slots_bytes, after, segment_bytes); !ok)
    return ok;
  after = h.slots_offset + slots_bytes;
  return check_area("payload", h.payload_offset, h.payload_bytes, after, segment_bytes);
}

SegmentHeader lay_out(const SegmentShape& shape) {
  SegmentHeader h{};
  h.magic = kSegmentMagic;
  h.abi_version = kAbiVersion;
  h.slot_count = shape.slot_count;
  h.submit_offset = round_up(sizeof(SegmentHeader), kCacheLineBytes);
  h.submit_bytes = shape.submit_bytes;
  h.complete_offset = h.submit_offset + sizeof(RingIndices) + h.submit_bytes;
  h.complete_bytes = shape.complete_bytes;
  h.slots_offset = h.complete_offset + sizeof(RingIndices) + h.complete_bytes;
  h.payload_offset = round_up(h.slots_offset + shape.slot_count * sizeof(SlotState), 4096);
  h.payload_bytes = round_up(shape.payload_bytes, 4096);
  h.segment_bytes = h.payload_offset + h.payload_bytes;
  return h;
}

}  // namespace

UniqueFd& UniqueFd::operator=(UniqueFd&& other) noexcept {
  if (this != &other) {
    reset();
    fd_ = other.release();
  }
  return *this;
}

void UniqueFd::reset() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

struct Segment::State {
  UniqueFd fd;
  bip::mapped_region region;
  SegmentHeader header{};

  std::byte* base() const { return static_cast<std::byte*>(region.get_address()); }
};

Segment::Segment(std::unique_ptr<State> state) : state_(std::move(state)) {}
Segment::~Segment() = default;

Result<std::unique_ptr<Segment>> Segment::create(const SegmentShape& shape) {
  const SegmentHeader header = lay_out(shape);
  if (auto ok = check_header(header, header.segment_bytes); !ok) return ok.error();
  auto state = std::make_unique<State>();
  Result<UniqueFd> fd = make_memfd("updraft-session", header.segment_bytes);
  if (!fd) return fd.error();
  state->fd = std::move(*fd);
  bool transparent = false;
  auto region = map_and_fill(state->fd, header.segment_bytes, transparent);
  if (!region) return region.error();
  state->region.swap(*region);
  if (fcntl(state->fd.get(), F_ADD_SEALS, kSeals) != 0)
    return fail(system_error("sealing the segment"));
  std::memcpy(state->base(), &header, sizeof header);
  state->header = header;
  new (state->base() + header.submit_offset) RingIndices{};
  new (state->base() + header.complete_offset) RingIndices{};
  for (uint32_t i = 0; i < header.slot_count; ++i) {
    new (state->base() + header.slots_offset + i * sizeof(SlotState)) SlotState{};
  }
  return std::unique_ptr<Segment>(new Segment(std::move(state)));
}

Result<std::unique_ptr<Segment>> Segment::adopt(UniqueFd fd, uint64_t bytes_max) {
  const int seals = fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0) return fail("the segment's descriptor is no memfd");
  if ((seals & kSeals) != kSeals)
    return fail("the segment is not sealed against shrinking, growing and unsealing");
  struct stat info {};
  if (fstat(fd.get(), &info) != 0) return fail(system_error("fstat of the segment"));
  const auto bytes = static_cast<uint64_t>(info.st_size);
  if (bytes < kSegmentBytesMin || bytes > bytes_max) {
    return fail("the segment has " + std::to_string(bytes) + " bytes, allowed are " +
                std::to_string(kSegmentBytesMin) + " to " + std::to_string(bytes_max));
  }
  // Both sides write here, so it cannot be sealed against holes; in a pool of huge pages that is
  // used up, reading one would kill the reader.
  if (is_hugetlb(fd)) return fail("the segment lies in the pool of huge pages");
  auto state = std::make_unique<State>();
  state->fd = std::move(fd);
  auto region = map_memfd(state->fd, bytes, MapFor::kWriting);
  if (!region) return region.error();
  state->region.swap(*region);
  (void)ask_for_huge_pages(state->base(), bytes);
  state->header = load_le<SegmentHeader>(state->base());
  if (auto ok = check_header(state->header, bytes); !ok) return ok.error();
  state->fd
      .reset();  // the mapping holds the memory; a daemon with many sessions needs its descriptors
  return std::unique_ptr<Segment>(new Segment(std::move(state)));
}

int Segment::fd() const { return state_->fd.get(); }
uint64_t Segment::bytes() const { return state_->header.segment_bytes; }
const SegmentHeader& Segment::header() const { return state_->header; }

RingMemory Segment::submit_ring() const {
  std::byte* at = state_->base() + state_->header.submit_offset;
  return {reinterpret_cast<RingIndices*>(at), at + sizeof(RingIndices),
          state_->header.submit_bytes};
}

RingMemory Segment::complete_ring() const {
  std::byte* at = state_->base() + state_->header.complete_offset;
  return {reinterpret_cast<RingIndices*>(at), at + sizeof(RingIndices),
          state_->header.complete_bytes};
}

SlotState& Segment::slot(uint32_t index) const {
  UPDRAFT_CHECK(index < state_->header.slot_count);
  return *reinterpret_cast<SlotState*>(state_->base() + state_->header.slots_offset +
                                       index * sizeof(SlotState));
}

std::span<std::byte> Segment::payload() const {
  return {state_->base() + state_->header.payload_offset, state_->header.payload_bytes};
}

std::optional<std::span<const std::byte>> Segment::payload_span(uint64_t offset,
                                                                uint64_t bytes) const {
  const auto end = checked_add(offset, bytes);
  const SegmentHeader& h = state_->header;
  if (!end || offset < h.payload_offset || *end > h.payload_offset + h.payload_bytes)
    return std::nullopt;
  return std::span<const std::byte>{state_->base() + offset, bytes};
}

}  // namespace updraft::ipc
