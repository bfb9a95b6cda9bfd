// See the header.
#include "edge/client/payload_areas.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/ipc/layout.h"

namespace updraft {

namespace bip = boost::interprocess;

void PayloadAreas::begin(std::span<std::byte> payload, uint64_t offset) {
  UPDRAFT_CHECK(areas_.empty(), "a session has one segment of its own");
  areas_.push_back(
      {0, payload, offset, nullptr,
       bip::managed_external_buffer(bip::create_only, payload.data(), payload.size())});
}

void PayloadAreas::add(uint32_t number, std::unique_ptr<ipc::PayloadSegment> segment) {
  const std::span<std::byte> bytes = segment->data();
  areas_.push_back({number, bytes, 0, std::move(segment),
                    bip::managed_external_buffer(bip::create_only, bytes.data(), bytes.size())});
}

std::span<std::byte> PayloadAreas::add_one_off(uint32_t number,
                                               std::unique_ptr<ipc::PayloadSegment> segment,
                                               uint64_t bytes) {
  const std::span<std::byte> buffer = segment->data().first(bytes);
  one_offs_.emplace(buffer.data(), OneOff{number, std::move(segment), false});
  return buffer;
}

std::byte* PayloadAreas::allocate(uint64_t bytes) {
  for (Area& area : areas_) {
    if (area.heap.get_free_memory() < bytes) continue;
    if (void* at = area.heap.allocate_aligned(bytes, ipc::kCacheLineBytes, std::nothrow))
      return static_cast<std::byte*>(at);
  }
  return nullptr;
}

void PayloadAreas::release(std::byte* buffer) {
  if (one_offs_.erase(buffer) != 0) return;
  const_cast<Area&>(area_of(buffer)).heap.deallocate(buffer);
}

PayloadAreas::Place PayloadAreas::place_of(const std::byte* buffer) const {
  if (const auto one_off = one_offs_.find(buffer); one_off != one_offs_.end())
    return {one_off->second.number, 0};
  const Area& area = area_of(buffer);
  return {area.number, area.offset + static_cast<uint64_t>(buffer - area.bytes.data())};
}

PayloadAreas::OneOff* PayloadAreas::one_off_at(const std::byte* buffer) {
  const auto found = one_offs_.find(buffer);
  return found == one_offs_.end() ? nullptr : &found->second;
}

uint64_t PayloadAreas::free_bytes() const {
  uint64_t bytes = 0;
  for (const Area& area : areas_) bytes += area.heap.get_free_memory();
  return bytes;
}
uint64_t PayloadAreas::total_bytes() const {
  uint64_t bytes = 0;
  for (const Area& area : areas_) bytes += area.bytes.size();
  return bytes;
}

const PayloadAreas::Area& PayloadAreas::area_of(const std::byte* buffer) const {
  const auto found = std::find_if(areas_.begin(), areas_.end(), [&](const Area& area) {
    return buffer >= area.bytes.data() && buffer < area.bytes.data() + area.bytes.size();
  });
  UPDRAFT_CHECK(found != areas_.end(), "a buffer of this client's");
  return *found;
}

}  // namespace updraft
