// What one session has mapped of its client's memory: its own segment, further areas and one-offs
// (common/ipc/payload_segment.h), and how much of it counts against whom.
//
// Owner: the LocalServer's thread. What a request got a view of stays mapped and counted until the
// last view is gone, on whichever thread that is, also after the session's end.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>

#include "common/base/result.h"
#include "common/base/shared_bytes.h"
#include "common/ipc/payload_segment.h"
#include "common/ipc/segment.h"

namespace updraft {

// Mapped bytes of somebody: a session, a user, the daemon.
struct MappedUse {
  std::atomic<int64_t> bytes = 0;
  std::atomic<int64_t> huge_bytes = 0;  // of them in whole huge pages
};

class LocalMemory {
 public:
  static constexpr size_t kAreasMax = 32;    // of one session
  static constexpr size_t kOneOffsMax = 64;  // sent and not yet named by a request

  struct Limits {
    int64_t session_bytes_max = 0;
    int64_t user_bytes_max = 0;
    uint32_t uid = 0;  // for the refusal's text
  };
  LocalMemory(Limits limits, std::shared_ptr<MappedUse> of_user,
              std::shared_ptr<MappedUse> of_daemon);

  // The session's own segment, once, before everything else. Errors: what Segment::adopt() refuses;
  // a quota, named.
  Result<void> adopt_own(ipc::UniqueFd fd);
  // A further one under the client's number. Errors: as above; a number that is taken or 0; too
  // many.
  Result<void> adopt_further(uint32_t number, ipc::UniqueFd fd, ipc::PayloadSegment::Kind kind);

  const std::shared_ptr<ipc::Segment>& own() const { return own_; }
  // [offset, offset + bytes) of a segment's payload; nothing when there is no such segment or the
  // bytes lie outside. A one-off that was named is the request's from then on: see
  // let_go_of_named().
  std::optional<SharedBytes> bytes(uint32_t segment, uint64_t offset, uint64_t bytes);
  // After a submission was read: one-offs that it named are held by its views alone.
  void let_go_of_named();

 private:
  struct OneOff {
    std::shared_ptr<ipc::PayloadSegment> segment;
    bool named = false;
  };

  // How many bytes may come on top, by the quotas. Error: none.
  Result<uint64_t> room() const;
  template <typename T>
  std::shared_ptr<T> counted(std::unique_ptr<T> segment, int64_t bytes, int64_t huge_bytes) const;

  const Limits limits_;
  const std::shared_ptr<MappedUse> of_session_ = std::make_shared<MappedUse>();
  const std::shared_ptr<MappedUse> of_user_;
  const std::shared_ptr<MappedUse> of_daemon_;
  std::shared_ptr<ipc::Segment> own_;
  std::map<uint32_t, std::shared_ptr<ipc::PayloadSegment>> areas_;
  std::map<uint32_t, OneOff> one_offs_;
};

}  // namespace updraft
