// Large messages in parts, so that a beat never waits behind an image. SendQueue orders what one
// connection sends and cuts what is larger than kChunkBytes into Blobs; MessageReader puts them
// together again under limits. Pure; one thread each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/base/bytes.h"
#include "common/base/result.h"
#include "common/message/pool_message.h"

namespace updraft {

inline constexpr size_t kStreamsPerPeerMax = 4;  // large messages of one sender under way at once

// Frames waiting for one connection. front() is the next one to hand to the socket, pop() after the
// socket took it. Order: urgent messages, the newest beat, small messages in the order pushed, then
// one part of each large message in turn. Messages with the same key keep their order, whatever
// their sizes.
class SendQueue {
 public:
  // Hello, Welcome, Drain, Echo: before everything else.
  void push_urgent(const PoolMessage& message);
  // Replaces a beat that has not gone out.
  void set_beat(const NodeBeat& beat);
  // key: the request's id. False, and nothing queued, when the encoded message is larger than
  // kMessageBytesMax.
  [[nodiscard]] bool push(const std::string& key, const PoolMessage& message);

  // Null when nothing waits. Valid until the next call of any other method.
  const std::vector<std::byte>* front();
  void pop();

  // The newest beat has not gone out yet.
  bool beat_waiting() const { return beat_.has_value(); }

  // Encoded bytes waiting; the caller refuses new bulk above its own limit.
  size_t bytes() const { return bytes_; }
  // Small messages waiting; producers of token streams hold back and coalesce while it is large.
  size_t small_count() const { return small_.size(); }
  bool empty() const { return bytes_ == 0; }
  // The connection is gone: drops everything.
  void clear();

 private:
  struct Stream {
    uint64_t id = 0;
    std::string key;
    std::vector<std::byte> encoded;
    uint32_t next_index = 0;
    uint32_t count = 0;
    std::deque<std::vector<std::byte>> after;  // later messages of the same key
  };
  enum class Lane { kNone, kUrgent, kBeat, kSmall, kStream };

  void enqueue(const std::string& key, std::vector<std::byte>&& encoded);
  void finish_stream();

  std::deque<std::vector<std::byte>> urgent_;
  std::optional<std::vector<std::byte>> beat_;
  std::deque<std::vector<std::byte>> small_;
  std::deque<Stream> streams_;     // the first kStreamsPerPeerMax take turns
  size_t turn_ = 0;                // index into streams_ whose part is next
  std::vector<std::byte> part_;    // that part, encoded; empty: not yet
  Lane front_lane_ = Lane::kNone;  // what the last front() showed
  uint64_t next_stream_id_ = 1;
  size_t bytes_ = 0;
};

// Frames of one connection -> messages. At most kStreamsPerPeerMax large messages under way; memory
// grows only with bytes that really arrived, up to kMessageBytesMax each.
class MessageReader {
 public:
  // One frame. A message when one is complete, nothing while parts are missing; an error is a
  // violation of the protocol by the peer (the frame is dropped, and with it the large message it
  // belongs to).
  Result<std::optional<PoolMessage>> add(ByteView frame);
  size_t bytes_held() const { return bytes_held_; }
  // A new connection begins.
  void clear();

 private:
  struct Stream {
    uint32_t next_index = 0;
    uint32_t count = 0;
    std::vector<std::byte> bytes;
  };
  Result<std::optional<PoolMessage>> add_part(Blob&& blob);

  std::map<uint64_t, Stream> streams_;
  size_t bytes_held_ = 0;
};

}  // namespace updraft
