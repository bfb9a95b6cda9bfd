// The client's side of its shared memory: where buffers come from and go back to. The session's own
// segment first, then the further ones that were added when it was full; besides them one-offs,
// each a buffer that is a segment of its own.
//
// Areas stay until the session ends. Taking one is dear (every page is cleared and mapped on both
// sides), a program that needed the room once mostly needs it again, and the quota bounds what a
// session can hold. What is large and rare goes into a one-off, which is freed after its request.
//
// Owner: its LocalClient. The daemon never sees the allocators' state, only where bytes lie.
#pragma once

#include <boost/interprocess/managed_external_buffer.hpp>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "common/base/result.h"
#include "common/ipc/payload_segment.h"

namespace updraft {

class PayloadAreas {
 public:
  struct Place {
    uint32_t segment = 0;
    uint64_t offset = 0;  // from the segment's beginning
  };
  struct OneOff {
    uint32_t number = 0;
    std::unique_ptr<ipc::PayloadSegment> segment;
    bool sent = false;  // the daemon knows it
  };

  // The session's own payload area, which begins at `offset` of segment 0. Before everything else.
  void begin(std::span<std::byte> payload, uint64_t offset);
  // A further segment, to allocate from.
  void add(uint32_t number, std::unique_ptr<ipc::PayloadSegment> segment);
  // A one-off: its first `bytes` are the buffer.
  std::span<std::byte> add_one_off(uint32_t number, std::unique_ptr<ipc::PayloadSegment> segment,
                                   uint64_t bytes);

  // Aligned to a cache line, most recently freed first; null when no area has room.
  std::byte* allocate(uint64_t bytes);
  // A buffer from allocate() or add_one_off(); the latter's memory is given back to the system.
  void release(std::byte* buffer);
  Place place_of(const std::byte* buffer) const;
  OneOff* one_off_at(const std::byte* buffer);

  uint64_t free_bytes() const;
  uint64_t total_bytes() const;  // of the areas
  // For a daemon that does not know them yet: `send` gets number and segment of each area and each
  // one-off that was sent before.
  template <typename Send>
  Result<void> send_again(Send&& send) const {
    for (const Area& area : areas_) {
      if (!area.segment) continue;
      if (Result<void> sent = send(area.number, *area.segment); !sent) return sent;
    }
    for (const auto& [buffer, one_off] : one_offs_) {
      if (!one_off.sent) continue;
      if (Result<void> sent = send(one_off.number, *one_off.segment); !sent) return sent;
    }
    return {};
  }

 private:
  struct Area {
    uint32_t number = 0;
    std::span<std::byte> bytes;
    uint64_t offset = 0;                           // of bytes[0] in its segment
    std::unique_ptr<ipc::PayloadSegment> segment;  // none: the session's own
    boost::interprocess::managed_external_buffer heap;
  };
  const Area& area_of(const std::byte* buffer) const;

  std::vector<Area> areas_;
  std::map<const std::byte*, OneOff> one_offs_;
};

}  // namespace updraft
