// The pool's sockets over loopback: who may connect, what happens when a queue is full, a
// connection ends, a key goes.
#include "common/net/pool_socket.h"

#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "tests/support/resident_memory.h"

using namespace updraft;

namespace {

constexpr const char* kAnyPort = "tcp://127.0.0.1:0";

struct Node {
  CurveKeys keys = new_curve_keys();
  std::unique_ptr<PoolDialer> dialer;
  std::vector<std::string> got;

  void dial(NetContext& context, const std::string& endpoint, const std::string& router_key) {
    auto made = PoolDialer::connect(context, endpoint, router_key, keys);
    REQUIRE_MESSAGE(made.ok(), made.message());
    dialer = std::move(*made);
  }
  void turn() {
    while (dialer->receive(
               16, [&](std::vector<std::byte>&& frame) { got.emplace_back(as_text(frame)); }) > 0) {
    }
  }
};

struct RouterSide {
  CurveKeys keys = new_curve_keys();
  std::unique_ptr<PoolListener> listener;
  std::vector<PoolListener::Inbound> got;

  void bind(NetContext& context, const std::vector<AllowedKey>& allowed,
            const std::string& endpoint = kAnyPort) {
    auto made = PoolListener::bind(context, endpoint, keys, allowed);
    REQUIRE_MESSAGE(made.ok(), made.message());
    listener = std::move(*made);
  }
  void turn() {
    while (listener->receive(
               16, [&](PoolListener::Inbound&& in) { got.push_back(std::move(in)); }) > 0) {
    }
  }
};

// Turns both sides until `done` or a deadline; waits on the descriptors, not on time.
bool run_until(RouterSide* router, const std::vector<Node*>& nodes,
               const std::function<bool()>& done, int seconds = 10) {
  const int64_t end_ns = monotonic_ns() + seconds * kNsPerSecond;
  while (monotonic_ns() < end_ns) {
    std::vector<pollfd> fds;
    if (router != nullptr && router->listener) {
      router->turn();
      fds.push_back({router->listener->poll_fd(), POLLIN, 0});
    }
    for (Node* node : nodes) {
      node->turn();
      fds.push_back({node->dialer->poll_fd(), POLLIN, 0});
    }
    if (done()) return true;
    poll(fds.data(), fds.size(), 50);
  }
  return false;
}

ByteView bytes_of(const std::string& text) { return as_bytes_view(text); }

}  // namespace

TEST_CASE("an allowed node connects, is known by its key, and both sides exchange frames") {
  const auto context = NetContext::create();
  RouterSide router;
  Node node;
  router.bind(*context, {{"edge-1", node.keys.public_key}});
  CHECK(router.listener->refused_count() == 0);
  node.dial(*context, router.listener->endpoint(), router.keys.public_key);
  CHECK_FALSE(node.dialer->send(bytes_of("too early")));
  REQUIRE(run_until(&router, {&node}, [&] { return node.dialer->connected(); }));
  CHECK(node.dialer->connection_count() == 1);
  REQUIRE(node.dialer->send(bytes_of("hello")));
  REQUIRE(run_until(&router, {&node}, [&] { return router.got.size() == 1; }));
  CHECK(as_text(router.got[0].frame) == "hello");
  CHECK(router.got[0].public_key == node.keys.public_key);
  CHECK(router.got[0].name == "edge-1");
  CHECK(router.listener->try_send(router.got[0].peer, bytes_of("welcome")) ==
        PoolListener::SendOutcome::kSent);
  REQUIRE(run_until(&router, {&node}, [&] { return node.got.size() == 1; }));
  CHECK(node.got[0] == "welcome");
}

