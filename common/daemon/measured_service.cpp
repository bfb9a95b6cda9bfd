// See the header. vLLM's names: https://docs.vllm.ai/en/latest/design/metrics.html
#include "common/daemon/measured_service.h"

#include <memory>
#include <utility>
#include <variant>

#include "common/base/clock.h"
#include "common/log/log.h"

namespace updraft {
namespace {

const std::vector<double> kFirstTokenSeconds = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08,
                                                0.1,   0.25,  0.5,  0.75, 1.0,  2.5,  5.0,
                                                7.5,   10.0,  20.0, 40.0, 80.0};
const std::vector<double> kBetweenTokensSeconds = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
                                                   0.4,  0.5,   0.75, 1.0,   2.5, 5.0,  10.0};

// One answer on its way: what it takes to measure it.
struct Answer {
  std::string id, trace;
  int64_t begin_ns = 0;
  int64_t last_token_ns = 0;  // 0: none yet
};

double seconds_between(int64_t from_ns, int64_t to_ns) {
  return static_cast<double>(to_ns - from_ns) / static_cast<double>(kNsPerSecond);
}

}  // namespace

MeasuredService::MeasuredService(InferenceService& inner, Metrics& metrics,
                                 const std::string& model_name, Log log)
    : inner_(inner),
      first_token_(metrics.histogram("vllm:time_to_first_token_seconds",
                                     "From a request's arrival at this node to its first token.",
                                     kFirstTokenSeconds, {{"model_name", model_name}})),
      between_tokens_(metrics.histogram("vllm:inter_token_latency_seconds",
                                        "Between two tokens of one answer.", kBetweenTokensSeconds,
                                        {{"model_name", model_name}})),
      log_(log) {}

void MeasuredService::submit(Request request, EventSink sink) {
  auto answer = std::make_shared<Answer>();
  answer->id = request.id;
  answer->trace = request.trace;
  answer->begin_ns = monotonic_ns();
  inner_.submit(std::move(request), [this, answer, sink = std::move(sink)](Event event) {
    const int64_t now_ns = monotonic_ns();
    if (const auto* chunk = std::get_if<TokenChunk>(&event); chunk && !chunk->ids.empty()) {
      if (answer->last_token_ns == 0) {
        first_token_.observe(seconds_between(answer->begin_ns, now_ns));
      } else {
        const auto count = static_cast<double>(chunk->ids.size());
        between_tokens_.observe(seconds_between(answer->last_token_ns, now_ns) / count);
      }
      answer->last_token_ns = now_ns;
    } else if (log_ == Log::kNothing) {
      // told elsewhere
    } else if (const auto* finished = std::get_if<Finished>(&event)) {
      log_info("answered", {{"id", answer->id},
                            {"trace", answer->trace},
                            {"ms", (now_ns - answer->begin_ns) / kNsPerMs},
                            {"prompt_tokens", finished->usage.prompt_tokens},
                            {"cached_tokens", finished->usage.cached_tokens},
                            {"completion_tokens", finished->usage.completion_tokens}});
    } else if (const auto* error = std::get_if<RequestError>(&event)) {
      log_info("not answered", {{"id", answer->id},
                                {"trace", answer->trace},
                                {"ms", (now_ns - answer->begin_ns) / kNsPerMs},
                                {"status", http_status(error->code)}});
    }
    sink(std::move(event));
  });
}

}  // namespace updraft
