// A connection's bytes and time: reading, writing, time-outs, closing. What the bytes mean is in
// exchange.cpp.
//
// Reads and writes are attempted at once and waited for only when the kernel says "not now"; no
// buffer belongs to a waiting read. One lazy timer serves all time-outs: moving a deadline back
// costs nothing, it is looked at on firing.
#include "common/http/connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <new>

#include "common/base/clock.h"
#include "common/http/connection_answer.h"

namespace updraft {

namespace asio = boost::asio;
using boost::system::error_code;

namespace {

constexpr size_t kPipelinedBytesMax = 64 * 1024;  // of later requests while one is answered
constexpr size_t kLingerBytesMax = 32 * 1024 * 1024;
constexpr int64_t kLingerMs = 2000;
constexpr size_t kKeptCapacityBytes =
    4 * 1024;  // buffers of an idle connection give back what is larger

void give_back(std::string& buffer) {
  if (buffer.capacity() > kKeptCapacityBytes) std::string().swap(buffer);
}

}  // namespace

Connection::Connection(ServerState& server, asio::ip::tcp::socket socket)
    : server_(server), socket_(std::move(socket)), timer_(server.io) {
  error_code ignored;
  const auto peer = socket_.remote_endpoint(ignored);
  remote_ = peer.address().to_string(ignored) + ":" + std::to_string(peer.port());
  if (server_.tls != nullptr) tls_ = std::make_unique<TlsSession>(server_.tls);
  socket_.non_blocking(true, ignored);
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  // A client whose machine vanished while its answer was being made.
  const int on = 1, idle_s = 30, interval_s = 10, probes = 3;
  const int fd = socket_.native_handle();
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}

Connection::~Connection() = default;

void Connection::start() {
  // A handshake is part of the first request: a slow one cannot hold a slot for longer.
  const HttpLimits& limits = server_.config.limits;
  set_deadline(tls_ != nullptr ? std::min(limits.idle_timeout_ms, limits.request_read_timeout_ms)
                               : limits.idle_timeout_ms);
  arm_read();
}

void Connection::start_last() {
  refused_ = true;
  close_after_ = true;
  start();
}

void Connection::start_refusing() {
  refused_ = true;
  begin_exchange();
  close_after_ = true;
  respond_error(503,
                "too many connections; at most " +
                    std::to_string(server_.config.limits.connections_max) + " are served at once",
                "server_error", "overloaded", "Retry-After: 1\r\n");
}

void Connection::arm_read() {
  if (read_pending_ || peer_ended_ || state_ == State::kClosed) return;
  read_pending_ = true;
  socket_.async_wait(asio::socket_base::wait_read, [self = shared_from_this()](error_code ec) {
    self->read_pending_ = false;
    if (self->state_ == State::kClosed) return;
    if (ec) {
      self->close();
      return;
    }
    try {
      self->on_readable();
    } catch (const std::bad_alloc&) {
      self->close();  // this request was too much; the others go on
    }
  });
}

void Connection::on_readable() {
  error_code ec;
  const size_t read_bytes = socket_.read_some(asio::buffer(server_.scratch), ec);
  if (ec == asio::error::would_block) {
    arm_read();
    return;
  }
  if (ec) {
    peer_ended_ = true;
    on_peer_gone();
    return;
  }
  if (state_ == State::kLingering) {
    lingered_bytes_ += read_bytes;
    if (lingered_bytes_ > kLingerBytesMax) {
      close();
      return;
    }
  } else if (tls_ != nullptr) {
    if (!read_tls({server_.scratch.data(), read_bytes})) return;
  } else {
    in_.append(server_.scratch.data(), read_bytes);
    on_bytes();
  }
  arm_read();
}

// False: the connection has come to its end.
bool Connection::read_tls(std::string_view from_wire) {
  const bool is_first = !tls_->established() && wire_.empty();
  if (is_first && from_wire[0] >= 'A' && from_wire[0] <= 'Z') {
    // Plain HTTP: no handshake begins so. Said in the only way that this client understands.
    tls_.reset();
    begin_exchange();
    close_after_ = true;
    respond_error(400, "this port speaks HTTPS, not plain HTTP", "invalid_request_error", "");
    return state_ != State::kClosed;
  }
  const size_t before_bytes = in_.size();
  const TlsSession::State tls_state = tls_->receive(from_wire, in_, wire_);
  if (tls_state == TlsSession::State::kBroken) {
    server_.metrics
        .counter("updraft_http_tls_failures_total",
                 "Connections ended by a failed handshake or damaged bytes.")
        .add();
    error_code ignored;
    socket_.write_some(asio::buffer(wire_), ignored);  // the alert that says why, if it goes
    on_peer_gone();
    return false;
  }
  flush();
  if (state_ == State::kClosed) return false;
  if (in_.size() > before_bytes) on_bytes();
  if (tls_state == TlsSession::State::kEnded && state_ != State::kClosed) {
    peer_ended_ = true;
    on_peer_gone();
  }
  return state_ != State::kClosed;
}

void Connection::on_bytes() {
  switch (state_) {
    case State::kIdle:
      state_ = State::kHead;
      set_deadline(server_.config.limits.request_read_timeout_ms);
      reader_ = std::make_unique<RequestReader>(server_.config.limits);
      read_request();
      return;
    case State::kHead:
    case State::kBody:
      read_request();
      return;
    case State::kAnswering:
      if (in_.size() > kPipelinedBytesMax)
        on_peer_gone();  // floods instead of waiting for its answer
      return;
    case State::kLingering:
    case State::kClosed:
      return;
  }
}

void Connection::read_request() {
  while (state_ == State::kHead || state_ == State::kBody) {
    const RequestReader::Progress progress = reader_->read(in_);
    account_body();
    switch (progress) {
      case RequestReader::Progress::kNeedMore:
        if (server_.body_bytes > server_.config.limits.bodies_bytes_max) {
          close_after_ = true;
          respond_error(503, "too many request bodies are being received at once", "server_error",
                        "overloaded", "Retry-After: 1\r\n");
        }
        return;
      case RequestReader::Progress::kHead:
        state_ = State::kBody;
        on_head();
        break;
      case RequestReader::Progress::kDone:
        on_body();
        return;
      case RequestReader::Progress::kFault:
        on_fault();
        return;
    }
  }
}

// Keeps the server's sum of unparsed body bytes in step with this connection's part of it.
void Connection::account_body() {
  const size_t now_bytes = reader_ == nullptr ? 0 : reader_->body_bytes();
  server_.body_bytes += now_bytes - accounted_bytes_;
  accounted_bytes_ = now_bytes;
}

// Called when the peer sends nothing any more (peer_ended_) or the connection is of no use.
void Connection::on_peer_gone() {
  // A client may close its sending side and still wait for what is on the way; it may not do so and
  // let us compute.
  if (peer_ended_ && state_ == State::kAnswering && answered_) {
    close_after_ = true;
    return;
  }
  if (exchange_open_ && state_ == State::kAnswering) finish_exchange(499);
  close();
}

void Connection::next_request() {
  if (in_.empty()) give_back(in_);
  give_back(out_);
  answered_ = false;
  if (server_.draining || peer_ended_) {
    close();
    return;
  }
  state_ = State::kIdle;
  set_deadline(server_.config.limits.idle_timeout_ms);
  if (in_.empty()) {
    arm_read();
    return;
  }
  // Pipelined: through the queue, so that a long row of requests neither nests nor starves other
  // connections.
  asio::post(server_.io, [self = shared_from_this()] {
    if (self->state_ != State::kIdle) return;
    self->on_bytes();
    self->arm_read();
  });
}

void Connection::flush() {
  if (write_pending_ || state_ == State::kClosed) return;
  if (out_.empty() && wire_.empty()) return;
  while (out_sent_ < out_.size() || !wire_.empty()) {
    error_code ec;
    out_sent_ += write_some(ec);
    if (ec == asio::error::would_block) {
      // What is sent goes once it is worth the move, so that a slow reader of a long stream costs
      // no more than its cap.
      if (out_sent_ > out_.size() / 2) {
        out_.erase(0, out_sent_);
        out_sent_ = 0;
      }
      arm_write();
      return;
    }
    if (ec) {
      if (exchange_open_) finish_exchange(499);
      close();
      return;
    }
  }
  out_.clear();
  out_sent_ = 0;
  last_sent_ns_ = monotonic_ns();
  on_flushed();
}

// One step of sending; returns how much of out_ needs no more care.
size_t Connection::write_some(error_code& ec) {
  const std::string_view plain = std::string_view(out_).substr(out_sent_);
  if (tls_ == nullptr) return socket_.write_some(asio::buffer(plain.data(), plain.size()), ec);
  size_t taken = 0;
  if (wire_.empty()) {
    taken = tls_->send(plain, wire_);
    if (taken == 0) {  // an answer before the handshake: there is nobody to read it
      ec = asio::error::not_connected;
      return 0;
    }
  }
  const size_t sent_bytes = socket_.write_some(asio::buffer(wire_), ec);
  if (sent_bytes == wire_.size()) {
    wire_.clear();
    give_back(wire_);
  } else {
    wire_.erase(0, sent_bytes);
  }
  return taken;
}

void Connection::arm_write() {
  write_pending_ = true;
  set_deadline(server_.config.limits.write_stall_timeout_ms);
  socket_.async_wait(asio::socket_base::wait_write, [self = shared_from_this()](error_code ec) {
    self->write_pending_ = false;
    if (self->state_ == State::kClosed) return;
    if (ec) {
      self->close();
      return;
    }
    self->flush();
  });
}

void Connection::on_flushed() {
  if (state_ != State::kAnswering) return;
  if (!answered_) {
    set_deadline(answer_ != nullptr && answer_->streaming ? server_.config.limits.sse_keepalive_ms
                                                          : 0);
    return;
  }
  finish_exchange(record_.status);
  if (close_after_) {
    linger();
  } else {
    next_request();
  }
}

// Closing while unread bytes are in the socket would reset the connection and could take the answer
// away from the client; so the rest of what it sends is read and thrown away for a moment.
void Connection::linger() {
  error_code ignored;
  if (tls_ != nullptr) {
    tls_->end(wire_);
    socket_.write_some(asio::buffer(wire_), ignored);  // a few bytes into an empty buffer
    wire_.clear();
  }
  socket_.shutdown(asio::socket_base::shutdown_send, ignored);
  if (peer_ended_) {
    close();
    return;
  }
  state_ = State::kLingering;
  std::string().swap(in_);
  set_deadline(kLingerMs);
  arm_read();
}

void Connection::close() {
  if (state_ == State::kClosed) return;
  const auto self = shared_from_this();
  leave_answer(true);
  state_ = State::kClosed;
  reader_.reset();
  account_body();
  error_code ignored;
  timer_.cancel(ignored);
  socket_.close(ignored);
  server_.remove(this, refused_);
}

void Connection::drain() {
  if (state_ == State::kIdle || (state_ == State::kHead && in_.empty())) {
    close();
  } else {
    close_after_ = true;
  }
}

void Connection::abort() {
  const auto self = shared_from_this();
  if (state_ == State::kAnswering && !answered_) {
    close_after_ = true;
    RequestError error;
    error.code = ErrorCode::kOverloaded;
    error.message = "the server is going down";
    error.retry_after_ms = 1000;
    server_.service->cancel(answer_->id);
    on_event(error);
    flush();
  }
  close();
}

void Connection::set_deadline(int64_t in_ms) {
  if (in_ms <= 0) {
    deadline_ns_ = 0;
    return;
  }
  deadline_ns_ = monotonic_ns() + in_ms * kNsPerMs;
  if (timer_at_ns_ == 0 || timer_at_ns_ > deadline_ns_) arm_timer();
}

void Connection::arm_timer() {
  timer_at_ns_ = deadline_ns_;
  timer_.expires_after(
      std::chrono::nanoseconds(std::max<int64_t>(0, deadline_ns_ - monotonic_ns())));
  timer_.async_wait([self = shared_from_this()](error_code ec) {
    if (!ec && self->state_ != State::kClosed) self->on_timer();
  });
}

void Connection::on_timer() {
  timer_at_ns_ = 0;
  if (deadline_ns_ == 0) return;
  if (monotonic_ns() < deadline_ns_) {
    arm_timer();
    return;
  }
  deadline_ns_ = 0;
  on_deadline();
}

void Connection::on_deadline() {
  switch (state_) {
    case State::kIdle:
    case State::kLingering:
      close();
      return;
    case State::kHead:
    case State::kBody:
      close_after_ = true;
      respond_error(408,
                    "the request was not complete after " +
                        std::to_string(server_.config.limits.request_read_timeout_ms) + " ms",
                    "invalid_request_error", "request_timeout");
      return;
    case State::kAnswering:
      if (write_pending_) {
        if (exchange_open_) finish_exchange(499);
        close();
      } else if (answer_ != nullptr && answer_->streaming) {
        stream(": keep-alive\n\n");
        flush();
      }
      return;
    case State::kClosed:
      return;
  }
}

}  // namespace updraft
