// SendQueue and MessageReader; see the header.
#include "common/message/chunker.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"

namespace updraft {

void SendQueue::push_urgent(const PoolMessage& message) {
  urgent_.push_back(encode(message));
  bytes_ += urgent_.back().size();
}

void SendQueue::set_beat(const NodeBeat& beat) {
  if (beat_) bytes_ -= beat_->size();
  beat_ = encode(beat);
  bytes_ += beat_->size();
}

bool SendQueue::push(const std::string& key, const PoolMessage& message) {
  std::vector<std::byte> encoded = encode(message);
  if (encoded.size() > kMessageBytesMax) return false;
  bytes_ += encoded.size();
  enqueue(key, std::move(encoded));
  return true;
}

void SendQueue::enqueue(const std::string& key, std::vector<std::byte>&& encoded) {
  for (Stream& stream : streams_) {
    if (stream.key == key) {
      stream.after.push_back(std::move(encoded));
      return;
    }
  }
  if (encoded.size() <= kChunkBytes) {
    small_.push_back(std::move(encoded));
    return;
  }
  Stream stream;
  stream.id = next_stream_id_++;
  stream.key = key;
  stream.count = static_cast<uint32_t>((encoded.size() + kChunkBytes - 1) / kChunkBytes);
  stream.encoded = std::move(encoded);
  streams_.push_back(std::move(stream));
}

const std::vector<std::byte>* SendQueue::front() {
  front_lane_ = Lane::kNone;
  if (!urgent_.empty()) {
    front_lane_ = Lane::kUrgent;
    return &urgent_.front();
  }
  if (beat_) {
    front_lane_ = Lane::kBeat;
    return &*beat_;
  }
  if (!small_.empty()) {
    front_lane_ = Lane::kSmall;
    return &small_.front();
  }
  if (streams_.empty()) return nullptr;
  if (part_.empty()) {
    turn_ = turn_ < std::min(streams_.size(), kStreamsPerPeerMax) ? turn_ : 0;
    const Stream& stream = streams_[turn_];
    const size_t begin = stream.next_index * kChunkBytes;
    const size_t end = std::min(begin + kChunkBytes, stream.encoded.size());
    Blob blob{stream.id, stream.next_index, stream.count, {}};
    blob.bytes.assign(stream.encoded.begin() + static_cast<ptrdiff_t>(begin),
                      stream.encoded.begin() + static_cast<ptrdiff_t>(end));
    part_ = encode(blob);
  }
  front_lane_ = Lane::kStream;
  return &part_;
}

void SendQueue::pop() {
  switch (std::exchange(front_lane_, Lane::kNone)) {
    case Lane::kNone:
      UPDRAFT_CHECK(false, "pop() without front()");
      break;
    case Lane::kUrgent:
      bytes_ -= urgent_.front().size();
      urgent_.pop_front();
      break;
    case Lane::kBeat:
      bytes_ -= beat_->size();
      beat_.reset();
      break;
    case Lane::kSmall:
      bytes_ -= small_.front().size();
      small_.pop_front();
      break;
    case Lane::kStream:
      part_.clear();
      if (++streams_[turn_].next_index == streams_[turn_].count) {
        finish_stream();
      } else {
        ++turn_;
      }
      break;
  }
}

// The stream at turn_ is out. What waited behind it is queued anew: small messages go out, a large
// one becomes a stream that again holds back the rest.
void SendQueue::finish_stream() {
  Stream done = std::move(streams_[turn_]);
  streams_.erase(streams_.begin() + static_cast<ptrdiff_t>(turn_));
  bytes_ -= done.encoded.size();
  for (std::vector<std::byte>& encoded : done.after) enqueue(done.key, std::move(encoded));
}

void SendQueue::clear() { *this = SendQueue(); }

Result<std::optional<PoolMessage>> MessageReader::add(ByteView frame) {
  Result<PoolMessage> message = decode(frame);
  if (!message) return message.error();
  if (auto* blob = std::get_if<Blob>(&*message)) return add_part(std::move(*blob));
  return std::optional<PoolMessage>(std::move(*message));
}

Result<std::optional<PoolMessage>> MessageReader::add_part(Blob&& blob) {
  const std::string where = "pool message Blob: stream " + std::to_string(blob.stream);
  auto at = streams_.find(blob.stream);
  if (at == streams_.end()) {
    if (blob.index != 0) return fail(where + " begins with part " + std::to_string(blob.index));
    if (streams_.size() >= kStreamsPerPeerMax) {
      return fail(where + " is one more than the " + std::to_string(kStreamsPerPeerMax) +
                  " that may be under way");
    }
    at = streams_.emplace(blob.stream, Stream{0, blob.count, {}}).first;
  }
  Stream& stream = at->second;
  if (blob.index != stream.next_index || blob.count != stream.count) {
    const std::string expected =
        std::to_string(stream.next_index) + " of " + std::to_string(stream.count);
    bytes_held_ -= stream.bytes.size();
    streams_.erase(at);
    return fail(where + " has part " + std::to_string(blob.index) + " of " +
                std::to_string(blob.count) + " where part " + expected + " was due");
  }
  stream.bytes.insert(stream.bytes.end(), blob.bytes.begin(), blob.bytes.end());
  bytes_held_ += blob.bytes.size();
  if (++stream.next_index < stream.count) return std::optional<PoolMessage>();

  const std::vector<std::byte> whole = std::move(stream.bytes);
  bytes_held_ -= whole.size();
  streams_.erase(at);
  Result<PoolMessage> message = decode(whole);
  if (!message) return message.error();
  if (std::holds_alternative<Blob>(*message)) return fail(where + " holds a Blob");
  return std::optional<PoolMessage>(std::move(*message));
}

void MessageReader::clear() {
  streams_.clear();
  bytes_held_ = 0;
}

}  // namespace updraft
