// Metrics in Prometheus' text format, a thin wrapper: the only place that names prometheus-cpp.
// Thread-safe. Names: engine nodes reuse what the ecosystem scrapes (vllm:num_requests_running,
// ...), everything else starts with updraft_. Labels are bounded: never a request id, a user or
// free text.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace updraft {

using MetricLabels = std::map<std::string, std::string>;

class Counter {
 public:
  virtual ~Counter() = default;
  virtual void add(double amount = 1.0) = 0;
};
class Gauge {
 public:
  virtual ~Gauge() = default;
  virtual void set(double value) = 0;
};
class Histogram {
 public:
  virtual ~Histogram() = default;
  virtual void observe(double value) = 0;
  // Values that were counted elsewhere: how many fell into each bucket (one more than there are
  // bounds, the last for what is above them all), and their sum.
  virtual void add(const std::vector<double>& bucket_counts, double sum) = 0;
};

class Metrics {
 public:
  virtual ~Metrics() = default;
  static std::unique_ptr<Metrics> create();

  // The same name and labels give the same object, valid as long as Metrics lives. help is taken
  // from the first call.
  virtual Counter& counter(const std::string& name, const std::string& help,
                           const MetricLabels& labels = {}) = 0;
  virtual Gauge& gauge(const std::string& name, const std::string& help,
                       const MetricLabels& labels = {}) = 0;
  virtual Histogram& histogram(const std::string& name, const std::string& help,
                               const std::vector<double>& bounds,
                               const MetricLabels& labels = {}) = 0;
  // Runs before each exposition, to refresh gauges from snapshots.
  virtual void on_scrape(std::function<void()> refresh) = 0;
  // The exposition text (text/plain; version=0.0.4).
  virtual std::string text() = 0;
};

}  // namespace updraft
