// The client's two ways in: a mapped segment with rings, or whole requests over the control
// channel.
#include "edge/client/local_client.h"

#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

#include "common/base/clock.h"
#include "common/ipc/doorbell.h"
#include "common/ipc/unix_socket.h"
#include "common/message/event_message.h"
#include "common/message/pool_message.h"
#include "common/net/control_socket.h"
#include "edge/client/payload_areas.h"

namespace updraft {
namespace {

using namespace ipc;

constexpr int kHandshakeTimeoutMs = 5000;
constexpr size_t kInlineBytesMax = 4096;  // larger parts go into the payload area
constexpr uint64_t kHeapBytes =
    16 * 1024;  // what an allocator of a further segment keeps to itself
constexpr int64_t kSpinNs = 5 * kNsPerUs;
constexpr uint32_t kUnmappedRequestsMax = 64;
constexpr int64_t kLookNs = kNsPerMs;
constexpr int64_t kReconnectPauseNs = 10 * kNsPerMs;

struct Handshaken {
  UniqueFd socket;
  LocalWelcome welcome;
};

std::string path_of(const LocalClientOptions& options) {
  return options.socket_path.empty() ? default_local_socket() : options.socket_path;
}

// The first half of the handshake; the daemon's answer comes on the socket.
Result<UniqueFd> say_hello(const LocalClientOptions& options, const std::vector<int>& fds) {
  Result<UniqueFd> socket = connect_unix(path_of(options));
  if (!socket)
    return fail(LocalFailure::kNoDaemon,
                socket.message() + " (is `updraft edge` or `updraft up` running?)");
  const LocalHello hello{kAbiVersion, kLocalProtocolVersion, options.client_name,
                         options.map_memory ? std::clamp(options.reconnect_ms, 0, 60'000) : 0};
  if (auto sent = send_message(*socket, encode_handshake(hello), fds); !sent)
    return fail(LocalFailure::kNoDaemon, sent.message());
  return socket;
}

// kTimeout: no answer yet.
Result<LocalWelcome> hear_welcome(const LocalClientOptions& options, const UniqueFd& socket,
                                  int timeout_ms) {
  Result<SocketMessage> answer = receive_message(socket, timeout_ms);
  if (!answer) return fail(LocalFailure::kNoDaemon, answer.message());
  if (answer->hung_up)
    return fail(LocalFailure::kNoDaemon,
                "the edge daemon at " + path_of(options) + " hung up during the handshake");
  if (answer->bytes.empty())
    return fail(LocalFailure::kTimeout,
                "the edge daemon at " + path_of(options) + " did not answer the handshake");
  Result<Handshake> decoded = decode_handshake(answer->bytes);
  if (!decoded) return fail(LocalFailure::kRefused, decoded.message());
  if (const auto* refusal = std::get_if<LocalRefusal>(&*decoded))
    return fail(LocalFailure::kRefused, "the edge daemon refused: " + refusal->message);
  auto* welcome = std::get_if<LocalWelcome>(&*decoded);
  if (welcome == nullptr)
    return fail(LocalFailure::kRefused,
                "the edge daemon answered the handshake with something else than a welcome");
  return std::move(*welcome);
}

Result<Handshaken> shake_hands(const LocalClientOptions& options, const std::vector<int>& fds) {
  Result<UniqueFd> socket = say_hello(options, fds);
  if (!socket) return socket.error();
  Result<LocalWelcome> welcome = hear_welcome(options, *socket, kHandshakeTimeoutMs);
  if (!welcome) return welcome.error();
  return Handshaken{std::move(*socket), std::move(*welcome)};
}

// How many forks lie between this process and its first ancestor that asked: tells a child's copy
// of a client from the parent's without a system call.
uint32_t fork_depth() {
  static std::atomic<uint32_t> depth = 0;
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { depth.fetch_add(1, std::memory_order_relaxed); });
  (void)registered;
  return depth.load(std::memory_order_relaxed);
}
Error forked_error() {
  return fail(
      LocalFailure::kForked,
      "this session belongs to the parent process: after fork() the child must connect for itself");
}
Error gone_error() { return fail(LocalFailure::kGone, "the edge daemon is gone"); }
Error lost_error() {
  return fail(LocalFailure::kBusy, "the session was lost and is being reconnected: call next()");
}
Error no_memory_here() { return fail(LocalFailure::kNoRoom, "this session has no shared memory"); }

// A part's payload, wherever it lies.
ByteView part_bytes(const ContentPart& part) {
  return part.kind == ContentPart::Kind::kText ? as_bytes_view(part.text) : part.bytes.view();
}

ByteView part_bytes(const PromptPart& part) {
  switch (part.kind) {
    case PromptPart::Kind::kText:
      return as_bytes_view(part.text);
    case PromptPart::Kind::kIds:
      return std::as_bytes(std::span(part.ids));
    case PromptPart::Kind::kEmbeddings:
      return part.rows.bytes.view();
  }
  return {};
}

class MappedClient final : public LocalClient {
 public:
  static Result<std::unique_ptr<LocalClient>> connect(const LocalClientOptions& options) {
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

  ~MappedClient() override {
    // The parent's ZeroMQ threads are not here: closing would wait for them.
    if (forked()) {
      (void)control_.release();
      return;
    }
    // Without a word a session that may be resumed counts as lost, not as over.
    const std::array<std::byte, kGoodbyeBytes> goodbye{};
    if (socket_ && options_.reconnect_ms > 0) (void)send_message(socket_, goodbye);
  }

  const LocalWelcome& welcome() const override { return welcome_; }

  Result<Buffer> allocate(uint64_t bytes) override {
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

  Result<Buffer> allocate_once(uint64_t bytes) override {
    if (forked()) return forked_error();
    if (bytes == 0) return fail(LocalFailure::kBadArgument, "a buffer of 0 bytes was asked for");
    auto segment = PayloadSegment::create(bytes, PayloadSegment::Kind::kOneOff);
    if (!segment) return fail(LocalFailure::kNoMemory, segment.message());
    return Buffer{areas_.add_one_off(++last_segment_, std::move(*segment), bytes)};
  }

  void release(Buffer buffer) override {
    if (!forked()) areas_.release(buffer.bytes.data());
  }

  Result<uint32_t> submit(Request request, std::vector<PlacedPart> placed) override {
    if (forked()) return forked_error();
    if (gone_) return gone_error();
    if (lost()) return lost_error();
    if (free_slots_.empty())
      return fail(LocalFailure::kBusy, "too many requests in flight: the daemon allows " +
                                           std::to_string(slots_.size()));
    if (request.id.empty()) request.id = new_request_id();
    const size_t given = placed.size();
    Result<void> moved = place_large_parts(request, placed);
    Result<uint32_t> handle = moved ? post(request, placed) : Result<uint32_t>(moved.error());
    if (!handle) {
      // What the caller placed stays the caller's.
      for (size_t i = given; i < placed.size(); ++i) release(placed[i].buffer);
    }
    return handle;
  }

  Result<std::optional<std::pair<uint32_t, Event>>> next(int timeout_ms) override {
    if (forked()) return forked_error();
    auto event = take_next(timeout_ms);
    if (events_) rearm();
    return event;
  }

  Result<int> event_fd() override {
    if (forked()) return forked_error();
    if (!events_) {
      events_ = UniqueFd(epoll_create1(EPOLL_CLOEXEC));
      retry_ = UniqueFd(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
      if (!events_ || !retry_ || !watch(my_bell_->fd()) || !watch(retry_.get()) ||
          (socket_ && !watch(socket_.get()))) {
        events_.reset();
        return fail(LocalFailure::kNoMemory,
                    std::string("the event descriptor: ") + std::strerror(errno));
      }
      rearm();
    }
    return events_.get();
  }

  void cancel(uint32_t handle) override {
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

 private:
  static constexpr uint32_t kHandleSlots = kSlotCountMax;

  Result<std::optional<std::pair<uint32_t, Event>>> take_next(int timeout_ms) {
    const int64_t deadline_ns = timeout_ms < 0 ? INT64_MAX : monotonic_ns() + timeout_ms * kNsPerMs;
    for (;;) {
      if (!ready_.empty()) return take_ready();
      if (lost()) {
        come_back(deadline_ns);
        if (lost() && monotonic_ns() >= deadline_ns)
          return std::optional<std::pair<uint32_t, Event>>();
        continue;
      }
      if (gone_) return gone_error();
      if (auto taken = take_records(); !taken) return taken.error();
      if (!ready_.empty()) return take_ready();
      const int64_t now_ns = monotonic_ns();
      if (now_ns < deadline_ns) {
        wait_for_events(deadline_ns);
      } else if (hung_up(now_ns)) {
        lose_daemon();
        if (lost()) come_back(deadline_ns);
        if (ready_.empty() && !gone_) return std::optional<std::pair<uint32_t, Event>>();
      } else {
        return std::optional<std::pair<uint32_t, Event>>();
      }
    }
  }

  // For those who never wait: a look at the socket, no more than one in kLookNs unless somebody
  // woke them.
  bool hung_up(int64_t now_ns) {
    if (!events_ && now_ns - looked_ns_ < kLookNs) return false;
    looked_ns_ = now_ns;
    pollfd entry{socket_.get(), POLLIN, 0};
    return ::poll(&entry, 1, 0) > 0;
  }

  bool watch(int fd) const {
    epoll_event event{};
    event.events = EPOLLIN;
    return epoll_ctl(events_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
  }

  // The event descriptor is readable exactly while there is something to take: by my own doing when
  // it is here already, else the daemon rings for the next record. While the session is lost, now
  // and then: it is time to try again.
  void rearm() {
    my_bell_->clear();
    itimerspec retry{};
    if (lost()) retry.it_value.tv_nsec = kReconnectPauseNs;
    timerfd_settime(retry_.get(), 0, &retry, nullptr);
    if (!ready_.empty() || gone_ || (!lost() && !complete_->prepare_wait())) my_bell_->ring();
  }

  struct Slot {
    RequestId id;  // empty: free
    uint32_t generation = 0;
    uint32_t handle = 0;
    SubmitRecord record{};   // as submitted, for the daemon's successor
    bool answering = false;  // a chunk of its answer was taken
    uint64_t taken = 0;      // events of its answer
    uint64_t to_skip = 0;    // of those, how many come again
    std::vector<Buffer> buffers;
  };

  explicit MappedClient(const LocalClientOptions& options) : options_(options) {}

  bool forked() const { return fork_depth() != fork_depth_; }

  // Copies bytes into a buffer of their own when they are many. True: they were.
  Result<bool> place_large(ByteView bytes, PlacedPart part, std::vector<PlacedPart>& placed) {
    if (bytes.size() <= kInlineBytesMax) return false;
    Result<Buffer> buffer = allocate(bytes.size());
    if (!buffer) return buffer.error();
    std::memcpy(buffer->bytes.data(), bytes.data(), bytes.size());
    part.buffer = *buffer;
    placed.push_back(part);
    return true;
  }

  Result<void> place_large_parts(Request& request, std::vector<PlacedPart>& placed) {
    for (uint32_t m = 0; m < request.messages.size(); ++m) {
      for (uint32_t p = 0; p < request.messages[m].parts.size(); ++p) {
        ContentPart& part = request.messages[m].parts[p];
        const Result<bool> moved = place_large(part_bytes(part), {m, p, {}}, placed);
        if (!moved) return moved.error();
        if (!*moved) continue;
        part.text.clear();
        part.bytes = {};
      }
    }
    for (uint32_t i = 0; i < request.prompts.size(); ++i) {
      const Result<bool> moved =
          place_large(as_bytes_view(request.prompts[i]), {i, 0, {}, SpanTarget::kPrompt}, placed);
      if (!moved) return moved.error();
      if (*moved) request.prompts[i].clear();
    }
    for (uint32_t i = 0; i < request.prompt_ids.size(); ++i) {
      const Result<bool> moved = place_large(std::as_bytes(std::span(request.prompt_ids[i])),
                                             {i, 0, {}, SpanTarget::kPromptIds}, placed);
      if (!moved) return moved.error();
      if (*moved) request.prompt_ids[i].clear();
    }
    for (uint32_t i = 0; i < request.prompt_parts.size(); ++i) {
      PromptPart& part = request.prompt_parts[i];
      const Result<bool> moved =
          place_large(part_bytes(part), {i, 0, {}, SpanTarget::kPromptPart}, placed);
      if (!moved) return moved.error();
      if (!*moved) continue;
      part.text.clear();
      part.ids.clear();
      part.rows.bytes = {};
    }
    if (placed.size() > kSpanCountMax) {
      return fail(LocalFailure::kTooLarge, "a request with " + std::to_string(placed.size()) +
                                               " large parts, allowed are " +
                                               std::to_string(kSpanCountMax));
    }
    return mark_placed(request, placed);
  }

  // An image whose bytes lie elsewhere carries one byte in their place.
  static Result<void> mark_placed(Request& request, const std::vector<PlacedPart>& placed) {
    for (const PlacedPart& part : placed) {
      bool known = false;
      if (part.target == SpanTarget::kPrompt) {
        known = part.index < request.prompts.size();
      } else if (part.target == SpanTarget::kPromptIds) {
        known = part.index < request.prompt_ids.size();
      } else if (part.target == SpanTarget::kPromptPart) {
        known = part.index < request.prompt_parts.size();
      } else {
        known = part.index < request.messages.size() &&
                part.part < request.messages[part.index].parts.size();
      }
      if (!known) {
        return fail(LocalFailure::kBadArgument,
                    "part " + std::to_string(part.part) + " of message or prompt " +
                        std::to_string(part.index) +
                        " is placed in a buffer, but the request has no such part");
      }
      if (part.target != SpanTarget::kPart) continue;
      ContentPart& target = request.messages[part.index].parts[part.part];
      if (target.kind == ContentPart::Kind::kImage) target.bytes = std::string(1, '\0');
    }
    return {};
  }

  // Adds a further segment with room for `bytes`: as large as what is there already if the daemon
  // allows it, else as large as it must be.
  Result<void> grow(uint64_t bytes) {
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

  Result<void> add_area(uint64_t bytes) {
    auto segment = PayloadSegment::create(bytes, PayloadSegment::Kind::kArea);
    if (!segment) return fail(LocalFailure::kNoMemory, segment.message());
    const uint32_t number = ++last_segment_;
    if (auto sent = send_segment(number, **segment); !sent) return sent;
    areas_.add(number, std::move(*segment));
    return {};
  }

  // Hands a segment over and waits for the daemon's answer, which is the only thing it ever says on
  // the socket after the handshake.
  Result<void> send_segment(uint32_t number, const PayloadSegment& segment) {
    const bool one_off = segment.kind() == PayloadSegment::Kind::kOneOff;
    if (auto sent = send_message(socket_, encode_handshake(LocalAddSegment{number, one_off}),
                                 {segment.fd()});
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

  // One-offs among the placed buffers become unchangeable and known to the daemon.
  Result<void> send_one_offs(const std::vector<PlacedPart>& placed) {
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

  // Writes frame and spans into the payload area, fills a slot and rings.
  Result<uint32_t> post(const Request& request, const std::vector<PlacedPart>& placed) {
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
      const PartSpan span{placed[i].index,  placed[i].part,
                          at.offset,        placed[i].buffer.bytes.size(),
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

  Result<void> take_records() {
    bool ring_daemon = false;
    for (;;) {
      Result<bool> got = complete_->pop(record_, ring_daemon);
      if (!got) return fail(LocalFailure::kGone, got.message());
      if (!*got) break;
      if (record_.kind == kEventRecord && record_.content.size() >= sizeof(EventHeader))
        take_event(record_);
    }
    if (ring_daemon) daemon_bell_->ring();
    return {};
  }

  void take_event(const Record& record) {
    const auto header = load_le<EventHeader>(record.content.data());
    if (header.slot >= slots_.size()) return;
    Slot& slot = slots_[header.slot];
    if (slot.id.empty() || slot.generation != header.generation) return;
    Result<PoolMessage> message = decode(ByteView(record.content).subspan(sizeof(EventHeader)));
    if (!message) return;
    std::optional<RequestEvents> events = to_events(std::move(message).value());
    if (!events) return;
    const uint32_t handle = slot.handle;
    for (Event& event : events->events) {
      const bool end = is_end(event);
      if (!end && slot.to_skip > 0) {
        --slot.to_skip;
        continue;
      }
      ++slot.taken;
      slot.answering = slot.answering || std::holds_alternative<TokenChunk>(event);
      ready_.emplace_back(handle, std::move(event));
      if (end) {
        free_slot(header.slot);
        return;
      }
    }
  }

  void free_slot(uint32_t index) {
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

  std::optional<std::pair<uint32_t, Event>> take_ready() {
    std::optional<std::pair<uint32_t, Event>> out(std::move(ready_.front()));
    ready_.pop_front();
    return out;
  }

  // Spins for a few microseconds, then sleeps on the doorbell and the socket's hang-up.
  void wait_for_events(int64_t deadline_ns) {
    const int64_t spin_until_ns = monotonic_ns() + kSpinNs;
    while (monotonic_ns() < spin_until_ns) {
      if (complete_->maybe_ready()) return;
    }
    if (!complete_->prepare_wait()) return;
    pollfd entries[2] = {{my_bell_->fd(), POLLIN, 0}, {socket_.get(), POLLIN, 0}};
    const int64_t left_ms = (deadline_ns - monotonic_ns()) / kNsPerMs + 1;
    const int timeout_ms =
        deadline_ns == INT64_MAX ? -1 : static_cast<int>(std::clamp<int64_t>(left_ms, 0, 1 << 30));
    if (::poll(entries, 2, timeout_ms) <= 0) return;
    if (entries[0].revents != 0) my_bell_->clear();
    if (entries[1].revents != 0) lose_daemon();
  }

  // The same daemon, when only the session was lost, goes on with everything. Its successor gets
  // what has not begun to answer; what has ends with a typed error, and so does everything when
  // nobody comes in time.
  void lose_daemon() {
    (void)take_records();
    socket_.reset();
    lost_until_ns_ = monotonic_ns() + std::max(options_.reconnect_ms, 0) * kNsPerMs;
    next_try_ns_ = 0;
    if (options_.reconnect_ms <= 0) give_up();
  }

  bool lost() const { return lost_until_ns_ != 0; }

  void give_up() {
    lost_until_ns_ = 0;
    returning_.reset();
    gone_ = true;
    for (uint32_t index = 0; index < slots_.size(); ++index) end_lost(index);
  }

  // Tries to reconnect until `deadline_ns` (past: a look, which waits for nobody), a step at a
  // time: connect and say hello, hear the welcome, hand over again what is in flight.
  void come_back(int64_t deadline_ns) {
    do {
      const int64_t now_ns = monotonic_ns();
      if (now_ns >= lost_until_ns_) return give_up();
      const int64_t until_ns = std::min(deadline_ns, lost_until_ns_);
      if (!returning_) {
        if (now_ns < next_try_ns_) {
          const int64_t pause_ns = std::min(next_try_ns_, until_ns) - now_ns;
          if (pause_ns > 0) std::this_thread::sleep_for(std::chrono::nanoseconds(pause_ns));
          continue;
        }
        next_try_ns_ = now_ns + kReconnectPauseNs;
        if (!begin_return()) continue;
      }
      const int64_t wait_ms = (until_ns - now_ns + kNsPerMs - 1) / kNsPerMs;
      Result<LocalWelcome> welcome =
          hear_welcome(options_, returning_,
                       static_cast<int>(std::clamp<int64_t>(wait_ms, 0, kHandshakeTimeoutMs)));
      if (welcome) {
        if (finish_return(std::move(*welcome))) lost_until_ns_ = 0;
      } else if (welcome.kind() != static_cast<int>(LocalFailure::kTimeout)) {
        returning_.reset();
      }
    } while (lost() && monotonic_ns() < deadline_ns);
  }

  void end_lost(uint32_t index) {
    if (slots_[index].id.empty()) return;
    ready_.emplace_back(
        slots_[index].handle,
        error_of(ErrorCode::kNodeLost, "the edge daemon went away before the answer was complete"));
    free_slot(index);
  }

  // The same memory for the next daemon. The old one has given it up (its end of the socket is
  // shut), so the rings begin anew before the new one can see them; payloads stay where they are.
  bool begin_return() {
    new (segment_->submit_ring().indices) RingIndices{};
    new (segment_->complete_ring().indices) RingIndices{};
    submit_.emplace(segment_->submit_ring());
    complete_.emplace(segment_->complete_ring());
    Result<UniqueFd> socket =
        say_hello(options_, {segment_->fd(), my_bell_->fd(), daemon_bell_->fd()});
    if (socket) returning_ = std::move(*socket);
    return socket.ok();
  }

  bool finish_return(LocalWelcome welcome) {
    const bool same_daemon = welcome.boot_epoch == welcome_.boot_epoch;
    socket_ = std::move(returning_);
    if (events_) (void)watch(socket_.get());
    {
      const std::lock_guard lock(cancel_mutex_);
      welcome_ = std::move(welcome);
      control_.reset();
    }
    const Result<void> known =
        areas_.send_again([this](uint32_t number, const PayloadSegment& segment) {
          return send_segment(number, segment);
        });
    if (!known) {  // lost again at once
      socket_.reset();
      return false;
    }
    for (uint32_t index = 0; index < slots_.size(); ++index) {
      Slot& slot = slots_[index];
      if (slot.id.empty()) continue;
      if (!same_daemon) slot.taken = 0;
      slot.to_skip = slot.taken;
      if ((slot.answering && !same_daemon) || !submit_again(index)) end_lost(index);
    }
    return true;
  }

  // Under a new generation: what the old daemon may still have written is not this request's.
  bool submit_again(uint32_t index) {
    Slot& slot = slots_[index];
    slot.record.generation = ++slot.generation;
    segment_->slot(index).word.store(slot_word(slot.generation, SlotPhase::kFilled),
                                     std::memory_order_release);
    const PushOutcome outcome =
        submit_->push(kSubmitRecord, std::as_bytes(std::span(&slot.record, 1)));
    if (outcome == PushOutcome::kPushedRing) daemon_bell_->ring();
    return outcome == PushOutcome::kPushed || outcome == PushOutcome::kPushedRing;
  }

  const LocalClientOptions options_;
  const uint32_t fork_depth_ = fork_depth();
  UniqueFd socket_;
  LocalWelcome welcome_;
  std::unique_ptr<Segment> segment_;
  std::optional<Doorbell> my_bell_;
  std::optional<Doorbell> daemon_bell_;
  // None before event_fd(): the doorbell, the socket and the timer of a lost session behind one
  // descriptor.
  UniqueFd events_;
  UniqueFd retry_;
  // A lost session: until when it may come back (0: not lost), when to try again, and the socket on
  // which a daemon's welcome is awaited.
  int64_t lost_until_ns_ = 0;
  int64_t next_try_ns_ = 0;
  UniqueFd returning_;
  int64_t looked_ns_ = 0;  // when hung_up() looked last

  // What cancel() needs, from whichever thread it comes. The session's own thread writes all of it,
  // and reads welcome_ without the lock.
  std::mutex cancel_mutex_;
  struct Cancellable {
    uint32_t handle = 0;
    RequestId id;  // empty: over
  };
  std::vector<Cancellable> cancellable_;    // by slot
  std::unique_ptr<ControlDialer> control_;  // none before the first cancel
  Record record_;                           // its buffer is reused
  std::optional<RingProducer> submit_;
  std::optional<RingConsumer> complete_;
  PayloadAreas areas_;
  uint32_t last_segment_ = 0;  // the number of the newest further one
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_slots_;
  std::deque<std::pair<uint32_t, Event>> ready_;
  bool gone_ = false;
};

// For clients that cannot map memory: whole requests as messages.
class UnmappedClient final : public LocalClient {
 public:
  static Result<std::unique_ptr<LocalClient>> connect(const LocalClientOptions& options) {
    Result<Handshaken> shaken = shake_hands(options, {});
    if (!shaken) return shaken.error();
    Result<std::unique_ptr<ControlDialer>> control =
        ControlDialer::connect(shaken->welcome.control_endpoint, shaken->welcome.session_token);
    if (!control) return control.error();
    return std::unique_ptr<LocalClient>(
        new UnmappedClient(std::move(*shaken), std::move(control).value()));
  }

  const LocalWelcome& welcome() const override { return shaken_.welcome; }
  Result<Buffer> allocate(uint64_t) override { return no_memory_here(); }
  Result<Buffer> allocate_once(uint64_t) override { return no_memory_here(); }
  void release(Buffer) override {}

  Result<uint32_t> submit(Request request, std::vector<PlacedPart> placed) override {
    if (!placed.empty()) return no_memory_here();
    if (gone_) return gone_error();
    if (handles_.size() >= kUnmappedRequestsMax)
      return fail(LocalFailure::kBusy, "too many requests in flight");
    if (request.id.empty()) request.id = new_request_id();
    const RequestId id = request.id;
    if (!control_->send(encode(Submit{std::move(request), 1, 0})))
      return fail(LocalFailure::kBusy, "the control channel is full");
    handles_[id] = ++last_handle_;
    return last_handle_;
  }

  Result<std::optional<std::pair<uint32_t, Event>>> next(int timeout_ms) override {
    const int64_t deadline_ns = timeout_ms < 0 ? INT64_MAX : monotonic_ns() + timeout_ms * kNsPerMs;
    while (ready_.empty()) {
      const int64_t left_ms = (deadline_ns - monotonic_ns()) / kNsPerMs;
      if (left_ms < 0) return std::optional<std::pair<uint32_t, Event>>();
      if (gone_) return gone_error();
      send_cancels();
      // The daemon's death shows on the socket, not on the control channel.
      const std::vector<std::byte> frame =
          control_->receive(static_cast<int>(std::clamp<int64_t>(left_ms, 0, 200)));
      if (!frame.empty()) {
        take_frame(frame);
        continue;
      }
      Result<SocketMessage> alive = receive_message(shaken_.socket, 0);
      if (!alive || alive->hung_up) {
        gone_ = true;
        return gone_error();
      }
      if (left_ms == 0) return std::optional<std::pair<uint32_t, Event>>();
    }
    std::optional<std::pair<uint32_t, Event>> out(std::move(ready_.front()));
    ready_.pop_front();
    return out;
  }

  Result<int> event_fd() override {
    return fail(LocalFailure::kNoRoom,
                "a session without shared memory has no event descriptor: wait in next()");
  }

  // The control channel belongs to the session's thread: next() sends it.
  void cancel(uint32_t handle) override {
    const std::lock_guard lock(cancel_mutex_);
    to_cancel_.push_back(handle);
  }

 private:
  void send_cancels() {
    std::vector<uint32_t> handles;
    {
      const std::lock_guard lock(cancel_mutex_);
      handles.swap(to_cancel_);
    }
    for (const uint32_t handle : handles) {
      for (const auto& [id, known] : handles_) {
        if (known == handle) (void)control_->send(encode(Cancel{id, 1}));
      }
    }
  }

  UnmappedClient(Handshaken shaken, std::unique_ptr<ControlDialer> control)
      : shaken_(std::move(shaken)), control_(std::move(control)) {}

  void take_frame(const std::vector<std::byte>& frame) {
    Result<PoolMessage> message = decode(frame);
    if (!message) return;
    std::optional<RequestEvents> events = to_events(std::move(message).value());
    if (!events) return;
    const auto it = handles_.find(events->id);
    if (it == handles_.end()) return;
    const uint32_t handle = it->second;
    for (Event& event : events->events) {
      if (is_end(event)) handles_.erase(events->id);
      ready_.emplace_back(handle, std::move(event));
    }
  }

  Handshaken shaken_;
  std::unique_ptr<ControlDialer> control_;
  std::mutex cancel_mutex_;  // guards to_cancel_
  std::vector<uint32_t> to_cancel_;
  bool gone_ = false;
  std::map<RequestId, uint32_t> handles_;
  uint32_t last_handle_ = 0;
  std::deque<std::pair<uint32_t, Event>> ready_;
};

}  // namespace

std::string default_local_socket() {
  if (const char* runtime = std::getenv("XDG_RUNTIME_DIR");
      runtime != nullptr && runtime[0] == '/') {
    return std::string(runtime) + "/updraft/edge.sock";
  }
  return "/tmp/updraft-" + std::to_string(getuid()) + "/edge.sock";
}

Result<std::unique_ptr<LocalClient>> LocalClient::connect(const LocalClientOptions& options) {
  return options.map_memory ? MappedClient::connect(options) : UnmappedClient::connect(options);
}

}  // namespace updraft
