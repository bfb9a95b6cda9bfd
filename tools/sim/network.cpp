// See the header.
#include "tools/sim/network.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/base/clock.h"

namespace updraft::sim {
namespace {

constexpr int64_t kBackoffMinNs = 100 * kNsPerMs;  // as the dialer's socket options say
constexpr int64_t kBackoffMaxNs = 3000 * kNsPerMs;
constexpr int64_t kReplayWithinNs = kNsPerSecond;
constexpr std::array<Direction, 2> kBoth = {Direction::kUp, Direction::kDown};

size_t at(Direction direction) { return static_cast<size_t>(direction); }

}  // namespace

int Network::add_node(NodeEnd& end) {
  Node node;
  node.end = &end;
  node.paths.resize(routers_.size());
  nodes_.push_back(std::move(node));
  return static_cast<int>(nodes_.size()) - 1;
}

int Network::add_router(RouterEnd& end) {
  UPDRAFT_CHECK(nodes_.empty(), "routers come before nodes");
  Router router;
  router.end = &end;
  routers_.push_back(router);
  return static_cast<int>(routers_.size()) - 1;
}

Network::Connection* Network::find(uint64_t id) {
  const auto found = connections_.find(id);
  return found == connections_.end() ? nullptr : &found->second;
}

int64_t Network::delay_ns() {
  return world_.random.between(config_.delay_min_ns, config_.delay_max_ns);
}

// --- what gets through ---

// Nothing arrives this way: the path is closed, or nobody is there to take it.
bool Network::blocked(const Connection& connection, Direction direction) const {
  const Path& p = path(connection.node, connection.router);
  if (p.cut[at(direction)] || world_.now_ns() < p.clogged_until_ns[at(direction)]) return true;
  return direction == Direction::kUp ? routers_[index(connection.router)].paused
                                     : nodes_[index(connection.node)].paused;
}

// The receiver hears nothing, although it listens.
bool Network::silent(int node, int router, Direction direction) const {
  const Path& p = path(node, router);
  if (p.cut[at(direction)] || world_.now_ns() < p.clogged_until_ns[at(direction)]) return true;
  return direction == Direction::kUp ? nodes_[index(node)].paused : routers_[index(router)].paused;
}

void Network::look_again(int node, int router) {
  Path& p = path(node, router);
  for (const Direction direction : kBoth) {
    int64_t& since_ns = p.silent_since_ns[at(direction)];
    const bool is_silent = silent(node, router, direction);
    if (is_silent && since_ns < 0) {
      since_ns = world_.now_ns();
      detect_later(node, router, direction);
    }
    if (!is_silent) since_ns = -1;
    for (const uint64_t id : p.connections) arm(connections_.at(id), direction);
  }
}

void Network::detect_later(int node, int router, Direction direction) {
  if (config_.detect_ns == 0) return;
  const int64_t since_ns = world_.now_ns();
  const int64_t wait_ns = config_.detect_ns + world_.random.between(0, config_.detect_ns / 6);
  world_.after(wait_ns, [this, node, router, direction, since_ns] {
    Path& p = path(node, router);
    if (p.silent_since_ns[at(direction)] != since_ns) return;
    const Process& receiver = direction == Direction::kUp
                                  ? static_cast<const Process&>(routers_[index(router)])
                                  : nodes_[index(node)];
    if (!receiver.up()) return;
    const std::vector<uint64_t> ids = p.connections;
    for (const uint64_t id : ids) {
      Connection* connection = find(id);
      if (connection == nullptr) continue;
      if (direction == Direction::kUp) {
        if (connection->router_open) close_router_side(*connection, Farewell::kReset);
      } else if (connection->node_open) {
        close_node_side(*connection, Farewell::kReset);
      }
    }
  });
}

// --- connecting ---

void Network::dial(int node) {
  nodes_[index(node)].running = true;
  for (size_t router = 0; router < routers_.size(); ++router) {
    Path& p = path(node, static_cast<int>(router));
    p.backoff_ns = kBackoffMinNs;
    try_dial_after(node, static_cast<int>(router), world_.random.between(0, 20 * kNsPerMs));
  }
}

void Network::try_dial_after(int node, int router, int64_t delay_ns) {
  if (std::exchange(path(node, router).dialing, true)) return;
  world_.after(delay_ns, [this, node, router] { try_dial(node, router); });
}

void Network::try_dial(int node, int router) {
  Path& p = path(node, router);
  p.dialing = false;
  if (!nodes_[index(node)].running || p.current != 0) return;
  const bool reachable = nodes_[index(node)].up() && routers_[index(router)].up() &&
                         !silent(node, router, Direction::kUp) &&
                         !silent(node, router, Direction::kDown);
  if (!reachable) {
    try_dial_after(node, router, p.backoff_ns);
    p.backoff_ns = std::min(2 * p.backoff_ns, kBackoffMaxNs);
    return;
  }
  p.dialing = true;
  world_.after(3 * delay_ns(), [this, node, router] { connect(node, router); });
}

// The handshake has come to its end.
void Network::connect(int node, int router) {
  Path& p = path(node, router);
  p.dialing = false;
  if (!nodes_[index(node)].running || p.current != 0) return;
  if (!nodes_[index(node)].up() || !routers_[index(router)].up() ||
      silent(node, router, Direction::kUp) || silent(node, router, Direction::kDown)) {
    try_dial_after(node, router, p.backoff_ns);
    return;
  }
  p.backoff_ns = kBackoffMinNs;
  Connection connection;
  connection.id = ++last_id_;
  connection.peer = "c" + std::to_string(connection.id);
  connection.node = node;
  connection.router = router;
  p.connections.push_back(connection.id);
  p.current = connection.id;
  ++p.count;
  by_peer_.emplace(connection.peer, connection.id);
  world_.note("connected", connection.peer, static_cast<uint64_t>(node),
              static_cast<uint64_t>(router));
  connections_.emplace(connection.id, std::move(connection));
  nodes_[index(node)].end->on_link_changed(router);
}

void Network::hang_up(int node, Farewell farewell) {
  nodes_[index(node)].running = false;
  nodes_[index(node)].paused = false;
  for (size_t router = 0; router < routers_.size(); ++router) {
    const std::vector<uint64_t> ids = path(node, static_cast<int>(router)).connections;
    for (const uint64_t id : ids) {
      Connection* connection = find(id);
      if (connection != nullptr && connection->node_open) close_node_side(*connection, farewell);
    }
    look_again(node, static_cast<int>(router));
  }
}

void Network::open(int router) { routers_[index(router)].running = true; }

void Network::shut(int router, Farewell farewell) {
  routers_[index(router)].running = false;
  routers_[index(router)].paused = false;
  for (size_t node = 0; node < nodes_.size(); ++node) {
    const std::vector<uint64_t> ids = path(static_cast<int>(node), router).connections;
    for (const uint64_t id : ids) {
      Connection* connection = find(id);
      if (connection != nullptr && connection->router_open)
        close_router_side(*connection, farewell);
    }
    look_again(static_cast<int>(node), router);
  }
}

bool Network::node_connected(int node, int router) const { return path(node, router).current != 0; }
uint64_t Network::connection_count(int node, int router) const { return path(node, router).count; }

// --- closing ---

void Network::empty(Pipe& pipe) {
  pipe.items.clear();
  pipe.bytes = 0;
}

void Network::close_node_side(Connection& connection, Farewell farewell) {
  const int node = connection.node;
  const int router = connection.router;
  const uint64_t id = connection.id;
  world_.note("node side closed", connection.peer);
  connection.node_open = false;
  empty(connection.pipes[at(Direction::kDown)]);
  if (farewell != Farewell::kOrderly) empty(connection.pipes[at(Direction::kUp)]);
  if (connection.router_open && farewell != Farewell::kSilent) {
    push(connection, Direction::kUp, {0, {}, true});
  } else if (connection.router_open && config_.detect_ns > 0) {
    world_.after(config_.detect_ns, [this, id] {
      Connection* left = find(id);
      if (left != nullptr && left->router_open) close_router_side(*left, Farewell::kSilent);
    });
  }
  drop_if_closed(connection);
  Path& p = path(node, router);
  if (p.current != id) return;
  p.current = 0;
  if (!nodes_[index(node)].running) return;
  try_dial_after(node, router, p.backoff_ns);
  nodes_[index(node)].end->on_link_changed(router);
}

void Network::close_router_side(Connection& connection, Farewell farewell) {
  world_.note("router side closed", connection.peer);
  connection.router_open = false;
  empty(connection.pipes[at(Direction::kUp)]);
  if (farewell != Farewell::kOrderly) empty(connection.pipes[at(Direction::kDown)]);
  by_peer_.erase(connection.peer);
  if (connection.node_open && farewell != Farewell::kSilent) {
    push(connection, Direction::kDown, {0, {}, true});
  } else if (connection.node_open) {
    // Whatever the node sends is answered by a reset once something listens there again.
    const uint64_t id = connection.id;
    const int64_t wait_ns = config_.detect_ns > 0 ? config_.detect_ns : 10 * kNsPerSecond;
    world_.after(wait_ns, [this, id] {
      Connection* left = find(id);
      if (left != nullptr && left->node_open) close_node_side(*left, Farewell::kSilent);
    });
  }
  drop_if_closed(connection);
}

void Network::drop_if_closed(const Connection& connection) {
  if (connection.node_open || connection.router_open) return;
  const uint64_t id = connection.id;
  std::erase(path(connection.node, connection.router).connections, id);
  by_peer_.erase(connection.peer);
  connections_.erase(id);
}

// --- frames ---

bool Network::node_send(int node, int router, ByteView frame) {
  const Path& p = path(node, router);
  return p.current != 0 && put(connections_.at(p.current), Direction::kUp, frame);
}

PoolListener::SendOutcome Network::router_send(const PeerId& peer, ByteView frame) {
  const auto found = by_peer_.find(peer);
  if (found == by_peer_.end()) return PoolListener::SendOutcome::kGone;
  return put(connections_.at(found->second), Direction::kDown, frame)
             ? PoolListener::SendOutcome::kSent
             : PoolListener::SendOutcome::kFull;
}

bool Network::put(Connection& connection, Direction direction, ByteView frame) {
  Pipe& pipe = connection.pipes[at(direction)];
  if (pipe.bytes > 0 && pipe.bytes + frame.size() > config_.pipe_bytes_max) {
    pipe.refused = true;
    return false;
  }
  const bool receiver_open =
      direction == Direction::kUp ? connection.router_open : connection.node_open;
  if (!receiver_open) return true;  // it falls into the dark
  if (config_.loss > 0.0 && world_.random.chance(config_.loss)) {
    world_.note("frame lost", connection.peer, frame.size(), at(direction));
    return true;
  }
  Item item{0, {frame.begin(), frame.end()}, false};
  if (config_.replay > 0.0 && world_.random.chance(config_.replay)) {
    const int64_t wait_ns = delay_ns() + world_.random.between(0, kReplayWithinNs);
    world_.after(wait_ns, [this, id = connection.id, direction, copy = item.frame] {
      deliver_copy(id, direction, copy);
    });
  }
  push(connection, direction, std::move(item));
  return true;
}

void Network::push(Connection& connection, Direction direction, Item item) {
  Pipe& pipe = connection.pipes[at(direction)];
  item.due_ns = std::max(world_.now_ns() + delay_ns(), pipe.last_due_ns);
  pipe.last_due_ns = item.due_ns;
  pipe.bytes += item.frame.size();
  pipe.items.push_back(std::move(item));
  arm(connection, direction);
}

void Network::arm(Connection& connection, Direction direction) {
  Pipe& pipe = connection.pipes[at(direction)];
  if (pipe.armed || pipe.items.empty() || blocked(connection, direction)) return;
  pipe.armed = true;
  world_.at(pipe.items.front().due_ns,
            [this, id = connection.id, direction] { deliver(id, direction); });
}

void Network::deliver(uint64_t id, Direction direction) {
  Connection* connection = find(id);
  if (connection == nullptr) return;
  Pipe& pipe = connection->pipes[at(direction)];
  pipe.armed = false;
  if (pipe.items.empty() || blocked(*connection, direction)) return;
  if (pipe.items.front().due_ns > world_.now_ns()) return arm(*connection, direction);
  Item item = std::move(pipe.items.front());
  pipe.items.pop_front();
  pipe.bytes -= item.frame.size();
  const int node = connection->node;
  const int router = connection->router;
  if (item.last) {
    if (direction == Direction::kUp) {
      if (connection->router_open) close_router_side(*connection, Farewell::kSilent);
    } else if (connection->node_open) {
      close_node_side(*connection, Farewell::kSilent);
    }
    return;
  }
  const bool room = pipe.refused && pipe.bytes <= config_.pipe_bytes_max / 2;
  if (room) pipe.refused = false;
  arm(*connection, direction);
  hand_over(*connection, direction, std::move(item.frame));
  if (!room) return;
  if (direction == Direction::kUp) {
    if (nodes_[index(node)].up()) nodes_[index(node)].end->on_link_changed(router);
  } else if (routers_[index(router)].up()) {
    routers_[index(router)].end->on_room();
  }
}

void Network::deliver_copy(uint64_t id, Direction direction, const std::vector<std::byte>& frame) {
  const Connection* connection = find(id);
  const bool healed = config_.replay == 0.0;  // since the copy was made
  if (connection == nullptr || healed || blocked(*connection, direction)) return;
  world_.note("frame replayed", connection->peer, frame.size(), at(direction));
  hand_over(*connection, direction, std::vector<std::byte>(frame));
}

void Network::hand_over(const Connection& connection, Direction direction,
                        std::vector<std::byte>&& frame) {
  const int node = connection.node;
  const int router = connection.router;
  if (direction == Direction::kUp) {
    if (connection.router_open)
      routers_[index(router)].end->on_frame(connection.peer, node, std::move(frame));
  } else if (connection.node_open && path(node, router).current == connection.id) {
    nodes_[index(node)].end->on_frame(router, std::move(frame));
  }
}

// --- faults ---

void Network::cut(int node, int router, Direction direction) {
  path(node, router).cut[at(direction)] = true;
  look_again(node, router);
}

void Network::mend(int node, int router) {
  path(node, router).cut = {};
  look_again(node, router);
}

void Network::clog(int node, int router, Direction direction, int64_t for_ns) {
  int64_t& until_ns = path(node, router).clogged_until_ns[at(direction)];
  until_ns = std::max(until_ns, world_.now_ns() + for_ns);
  look_again(node, router);
  world_.at(until_ns, [this, node, router] { look_again(node, router); });
}

void Network::reset(int node, int router) {
  const std::vector<uint64_t> ids = path(node, router).connections;
  for (const uint64_t id : ids) {
    Connection* connection = find(id);
    if (connection != nullptr && connection->router_open)
      close_router_side(*connection, Farewell::kReset);
    connection = find(id);
    if (connection != nullptr && connection->node_open)
      close_node_side(*connection, Farewell::kSilent);
  }
}

void Network::pause_node(int node, bool paused) {
  nodes_[index(node)].paused = paused;
  for (size_t router = 0; router < routers_.size(); ++router)
    look_again(node, static_cast<int>(router));
}

void Network::pause_router(int router, bool paused) {
  routers_[index(router)].paused = paused;
  for (size_t node = 0; node < nodes_.size(); ++node) look_again(static_cast<int>(node), router);
}

void Network::heal() {
  config_.loss = config_.replay = 0.0;
  for (size_t node = 0; node < nodes_.size(); ++node) {
    for (size_t router = 0; router < routers_.size(); ++router) {
      Path& p = path(static_cast<int>(node), static_cast<int>(router));
      p.cut = {};
      p.clogged_until_ns = {};
      look_again(static_cast<int>(node), static_cast<int>(router));
    }
  }
}

}  // namespace updraft::sim
