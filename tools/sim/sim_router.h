// A router's process: the production core and peer table, driven as the relay's thread drives them,
// over a simulated socket. The ledger watches both sides of the core.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "cloud/router/core.h"
#include "cloud/router/peer_table.h"
#include "tools/sim/ledger.h"
#include "tools/sim/network.h"
#include "tools/sim/process.h"

namespace updraft::sim {

class SimRouter final : public RouterEnd {
 public:
  // Clients' events leave through the ledger alone. key_of: a node's authenticated key and name.
  SimRouter(World& world, Network& network, Ledger& ledger, RouterCoreConfig config, int number);

  // A new life; the epoch grows.
  void start(ProcessClock clock);
  void crash(Farewell farewell);
  bool running() const { return core_ != nullptr; }
  bool paused() const { return deferred_.paused(); }
  void pause();
  void resume();

  void submit(Request request, ClientId client);
  void cancel(const RequestId& id);
  void drain(const std::string& node_id, int32_t grace_ms);

  void on_frame(const PeerId& peer, int node, std::vector<std::byte>&& frame) override;
  void on_room() override { flush(); }

  // Appends, for each request that comes in, the microseconds that the core took over it.
  void measure_placements(std::vector<double>& into_us) { placements_us_ = &into_us; }

  const RouterCore& core() const { return *core_; }
  int number() const { return number_; }

 private:
  class Socket;

  int64_t now_ns() const { return clock_.local_ns(world_.now_ns()); }
  void tick(uint64_t life);
  void carry_out();
  void flush();

  World& world_;
  Network& network_;
  Ledger& ledger_;
  RouterCoreConfig config_;
  const int number_;
  uint64_t life_ = 0;
  ProcessClock clock_;
  Deferred deferred_;
  std::unique_ptr<PoolListener> socket_;
  std::unique_ptr<RouterCore> core_;
  std::unique_ptr<PeerTable> peers_;
  std::unordered_set<ClientId> clients_;  // that wait for an end
  std::vector<double>* placements_us_ = nullptr;
  Actions actions_;
  std::vector<PeerTable::Gone> gone_;
};

}  // namespace updraft::sim
