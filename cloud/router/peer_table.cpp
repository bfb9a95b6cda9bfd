// Outgoing and incoming frames of the pool's connections. See peer_table.h.
#include "cloud/router/peer_table.h"

#include "common/base/clock.h"

namespace updraft {
namespace {

// Frames to one connection per turn, so that an image for one node does not hold up the others.
constexpr int kFramesPerTurn = 16;

// Messages with the same key keep their order.
std::string key_of(const PoolMessage& message) {
  return std::visit(
      [](const auto& value) -> std::string {
        if constexpr (requires { value.id; }) return value.id;
        if constexpr (requires { value.request.id; }) return value.request.id;
        return {};
      },
      message);
}

bool is_urgent(const PoolMessage& message) {
  return std::holds_alternative<Welcome>(message) || std::holds_alternative<Drain>(message) ||
         std::holds_alternative<Echo>(message);
}

}  // namespace

Result<std::optional<PoolMessage>> PeerTable::read(const PeerId& id, ByteView frame,
                                                   int64_t now_ns) {
  Peer& peer = peers_[id];
  peer.active_ns = now_ns;
  return peer.reader.add(frame);
}

bool PeerTable::queue(const PeerId& id, const PoolMessage& message, int64_t now_ns) {
  Peer& peer = peers_[id];
  peer.active_ns = now_ns;
  if (is_urgent(message)) {
    peer.out.push_urgent(message);
  } else if (!peer.out.push(key_of(message), message)) {
    return false;
  }
  if (!peer.waiting) {
    peer.waiting = true;
    waiting_.push_back(id);
  }
  return true;
}

PeerTable::Flushed PeerTable::flush_one(PoolListener& listener, const PeerId& id, Peer& peer,
                                        bool* sent) {
  for (int i = 0; i < kFramesPerTurn; ++i) {
    const std::vector<std::byte>* frame = peer.out.front();
    if (frame == nullptr) return Flushed::kAll;
    switch (listener.try_send(id, *frame)) {
      case PoolListener::SendOutcome::kSent:
        peer.out.pop();
        peer.stalled_ns = 0;
        *sent = true;
        break;
      case PoolListener::SendOutcome::kFull:
        return Flushed::kSome;
      case PoolListener::SendOutcome::kGone:
        return Flushed::kGone;
    }
  }
  return peer.out.empty() ? Flushed::kAll : Flushed::kSome;
}

bool PeerTable::flush(PoolListener& listener, int64_t now_ns, std::vector<Gone>& gone) {
  bool sent_any = false;
  for (size_t i = 0; i < waiting_.size();) {
    const PeerId id = waiting_[i];
    Peer& peer = peers_.at(id);
    bool sent = false;
    const Flushed flushed = flush_one(listener, id, peer, &sent);
    sent_any |= sent;
    const char* why = flushed == Flushed::kGone ? "lost its connection" : nullptr;
    if (flushed == Flushed::kSome && !sent) {
      if (peer.stalled_ns == 0) peer.stalled_ns = now_ns;
      if (now_ns - peer.stalled_ns >= limits_.stall_ms_max * kNsPerMs) why = "takes no messages";
    }
    if (flushed == Flushed::kSome && peer.out.bytes() > limits_.queue_bytes_max)
      why = "takes messages too slowly";
    if (flushed == Flushed::kSome && why == nullptr) {
      ++i;
      continue;
    }
    peer.waiting = false;
    waiting_[i] = waiting_.back();
    waiting_.pop_back();
    if (why == nullptr) continue;
    gone.push_back({id, why});
    peers_.erase(id);
  }
  return sent_any;
}

void PeerTable::sweep(int64_t now_ns) {
  std::erase_if(peers_, [&](const auto& entry) {
    return !entry.second.waiting &&
           now_ns - entry.second.active_ns >= limits_.idle_ms_max * kNsPerMs;
  });
}

}  // namespace updraft
