// See the header. vLLM's names: https://docs.vllm.ai/en/latest/design/metrics.html
#include "common/daemon/node_metrics.h"

#include <cstdlib>
#include <memory>
#include <string>
#include <thread>

#include "common/base/clock.h"
#include "common/base/memory_reading.h"

namespace updraft {
namespace {

// A total that the model counts, as a Prometheus counter.
class Total {
 public:
  // What is counted is exported times `unit`.
  explicit Total(Counter& counter, double unit = 1.0) : counter_(counter), unit_(unit) {}
  void follow(int64_t total) {
    if (total > seen_) counter_.add(static_cast<double>(total - seen_) * unit_);
    seen_ = std::max(seen_, total);
  }

 private:
  Counter& counter_;
  double unit_;
  int64_t seen_ = 0;
};

double used_share(int64_t total, int64_t free) {
  return total > 0 ? 1.0 - static_cast<double>(free) / static_cast<double>(total) : 0.0;
}

struct Machine {
  float cpu_load = 0.0F;
  int64_t memory_free_bytes = 0;
  int64_t memory_total_bytes = 0;
};

Machine read_machine() {
  Machine machine;
  double load[1] = {0.0};
  const unsigned cores = std::max(1U, std::thread::hardware_concurrency());
  if (getloadavg(load, 1) == 1)
    machine.cpu_load = static_cast<float>(std::min(1.0, load[0] / cores));
  const MemoryUse memory = read_machine_memory();
  machine.memory_free_bytes = static_cast<int64_t>(memory.left_bytes());
  machine.memory_total_bytes = static_cast<int64_t>(memory.limit_bytes);
  return machine;
}

}  // namespace

void export_model_metrics(Metrics& metrics, const LocalModel& model,
                          const LocalModelConfig& config) {
  const std::vector<ModelInfo> models = model.models();
  const MetricLabels labels = {{"model_name", models.empty() ? config.served_name : models[0].id}};
  Gauge& running =
      metrics.gauge("vllm:num_requests_running", "Sequences in the running batch.", labels);
  Gauge& waiting =
      metrics.gauge("vllm:num_requests_waiting", "Sequences waiting for a slot.", labels);
  Gauge& kv_used =
      metrics.gauge("vllm:kv_cache_usage_perc", "Used share of the KV pages, 0 to 1.", labels);
  Gauge& kv_cached =
      metrics.gauge("updraft_kv_tokens_cached",
                    "Tokens of prefixes in KV pages that no sequence uses now.", labels);
  MetricLabels cache = labels;
  cache["block_size"] = std::to_string(config.page_tokens);
  cache["num_gpu_blocks"] = std::to_string(model.load().kv_tokens_total / config.page_tokens);
  metrics.gauge("vllm:cache_config_info", "Page size in tokens and number of KV pages.", cache)
      .set(1.0);
  Gauge& slots_free =
      metrics.gauge("updraft_slots_free", "Sequences that could start now.", labels);
  Gauge& prefill_rate = metrics.gauge("updraft_prefill_tokens_per_second",
                                      "Measured prefill rate, moving average.", labels);
  Gauge& decode_rate = metrics.gauge("updraft_decode_tokens_per_second",
                                     "Measured decode rate of one sequence.", labels);

  MetricLabels out = labels;
  out["direction"] = "out";
  MetricLabels in = labels;
  in["direction"] = "in";
  const char* const swapped_pages = "KV pages moved to host memory (out) and back (in).";
  const char* const swapped_bytes = "Bytes of KV pages moved to host memory (out) and back (in).";
  struct Totals {
    Total prompt, generated, preempted, drafted, accepted, done, failed, prefix_queries,
        prefix_hits, evictions, pages_out, pages_in, bytes_out, bytes_in, swap_seconds;
  };
  const auto totals = std::make_shared<Totals>(
      Totals{Total(metrics.counter("vllm:prompt_tokens_total",
                                   "Prompt tokens of answered requests.", labels)),
             Total(metrics.counter("vllm:generation_tokens_total",
                                   "Generated tokens of answered requests.", labels)),
             Total(metrics.counter("vllm:num_preemptions_total",
                                   "Sequences preempted for KV pages.", labels)),
             Total(metrics.counter("vllm:spec_decode_num_draft_tokens_total",
                                   "Guessed tokens that were verified.", labels)),
             Total(metrics.counter("vllm:spec_decode_num_accepted_tokens_total",
                                   "Guessed tokens that became tokens of an answer.", labels)),
             Total(metrics.counter("updraft_requests_done_total", "Requests answered to their end.",
                                   labels)),
             Total(metrics.counter("updraft_requests_failed_total",
                                   "Requests refused, failed or cancelled.", labels)),
             Total(metrics.counter("vllm:prefix_cache_queries_total",
                                   "Prompt tokens looked up in the prefix cache.", labels)),
             Total(metrics.counter("vllm:prefix_cache_hits_total",
                                   "Prompt tokens found in the prefix cache.", labels)),
             Total(metrics.counter("updraft_prefix_cache_evicted_pages_total",
                                   "Cached KV pages given to other tokens.", labels)),
             Total(metrics.counter("updraft_kv_swapped_pages_total", swapped_pages, out)),
             Total(metrics.counter("updraft_kv_swapped_pages_total", swapped_pages, in)),
             Total(metrics.counter("updraft_kv_swapped_bytes_total", swapped_bytes, out)),
             Total(metrics.counter("updraft_kv_swapped_bytes_total", swapped_bytes, in)),
             Total(metrics.counter("updraft_kv_swap_seconds_total",
                                   "Time in which the device moved KV pages out and in.", labels),
                   1e-9)});
  metrics.on_scrape([&, totals] {
    const ServiceLoad load = model.load();
    running.set(load.running);
    waiting.set(load.waiting);
    kv_used.set(used_share(load.kv_tokens_total, load.kv_tokens_free));
    kv_cached.set(static_cast<double>(load.kv_tokens_cached));
    slots_free.set(load.slots_free);
    prefill_rate.set(load.prefill_tokens_per_s);
    decode_rate.set(load.decode_tokens_per_s);
    totals->prompt.follow(load.prompt_tokens_total);
    totals->generated.follow(load.completion_tokens_total);
    totals->preempted.follow(load.preemptions);
    totals->prefix_queries.follow(load.prefix_queried_tokens);
    totals->prefix_hits.follow(load.prefix_hit_tokens);
    totals->evictions.follow(load.prefix_evicted_pages);
    totals->drafted.follow(load.draft_tokens_total);
    totals->accepted.follow(load.draft_tokens_accepted_total);
    totals->pages_out.follow(load.pages_swapped_out);
    totals->pages_in.follow(load.pages_swapped_in);
    totals->bytes_out.follow(load.pages_swapped_out * load.page_bytes);
    totals->bytes_in.follow(load.pages_swapped_in * load.page_bytes);
    totals->swap_seconds.follow(load.swap_ns);
    totals->done.follow(load.requests_done);
    totals->failed.follow(load.requests_failed);
  });
}

void BeatFiller::operator()(NodeBeat& beat) {
  const int64_t now_ns = monotonic_ns();
  if (machine_read_ns_ == 0 || now_ns - machine_read_ns_ >= kNsPerSecond) {
    const Machine machine = read_machine();
    machine_read_ns_ = now_ns;
    cpu_load_ = machine.cpu_load;
    memory_free_bytes_ = machine.memory_free_bytes;
    memory_total_bytes_ = machine.memory_total_bytes;
  }
  const ServiceLoad load = model_->load();
  beat.slots_total = load.slots_total;
  beat.slots_free = load.slots_free;
  beat.running = load.running;
  beat.waiting = load.waiting;
  beat.kv_tokens_total = load.kv_tokens_total;
  beat.kv_tokens_free = load.kv_tokens_free;
  beat.kv_tokens_cached = load.kv_tokens_cached;
  beat.prefill_tokens_queued = load.prefill_tokens_queued;
  beat.decode_tokens_reserved = load.decode_tokens_reserved;
  beat.prefill_tokens_per_s = load.prefill_tokens_per_s;
  beat.decode_tokens_per_s = load.decode_tokens_per_s;
  beat.bytes_per_token = load.bytes_per_token;
  beat.requests_done = load.requests_done;
  beat.requests_failed = load.requests_failed;
  beat.cpu_load = cpu_load_;
  beat.memory_free_bytes = memory_free_bytes_;
  beat.memory_total_bytes = memory_total_bytes_;
}

}  // namespace updraft
