// The wires between nodes and routers as ZeroMQ over TCP shows them to the programs: connections
// that are dialled, carry frames in order, fill up, stall, break, and are noticed to be broken late
// or never. With `loss` and `replay` they are worse than TCP, as a relay in between could make
// them: single frames vanish, or come a second time.
//
// The one idea: the two ends of a connection have views of their own. A node learns of a break by
// itself (its socket monitor), a router only when it sends.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "cloud/router/registry.h"
#include "common/base/bytes.h"
#include "common/net/pool_socket.h"
#include "tools/sim/world.h"

namespace updraft::sim {

struct NetworkConfig {
  int64_t delay_min_ns = 0;  // of each frame, one way
  int64_t delay_max_ns = 0;
  double loss = 0.0;    // of each frame, 0..1
  double replay = 0.0;  // of each frame: it comes once more, within a second
  // Silence after which an end takes the connection for dead (ZMTP's heartbeats); 0: never.
  int64_t detect_ns = 3'000'000'000;
  size_t pipe_bytes_max = 4 << 20;  // under way in one direction; then the sender has to wait
};

enum class Direction : uint8_t { kUp, kDown };  // kUp: from node to router

// How a process leaves: after what it sent has arrived; with a reset, which loses that; or without
// a word, as when the power fails.
enum class Farewell : uint8_t { kOrderly, kReset, kSilent };

// A process as the network sees it.
class NodeEnd {
 public:
  virtual ~NodeEnd() = default;
  virtual void on_frame(int router, std::vector<std::byte>&& frame) = 0;
  // The connection to this router has come, gone, or has room again.
  virtual void on_link_changed(int router) = 0;
};
class RouterEnd {
 public:
  virtual ~RouterEnd() = default;
  virtual void on_frame(const PeerId& peer, int node, std::vector<std::byte>&& frame) = 0;
  virtual void on_room() = 0;
};

class Network {
 public:
  Network(World& world, const NetworkConfig& config) : world_(world), config_(config) {}

  int add_node(NodeEnd& end);      // returns its number, from 0
  int add_router(RouterEnd& end);  // all routers before the first dial()

  // --- a node's socket ---
  void dial(int node);  // to every router, again and again, until hang_up()
  // The node's process is gone.
  void hang_up(int node, Farewell farewell);
  bool node_connected(int node, int router) const;
  uint64_t connection_count(int node, int router) const;
  bool node_send(int node, int router, ByteView frame);  // false: not connected, or full

  // --- a router's socket ---
  void open(int router);
  void shut(int router, Farewell farewell);
  PoolListener::SendOutcome router_send(const PeerId& peer, ByteView frame);

  // --- faults ---
  // Nothing gets through this way until it is mended.
  void cut(int node, int router, Direction direction);
  void mend(int node, int router);  // both ways
  void clog(int node, int router, Direction direction, int64_t for_ns);
  void reset(int node, int router);  // the connection breaks, both ends are told
  void pause_node(int node, bool paused);
  void pause_router(int router, bool paused);
  // From now on a network without any fault: cuts mended, clogs gone, nothing lost or replayed.
  void heal();

 private:
  struct Item {
    int64_t due_ns = 0;
    std::vector<std::byte> frame;
    bool last = false;  // not a frame: the sender has closed
  };
  struct Pipe {
    std::deque<Item> items;
    size_t bytes = 0;
    int64_t last_due_ns = 0;
    bool armed = false;    // an event will look at the first item
    bool refused = false;  // the sender waits for room
  };
  struct Connection {
    uint64_t id = 0;
    PeerId peer;
    int node = 0;
    int router = 0;
    bool node_open = true;
    bool router_open = true;
    std::array<Pipe, 2> pipes;  // [direction]
  };
  struct Path {
    std::array<bool, 2> cut{};
    std::array<int64_t, 2> clogged_until_ns{};
    std::array<int64_t, 2> silent_since_ns{-1, -1};  // -1: it is not
    std::vector<uint64_t> connections;               // open on at least one side
    uint64_t current = 0;                            // the node's; 0: none
    uint64_t count = 0;
    int64_t backoff_ns = 0;
    bool dialing = false;
  };
  struct Process {
    bool running = false;
    bool paused = false;
    bool up() const { return running && !paused; }
  };
  struct Node : Process {
    NodeEnd* end = nullptr;
    std::vector<Path> paths;  // [router]
  };
  struct Router : Process {
    RouterEnd* end = nullptr;
  };

  Path& path(int node, int router) { return nodes_[index(node)].paths[index(router)]; }
  const Path& path(int node, int router) const { return nodes_[index(node)].paths[index(router)]; }
  static size_t index(int number) { return static_cast<size_t>(number); }
  Connection* find(uint64_t id);
  bool blocked(const Connection& connection, Direction direction) const;
  bool silent(int node, int router, Direction direction) const;
  int64_t delay_ns();

  void try_dial_after(int node, int router, int64_t delay_ns);
  void try_dial(int node, int router);
  void connect(int node, int router);
  bool put(Connection& connection, Direction direction, ByteView frame);
  void push(Connection& connection, Direction direction, Item item);
  void arm(Connection& connection, Direction direction);
  void deliver(uint64_t id, Direction direction);
  void deliver_copy(uint64_t id, Direction direction, const std::vector<std::byte>& frame);
  void hand_over(const Connection& connection, Direction direction, std::vector<std::byte>&& frame);
  void close_node_side(Connection& connection, Farewell farewell);
  void close_router_side(Connection& connection, Farewell farewell);
  static void empty(Pipe& pipe);
  void drop_if_closed(const Connection& connection);
  // Whether the path is blocked has changed, or may have.
  void look_again(int node, int router);
  void detect_later(int node, int router, Direction direction);

  World& world_;
  NetworkConfig config_;
  std::vector<Node> nodes_;
  std::vector<Router> routers_;
  std::map<uint64_t, Connection> connections_;
  std::map<PeerId, uint64_t> by_peer_;
  uint64_t last_id_ = 0;
};

}  // namespace updraft::sim
