// One client connection: reads requests one after the other, answers each before it looks at the
// next. An object of the server's loop; nothing here is called from any other thread.
//
//   kIdle -> kHead -> kBody -> kAnswering -> kIdle ...   and from anywhere: kLingering -> kClosed
//
// A read stays pending in every state, so that a client that leaves is noticed while its answer is
// being made.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/http/event_inbox.h"
#include "common/http/openai_response.h"
#include "common/http/request_reader.h"
#include "common/http/server_state.h"
#include "common/http/tls.h"

namespace updraft {

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(ServerState& server, boost::asio::ip::tcp::socket socket);
  ~Connection();

  // Waits for the first request.
  void start();
  // The same while memory is almost full: one request is answered, then the connection closes.
  void start_last();
  // Answers 503 at once and closes: there are too many connections.
  void start_refusing();
  // The server is going down: an idle connection closes, a busy one ends after its answer.
  void drain();
  // Ends now; a stream gets an error event, an unanswered request a 503.
  void abort();

 private:
  enum class State { kIdle, kHead, kBody, kAnswering, kLingering, kClosed };
  struct Answer;  // of a request to the inference service

  // --- connection.cpp: bytes and time ---
  void arm_read();
  void on_readable();
  bool read_tls(std::string_view from_wire);
  void on_bytes();
  void on_peer_gone();
  void next_request();
  void read_request();
  void flush();
  size_t write_some(boost::system::error_code& ec);
  void arm_write();
  void on_flushed();
  void linger();
  void close();
  void set_deadline(int64_t in_ms);
  void arm_timer();
  void on_timer();
  void on_deadline();
  void account_body();

  // --- exchange.cpp: one request and its answer ---
  void begin_exchange();
  void on_head();
  void on_body();
  void on_fault();
  bool check_host_header();
  bool choose_route();
  bool authorize();
  bool check_content();
  void answer_function(const RouteFunction& function);
  void answer_inference(Request::Kind kind);
  bool answered_before(const std::string& key, const std::string& digest);
  void replay(const StoredAnswer& stored);
  std::optional<RateLimits::Ticket> within_limits(const Request& request);
  void submit(OpenAiCall call);
  void on_events(std::vector<Event> events);
  void on_event(const Started& started);
  void on_event(const TokenChunk& chunk);
  void on_event(const Finished& finished);
  void on_event(const RequestError& error);
  void begin_stream();
  std::string stream_head(const std::string& more_headers);
  void send_pending();
  void stream(std::string_view events);
  void keep(StoredAnswer stored);
  void end_stream();
  void leave_answer(bool cancel);
  void respond(int status, std::string_view content_type, std::string_view body,
               std::string extra_headers = {});
  void respond_error(const RequestError& error, std::string extra_headers = {});
  void respond_error(int status, std::string_view message, std::string_view type,
                     std::string_view code, std::string extra_headers = {});
  void finish_exchange(int status);
  std::string head_text(int status, std::string extra_headers);
  std::string served_headers() const;
  ServedInfo served_info(const Finished& finished) const;

  ServerState& server_;
  boost::asio::ip::tcp::socket socket_;
  boost::asio::steady_timer timer_;
  std::string remote_;
  State state_ = State::kIdle;
  bool refused_ = false;  // counts among the server's refused connections
  bool read_pending_ = false;
  bool write_pending_ = false;
  bool peer_ended_ = false;          // no more bytes will come
  bool close_after_ = false;         // no further request on this connection
  std::string in_;                   // received, not consumed
  std::unique_ptr<TlsSession> tls_;  // null: plain
  std::string wire_;                 // of TLS: to send before anything else
  std::string out_;                  // to send, from out_sent_
  size_t out_sent_ = 0;
  size_t lingered_bytes_ = 0;
  int64_t deadline_ns_ = 0;  // 0: none
  int64_t timer_at_ns_ = 0;  // when the armed timer fires; 0: not armed
  int64_t last_sent_ns_ = 0;

  // The exchange in progress.
  std::unique_ptr<RequestReader> reader_;
  size_t accounted_bytes_ = 0;  // of this request's body in server_.body_bytes
  int64_t arrived_ns_ = 0;
  std::optional<RouteMatch> route_;
  Principal who_;
  std::string request_id_;     // what x-request-id answers
  std::string limit_headers_;  // what is left of the key's limits
  bool exchange_open_ = false;
  bool answered_ = false;  // the whole answer is in out_
  AccessRecord record_;
  std::unique_ptr<Answer> answer_;
};

}  // namespace updraft
