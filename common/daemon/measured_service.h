// An InferenceService that measures another one: time to first token and between tokens, under the
// names that the ecosystem scrapes (vLLM's), and, where no access log has one, a log line per
// answer that carries its trace.
//
// Threads: any, as for the service inside; sinks run on that service's thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/message/service.h"
#include "common/metrics/metrics.h"

namespace updraft {

class MeasuredService : public InferenceService {
 public:
  // `inner` and `metrics` outlive this and every request handed in.
  // Two of one model add to the same histograms.
  enum class Log : uint8_t { kAnswers, kNothing };
  MeasuredService(InferenceService& inner, Metrics& metrics, const std::string& model_name,
                  Log log);

  void submit(Request request, EventSink sink) override;
  void expect() override { inner_.expect(); }
  void cancel(const RequestId& id) override { inner_.cancel(id); }
  void pause(const RequestId& id) override { inner_.pause(id); }
  void resume(const RequestId& id) override { inner_.resume(id); }
  std::vector<ModelInfo> models() const override { return inner_.models(); }
  bool ready(std::string* why_not) const override { return inner_.ready(why_not); }

 private:
  InferenceService& inner_;
  Histogram& first_token_;
  Histogram& between_tokens_;
  const Log log_;
};

}  // namespace updraft
