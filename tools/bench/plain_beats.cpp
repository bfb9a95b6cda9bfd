// See plain_beats.h.
#include "tools/bench/plain_beats.h"

#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <vector>
#include <zmq.hpp>

#include "cloud/router/core.h"
#include "cloud/router/peer_table.h"
#include "common/base/clock.h"

namespace updraft {
namespace {

constexpr int kSocketsMax = 65'536;
constexpr int kIntervalMs = 250;
constexpr int64_t kPatienceNs = 60 * kNsPerSecond;
constexpr int kMessagesPerTurn = 256;  // as the relay takes them

NodeHello hello_of(int node) {
  NodeHello hello;
  hello.node_id = "plain-" + std::to_string(node);
  hello.boot_epoch = 1;
  hello.device = "none";
  ModelInfo model;
  model.id = "model";
  model.context_tokens = 4096;
  hello.models = {model};
  return hello;
}

NodeBeat first_beat() {
  NodeBeat beat;
  beat.boot_epoch = 1;
  beat.interval_ms = kIntervalMs;
  beat.lease_ttl_ms = 3000;
  beat.state = NodeState::kReady;
  beat.slots_total = beat.slots_free = 8;
  beat.kv_tokens_total = beat.kv_tokens_free = 32'768;
  return beat;
}

// The child: never returns.
[[noreturn]] void send_beats(const std::string& endpoint, int nodes, int core) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(static_cast<size_t>(core), &cores);
  sched_setaffinity(0, sizeof cores, &cores);
  zmq::context_t context(1);
  context.set(zmq::ctxopt::max_sockets, kSocketsMax);
  std::vector<zmq::socket_t> sockets;
  for (int i = 0; i < nodes; ++i) {
    sockets.emplace_back(context, zmq::socket_type::dealer);
    sockets.back().set(zmq::sockopt::sndhwm, 4);  // as a node's
    sockets.back().connect(endpoint);
    (void)sockets.back().send(zmq::buffer(encode(hello_of(i))));
  }
  NodeBeat beat = first_beat();
  while (true) {
    ++beat.seq;
    beat.sender_mono_ns = monotonic_ns();
    for (zmq::socket_t& socket : sockets)
      (void)socket.send(zmq::buffer(encode(beat)), zmq::send_flags::dontwait);
  }
}

int64_t processor_ns() {
  timespec used{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return used.tv_sec * kNsPerSecond + used.tv_nsec;
}

// A router's receiving half, as the relay is one.
class Receiver {
 public:
  explicit Receiver(zmq::socket_t& socket)
      : socket_(socket), core_(RouterCoreConfig{}, monotonic_ns()), peers_({}) {}

  uint64_t applied() const { return core_.registry().beats_taken(); }
  size_t nodes() const { return core_.nodes().size(); }

  // Takes what is there, at most one turn's worth; waits a moment when there is nothing.
  void turn() {
    const int64_t now_ns = monotonic_ns();
    int count = 0;
    for (; count < kMessagesPerTurn; ++count) {
      zmq::message_t peer;
      zmq::message_t body;
      if (!socket_.recv(peer, zmq::recv_flags::dontwait)) break;
      (void)socket_.recv(body);
      take(peer.to_string(), {body.data<std::byte>(), body.size()}, now_ns);
    }
    if (now_ns - ticked_ns_ > 20 * kNsPerMs) {
      ticked_ns_ = now_ns;
      core_.on_tick(now_ns, actions_);
      actions_.clear();
      core_.take_changes();
    }
    zmq::pollitem_t item{socket_.handle(), 0, ZMQ_POLLIN, 0};
    if (count == 0) zmq::poll(&item, 1, std::chrono::milliseconds(1));
  }

 private:
  void take(const std::string& peer, ByteView frame, int64_t now_ns) {
    Result<std::optional<PoolMessage>> message = peers_.read(peer, frame, now_ns);
    if (!message || !message->has_value()) return;
    // A key of its own for each, as CURVE would say.
    core_.on_message({peer, peer, "plain"}, std::move(**message), now_ns, actions_);
    actions_.clear();
  }

  zmq::socket_t& socket_;
  RouterCore core_;
  PeerTable peers_;
  Actions actions_;
  int64_t ticked_ns_ = 0;
};

}  // namespace

Result<PlainBeats> measure_plain_beats(int nodes, int64_t for_ns, int sender_core) try {
  int ports[2] = {};
  if (pipe(ports) != 0) return fail("plain beats: no pipe");
  const pid_t child = fork();
  if (child < 0) return fail("plain beats: no second process");
  if (child == 0) {
    char endpoint[256] = {};
    close(ports[1]);
    if (read(ports[0], endpoint, sizeof endpoint - 1) > 0) send_beats(endpoint, nodes, sender_core);
    _exit(1);
  }
  close(ports[0]);
  struct Child {
    pid_t pid;
    ~Child() {
      kill(pid, SIGKILL);
      waitpid(pid, nullptr, 0);
    }
  } const ended_with_this{child};
  zmq::context_t context(1);
  context.set(zmq::ctxopt::max_sockets, kSocketsMax);
  zmq::socket_t socket(context, zmq::socket_type::router);
  socket.set(zmq::sockopt::linger, 0);
  socket.set(zmq::sockopt::rcvhwm, 32);
  socket.set(zmq::sockopt::backlog, 1024);
  socket.bind("tcp://127.0.0.1:*");
  const std::string endpoint = socket.get(zmq::sockopt::last_endpoint);
  const bool told = write(ports[1], endpoint.data(), endpoint.size()) > 0;
  close(ports[1]);
  if (!told) return fail("plain beats: the second process has gone");
  Receiver receiver(socket);
  const int64_t give_up_ns = monotonic_ns() + kPatienceNs;
  while (receiver.nodes() < static_cast<size_t>(nodes)) {
    if (monotonic_ns() > give_up_ns)
      return fail("plain beats: " + std::to_string(receiver.nodes()) + " of " +
                  std::to_string(nodes) + " nodes connected within 60 s");
    for (int i = 0; i < 50; ++i) receiver.turn();
  }
  const uint64_t before = receiver.applied();
  const int64_t cpu_ns = processor_ns();
  const int64_t begin_ns = monotonic_ns();
  while (monotonic_ns() - begin_ns < for_ns) receiver.turn();
  const auto applied = static_cast<double>(receiver.applied() - before);
  PlainBeats out;
  out.nodes = nodes;
  out.applied_per_s = applied * 1e9 / static_cast<double>(monotonic_ns() - begin_ns);
  out.applied_per_core_s = applied * 1e9 / static_cast<double>(processor_ns() - cpu_ns);
  return out;
} catch (const zmq::error_t& error) {
  return fail(std::string("plain beats: ") + error.what());
}

}  // namespace updraft
