// What edge and cloud daemons report of their model: Prometheus metrics under the names the
// ecosystem scrapes, and the load fields of the pool's beats.
#pragma once

#include "common/message/node_status.h"
#include "common/metrics/metrics.h"
#include "common/serve/local_model.h"

namespace updraft {

// Registers the model's metrics; they are refreshed at each scrape. `model` outlives `metrics`'
// scrapes.
void export_model_metrics(Metrics& metrics, const LocalModel& model,
                          const LocalModelConfig& config);

// Load of the model and of this machine into a beat. Reads /proc at most once a second. One per
// link, on its thread.
class BeatFiller {
 public:
  explicit BeatFiller(const LocalModel& model) : model_(&model) {}
  void operator()(NodeBeat& beat);

 private:
  const LocalModel* model_;
  int64_t machine_read_ns_ = 0;
  float cpu_load_ = 0.0F;
  int64_t memory_free_bytes_ = 0;
  int64_t memory_total_bytes_ = 0;
};

}  // namespace updraft
