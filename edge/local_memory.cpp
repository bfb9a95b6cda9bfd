// See the header.
#include "edge/local_memory.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

namespace updraft {

using namespace ipc;

LocalMemory::LocalMemory(Limits limits, std::shared_ptr<MappedUse> of_user,
                         std::shared_ptr<MappedUse> of_daemon)
    : limits_(limits), of_user_(std::move(of_user)), of_daemon_(std::move(of_daemon)) {}

Result<uint64_t> LocalMemory::room() const {
  const int64_t of_session = limits_.session_bytes_max - of_session_->bytes.load();
  const int64_t of_user = limits_.user_bytes_max - of_user_->bytes.load();
  if (of_session > 0 && of_user > 0) return static_cast<uint64_t>(std::min(of_session, of_user));
  if (of_user <= 0) {
    return fail("user " + std::to_string(limits_.uid) + " has used up its " +
                std::to_string(limits_.user_bytes_max) + " bytes of segments");
  }
  return fail("the session has used up its " + std::to_string(limits_.session_bytes_max) +
              " bytes of segments");
}

template <typename T>
std::shared_ptr<T> LocalMemory::counted(std::unique_ptr<T> segment, int64_t bytes,
                                        int64_t huge_bytes) const {
  const std::array<std::shared_ptr<MappedUse>, 3> all = {of_session_, of_user_, of_daemon_};
  for (const auto& use : all) {
    use->bytes += bytes;
    use->huge_bytes += huge_bytes;
  }
  return std::shared_ptr<T>(segment.release(), [all, bytes, huge_bytes](T* mapped) {
    delete mapped;
    for (const auto& use : all) {
      use->bytes -= bytes;
      use->huge_bytes -= huge_bytes;
    }
  });
}

Result<void> LocalMemory::adopt_own(UniqueFd fd) {
  UPDRAFT_CHECK(!own_, "a session has one segment of its own");
  const Result<uint64_t> allowed = room();
  if (!allowed) return allowed.error();
  Result<std::unique_ptr<Segment>> segment = Segment::adopt(std::move(fd), *allowed);
  if (!segment) return segment.error();
  const auto bytes = static_cast<int64_t>((*segment)->bytes());
  own_ = counted(std::move(*segment), bytes, 0);
  return {};
}

Result<void> LocalMemory::adopt_further(uint32_t number, UniqueFd fd, PayloadSegment::Kind kind) {
  const std::string name = "segment " + std::to_string(number);
  if (number == 0 || areas_.contains(number) || one_offs_.contains(number))
    return fail(name + " is there already");
  const bool area = kind == PayloadSegment::Kind::kArea;
  const size_t count = area ? areas_.size() : one_offs_.size();
  const size_t count_max = area ? kAreasMax : kOneOffsMax;
  if (count >= count_max) {
    return fail(name + ": a session has at most " + std::to_string(count_max) +
                (area ? " further areas" : " one-offs that no request has named"));
  }
  const Result<uint64_t> allowed = room();
  if (!allowed) return fail(name + ": " + allowed.message());
  auto segment = PayloadSegment::adopt(std::move(fd), *allowed, kind);
  if (!segment) return fail(name + ": " + segment.message());
  const auto bytes = static_cast<int64_t>((*segment)->bytes().size());
  const int64_t huge_bytes = (*segment)->pages() == PageKind::kHuge ? bytes : 0;
  auto shared = counted(std::move(*segment), bytes, huge_bytes);
  if (area) {
    areas_.emplace(number, std::move(shared));
  } else {
    one_offs_.emplace(number, OneOff{std::move(shared), false});
  }
  return {};
}

std::optional<SharedBytes> LocalMemory::bytes(uint32_t segment, uint64_t offset, uint64_t bytes) {
  if (segment == 0) {
    const auto inside = own_->payload_span(offset, bytes);
    if (!inside) return std::nullopt;
    return SharedBytes(own_, *inside);
  }
  std::shared_ptr<PayloadSegment> holder;
  if (const auto area = areas_.find(segment); area != areas_.end()) {
    holder = area->second;
  } else if (const auto one_off = one_offs_.find(segment); one_off != one_offs_.end()) {
    one_off->second.named = true;
    holder = one_off->second.segment;
  } else {
    return std::nullopt;
  }
  const ByteView all = holder->bytes();
  if (offset > all.size() || bytes > all.size() - offset) return std::nullopt;
  return SharedBytes(holder, all.subspan(offset, bytes));
}

void LocalMemory::let_go_of_named() {
  std::erase_if(one_offs_, [](const auto& entry) { return entry.second.named; });
}

}  // namespace updraft