TEST_CASE("an unknown key is refused, and comes in once it is allowed") {
  const auto context = NetContext::create();
  RouterSide router;
  Node node;
  router.bind(*context, {{"other", new_curve_keys().public_key}});
  node.dial(*context, router.listener->endpoint(), router.keys.public_key);
  REQUIRE(run_until(&router, {&node}, [&] {
    return router.listener->refused_count() > 0 && !node.dialer->problem().empty();
  }));
  CHECK_FALSE(node.dialer->connected());
  CHECK(node.dialer->problem().find("not on the router's allow-list") != std::string::npos);
  CHECK_FALSE(node.dialer->send(bytes_of("let me in")));
  CHECK(router.got.empty());

  router.listener->set_allowed({{"late", node.keys.public_key}});
  REQUIRE(run_until(&router, {&node}, [&] { return node.dialer->connected(); }));
  CHECK(node.dialer->problem().empty());
}

TEST_CASE("a listener with an empty allow-list refuses everybody") {
  const auto context = NetContext::create();
  RouterSide router;
  Node node;
  router.bind(*context, {});
  node.dial(*context, router.listener->endpoint(), router.keys.public_key);
  REQUIRE(run_until(&router, {&node}, [&] { return router.listener->refused_count() > 0; }));
  CHECK_FALSE(node.dialer->connected());
}

TEST_CASE("a key removed while connected is not heard any more") {
  const auto context = NetContext::create();
  RouterSide router;
  Node gone;
  Node stays;
  router.bind(*context, {{"gone", gone.keys.public_key}, {"stays", stays.keys.public_key}});
  gone.dial(*context, router.listener->endpoint(), router.keys.public_key);
  stays.dial(*context, router.listener->endpoint(), router.keys.public_key);
  REQUIRE(run_until(&router, {&gone, &stays},
                    [&] { return gone.dialer->connected() && stays.dialer->connected(); }));
  router.listener->set_allowed({{"stays", stays.keys.public_key}});
  REQUIRE(gone.dialer->send(bytes_of("spoof")));
  REQUIRE(
      run_until(&router, {&gone, &stays}, [&] { return router.listener->refused_count() == 1; }));
  REQUIRE(stays.dialer->send(bytes_of("fine")));
  REQUIRE(run_until(&router, {&gone, &stays}, [&] { return !router.got.empty(); }));
  REQUIRE(router.got.size() == 1);
  CHECK(router.got[0].name == "stays");
}

TEST_CASE("a dialer that knows the wrong router key never connects and says why") {
  const auto context = NetContext::create();
  RouterSide router;
  Node node;
  router.bind(*context, {{"n", node.keys.public_key}});
  node.dial(*context, router.listener->endpoint(), new_curve_keys().public_key);
  REQUIRE(run_until(&router, {&node}, [&] { return !node.dialer->problem().empty(); }));
  CHECK_FALSE(node.dialer->connected());
  CHECK(node.dialer->problem().find(router.listener->endpoint()) != std::string::npos);
}

