// updraft bench placement: how long the router's core takes to place one request, by the size of
// the pool. The whole way of it: submit() until the Submit for a node is there.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "cloud/router/core.h"
#include "common/base/clock.h"
#include "tools/command.h"

namespace updraft {
namespace {

struct PlacementFlags {
  std::vector<int> nodes = {10, 1000, 10'000};
  int requests = 20'000;
  bool json = false;
  bool smoke = false;
};

// Nodes that differ: every tenth is an edge, speeds and queues vary, all grant slots.
class Pool {
 public:
  explicit Pool(int count)
      : core_(RouterCoreConfig{}, now_ns_), arrived_(static_cast<size_t>(count)) {
    for (int i = 0; i < count; ++i) {
      NodeHello hello;
      hello.node_id = "n" + std::to_string(i);
      hello.boot_epoch = 1;
      hello.tier = i % 10 == 0 ? Tier::kEdge : Tier::kCloud;
      ModelInfo model;
      model.id = "demo";
      model.context_tokens = hello.tier == Tier::kEdge ? 2048 : 32'768;
      hello.models = {model};
      const PeerInfo peer = peer_of(i);
      core_.on_message(peer, hello, now_ns_, out_);
      NodeBeat beat;
      beat.boot_epoch = 1;
      beat.seq = 1;
      beat.interval_ms = 60'000;  // all stay fresh without another
      beat.lease_ttl_ms = 600'000;
      beat.state = NodeState::kReady;
      beat.slots_total = beat.slots_free = 64;
      beat.kv_tokens_total = beat.kv_tokens_free = 64 * 4096;
      beat.prefill_tokens_per_s = static_cast<float>(1500 + i % 7 * 200);
      beat.decode_tokens_per_s = static_cast<float>(30 + i % 5);
      beat.prefill_tokens_queued = i % 11 * 100;
      beat.credit = Credit{1, 0, 64, 64 * 4096, 60'000};
      core_.on_message(peer, beat, now_ns_, out_);
    }
    core_.on_tick(now_ns_, out_);
    out_.clear();
  }

  // Nanoseconds of one submit(). What was placed is answered right after, so that the pool stays as
  // full as it is.
  int64_t place(int number) {
    Request request;
    request.id = "r" + std::to_string(number);
    request.model = "demo";
    request.tenant = "bench";
    ChatMessage message;
    message.role = "user";
    ContentPart part;
    // Most are too long for an edge.
    part.text = std::string(static_cast<size_t>(500 + number % 17 * 1000), 'a');
    message.parts.push_back(std::move(part));
    request.messages.push_back(std::move(message));
    request.sampling.max_tokens = 200;
    const int64_t begin_ns = monotonic_ns();
    core_.submit(std::move(request), static_cast<ClientId>(number), now_ns_, out_);
    const int64_t end_ns = monotonic_ns();
    const auto* send = out_.empty() ? nullptr : std::get_if<Send>(&out_.front());
    const auto* submit = send == nullptr ? nullptr : std::get_if<Submit>(&send->message);
    if (submit != nullptr) answer(std::stoi(send->peer.substr(4)), *submit);
    out_.clear();
    return end_ns - begin_ns;
  }
  int placed() const { return placed_; }

 private:
  void answer(int node, const Submit& submit) {
    ++placed_;
    const PeerInfo peer = peer_of(node);
    TokenChunk last;
    last.ids = {1};
    last.finish = FinishReason::kStop;
    Tokens tokens{submit.request.id, submit.epoch, {last}};
    uint64_t& arrived = arrived_[static_cast<size_t>(node)];
    arrived += static_cast<uint64_t>(submit.slots);
    Done done{
        submit.request.id, submit.epoch, {}, Credit{++epoch_, arrived, 64, 64 * 4096, 60'000}};
    core_.on_message(peer, std::move(tokens), now_ns_, out_);
    core_.on_message(peer, std::move(done), now_ns_, out_);
  }
  static PeerInfo peer_of(int i) {
    return {"peer" + std::to_string(i), "key" + std::to_string(i), "n" + std::to_string(i)};
  }

  int64_t now_ns_ = 1000 * kNsPerSecond;
  RouterCore core_;
  Actions out_;
  std::vector<uint64_t> arrived_;  // [node]
  uint64_t epoch_ = 1;
  int placed_ = 0;
};

int run(const PlacementFlags& flags) {
  const int requests = flags.smoke ? 200 : flags.requests;
  if (!flags.json) std::printf("%8s %10s %10s %10s\n", "nodes", "p50 us", "p99 us", "mean us");
  for (const int nodes : flags.nodes) {
    Pool pool(nodes);
    for (int i = 0; i < requests / 10; ++i) pool.place(i);  // warm
    std::vector<int64_t> times_ns;
    int64_t sum_ns = 0;
    for (int i = 0; i < requests; ++i) {
      times_ns.push_back(pool.place(requests + i));
      sum_ns += times_ns.back();
    }
    if (pool.placed() != requests + requests / 10) {
      return complain(std::to_string(pool.placed()) + " of " +
                      std::to_string(requests + requests / 10) + " requests were placed");
    }
    std::sort(times_ns.begin(), times_ns.end());
    const auto at = [&](double share) {
      return static_cast<double>(
                 times_ns[static_cast<size_t>(share * static_cast<double>(requests - 1))]) /
             1e3;
    };
    const double mean_us = static_cast<double>(sum_ns) / 1e3 / requests;
    std::printf(flags.json
                    ? "{\"nodes\": %d, \"p50_us\": %.2f, \"p99_us\": %.2f, \"mean_us\": %.2f}\n"
                    : "%8d %10.2f %10.2f %10.2f\n",
                nodes, at(0.5), at(0.99), mean_us);
  }
  return 0;
}

}  // namespace

void add_bench_placement(CLI::App& bench, int& exit_status) {
  CLI::App* command =
      bench.add_subcommand("placement", "time of one placement in the router, by pool size");
  auto flags = std::make_shared<PlacementFlags>();
  command->add_option("--nodes", flags->nodes, "sizes of the pool")
      ->check(CLI::Range(1, 1'000'000));
  command->add_option("--requests", flags->requests, "placements per size")
      ->check(CLI::Range(10, 100'000'000));
  command->add_flag("--json", flags->json, "one object per line");
  command->add_flag("--smoke", flags->smoke, "few placements: checks that it works");
  command->callback([flags, &exit_status] { exit_status = run(*flags); });
}

}  // namespace updraft
