// Life and memory of a mapped session, and how requests are handed over.
#include "edge/client/mapped_client.h"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <span>
#include <string>

#include "common/ipc/unix_socket.h"
#include "common/message/pool_message.h"
#include "edge/client/placed_parts.h"
#include "edge/client/session_start.h"

namespace updraft {

using namespace ipc;

namespace {

// What an allocator of a further segment keeps to itself.
constexpr uint64_t kHeapBytes = 16 * 1024;

// How many forks lie between this process and its first ancestor that asked: tells a child's copy
// of a client from the parent's without a system call.
uint32_t fork_depth() {
  static std::atomic<uint32_t> depth = 0;
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { depth.fetch_add(1, std::memory_order_relaxed); });
  (void)registered;
  return depth.load(std::memory_order_relaxed);
}
Error lost_error() {
  return fail(LocalFailure::kBusy, "the session was lost and is being reconnected: call next()");
}

}  // namespace

MappedClient::MappedClient(const LocalClientOptions& options)
    : options_(options), fork_depth_(fork_depth()) {}

bool MappedClient::forked() const { return fork_depth() != fork_depth_; }
Error MappedClient::forked_error() {
  return fail(
      LocalFailure::kForked,
      "this session belongs to the parent process: after fork() the child must connect for itself");
}

Result<std::unique_ptr<LocalClient>> MappedClient::connect(const LocalClientOptions& options) {
  auto client = std::unique_ptr<MappedClient>(new MappedClient(options));
  SegmentShape shape;
  shape.payload_bytes = options.payload_bytes;
  Result<std::unique_ptr<Segment>> segment = Segment::create(shape);
  if (!segment) return fail(LocalFailure::kNoMemory, segment.message());
  client->segment_ = std::move(segment).value();
  Result<Doorbell> mine = Doorbell::create();
  if (!mine) return fail(LocalFailure::kNoMemory, mine.message());
  Result<Doorbell> theirs = Doorbell::create();
  if (!theirs) return fail(LocalFailure::kNoMemory, theirs.message());
  client->my_bell_.emplace(std::move(mine).value());
  client->daemon_bell_.emplace(std::move(theirs).value());
  Result<Handshaken> shaken = shake_hands(
      options, {client->segment_->fd(), client->my_bell_->fd(), client->daemon_bell_->fd()});
  if (!shaken) return shaken.error();
  client->socket_ = std::move(shaken->socket);
  client->welcome_ = std::move(shaken->welcome);
  client->submit_.emplace(client->segment_->submit_ring());
  client->complete_.emplace(client->segment_->complete_ring());
  client->areas_.begin(client->segment_->payload(), client->segment_->header().payload_offset);
  const auto slots = std::min<uint32_t>(client->segment_->header().slot_count,
                                        static_cast<uint32_t>(client->welcome_.requests_max));
  client->slots_.resize(slots);
  client->cancellable_.resize(slots);
  for (uint32_t i = slots; i-- > 0;) client->free_slots_.push_back(i);
  return std::unique_ptr<LocalClient>(std::move(client));
}

MappedClient::~MappedClient() {
  // The parent's ZeroMQ threads are not here: closing would wait for them.
  if (forked()) {
    (void)control_.release();
    return;
  }
  // Without a word a session that may be resumed counts as lost, not as over.
  const std::array<std::byte, kGoodbyeBytes> goodbye{};
  if (socket_ && options_.reconnect_ms > 0) (void)send_message(socket_, goodbye);
}

Result<LocalClient::Buffer> MappedClient::allocate(uint64_t bytes) {
  if (forked()) return forked_error();
  if (bytes == 0) return fail(LocalFailure::kBadArgument, "a buffer of 0 bytes was asked for");
  std::byte* at = areas_.allocate(bytes);
  if (at == nullptr) {
    const Result<void> grown = grow(bytes);
    if (grown) at = areas_.allocate(bytes);
    if (at == nullptr) {
      return fail(LocalFailure::kNoRoom,
                  "no room for " + std::to_string(bytes) + " bytes in the payload area (" +
                      std::to_string(areas_.free_bytes()) + " of " +
                      std::to_string(areas_.total_bytes()) +
                      " bytes free): " + (grown ? "the areas are in pieces" : grown.message()));
    }
  }
  return Buffer{{at, bytes}};
}

