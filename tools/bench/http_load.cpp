// See http_load.h. Asio moves the bytes, Beast's parser finds the ends of answers; neither keeps a
// body.
#include "tools/bench/http_load.h"

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/basic_parser.hpp>
#include <chrono>
#include <deque>
#include <numeric>
#include <optional>
#include <random>

#include "common/base/clock.h"

namespace updraft {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

constexpr int64_t kAnswerWaitNs = 30 * kNsPerSecond;  // after the last arrival

// Follows an answer to its end; counts events of a stream ("data:" at the begin of a line).
class AnswerReader : public http::basic_parser<false> {
 public:
  AnswerReader() {
    body_limit(boost::none);
    eager(true);
  }
  int status() const { return status_; }
  uint64_t events() const { return events_; }

 private:
  using View = boost::beast::string_view;
  void on_request_impl(http::verb, View, View, int, error_code&) override {}
  void on_response_impl(int code, View, int, error_code&) override { status_ = code; }
  void on_field_impl(http::field, View, View, error_code&) override {}
  void on_header_impl(error_code&) override {}
  void on_body_init_impl(const boost::optional<uint64_t>&, error_code&) override {}
  size_t on_body_impl(View body, error_code&) override {
    count(body);
    return body.size();
  }
  void on_chunk_header_impl(uint64_t, View, error_code&) override {}
  size_t on_chunk_body_impl(uint64_t, View body, error_code&) override {
    count(body);
    return body.size();
  }
  void on_finish_impl(error_code&) override {}

  void count(View body) {
    static constexpr char kMark[] = "data:";
    for (const char c : body) {
      if (c == '\n') {
        matched_ = 0;
      } else if (matched_ >= 0) {
        matched_ = c == kMark[matched_] ? matched_ + 1 : -1;
        if (matched_ == 5) {
          ++events_;
          matched_ = -1;
        }
      }
    }
  }

  int status_ = 0;
  uint64_t events_ = 0;
  int matched_ = 0;  // of kMark in this line; -1: this line is something else
};

Result<tcp::endpoint> endpoint_of(const HttpEndpoint& endpoint) {
  error_code error;
  const asio::ip::address address = asio::ip::make_address(endpoint.host, error);
  if (error) return fail("load on " + endpoint.host + ": not an address");
  return tcp::endpoint(address, endpoint.port);
}

Result<void> connect(tcp::socket& socket, const tcp::endpoint& to) {
  error_code error;
  socket.connect(to, error);
  if (!error) socket.set_option(tcp::no_delay(true), error);
  if (!error) socket.non_blocking(true, error);
  if (error)
    return fail("connecting to " + to.address().to_string() + ":" + std::to_string(to.port()) +
                ": " + error.message());
  return {};
}

// One connection of the open loop.
struct LoadConnection {
  explicit LoadConnection(asio::io_context& io) : socket(io) {}
  tcp::socket socket;
  std::optional<AnswerReader> reader;
  std::vector<char> unread;  // bytes that the parser wants to see again, with more
  int64_t due_ns = 0;
};

class OpenLoop {
 public:
  explicit OpenLoop(const HttpLoadPlan& plan)
      : plan_(plan), random_(plan.seed), timer_(io_), give_up_(io_), buffer_(64 * 1024) {}

  Result<HttpLoadResult> run() {
    Result<tcp::endpoint> to = endpoint_of(plan_.endpoint);
    if (!to) return to.error();
    for (int i = 0; i < plan_.connections; ++i) {
      connections_.push_back(std::make_unique<LoadConnection>(io_));
      if (auto done = connect(connections_.back()->socket, *to); !done) return done.error();
      idle_.push_back(connections_.back().get());
      read_when_ready(*connections_.back());
    }
    started_ns_ = monotonic_ns();
    next_due_ns_ = started_ns_ + gap_ns();
    give_up_.expires_after(std::chrono::nanoseconds(plan_.duration_ns + kAnswerWaitNs));
    give_up_.async_wait([this](error_code error) {
      if (!error) io_.stop();
    });
    arrive();
    io_.run();
    return result();
  }

