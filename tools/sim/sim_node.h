// A node's process, edge or cloud: production link cores, one per router, driven as the pool link's
// thread drives them; an engine on virtual time; and at the edge the production placement before
// both, with local clients in front.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/pool/link_core.h"
#include "edge/placement.h"
#include "tools/sim/ledger.h"
#include "tools/sim/network.h"
#include "tools/sim/process.h"
#include "tools/sim/sim_engine.h"

namespace updraft::sim {

struct NodeSpec {
  std::string id;
  Tier tier = Tier::kCloud;
  EngineSpec engine;
  int32_t model = 0;  // index into the scenario's
  int32_t beat_interval_ms = 100;
  int32_t lease_ttl_ms = 2000;
  int32_t answer_timeout_ms = 60'000;  // of what rises
  int32_t silence_timeout_ms = 300'000;
  int32_t upward_max = 1024;
  int64_t load_ns = 0;  // from the start until it is ready
};

class SimNode final : public NodeEnd {
 public:
  SimNode(World& world, Network& network, Ledger& ledger, NodeSpec spec,
          const std::vector<SimModel>& models, int router_count);

  // A new life. wall_ms: what this machine takes for the time of day; the boot epoch.
  void start(ProcessClock clock, int64_t wall_ms);
  void crash(Farewell farewell);
  bool running() const { return engine_ != nullptr; }
  bool paused() const { return deferred_.paused(); }
  void pause();
  void resume();
  // As SIGTERM does: no new work, what runs ends within grace_ms, then the process is gone.
  void drain(int32_t grace_ms);
  void heal();
  void set_slowness(double factor) {
    if (engine_) engine_->set_slowness(factor);
  }
  // How full its memory is, until told otherwise or until its life ends.
  void set_memory(MemoryLevel level);

  // --- a client on this gateway (edges) ---
  void submit(Request request, ClientId client);
  void cancel(const RequestId& id);

  void on_frame(int router, std::vector<std::byte>&& frame) override;
  void on_link_changed(int router) override;

  const NodeSpec& spec() const { return spec_; }
  const SimEngine* engine() const { return engine_.get(); }
  int number() const { return number_; }
  int64_t last_wall_ms() const { return wall_ms_; }
  // Draining, by itself or because a router said so.
  bool draining() const;
  bool ends_by_itself() const { return draining_; }
  bool welcomed_by_all() const;
  // Nothing under way: neither work, nor what rose, nor frames. Else what there is.
  std::string what_is_left() const;
  // Queues against their limits; empty when all is well.
  std::string check_caps() const;

 private:
  struct LocalEvent {
    RequestId id;
    uint64_t serial = 0;
    Event event;
  };
  struct Link {
    std::unique_ptr<LinkCore> core;
    std::deque<LocalEvent> inbox;
    bool session_open = false;
    uint64_t session = 0;
    bool scheduled = false;  // a turn at once
    int64_t wake_ns = 0;     // the next turn by time; 0: none
  };
  // A local client's request, as EdgeService keeps it.
  struct Flight {
    Request request;
    ClientId client = 0;
    int64_t received_ns = 0;
    int64_t deadline_ms = 0;
    bool fits_here = false;
    bool may_rise = false;
    bool tried_local = false;
    bool tried_pool = false;
    bool started = false;
    bool cancelled = false;
    Request for_side(int64_t now_ns) const;
  };
  using FlightPtr = std::shared_ptr<Flight>;

  int64_t now_ns() const { return clock_.local_ns(world_.now_ns()); }
  Link& link(int router) { return *links_[static_cast<size_t>(router)]; }
  void follow_connection(int router);
  void run(int router);
  void run_soon(int router);
  void carry_out(int router);
  void submit_local(int router, LinkCore::SubmitLocal&& submit);

  EdgeState edge_state(const Request& request) const;
  void place(const FlightPtr& flight);
  void go_local(const FlightPtr& flight);
  void go_up(const FlightPtr& flight);
  void on_flight_event(const FlightPtr& flight, bool from_pool, Event event);
  bool try_other_side(const FlightPtr& flight, bool from_pool, const RequestError& error);
  void finish(const FlightPtr& flight, Event end);
  int upward_router() const;
  bool idle() const;
  void end_when_idle(uint64_t life);

  World& world_;
  Network& network_;
  Ledger& ledger_;
  const NodeSpec spec_;
  const std::vector<SimModel>& models_;
  const int router_count_;
  int number_ = 0;
  uint64_t life_ = 0;
  int64_t wall_ms_ = 0;
  ProcessClock clock_;
  Deferred deferred_;
  bool draining_ = false;
  std::shared_ptr<SimEngine> engine_;
  MemoryLevel memory_ = MemoryLevel::kNormal;
  std::shared_ptr<GrantLedger> grants_;       // one for all routers, as PoolLinks makes it
  std::vector<std::unique_ptr<Link>> links_;  // [router]
  std::unordered_map<RequestId, FlightPtr> flights_;
  EdgeSessions sessions_;
};

}  // namespace updraft::sim
