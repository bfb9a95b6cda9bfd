// See the header. The ZAP exchange: https://rfc.zeromq.org/spec/27/
#include "common/net/net_context.h"

#include <array>
#include <cstring>

#include "common/base/bytes.h"
#include "common/base/check.h"

namespace updraft {

void AllowList::replace(const std::vector<AllowedKey>& allowed) {
  std::map<std::string, std::string> fresh;
  for (const AllowedKey& key : allowed) fresh.emplace(key.public_key, key.name);
  const std::lock_guard lock(mutex_);
  name_of_.swap(fresh);
}

std::optional<std::string> AllowList::find(const std::string& public_key) const {
  const std::lock_guard lock(mutex_);
  const auto at = name_of_.find(public_key);
  return at == name_of_.end() ? std::nullopt : std::optional<std::string>(at->second);
}

std::unique_ptr<NetContext> NetContext::create(int io_threads) {
  return std::make_unique<NetContextImpl>(io_threads);
}

NetContextImpl::NetContextImpl(int io_threads) : context_(io_threads) {
  // The handler must listen before the first listener of this context binds.
  zmq::socket_t socket(context_, zmq::socket_type::rep);
  socket.set(zmq::sockopt::linger, 0);
  socket.bind("inproc://zeromq.zap.01");
  zap_thread_ = std::thread([this, s = std::move(socket)]() mutable { run_zap(std::move(s)); });
}

NetContextImpl::~NetContextImpl() {
  context_.shutdown();  // the handler's receive ends with ETERM
  zap_thread_.join();
}

std::string NetContextImpl::unique_name(const char* prefix) {
  return std::string(prefix) + std::to_string(next_name_.fetch_add(1, std::memory_order_relaxed));
}

void NetContextImpl::add_domain(const std::string& domain, std::shared_ptr<AllowList> allowed) {
  const std::lock_guard lock(mutex_);
  domains_[domain] = std::move(allowed);
}

void NetContextImpl::remove_domain(const std::string& domain) {
  const std::lock_guard lock(mutex_);
  domains_.erase(domain);
}

void NetContextImpl::run_zap(zmq::socket_t socket) {
  try {
    while (true) {
      std::vector<zmq::message_t> request;
      do {
        request.emplace_back();
        (void)socket.recv(request.back());
      } while (request.back().more());
      answer_zap(socket, request);
    }
  } catch (const zmq::error_t& error) {
    UPDRAFT_CHECK(error.num() == ETERM, "the ZAP handler's socket failed");
  }
}

// Request: version, request id, domain, address, identity, mechanism, the client's key (32 bytes).
// Reply: version, request id, status code, status text, user id, metadata.
void NetContextImpl::answer_zap(zmq::socket_t& socket, const std::vector<zmq::message_t>& request) {
  std::string user;
  bool allowed = false;
  if (request.size() == 7 && request[0].to_string_view() == "1.0" &&
      request[5].to_string_view() == "CURVE" && request[6].size() == 32) {
    std::array<char, 41> key{};
    zmq_z85_encode(key.data(), request[6].data<uint8_t>(), 32);
    user = key.data();
    std::shared_ptr<AllowList> list;
    {
      const std::lock_guard lock(mutex_);
      const auto at = domains_.find(request[2].to_string());
      if (at != domains_.end()) list = at->second;
    }
    allowed = list != nullptr && list->find(user).has_value();
    if (list != nullptr && !allowed) list->count_refusal();
  }
  const std::string id = request.size() > 1 ? request[1].to_string() : std::string();
  const std::array<std::string, 6> reply = {"1.0",
                                            id,
                                            allowed ? "200" : "400",
                                            allowed ? "OK" : "this key is not allowed",
                                            allowed ? user : std::string(),
                                            std::string()};
  for (size_t i = 0; i < reply.size(); ++i) {
    socket.send(zmq::buffer(reply[i]),
                i + 1 < reply.size() ? zmq::send_flags::sndmore : zmq::send_flags::none);
  }
}

void set_common_options(zmq::socket_t& socket) {
  socket.set(zmq::sockopt::maxmsgsize, static_cast<int64_t>(kPoolFrameBytesMax));
  socket.set(zmq::sockopt::linger, 0);
  socket.set(zmq::sockopt::handshake_ivl, 3000);
  socket.set(zmq::sockopt::immediate, 1);
  // The kernel ends connections to machines that have vanished: after 25 s of silence, or 10 s
  // after something sent found no answer.
  socket.set(zmq::sockopt::tcp_keepalive, 1);
  socket.set(zmq::sockopt::tcp_keepalive_idle, 10);
  socket.set(zmq::sockopt::tcp_keepalive_intvl, 5);
  socket.set(zmq::sockopt::tcp_keepalive_cnt, 3);
  socket.set(zmq::sockopt::tcp_maxrt, 10'000);
}

SocketMonitor::SocketMonitor(NetContextImpl& context, zmq::socket_t& watched)
    : watched_(watched), events_(context.zmq(), zmq::socket_type::pair) {
  constexpr int kEvents = ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_CLOSED | ZMQ_EVENT_CONNECT_RETRIED |
                          ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH |
                          ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                          ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL;
  const std::string name = "inproc://" + context.unique_name("monitor-");
  if (zmq_socket_monitor(watched.handle(), name.c_str(), kEvents) != 0) throw zmq::error_t();
  events_.set(zmq::sockopt::linger, 0);
  events_.set(zmq::sockopt::rcvhwm, 0);
  events_.connect(name);
}

SocketMonitor::~SocketMonitor() { zmq_socket_monitor(watched_.handle(), nullptr, 0); }

// Two frames: kind (16 bits) and value (32 bits) without padding, then the endpoint.
std::optional<MonitorEvent> SocketMonitor::next() {
  zmq::message_t head;
  if (!events_.recv(head, zmq::recv_flags::dontwait)) return std::nullopt;
  MonitorEvent event;
  if (head.size() == 6) {
    event.kind = load_le<uint16_t>(head.data());
    event.value = load_le<uint32_t>(head.data<char>() + 2);
  }
  bool more = head.more();
  while (more) {
    zmq::message_t rest;
    (void)events_.recv(rest);  // parts of one message arrive together
    more = rest.more();
  }
  return event;
}

Error socket_error(const std::string& endpoint, const zmq::error_t& error) {
  if (error.num() == EADDRINUSE)
    return fail("pool endpoint " + endpoint + ": already in use by another program");
  return fail("pool endpoint " + endpoint + ": " + error.what());
}

Result<void> check_endpoint(const std::string& endpoint) {
  constexpr std::string_view kScheme = "tcp://";
  const size_t colon = endpoint.rfind(':');
  bool good =
      endpoint.rfind(kScheme, 0) == 0 && colon != std::string::npos && colon > kScheme.size();
  const std::string port = good ? endpoint.substr(colon + 1) : std::string();
  good = good && !port.empty() && port.size() <= 5 &&
         port.find_first_not_of("0123456789") == std::string::npos && std::stoi(port) <= 65535;
  if (!good)
    return fail("pool endpoint \"" + printable(endpoint) + "\" is not of the form tcp://host:port");
  return {};
}

bool is_curve_key(const std::string& key) {
  std::array<uint8_t, 32> raw{};
  return key.size() == 40 && zmq_z85_decode(raw.data(), key.c_str()) != nullptr;
}

}  // namespace updraft
