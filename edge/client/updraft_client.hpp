// Updraft's client library for C++20, header only, over the C ABI (updraft_client.h; link
// libupdraft_client).
//
//   auto session = updraft::client::Session::connect();
//   if (!session) { puts(session.error().text.c_str()); return 1; }
//   updraft::client::Chat chat;
//   chat.user("Go back.").max_tokens(40);
//   auto stream = session->submit(chat);
//   while (auto piece = stream->next()) std::cout << piece->text;      // or: stream->each([](auto&
//   piece) {...}) if (!stream->end()) ...stream->end().error()
//
// Nothing throws unless asked: a Result holds a value or an Error, and value() of a failed one
// throws updraft::client::Failure.
//
// Threads: a session and its streams, requests and buffers belong to one thread at a time, but for
// Stream::cancel(), which any thread may call while stream and session live. Streams
// must not outlive their session (they hold its shared state, so that they merely fail when they
// do).
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "updraft_client.h"

namespace updraft::client {

// Why something failed. Calls carry a status; requests that the daemon could not serve carry code
// and the fields after it.
struct Error {
  int status = UPDRAFT_OK;  // enum updraft_status
  std::string text;         // one sentence
  std::string code;         // "context_length_exceeded", ...; empty: the call itself failed
  std::string param;
  int32_t http_status = 0;
  int32_t retry_after_ms = 0;
};

class Failure : public std::runtime_error {
 public:
  explicit Failure(Error error) : std::runtime_error(error.text), error_(std::move(error)) {}
  const Error& error() const { return error_; }

 private:
  Error error_;
};

// Like std::expected<T, Error>, which C++20 does not have yet.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::move(value)) {}      // NOLINT: implicit on purpose
  Result(Error error) : state_(std::move(error)) {}  // NOLINT: implicit on purpose
  explicit operator bool() const { return state_.index() == 0; }
  bool has_value() const { return state_.index() == 0; }
  T& operator*() & { return std::get<0>(state_); }
  T* operator->() { return &std::get<0>(state_); }
  T&& operator*() && { return std::move(std::get<0>(state_)); }
  const Error& error() const { return std::get<1>(state_); }
  // The exception that is asked for.
  T& value() & {
    if (!has_value()) throw Failure(error());
    return std::get<0>(state_);
  }
  T&& value() && { return std::move(value()); }

 private:
  std::variant<T, Error> state_;
};

inline Error last_error(int status) {
  Error error;
  error.status = status;
  error.text = updraft_error_text();
  return error;
}

// New text of one choice, with its token ids.
struct Piece {
  int32_t choice = 0;
  std::string text;
  std::vector<int32_t> ids;
  std::vector<float> logprobs;           // of the ids, when asked for
  int32_t finish = UPDRAFT_FINISH_NONE;  // enum updraft_finish; set on the choice's last piece
};

// How an answer ended well.
struct Finish {
  int32_t prompt_tokens = 0;
  int32_t completion_tokens = 0;
  int32_t cached_tokens = 0;
  int64_t first_token_ns = 0;
  int64_t total_ns = 0;
};

struct Place {
  std::string node;
  std::string model;
  std::string decision;
  int32_t tier = UPDRAFT_TIER_ANY;
};

namespace detail {

// What is known of one request and not yet taken by its stream.
struct Inbox {
  std::deque<Piece> pieces;
  std::optional<Result<Finish>> end;
  Place place;
};

struct Core {
  ~Core() { close(); }
  void close() {
    updraft_close(session);
    session = nullptr;
  }
  // Takes one event into the inbox it belongs to. False: none within timeout_ms, or the session is
  // lost.
  bool pump(int timeout_ms) {
    const updraft_event* event = nullptr;
    const int got =
        session == nullptr ? UPDRAFT_ERR_LOST : updraft_next(session, timeout_ms, &event);
    if (got < 0) {
      Error error = last_error(got);
      if (session == nullptr) error.text = "the session is closed";
      for (auto& [id, inbox] : inboxes) {
        if (!inbox->end) inbox->end.emplace(error);
      }
      inboxes.clear();
      return false;
    }
    if (got == 0) return false;
    const auto found = inboxes.find(event->request);
    if (found == inboxes.end()) return true;  // its stream was dropped
    Inbox& inbox = *found->second;
    if (event->kind == UPDRAFT_STARTED) {
      inbox.place = {event->node, event->model, event->decision, event->tier};
    } else if (event->kind == UPDRAFT_TOKENS) {
      Piece piece{event->choice,
                  {event->text, event->text_bytes},
                  {event->ids, event->ids + event->id_count},
                  {},
                  event->finish};
      for (uint64_t i = 0; i < event->logprob_count; ++i)
        piece.logprobs.push_back(event->logprobs[i].chosen.logprob);
      inbox.pieces.push_back(std::move(piece));
    } else if (event->kind == UPDRAFT_FINISHED) {
      inbox.end.emplace(Finish{event->prompt_tokens, event->completion_tokens, event->cached_tokens,
                               event->first_token_ns, event->total_ns});
      inboxes.erase(found);
    } else {
      Error error;
      error.text = event->message;
      error.code = event->error_code;
      error.param = event->param;
      error.http_status = event->http_status;
      error.retry_after_ms = event->retry_after_ms;
      inbox.end.emplace(std::move(error));
      inboxes.erase(found);
    }
    return true;
  }