Result<LocalClient::Buffer> MappedClient::allocate_once(uint64_t bytes) {
  if (forked()) return forked_error();
  if (bytes == 0) return fail(LocalFailure::kBadArgument, "a buffer of 0 bytes was asked for");
  auto segment = PayloadSegment::create(bytes, PayloadSegment::Kind::kOneOff);
  if (!segment) return fail(LocalFailure::kNoMemory, segment.message());
  return Buffer{areas_.add_one_off(++last_segment_, std::move(*segment), bytes)};
}

void MappedClient::release(Buffer buffer) {
  if (!forked()) areas_.release(buffer.bytes.data());
}

Result<uint32_t> MappedClient::submit(Request request, std::vector<PlacedPart> placed) {
  if (forked()) return forked_error();
  if (gone_) return gone_error();
  if (lost()) return lost_error();
  if (free_slots_.empty())
    return fail(LocalFailure::kBusy,
                "too many requests in flight: the daemon allows " + std::to_string(slots_.size()));
  if (request.id.empty()) request.id = new_request_id();
  const size_t given = placed.size();
  Result<void> moved =
      place_large_parts(request, placed, [this](uint64_t bytes) { return allocate(bytes); });
  Result<uint32_t> handle = moved ? post(request, placed) : Result<uint32_t>(moved.error());
  if (!handle) {
    // What the caller placed stays the caller's.
    for (size_t i = given; i < placed.size(); ++i) release(placed[i].buffer);
  }
  return handle;
}

void MappedClient::cancel(uint32_t handle) {
  if (forked()) return;
  const std::lock_guard lock(cancel_mutex_);
  const uint32_t index = handle % kHandleSlots;
  if (index >= cancellable_.size() || cancellable_[index].handle != handle ||
      cancellable_[index].id.empty())
    return;
  // Most sessions never cancel: the channel, with its thread, begins with the first time.
  if (!control_) {
    auto control = ControlDialer::connect(welcome_.control_endpoint, welcome_.session_token);
    if (!control) return;
    control_ = std::move(control).value();
  }
  (void)control_->send(encode(Cancel{cancellable_[index].id, 1}));
}

Result<void> MappedClient::grow(uint64_t bytes) {
  if (lost()) return lost_error();
  const uint64_t least = bytes + kHeapBytes;
  const uint64_t limit = welcome_.segment_bytes_max;
  const uint64_t had = segment_->bytes() - segment_->payload().size() + areas_.total_bytes();
  if (limit > 0 && (had >= limit || least > limit - had)) {
    return fail(LocalFailure::kNoRoom, "the daemon allows a session " + std::to_string(limit) +
                                           " bytes, and it has " + std::to_string(had));
  }
  uint64_t wanted = std::max(least, areas_.total_bytes());
  if (limit > 0) wanted = std::min(wanted, limit - had);
  Result<void> grown = add_area(wanted);
  return grown || wanted == least ? grown : add_area(least);
}

Result<void> MappedClient::add_area(uint64_t bytes) {
  auto segment = PayloadSegment::create(bytes, PayloadSegment::Kind::kArea);
  if (!segment) return fail(LocalFailure::kNoMemory, segment.message());
  const uint32_t number = ++last_segment_;
  if (auto sent = send_segment(number, **segment); !sent) return sent;
  areas_.add(number, std::move(*segment));
  return {};
}

Result<void> MappedClient::send_segment(uint32_t number, const PayloadSegment& segment) {
  const bool one_off = segment.kind() == PayloadSegment::Kind::kOneOff;
  if (auto sent =
          send_message(socket_, encode_handshake(LocalAddSegment{number, one_off}), {segment.fd()});
      !sent)
    return fail(LocalFailure::kGone, "the edge daemon is gone (" + sent.message() + ")");
  Result<SocketMessage> answer = receive_message(socket_, kHandshakeTimeoutMs);
  if (!answer) return fail(LocalFailure::kGone, answer.message());
  if (answer->hung_up) return fail(LocalFailure::kGone, "the edge daemon is gone");
  if (answer->bytes.empty())
    return fail(LocalFailure::kGone, "the edge daemon did not answer for a further segment");
  const Result<Handshake> decoded = decode_handshake(answer->bytes);
  if (!decoded) return fail(LocalFailure::kGone, decoded.message());
  if (const auto* refusal = std::get_if<LocalRefusal>(&*decoded))
    return fail(LocalFailure::kNoRoom, "the edge daemon refused: " + refusal->message);
  return {};
}

