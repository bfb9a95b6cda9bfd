// See the header.
#include "common/ipc/payload_segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/interprocess/mapped_region.hpp>

#include "common/base/check.h"
#include "common/ipc/memfd.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010  // Linux 5.1
#endif

namespace updraft::ipc {
namespace {

constexpr int kSizeSeals = F_SEAL_SHRINK | F_SEAL_GROW;
constexpr uint64_t kStatBlockBytes = 512;

uint64_t round_up(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

Result<void> add_seals(const UniqueFd& fd, int seals) {
  if (fcntl(fd.get(), F_ADD_SEALS, seals) != 0) return fail(system_error("sealing a segment"));
  return {};
}

}  // namespace

const char* page_kind_name(PageKind kind) {
  switch (kind) {
    case PageKind::kSmall:
      return "small";
    case PageKind::kTransparent:
      return "transparent huge";
    case PageKind::kHuge:
      break;
  }
  return "huge";
}

struct PayloadSegment::State {
  UniqueFd fd;
  boost::interprocess::mapped_region region;
  Kind kind = Kind::kArea;
  PageKind pages = PageKind::kSmall;
  bool frozen = false;

  Result<void> make(uint64_t bytes, bool from_pool);
};

PayloadSegment::PayloadSegment(std::unique_ptr<State> state) : state_(std::move(state)) {}
PayloadSegment::~PayloadSegment() = default;

// From the pool of huge pages, or from small ones.
Result<void> PayloadSegment::State::make(uint64_t bytes, bool from_pool) {
  const uint64_t whole = round_up(bytes, from_pool ? kHugePageBytes : kSmallPageBytes);
  Result<UniqueFd> made = make_memfd("updraft-payload", whole, from_pool ? MFD_HUGETLB : 0);
  if (!made) return made.error();
  bool transparent = false;
  auto mapped = map_and_fill(*made, whole, transparent);
  if (!mapped) return mapped.error();
  fd = std::move(*made);
  region.swap(*mapped);
  pages = from_pool ? PageKind::kHuge : transparent ? PageKind::kTransparent : PageKind::kSmall;
  return {};
}

Result<std::unique_ptr<PayloadSegment>> PayloadSegment::create(uint64_t bytes, Kind kind) {
  if (bytes == 0 || bytes > uint64_t{1} << 40)
    return fail("a segment of " + std::to_string(bytes) + " bytes; 1 to 1 TiB are possible");
  auto state = std::make_unique<State>();
  state->kind = kind;
  const bool huge = bytes >= kHugePageBytes && state->make(bytes, true).ok();
  if (!huge) {
    if (auto made = state->make(bytes, false); !made) return made.error();
  }
  // After it is mapped: this seal lets only the mappings write that are there already.
  if (kind == Kind::kArea) {
    if (auto sealed = add_seals(state->fd, kSizeSeals | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL); !sealed)
      return sealed.error();
  }
  return std::unique_ptr<PayloadSegment>(new PayloadSegment(std::move(state)));
}

Result<std::unique_ptr<PayloadSegment>> PayloadSegment::adopt(UniqueFd fd, uint64_t bytes_max,
                                                              Kind kind) {
  const int seals = fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0) return fail("the segment's descriptor is no memfd");
  if ((seals & (kSizeSeals | F_SEAL_SEAL)) != (kSizeSeals | F_SEAL_SEAL))
    return fail("the segment is not sealed against shrinking, growing and unsealing");
  if (kind == Kind::kOneOff && (seals & F_SEAL_WRITE) == 0)
    return fail("the segment of one request is not sealed against writing");
  if ((seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) == 0)
    return fail("the segment is not sealed against new writers");
  struct stat info {};
  if (fstat(fd.get(), &info) != 0) return fail(system_error("fstat of the segment"));
  const auto bytes = static_cast<uint64_t>(info.st_size);
  if (bytes == 0 || bytes > bytes_max) {
    return fail("the segment has " + std::to_string(bytes) + " bytes, allowed are 1 to " +
                std::to_string(bytes_max));
  }
  // After the seals nobody can make one.
  if (static_cast<uint64_t>(info.st_blocks) * kStatBlockBytes < bytes)
    return fail("the segment has holes: only " +
                std::to_string(static_cast<uint64_t>(info.st_blocks) * kStatBlockBytes) +
                " of its " + std::to_string(bytes) + " bytes are there");
  auto state = std::make_unique<State>();
  state->kind = kind;
  state->pages = is_hugetlb(fd) ? PageKind::kHuge : PageKind::kSmall;
  auto region = map_memfd(fd, bytes, MapFor::kReading);
  if (!region) return region.error();
  state->region.swap(*region);
  if (state->pages == PageKind::kSmall && ask_for_huge_pages(state->region.get_address(), bytes))
    state->pages = PageKind::kTransparent;
  // The descriptor goes: the mapping holds the memory.
  return std::unique_ptr<PayloadSegment>(new PayloadSegment(std::move(state)));
}

Result<void> PayloadSegment::freeze() {
  UPDRAFT_CHECK(state_->kind == Kind::kOneOff && state_->fd, "only a created one-off is frozen");
  if (state_->frozen) return {};
  // A shared mapping that could write forbids the seal. In its place, at the same address and with
  // the same content, comes a private one.
  void* const at = state_->region.get_address();
  if (mmap(at, state_->region.get_size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
           state_->fd.get(), 0) != at)
    return fail(system_error("mapping a segment anew before it is sealed"));
  if (auto sealed = add_seals(state_->fd, kSizeSeals | F_SEAL_WRITE | F_SEAL_SEAL); !sealed)
    return sealed;
  state_->frozen = true;
  return {};
}

int PayloadSegment::fd() const { return state_->fd.get(); }
PayloadSegment::Kind PayloadSegment::kind() const { return state_->kind; }
PageKind PayloadSegment::pages() const { return state_->pages; }

std::span<std::byte> PayloadSegment::data() const {
  UPDRAFT_CHECK(static_cast<bool>(state_->fd), "an adopted segment is read only");
  return {static_cast<std::byte*>(state_->region.get_address()), state_->region.get_size()};
}
ByteView PayloadSegment::bytes() const {
  return {static_cast<const std::byte*>(state_->region.get_address()), state_->region.get_size()};
}

}  // namespace updraft::ipc