  updraft_session* session = nullptr;
  std::map<uint64_t, std::shared_ptr<Inbox>> inboxes;  // of requests that have not ended
};

}  // namespace detail

// A piece of the session's shared memory to write a text or an image into. Freed with the object
// unless it was submitted; then bytes() is empty.
class Buffer {
 public:
  std::span<std::byte> bytes() const { return piece_->bytes; }

 private:
  friend class Session;
  friend class RequestBase;
  struct Piece {
    Piece(std::shared_ptr<detail::Core> owner, std::span<std::byte> place)
        : core(std::move(owner)), bytes(place) {}
    Piece(const Piece&) = delete;
    Piece& operator=(const Piece&) = delete;
    ~Piece() {
      if (!bytes.empty() && core->session != nullptr)
        (void)updraft_release(core->session, bytes.data());
    }
    std::shared_ptr<detail::Core> core;
    std::span<std::byte> bytes;
  };
  explicit Buffer(std::shared_ptr<Piece> piece) : piece_(std::move(piece)) {}
  std::shared_ptr<Piece> piece_;
};

// What requests of both kinds share. Texts given as string views are borrowed until submit() has
// returned, like all parts of a request.
class RequestBase {
 public:
  // The first setting that was refused, if any; submit() answers it.
  const std::optional<Error>& refused() const { return refused_; }
  const updraft_request* get() const { return request_.get(); }

 protected:
  explicit RequestBase(int kind) : request_(updraft_request_new(kind)) {}
  void take(int status) {
    if (status != UPDRAFT_OK && !refused_) refused_ = last_error(status);
  }
  updraft_request* raw() { return request_.get(); }
  void place(const Buffer& buffer) { placed_.push_back(buffer.piece_); }

 private:
  friend class Session;
  // The session has taken the pieces.
  void forget_placed() const {
    for (const auto& piece : placed_) piece->bytes = {};
  }
  struct Free {
    void operator()(updraft_request* request) const { updraft_request_free(request); }
  };
  std::unique_ptr<updraft_request, Free> request_;
  std::vector<std::shared_ptr<Buffer::Piece>> placed_;
  std::optional<Error> refused_;
};

template <typename Self>
class Settings : public RequestBase {
 public:
  // By the names of updraft_client.h, for what has no method here.
  Self& text_setting(const char* name, const std::string& value) {
    take(updraft_request_set_text(raw(), name, value.c_str()));
    return self();
  }
  Self& integer(const char* name, int64_t value) {
    take(updraft_request_set_integer(raw(), name, value));
    return self();
  }
  Self& number(const char* name, double value) {
    take(updraft_request_set_number(raw(), name, value));
    return self();
  }
  Self& model(const std::string& name) { return text_setting("model", name); }
  Self& max_tokens(int32_t count) { return integer("max_tokens", count); }
  Self& seed(uint64_t value) { return integer("seed", static_cast<int64_t>(value)); }
  Self& temperature(double value) { return number("temperature", value); }
  Self& top_p(double value) { return number("top_p", value); }
  Self& stop(std::string_view text) {
    take(updraft_request_add_stop(raw(), text.data(), text.size()));
    return self();
  }

 protected:
  using RequestBase::RequestBase;

 private:
  Self& self() { return static_cast<Self&>(*this); }
};