 private:
  int64_t gap_ns() {
    return static_cast<int64_t>(std::exponential_distribution<double>(plan_.rate_per_s)(random_) *
                                1e9);
  }

  // Sends what is due and sleeps until the next one is.
  void arrive() {
    const int64_t now_ns = monotonic_ns();
    const int64_t end_ns = started_ns_ + plan_.duration_ns;
    while (next_due_ns_ <= now_ns && next_due_ns_ < end_ns) {
      waiting_.push_back(next_due_ns_);
      next_due_ns_ += gap_ns();
    }
    serve_waiting();
    if (next_due_ns_ >= end_ns) {
      arrived_all_ = true;
      finish_if_done();
      return;
    }
    timer_.expires_at(
        std::chrono::steady_clock::time_point(std::chrono::nanoseconds(next_due_ns_)));
    timer_.async_wait([this](error_code error) {
      if (!error) arrive();
    });
  }

  void serve_waiting() {
    while (!waiting_.empty() && !idle_.empty()) {
      LoadConnection& connection = *idle_.back();
      idle_.pop_back();
      connection.due_ns = waiting_.front();
      waiting_.pop_front();
      connection.reader.emplace();
      error_code error;
      asio::write(connection.socket, asio::buffer(plan_.request), error);
      // A request fits the socket's buffer; what does not counts as broken, and its connection
      // goes.
      if (error) drop(connection);
    }
  }

  void read_when_ready(LoadConnection& connection) {
    connection.socket.async_wait(tcp::socket::wait_read, [this, &connection](error_code error) {
      if (!error && read(connection)) read_when_ready(connection);
    });
  }

  // False: the connection is gone.
  bool read(LoadConnection& connection) {
    error_code error;
    const size_t got = connection.socket.read_some(asio::buffer(buffer_), error);
    if (error == asio::error::would_block) return true;
    if (error || !connection.reader) {
      drop(connection);
      return false;
    }
    connection.unread.insert(connection.unread.end(), buffer_.begin(),
                             buffer_.begin() + static_cast<std::ptrdiff_t>(got));
    const size_t used = connection.reader->put(
        asio::buffer(connection.unread.data(), connection.unread.size()), error);
    connection.unread.erase(connection.unread.begin(),
                            connection.unread.begin() + static_cast<std::ptrdiff_t>(used));
    if (error && error != http::error::need_more) {
      drop(connection);
      return false;
    }
    if (connection.reader->is_done()) done(connection);
    return true;
  }

  void done(LoadConnection& connection) {
    if (connection.reader->status() == 200) {
      latencies_us_.push_back(static_cast<double>(monotonic_ns() - connection.due_ns) / 1e3);
    } else {
      ++refused_;
    }
    connection.reader.reset();
    idle_.push_back(&connection);
    serve_waiting();
    finish_if_done();
  }

  void drop(LoadConnection& connection) {
    if (connection.reader) ++broken_;
    connection.reader.reset();
    std::erase(idle_, &connection);
    error_code ignored;
    connection.socket.close(ignored);
    ++dropped_;
    finish_if_done();
  }

  void finish_if_done() {
    const size_t open = connections_.size() - dropped_;
    if (open > 0 && (!arrived_all_ || !waiting_.empty() || idle_.size() != open)) return;
    io_.stop();
  }

  HttpLoadResult result() {
    HttpLoadResult out;
    out.answered = latencies_us_.size();
    out.refused = refused_;
    out.broken = broken_ + waiting_.size();  // nobody was left to send them
    for (const auto& connection : connections_) out.broken += connection->reader ? 1 : 0;
    if (latencies_us_.empty()) return out;
    std::sort(latencies_us_.begin(), latencies_us_.end());
    out.p50_us = latencies_us_[latencies_us_.size() / 2];
    out.p99_us = latencies_us_[latencies_us_.size() * 99 / 100];
    out.mean_us = std::accumulate(latencies_us_.begin(), latencies_us_.end(), 0.0) /
                  static_cast<double>(latencies_us_.size());
    return out;
  }