Result<void> MappedClient::send_one_offs(const std::vector<PlacedPart>& placed) {
  for (const PlacedPart& part : placed) {
    PayloadAreas::OneOff* one_off = areas_.one_off_at(part.buffer.bytes.data());
    if (one_off == nullptr || one_off->sent) continue;
    if (auto frozen = one_off->segment->freeze(); !frozen)
      return fail(LocalFailure::kNoMemory, frozen.message());
    if (auto sent = send_segment(one_off->number, *one_off->segment); !sent) {
      return fail(static_cast<LocalFailure>(sent.kind()),
                  "no room for a one-off of " + std::to_string(one_off->segment->bytes().size()) +
                      " bytes: " + sent.message());
    }
    one_off->sent = true;
  }
  return {};
}

Result<uint32_t> MappedClient::post(const Request& request, const std::vector<PlacedPart>& placed) {
  const std::vector<std::byte> frame = encode(Submit{request, 1, 0});
  if (frame.size() > kFrameBytesMax) {
    return fail(LocalFailure::kTooLarge, "a request of " + std::to_string(frame.size()) +
                                             " bytes without its large parts, allowed are " +
                                             std::to_string(kFrameBytesMax));
  }
  if (auto sent = send_one_offs(placed); !sent) return sent.error();
  const uint64_t spans_at = (frame.size() + 7) & ~uint64_t{7};
  Result<Buffer> area = allocate(spans_at + placed.size() * sizeof(PartSpan));
  if (!area) return area.error();
  std::memcpy(area->bytes.data(), frame.data(), frame.size());
  for (size_t i = 0; i < placed.size(); ++i) {
    const PayloadAreas::Place at = areas_.place_of(placed[i].buffer.bytes.data());
    const PartSpan span{placed[i].index,  placed[i].part, at.offset, placed[i].buffer.bytes.size(),
                        placed[i].target, at.segment};
    std::memcpy(area->bytes.data() + spans_at + i * sizeof(PartSpan), &span, sizeof span);
  }
  const uint32_t index = free_slots_.back();
  Slot& slot = slots_[index];
  const uint32_t generation = slot.generation + 1;
  SubmitRecord record{};
  record.slot = index;
  record.generation = generation;
  const PayloadAreas::Place place = areas_.place_of(area->bytes.data());
  record.segment = place.segment;
  record.frame_offset = place.offset;
  record.frame_bytes = static_cast<uint32_t>(frame.size());
  record.span_count = static_cast<uint32_t>(placed.size());
  record.spans_offset = record.frame_offset + spans_at;
  // The ring's release publishes this store and the payload before it.
  segment_->slot(index).word.store(slot_word(generation, SlotPhase::kFilled),
                                   std::memory_order_release);
  const PushOutcome outcome = submit_->push(kSubmitRecord, std::as_bytes(std::span(&record, 1)));
  if (outcome == PushOutcome::kFull || outcome == PushOutcome::kBroken) {
    segment_->slot(index).word.store(slot_word(generation, SlotPhase::kFree),
                                     std::memory_order_release);
    slot.generation = generation;
    release(*area);
    return outcome == PushOutcome::kFull
               ? fail(LocalFailure::kBusy, "the submission ring is full")
               : fail(LocalFailure::kGone, "the submission ring is broken");
  }
  if (outcome == PushOutcome::kPushedRing) daemon_bell_->ring();
  free_slots_.pop_back();
  slot.generation = generation;
  slot.id = request.id;
  slot.record = record;
  slot.answering = false;
  slot.taken = slot.to_skip = 0;
  slot.handle = (generation % (UINT32_MAX / kHandleSlots)) * kHandleSlots + index;
  {
    const std::lock_guard lock(cancel_mutex_);
    cancellable_[index] = {slot.handle, slot.id};
  }
  slot.buffers = {*area};
  for (const PlacedPart& part : placed) slot.buffers.push_back(part.buffer);
  return slot.handle;
}

void MappedClient::free_slot(uint32_t index) {
  Slot& slot = slots_[index];
  for (const Buffer& buffer : slot.buffers) release(buffer);
  slot.buffers.clear();
  slot.id.clear();
  {
    const std::lock_guard lock(cancel_mutex_);
    cancellable_[index].id.clear();
  }
  segment_->slot(index).word.store(slot_word(slot.generation, SlotPhase::kFree),
                                   std::memory_order_release);
  free_slots_.push_back(index);
}

}  // namespace updraft
