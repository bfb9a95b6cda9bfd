// See the header.
#include "tools/sim/clients.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "common/base/clock.h"

namespace updraft::sim {
namespace {

constexpr size_t kHugeBytes = kChunkBytes + 50'000;
constexpr int32_t kIdsMax = 300;

}  // namespace

Clients::Clients(World& world, Ledger& ledger, const Scenario& scenario,
                 std::vector<std::unique_ptr<SimRouter>>& routers,
                 std::vector<std::unique_ptr<SimNode>>& nodes)
    : world_(world), ledger_(ledger), scenario_(scenario), routers_(routers), nodes_(nodes) {
  for (size_t i = 0; i < scenario.nodes.size(); ++i) {
    if (scenario.nodes[i].tier == Tier::kEdge) edges_.push_back(static_cast<int>(i));
  }
  const Workload& w = scenario.workload;
  for (int32_t i = 0; i < w.tenant_count; ++i)
    system_prompts_.push_back(text(static_cast<size_t>(world_.random.between(20, 200))));
  sessions_.resize(static_cast<size_t>(w.session_count));
}

void Clients::run_until(int64_t until_ns) {
  const double wait_s = world_.random.exponential(1.0 / scenario_.workload.requests_per_s);
  const int64_t at_ns = world_.now_ns() + static_cast<int64_t>(wait_s * 1e9);
  if (at_ns < until_ns) world_.at(at_ns, [this, until_ns] { arrive(until_ns); });
}

void Clients::arrive(int64_t until_ns) {
  run_until(until_ns);
  submit(make_request());
}

std::string Clients::text(size_t bytes) {
  std::string out(bytes, ' ');
  for (size_t i = 0; i < bytes; i += 8) {
    uint64_t word = world_.random.next();
    for (size_t k = i; k < std::min(i + 8, bytes); ++k, word >>= 8)
      out[k] = static_cast<char>('a' + (word & 0xF));
  }
  return out;
}

Request Clients::make_request() {
  const Workload& w = scenario_.workload;
  Random& random = world_.random;
  Request request;
  char id[40];
  std::snprintf(id, sizeof id, "r%06llu", static_cast<unsigned long long>(next_id_++));
  request.id = id;
  const auto model = static_cast<size_t>(random.below(scenario_.models.size()));
  request.model = scenario_.models[model].id;
  if (random.chance(w.unknown_model_share)) request.model = "nobody-has-this";
  const auto tenant = static_cast<int32_t>(random.below(static_cast<uint64_t>(w.tenant_count)));
  request.tenant = "tenant-" + std::to_string(tenant);
  Hints& hints = request.hints;
  if (random.chance(w.session_share))
    hints.session = "s" + std::to_string(random.below(static_cast<uint64_t>(w.session_count)));
  if (random.chance(w.tier_share)) hints.tier = random.chance(0.5) ? Tier::kEdge : Tier::kCloud;
  if (random.chance(w.local_only_share)) {
    hints.local_only = true;
    hints.tier = Tier::kAny;
  }
  if (random.chance(w.priority_share)) hints.priority = static_cast<Priority>(random.below(4));
  if (random.chance(w.deadline_share))
    hints.deadline_ms = random.between(w.deadline_ms_min, w.deadline_ms_max);
  if (random.chance(w.seed_share)) request.sampling.seed = random.next();
  if (random.chance(w.choices_share))
    request.choice_count = static_cast<int32_t>(random.between(2, 3));
  request.sampling.ignore_eos = random.chance(w.ignore_end_share);
  // What goes on for ever needs a limit.
  if (request.sampling.ignore_eos || random.chance(w.limit_share))
    request.sampling.max_tokens = static_cast<int32_t>(random.between(1, w.max_tokens_max));
  if (random.chance(w.ids_share)) {
    request.kind = Request::Kind::kCompletion;
    request.prompt_ids.emplace_back();
    for (int64_t left = random.between(1, kIdsMax); left > 0; --left)
      request.prompt_ids[0].push_back(static_cast<int32_t>(random.below(30'000)));
    return request;
  }
  ChatMessage system{"system", {}};
  system.parts.push_back({});
  system.parts[0].text = system_prompts_[static_cast<size_t>(tenant)];
  ChatMessage user{"user", {}};
  user.parts.push_back({});
  user.parts[0].text = make_prompt(request);
  request.messages = {std::move(system), std::move(user)};
  return request;
}

std::string Clients::make_prompt(const Request& request) {
  const Workload& w = scenario_.workload;
  Random& random = world_.random;
  if (w.huge_share > 0 && random.chance(w.huge_share)) return text(kHugeBytes);
  auto bytes = static_cast<size_t>(1 + random.exponential(w.short_bytes_mean));
  if (random.chance(w.long_share))
    bytes = static_cast<size_t>(random.between(w.short_bytes_mean, w.long_bytes_max));
  if (request.hints.session.empty()) return text(bytes);
  // A conversation says again all that was said.
  std::string& said = sessions_[std::stoul(request.hints.session.substr(1))];
  if (said.size() > static_cast<size_t>(w.long_bytes_max)) said.clear();
  said += text(std::min<size_t>(bytes, 1000));
  return said;
}

void Clients::submit(Request request) {
  const Workload& w = scenario_.workload;
  Random& random = world_.random;
  const RequestId id = request.id;
  const SimModel* model = &scenario_.models[0];
  for (const SimModel& known : scenario_.models) {
    if (known.id == request.model) model = &known;
  }
  const bool at_edge = !edges_.empty() && random.chance(w.edge_share);
  const bool leaves = random.chance(w.cancel_share);
  const int64_t leave_ns = random.between(0, w.cancel_after_ms_max) * kNsPerMs;
  if (at_edge) {
    const int edge = edges_[static_cast<size_t>(random.below(edges_.size()))];
    SimNode& node = *nodes_[static_cast<size_t>(edge)];
    if (!node.running()) return;  // connection refused
    const ClientId client = ledger_.open_ticket(request, *model, {true, edge});
    node.submit(std::move(request), client);
    if (!leaves) return;
    world_.after(leave_ns, [this, &node, id, client] {
      ledger_.on_client_cancel(client);
      node.cancel(id);
    });
    return;
  }
  const auto number = static_cast<int>(random.below(routers_.size()));
  SimRouter& router = *routers_[static_cast<size_t>(number)];
  if (!router.running()) return;
  const ClientId client = ledger_.open_ticket(request, *model, {false, number});
  router.submit(std::move(request), client);
  if (!leaves) return;
  world_.after(leave_ns, [this, &router, id, client] {
    ledger_.on_client_cancel(client);
    if (!router.running()) return;
    router.cancel(id);
    if (!router.paused()) ledger_.after_router_cancel(client);
  });
}

ClientId Clients::probe(int router, int model, int32_t choices) {
  Request request;
  request.id = "probe" + std::to_string(next_id_++);
  request.model = scenario_.models[static_cast<size_t>(model)].id;
  request.tenant = "probe";
  request.choice_count = choices;
  request.sampling.max_tokens = 2;
  request.sampling.seed = next_id_;
  ChatMessage user{"user", {}};
  user.parts.push_back({});
  user.parts[0].text = "is anybody there";
  request.messages = {std::move(user)};
  const ClientId client =
      ledger_.open_ticket(request, scenario_.models[static_cast<size_t>(model)], {false, router});
  routers_[static_cast<size_t>(router)]->submit(std::move(request), client);
  return client;
}

}  // namespace updraft::sim