class Chat : public Settings<Chat> {
 public:
  Chat() : Settings(UPDRAFT_CHAT) {}
  Chat& message(const char* role) {
    take(updraft_request_add_message(raw(), role));
    return *this;
  }
  Chat& text(std::string_view text) {
    take(updraft_request_add_text(raw(), text.data(), text.size()));
    return *this;
  }
  Chat& image(const char* mime, std::span<const std::byte> file) {
    take(updraft_request_add_image(raw(), mime, file.data(), file.size()));
    return *this;
  }
  // What was written into the buffer, in place.
  Chat& text(Buffer& buffer, size_t bytes) {
    place(buffer);
    take(updraft_request_add_placed_text(raw(), buffer.bytes().data(), bytes));
    return *this;
  }
  Chat& image(const char* mime, Buffer& buffer, size_t bytes) {
    place(buffer);
    take(updraft_request_add_placed_image(raw(), mime, buffer.bytes().data(), bytes));
    return *this;
  }
  Chat& system(std::string_view what) { return message("system").text(what); }
  Chat& user(std::string_view what) { return message("user").text(what); }
  Chat& assistant(std::string_view what) { return message("assistant").text(what); }
};

class Completion : public Settings<Completion> {
 public:
  explicit Completion(std::string_view prompt) : Settings(UPDRAFT_COMPLETION) {
    take(updraft_request_add_prompt(raw(), prompt.data(), prompt.size()));
  }
  explicit Completion(std::span<const int32_t> ids) : Settings(UPDRAFT_COMPLETION) {
    take(updraft_request_add_prompt_ids(raw(), ids.data(), ids.size()));
  }
  // A text of `bytes` bytes that was written into the buffer, or ids, in place.
  Completion(Buffer& buffer, size_t bytes) : Settings(UPDRAFT_COMPLETION) {
    place(buffer);
    take(updraft_request_add_placed_prompt(raw(), buffer.bytes().data(), bytes));
  }
  static Completion of_ids(Buffer& buffer, size_t id_count) {
    Completion out;
    out.place(buffer);
    out.take(updraft_request_add_placed_prompt_ids(
        out.raw(), reinterpret_cast<int32_t*>(buffer.bytes().data()), id_count));
    return out;
  }

  // One prompt made of the parts that are added to it, in their order.
  static Completion of_parts() { return {}; }
  Completion& text(std::string_view text) {
    take(updraft_request_add_part_text(raw(), text.data(), text.size()));
    return *this;
  }
  Completion& ids(std::span<const int32_t> ids) {
    take(updraft_request_add_part_ids(raw(), ids.data(), ids.size()));
    return *this;
  }
  // Rows of `dim` values of input embeddings: as many as there are, borrowed; or `row_count` of any
  // type (enum updraft_embedding_type) that were written into the buffer, in place.
  Completion& embeddings(std::span<const float> rows, size_t dim) {
    take(updraft_request_add_part_embeddings(raw(), UPDRAFT_F32, rows.data(),
                                             dim == 0 ? 0 : rows.size() / dim, dim));
    return *this;
  }
  Completion& embeddings(Buffer& buffer, size_t row_count, size_t dim, int type = UPDRAFT_F32) {
    place(buffer);
    take(updraft_request_add_placed_part_embeddings(raw(), type, buffer.bytes().data(), row_count,
                                                    dim));
    return *this;
  }

 private:
  Completion() : Settings(UPDRAFT_COMPLETION) {}
};

// An answer on its way. Dropping it cancels the request.
class Stream {
 public:
  Stream(Stream&&) = default;
  Stream& operator=(Stream&& other) noexcept {
    std::swap(core_, other.core_);
    std::swap(inbox_, other.inbox_);
    std::swap(id_, other.id_);
    return *this;
  }
  ~Stream() {
    if (!inbox_ || inbox_->end || !core_ || core_->session == nullptr) return;
    cancel();
    core_->inboxes.erase(id_);
  }

  // The next piece; nothing once the answer has ended: then end() says how. With a timeout (ms)
  // nothing also means that it is over.
  std::optional<Piece> next(int timeout_ms = -1) {
    while (inbox_->pieces.empty() && !inbox_->end) {
      if (!core_->pump(timeout_ms) && timeout_ms >= 0) break;
    }
    if (inbox_->pieces.empty()) return std::nullopt;
    Piece piece = std::move(inbox_->pieces.front());
    inbox_->pieces.pop_front();
    return piece;
  }
  bool ended() const { return inbox_->end.has_value() && inbox_->pieces.empty(); }
  // Waits for the end; pieces that come meanwhile stay for next().
  Result<Finish> end() {
    while (!inbox_->end) core_->pump(-1);
    return *inbox_->end;
  }
  // Calls on_piece(const Piece&) for each piece, then answers the end. A callback that returns
  // false cancels.
  template <typename Callback>
  Result<Finish> each(Callback&& on_piece) {
    while (std::optional<Piece> piece = next()) {
      if constexpr (std::is_same_v<decltype(on_piece(std::as_const(*piece))), bool>) {
        if (!on_piece(std::as_const(*piece))) cancel();
      } else {
        on_piece(std::as_const(*piece));
      }
    }
    return end();
  }
  // The text of choice 0 to its end.
  Result<std::string> text() {
    std::string out;
    Result<Finish> ended = each([&](const Piece& piece) {
      if (piece.choice == 0) out += piece.text;
    });
    if (!ended) return ended.error();
    return out;
  }
  void cancel() {
    if (core_->session != nullptr) (void)updraft_cancel(core_->session, id_);
  }
  // Where it runs; empty until it has started.
  const Place& place() const { return inbox_->place; }

