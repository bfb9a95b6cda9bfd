// See the header.
#include "tools/sim/fleet.h"

#include <algorithm>
#include <utility>

#include "common/base/clock.h"
#include "common/config/toml_file.h"

namespace updraft::sim {
namespace {

NodeKind read_kind(TomlFile& file, const std::string& name) {
  NodeKind kind;
  kind.name = name;
  std::string tier = "cloud";
  int32_t prefill = 1000;
  int32_t decode = 30;
  int32_t decode_full = 100;
  const auto get = [&](const char* key, int32_t& out, int64_t min, int64_t max) {
    file.get((name + "." + key).c_str(), out, min, max);
  };
  file.get_choice((name + ".tier").c_str(), tier, {"edge", "cloud"});
  get("count", kind.count, 1, 1'000'000);
  get("slots", kind.engine.slots, 1, 1024);
  get("queue_max", kind.engine.queue_max, 0, 65'536);
  get("context", kind.engine.context_tokens, 16, 1 << 24);
  kind.engine.kv_tokens = kind.engine.context_tokens;
  get("kv_tokens", kind.engine.kv_tokens, kind.engine.context_tokens, 1 << 30);
  get("kv_swap_tokens", kind.engine.kv_swap_tokens, 0, 1 << 30);
  get("prefill_tokens_per_s", prefill, 1, 10'000'000);
  get("decode_tokens_per_s", decode, 1, 1'000'000);
  decode_full = decode;
  get("decode_tokens_per_s_full", decode_full, decode, 10'000'000);
  kind.tier = tier == "edge" ? Tier::kEdge : Tier::kCloud;
  kind.beat_interval_ms = kind.tier == Tier::kEdge ? 250 : 100;
  get("beat_ms", kind.beat_interval_ms, 10, 10'000);
  kind.engine.prefill_tokens_per_s = prefill;
  kind.engine.decode_tokens_per_s = decode;
  kind.engine.decode_tokens_per_s_full = decode_full;
  kind.engine.step_tokens_max =
      std::max(kind.engine.slots + 16, std::min(2048, static_cast<int32_t>(prefill / 2)));
  return kind;
}

}  // namespace

double Fleet::answers_per_s() const {
  double rate = 0.0;
  for (const NodeKind& kind : kinds)
    rate += kind.count * kind.engine.decode_tokens_per_s_full / answer_tokens;
  return rate;
}

Scenario Fleet::scenario(double requests_per_s, int64_t busy_ns) const {
  Scenario s;
  s.name = "fleet";
  s.calm = true;
  s.router_count = router_count;
  s.models.push_back({"model", "digest", 4, answer_tokens});
  for (const NodeKind& kind : kinds) {
    for (int32_t i = 0; i < kind.count; ++i) {
      NodeSpec node;
      node.id = kind.name + "-" + std::to_string(i);
      node.tier = kind.tier;
      node.engine = kind.engine;
      node.beat_interval_ms = kind.beat_interval_ms;
      s.nodes.push_back(std::move(node));
    }
  }
  s.router.queue_max = queue_max;
  s.router.queue_timeout_ms = queue_timeout_ms;
  s.network.delay_min_ns = delay_ms * kNsPerMs;
  s.network.delay_max_ns = delay_ms * kNsPerMs * 3 / 2;
  Workload& w = s.workload;
  w.requests_per_s = requests_per_s;
  w.edge_share = edge_percent / 100.0;
  w.session_share = session_percent / 100.0;
  w.session_count = session_count;
  w.short_bytes_mean = prompt_bytes;
  w.long_share = long_percent / 100.0;
  w.long_bytes_max = std::max(long_bytes_max, prompt_bytes);
  w.limit_share = 0.0;
  if (deadline_ms > 0) {
    w.deadline_share = 1.0;
    w.deadline_ms_min = w.deadline_ms_max = deadline_ms;
  }
  s.busy_ns = busy_ns;
  return s;
}

Result<Fleet> load_fleet(const std::string& path) {
  Result<TomlFile> opened = TomlFile::open(path);
  if (!opened) return opened.error();
  TomlFile& file = *opened;
  Fleet fleet;
  std::vector<std::string> kinds;
  file.get("fleet.kinds", kinds);
  if (kinds.empty()) file.refuse("fleet.kinds", "must name at least one kind of node");
  file.get("fleet.routers", fleet.router_count, 1, 16);
  file.get("fleet.queue_max", fleet.queue_max, 1, 1'000'000);
  file.get("fleet.queue_timeout_ms", fleet.queue_timeout_ms, 1, 3'600'000);
  file.get("fleet.delay_ms", fleet.delay_ms, 0, 10'000);
  file.get("load.prompt_bytes", fleet.prompt_bytes, 1, 1'000'000);
  file.get("load.long_percent", fleet.long_percent, 0, 100);
  file.get("load.long_prompt_bytes", fleet.long_bytes_max, 1, 4'000'000);
  file.get("load.answer_tokens", fleet.answer_tokens, 1, 100'000);
  file.get("load.edge_percent", fleet.edge_percent, 0, 100);
  file.get("load.session_percent", fleet.session_percent, 0, 100);
  file.get("load.sessions", fleet.session_count, 1, 1'000'000);
  file.get("load.deadline_ms", fleet.deadline_ms, 0, 3'600'000);
  for (const std::string& name : kinds) fleet.kinds.push_back(read_kind(file, name));
  if (Result<void> finished = file.finish(); !finished) return finished.error();
  return fleet;
}

}  // namespace updraft::sim