TEST_CASE("a plain connection without CURVE gets nowhere") {
  const auto context = NetContext::create();
  RouterSide router;
  router.bind(*context, {});
  const std::string endpoint = router.listener->endpoint();
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port =
      htons(static_cast<uint16_t>(std::stoi(endpoint.substr(endpoint.rfind(':') + 1))));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  REQUIRE(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  const std::string request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
  REQUIRE(write(fd, request.data(), request.size()) == static_cast<ssize_t>(request.size()));
  // The router hangs up by itself, at the latest after the handshake limit.
  bool hung_up = false;
  REQUIRE(run_until(&router, {}, [&] {
    pollfd item{fd, POLLIN, 0};
    char buffer[256];
    if (poll(&item, 1, 0) == 1) hung_up = read(fd, buffer, sizeof buffer) <= 0;
    return hung_up;
  }));
  close(fd);
  CHECK(router.got.empty());
}

TEST_CASE("a node reconnects after a router restart on the same port") {
  const auto context = NetContext::create();
  auto router = std::make_unique<RouterSide>();
  Node node;
  const std::vector<AllowedKey> allowed = {{"n", node.keys.public_key}};
  router->bind(*context, allowed);
  const std::string endpoint = router->listener->endpoint();
  const CurveKeys keys = router->keys;
  node.dial(*context, endpoint, keys.public_key);
  REQUIRE(run_until(router.get(), {&node}, [&] { return node.dialer->connected(); }));
  router.reset();
  REQUIRE(run_until(nullptr, {&node}, [&] { return !node.dialer->connected(); }));
  CHECK_FALSE(node.dialer->send(bytes_of("nobody there")));
  RouterSide second;
  second.keys = keys;
  second.bind(*context, allowed, endpoint);
  REQUIRE(run_until(&second, {&node}, [&] { return node.dialer->connected(); }));
  CHECK(node.dialer->connection_count() == 2);
  REQUIRE(node.dialer->send(bytes_of("again")));
  REQUIRE(run_until(&second, {&node}, [&] { return second.got.size() == 1; }));
}

TEST_CASE("a restarted node is a new peer with the same key; the old peer is gone") {
  const auto context = NetContext::create();
  RouterSide router;
  auto first = std::make_unique<Node>();
  Node second;
  second.keys = first->keys;
  router.bind(*context, {{"n", second.keys.public_key}});
  first->dial(*context, router.listener->endpoint(), router.keys.public_key);
  REQUIRE(run_until(&router, {first.get()}, [&] { return first->dialer->connected(); }));
  REQUIRE(first->dialer->send(bytes_of("one")));
  REQUIRE(run_until(&router, {first.get()}, [&] { return router.got.size() == 1; }));
  second.dial(*context, router.listener->endpoint(), router.keys.public_key);
  REQUIRE(run_until(&router, {first.get(), &second}, [&] { return second.dialer->connected(); }));
  REQUIRE(second.dialer->send(bytes_of("two")));
  REQUIRE(run_until(&router, {first.get(), &second}, [&] { return router.got.size() == 2; }));
  CHECK(router.got[0].public_key == router.got[1].public_key);
  CHECK(router.got[0].peer != router.got[1].peer);
  first.reset();
  REQUIRE(run_until(&router, {&second}, [&] {
    return router.listener->try_send(router.got[0].peer, bytes_of("x")) ==
           PoolListener::SendOutcome::kGone;
  }));
  CHECK(router.listener->send(router.got[1].peer, bytes_of("y")));
}

TEST_CASE("a full queue refuses and the frames already taken arrive once there is room") {
  const auto context = NetContext::create();
  RouterSide router;
  Node node;
  router.bind(*context, {{"n", node.keys.public_key}});
  node.dial(*context, router.listener->endpoint(), router.keys.public_key);
  REQUIRE(run_until(&router, {&node}, [&] { return node.dialer->connected(); }));
  // The router does not read: its queue, TCP's buffers and the node's own queue fill.
  const std::vector<std::byte> frame(256 * 1024);
  size_t sent_count = 0;
  bool refused = false;
  const int64_t end_ns = monotonic_ns() + 20 * kNsPerSecond;
  int64_t refused_since_ns = 0;
  while (!refused && monotonic_ns() < end_ns) {
    if (node.dialer->send(frame)) {
      ++sent_count;
      refused_since_ns = 0;
    } else {
      if (refused_since_ns == 0) refused_since_ns = monotonic_ns();
      refused = monotonic_ns() - refused_since_ns > kNsPerSecond / 2;
      node.turn();
      pollfd item{node.dialer->poll_fd(), POLLIN, 0};
      poll(&item, 1, 20);
    }
  }
  CHECK(refused);
  CHECK(node.dialer->connected());
  CHECK(sent_count < 2000);  // bounded: queues of 32 and 4 frames and the kernel's buffers
  REQUIRE(run_until(
      &router, {&node}, [&] { return router.got.size() == sent_count; }, 30));
}

TEST_CASE(
    "the router's send to a reader that takes nothing says full, and others are not held up") {
  const auto context = NetContext::create();
  RouterSide router;
  Node slow;
  Node fast;
  router.bind(*context, {{"slow", slow.keys.public_key}, {"fast", fast.keys.public_key}});
  slow.dial(*context, router.listener->endpoint(), router.keys.public_key);
  fast.dial(*context, router.listener->endpoint(), router.keys.public_key);
  REQUIRE(run_until(&router, {&slow, &fast},
                    [&] { return slow.dialer->connected() && fast.dialer->connected(); }));
  REQUIRE(slow.dialer->send(bytes_of("slow")));
  REQUIRE(fast.dialer->send(bytes_of("fast")));
  REQUIRE(run_until(&router, {&slow, &fast}, [&] { return router.got.size() == 2; }));
  const std::string slow_peer =
      router.got[0].name == "slow" ? router.got[0].peer : router.got[1].peer;
  const std::string fast_peer =
      router.got[0].name == "fast" ? router.got[0].peer : router.got[1].peer;
  const std::vector<std::byte> frame(256 * 1024);
  REQUIRE(run_until(&router, {&fast}, [&] {
    auto outcome = PoolListener::SendOutcome::kSent;
    for (int i = 0; i < 1000 && outcome == PoolListener::SendOutcome::kSent; ++i) {
      outcome = router.listener->try_send(slow_peer, frame);
    }
    return outcome == PoolListener::SendOutcome::kFull;
  }));
  REQUIRE(router.listener->send(fast_peer, bytes_of("for you")));
  REQUIRE(run_until(&router, {&fast}, [&] { return fast.got.size() == 1; }));
}

TEST_CASE("a frame above the limit ends that connection, not the listener") {
  const auto context = NetContext::create();
  RouterSide router;
  Node rude;
  Node polite;
  router.bind(*context, {{"rude", rude.keys.public_key}, {"polite", polite.keys.public_key}});
  rude.dial(*context, router.listener->endpoint(), router.keys.public_key);
  polite.dial(*context, router.listener->endpoint(), router.keys.public_key);
  REQUIRE(run_until(&router, {&rude, &polite},
                    [&] { return rude.dialer->connected() && polite.dialer->connected(); }));
  REQUIRE(rude.dialer->send(std::vector<std::byte>(kPoolFrameBytesMax + 1)));
  REQUIRE(run_until(&router, {&rude, &polite}, [&] { return !rude.dialer->connected(); }));
  REQUIRE(polite.dialer->send(bytes_of("hi")));
  REQUIRE(run_until(&router, {&rude, &polite}, [&] { return router.got.size() == 1; }));
  CHECK(router.got[0].name == "polite");
}

TEST_CASE("a port in use, a bad endpoint and bad keys are one clear line each") {
  const auto context = NetContext::create();
  RouterSide router;
  router.bind(*context, {});
  const std::string endpoint = router.listener->endpoint();
  CHECK(PoolListener::bind(*context, endpoint, new_curve_keys(), {}).message() ==
        "pool endpoint " + endpoint + ": already in use by another program");
  for (const char* bad :
       {"", "tcp://", "tcp://host", "tcp://:70000", "http://x:1", "tcp://127.0.0.1:99999"}) {
    CAPTURE(bad);
    CHECK(
        PoolListener::bind(*context, bad, new_curve_keys(), {}).message().find("tcp://host:port") !=
        std::string::npos);
  }
  CHECK(
      PoolListener::bind(*context, kAnyPort, CurveKeys{"a", "b"}, {}).message().find("key pair") !=
      std::string::npos);
  CHECK(PoolDialer::connect(*context, endpoint, "short", new_curve_keys())
            .message()
            .find("public key") != std::string::npos);
  CHECK(PoolListener::bind(*context, "tcp://no-such-host.invalid:0", new_curve_keys(), {})
            .message()
            .find("no-such-host") != std::string::npos);
}

TEST_CASE("the listener's self-test leaves nothing behind that holds up later connections") {
  for (int round = 0; round < 10; ++round) {
    const auto router_context = NetContext::create();
    const auto node_context = NetContext::create();
    RouterSide router;
    Node node;
    router.bind(*router_context, {{"n", node.keys.public_key}});
    node.dial(*node_context, router.listener->endpoint(), router.keys.public_key);
    REQUIRE(run_until(
        &router, {&node}, [&] { return node.dialer->connected(); }, 2));
  }
}

// --- what a connection that nobody reads costs ---

namespace {

// Sends frames of `bytes` until the other side has long taken none; how many it took.
int flood(Node& node, size_t bytes) {
  const std::vector<std::byte> frame(bytes);
  int sent = 0;
  for (int refused = 0; refused < 300;) {
    node.turn();
    if (node.dialer->send(frame)) {
      ++sent;
      refused = 0;
    } else {
      ++refused;
      poll(nullptr, 0, 1);
    }
  }
  return sent;
}

}  // namespace

TEST_CASE("a node that floods a router which does not read makes it hold 32 MiB, not gigabytes") {
  const auto context = NetContext::create();
  const auto node_context = NetContext::create();
  RouterSide router;
  Node node;
  router.bind(*context, {{"n", node.keys.public_key}});
  node.dial(*node_context, router.listener->endpoint(), router.keys.public_key);
  REQUIRE(run_until(&router, {&node}, [&] { return node.dialer->connected(); }));
  const int64_t before = testing::resident_bytes();
  const int sent = flood(node, kPoolFrameBytesMax - 1024);
  CHECK(sent >= 64);
  // And what is on its way: sockets' buffers are the kernel's, not this process's.
  if (testing::kMemoryIsMeant) CHECK(testing::resident_bytes() - before < 48 << 20);
}

TEST_CASE("a connection that breaks while its frames wait unread leaves the listener standing") {
  const auto context = NetContext::create();
  RouterSide router;
  const CurveKeys keys = new_curve_keys();
  router.bind(*context, {{"n", keys.public_key}});
  for (int round = 0; round < 10; ++round) {
    {
      const auto node_context = NetContext::create();
      Node node;
      node.keys = keys;
      node.dial(*node_context, router.listener->endpoint(), router.keys.public_key);
      REQUIRE(run_until(&router, {&node}, [&] { return node.dialer->connected(); }));
      CHECK(flood(node, 100) > 64);
    }
    router.got.clear();
    REQUIRE(run_until(&router, {}, [&] { return router.got.size() > 64; }));
  }
  const auto node_context = NetContext::create();
  Node node;
  node.keys = keys;
  node.dial(*node_context, router.listener->endpoint(), router.keys.public_key);
  REQUIRE(run_until(&router, {&node}, [&] { return node.dialer->connected(); }));
  REQUIRE(node.dialer->send(bytes_of("still here")));
  REQUIRE(run_until(&router, {&node}, [&] {
    // Among what the ended connections had still under way.
    const bool came = std::any_of(
        router.got.begin(), router.got.end(),
        [](const PoolListener::Inbound& in) { return as_text(in.frame) == "still here"; });
    router.got.clear();
    return came;
  }));
}

TEST_CASE("a dialer told to dial anew comes back on another connection") {
  const auto context = NetContext::create();
  RouterSide router;
  Node node;
  router.bind(*context, {{"n", node.keys.public_key}});
  node.dial(*context, router.listener->endpoint(), router.keys.public_key);
  REQUIRE(run_until(&router, {&node}, [&] { return node.dialer->connected(); }));
  node.dialer->redial("it is silent");
  CHECK_FALSE(node.dialer->connected());
  CHECK(node.dialer->problem() == router.listener->endpoint() + ": it is silent");
  REQUIRE(run_until(&router, {&node}, [&] { return node.dialer->connected(); }));
  CHECK(node.dialer->connection_count() == 2);
  CHECK(node.dialer->problem().empty());
}