  const HttpLoadPlan& plan_;
  std::mt19937_64 random_;
  asio::io_context io_{1};
  asio::steady_timer timer_;
  asio::steady_timer give_up_;
  std::vector<char> buffer_;
  std::vector<std::unique_ptr<LoadConnection>> connections_;
  std::vector<LoadConnection*> idle_;
  std::deque<int64_t> waiting_;  // due times of arrivals without a connection
  int64_t started_ns_ = 0;
  int64_t next_due_ns_ = 0;
  bool arrived_all_ = false;
  size_t dropped_ = 0;
  std::vector<double> latencies_us_;
  uint64_t refused_ = 0;
  uint64_t broken_ = 0;
};

class StreamsImpl final : public HttpStreams {
 public:
  Result<void> open(const HttpEndpoint& endpoint, const std::string& request, int count) {
    Result<tcp::endpoint> to = endpoint_of(endpoint);
    if (!to) return to.error();
    for (int i = 0; i < count; ++i) {
      streams_.emplace_back(io_);
      Stream& stream = streams_.back();
      if (auto done = connect(stream.socket, *to); !done) return done.error();
      if (!request.empty()) {
        error_code error;
        asio::write(stream.socket, asio::buffer(request), error);
        if (error) return fail("stream " + std::to_string(i) + ": " + error.message());
      }
      read_when_ready(stream);
      io_.poll();  // answers that have come meanwhile do not pile up
    }
    return {};
  }

  void pump(int64_t for_ns) override { io_.run_for(std::chrono::nanoseconds(for_ns)); }
  int started() const override { return started_; }
  int ended() const override { return ended_; }
  uint64_t events() const override { return events_; }
  uint64_t bytes() const override { return bytes_; }

 private:
  struct Stream {
    explicit Stream(asio::io_context& io) : socket(io) {}
    tcp::socket socket;
    AnswerReader reader;
    std::vector<char> unread;
    bool started = false;
  };

  void read_when_ready(Stream& stream) {
    stream.socket.async_wait(tcp::socket::wait_read, [this, &stream](error_code error) {
      if (!error && read(stream)) read_when_ready(stream);
    });
  }

  bool read(Stream& stream) {
    error_code error;
    const size_t got = stream.socket.read_some(asio::buffer(buffer_), error);
    if (error == asio::error::would_block) return true;
    if (error) return end(stream);
    bytes_ += got;
    const char* data = buffer_.data();
    size_t size = got;
    if (!stream.unread.empty()) {
      stream.unread.insert(stream.unread.end(), data, data + got);
      data = stream.unread.data();
      size = stream.unread.size();
    }
    const uint64_t before = stream.reader.events();
    const size_t used = stream.reader.put(asio::buffer(data, size), error);
    std::vector<char> rest(data + used, data + size);
    stream.unread.swap(rest);
    if (error && error != http::error::need_more) return end(stream);
    events_ += stream.reader.events() - before;
    if (!stream.started && stream.reader.events() > 0) {
      stream.started = true;
      ++started_;
    }
    return stream.reader.is_done() ? end(stream) : true;
  }

  bool end(Stream& stream) {
    ++ended_;
    error_code ignored;
    stream.socket.close(ignored);
    return false;
  }

  asio::io_context io_{1};
  std::vector<char> buffer_ = std::vector<char>(64 * 1024);
  std::deque<Stream> streams_;
  int started_ = 0;
  int ended_ = 0;
  uint64_t events_ = 0;
  uint64_t bytes_ = 0;
};

}  // namespace

std::string http_post_bytes(const HttpEndpoint& endpoint, const std::string& path,
                            const std::string& body) {
  return "POST " + path + " HTTP/1.1\r\nHost: " + endpoint.host + ":" +
         std::to_string(endpoint.port) +
         "\r\nContent-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) +
         "\r\n\r\n" + body;
}

Result<HttpLoadResult> run_http_load(const HttpLoadPlan& plan) { return OpenLoop(plan).run(); }

Result<std::unique_ptr<HttpStreams>> HttpStreams::open(const HttpEndpoint& endpoint,
                                                       const std::string& request, int count) {
  auto streams = std::make_unique<StreamsImpl>();
  if (auto opened = streams->open(endpoint, request, count); !opened) return opened.error();
  return std::unique_ptr<HttpStreams>(std::move(streams));
}

}  // namespace updraft