 private:
  friend class Session;
  Stream(std::shared_ptr<detail::Core> core, std::shared_ptr<detail::Inbox> inbox, uint64_t id)
      : core_(std::move(core)), inbox_(std::move(inbox)), id_(id) {}
  std::shared_ptr<detail::Core> core_;
  std::shared_ptr<detail::Inbox> inbox_;
  uint64_t id_ = 0;
};

struct Options {
  std::string socket_path;  // empty: the user's own daemon
  std::string client_name = "client";
  uint64_t payload_bytes = 0;  // of shared memory for texts and images; 0: 8 MiB
  bool shared_memory = true;
  // 0 to 60000: how long a lost session tries to connect again; updraft_connect_reconnecting() says
  // what its requests may count on. While it tries, a stream's next() takes that long.
  int32_t reconnect_ms = 0;
};

class Session {
 public:
  static Result<Session> connect(const Options& options = {}) {
    auto core = std::make_shared<detail::Core>();
    const int status = updraft_connect_reconnecting(
        options.socket_path.empty() ? nullptr : options.socket_path.c_str(),
        options.client_name.c_str(), options.payload_bytes,
        options.shared_memory ? 0 : UPDRAFT_NO_SHARED_MEMORY, options.reconnect_ms, &core->session);
    if (status != UPDRAFT_OK) return last_error(status);
    return Session(std::move(core));
  }
  // Ends the session now; its streams end with an error. Also happens when the last of session,
  // streams and buffers goes.
  void close() {
    core_->close();
    (void)core_->pump(0);
  }

  std::vector<std::string> models() const {
    std::vector<std::string> out;
    for (uint32_t i = 0; i < updraft_model_count(core_->session); ++i)
      out.emplace_back(updraft_model_name(core_->session, i));
    return out;
  }
  // Values of one row of input embeddings of a model by its place in models(); 0: it takes none
  // here.
  int32_t embedding_dim(uint32_t model = 0) const {
    return updraft_model_embedding_dim(core_->session, model);
  }
  Result<Buffer> allocate(size_t bytes) { return allocated(updraft_allocate, bytes); }
  // In memory of its own that is sealed when it is submitted: for one large payload.
  Result<Buffer> allocate_once(size_t bytes) { return allocated(updraft_allocate_once, bytes); }
  Result<Stream> submit(const RequestBase& request) {
    if (request.refused()) return *request.refused();
    uint64_t id = 0;
    if (const int status = updraft_submit(core_->session, request.get(), &id); status != UPDRAFT_OK)
      return last_error(status);
    request.forget_placed();
    auto inbox = std::make_shared<detail::Inbox>();
    core_->inboxes.emplace(id, inbox);
    return Stream(core_, std::move(inbox), id);
  }
  // For poll, epoll or an event loop: readable while a stream's next(0) would have something to
  // take (updraft_fd).
  Result<int> fd() const {
    const int fd = updraft_fd(core_->session);
    if (fd < 0) return last_error(fd);
    return fd;
  }
  updraft_session* get() const { return core_->session; }

 private:
  explicit Session(std::shared_ptr<detail::Core> core) : core_(std::move(core)) {}
  Result<Buffer> allocated(int (*how)(updraft_session*, uint64_t, void**), size_t bytes) {
    void* data = nullptr;
    if (const int status = how(core_->session, bytes, &data); status != UPDRAFT_OK)
      return last_error(status);
    return Buffer(std::make_shared<Buffer::Piece>(
        core_, std::span<std::byte>(static_cast<std::byte*>(data), bytes)));
  }
  std::shared_ptr<detail::Core> core_;
};

}  // namespace updraft::client
