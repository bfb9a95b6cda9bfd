// ZeroMQ's context and the ZAP handler (RFC 27) that answers "may this key connect?" for every
// listener of the context. Private to common/net.
//
// Threads: the handler runs on a thread of its own and shares nothing but the allow-lists, each
// behind its mutex.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>
#include <zmq.hpp>

#include "common/net/pool_socket.h"

namespace updraft {

// Public keys that may connect, and the names they have. Any thread.
class AllowList {
 public:
  explicit AllowList(const std::vector<AllowedKey>& allowed) { replace(allowed); }
  void replace(const std::vector<AllowedKey>& allowed);
  // The key's name; nothing when it is not on the list.
  std::optional<std::string> find(const std::string& public_key) const;
  void count_refusal() { refused_count_.fetch_add(1, std::memory_order_relaxed); }
  uint64_t refused_count() const { return refused_count_.load(std::memory_order_relaxed); }

 private:
  mutable std::mutex mutex_;
  std::map<std::string, std::string> name_of_;
  std::atomic<uint64_t> refused_count_{0};  // a statistic, orders nothing
};

class NetContextImpl : public NetContext {
 public:
  explicit NetContextImpl(int io_threads);
  ~NetContextImpl() override;

  static NetContextImpl& of(NetContext& context) { return static_cast<NetContextImpl&>(context); }
  zmq::context_t& zmq() { return context_; }
  // A name that no other socket of this context has.
  std::string unique_name(const char* prefix);

  // A listener's domain: its connections are judged by this list alone. An unknown domain refuses
  // everybody.
  void add_domain(const std::string& domain, std::shared_ptr<AllowList> allowed);
  void remove_domain(const std::string& domain);

 private:
  void run_zap(zmq::socket_t socket);
  void answer_zap(zmq::socket_t& socket, const std::vector<zmq::message_t>& request);

  zmq::context_t context_;
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<AllowList>> domains_;
  std::atomic<uint64_t> next_name_{1};  // only uniqueness matters
  std::thread zap_thread_;
};

// Socket options that both sides share, instead of libzmq's defaults: frames at most
// kPoolFrameBytesMax, nothing lingers at close, 3 s for a handshake, no queueing for connections
// that do not stand, and an end to those whose other machine has gone.
void set_common_options(zmq::socket_t& socket);

// What a socket's monitor tells.
struct MonitorEvent {
  uint16_t kind = 0;   // ZMQ_EVENT_*
  uint32_t value = 0;  // its meaning depends on the kind
};

// Watches a socket's connections. libzmq's io thread writes the events and blocks, with everything
// it serves, once nobody can take them: so watching ends before the receiving end goes, and that
// end has no limit.
class SocketMonitor {
 public:
  // `watched` outlives this object; its owner thread owns this too. Throws zmq::error_t.
  SocketMonitor(NetContextImpl& context, zmq::socket_t& watched);
  ~SocketMonitor();
  SocketMonitor(const SocketMonitor&) = delete;
  SocketMonitor& operator=(const SocketMonitor&) = delete;

  // The next event, nothing when none is there.
  std::optional<MonitorEvent> next();
  zmq::socket_t& events() { return events_; }

 private:
  zmq::socket_t& watched_;
  zmq::socket_t events_;
};

// libzmq's error as one line for `endpoint`.
Error socket_error(const std::string& endpoint, const zmq::error_t& error);
Result<void> check_endpoint(const std::string& endpoint);
bool is_curve_key(const std::string& key);

}  // namespace updraft
