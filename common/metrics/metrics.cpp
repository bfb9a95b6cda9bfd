// Metrics over prometheus-cpp's registry. The library owns the values and the text format; this
// file keeps one family per name and one handle per label set, so that callers may ask for the same
// metric again and again.
#include "common/metrics/metrics.h"

#include <prometheus/check_names.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <mutex>
#include <utility>

#include "common/base/check.h"

namespace updraft {
namespace {

class PrometheusCounter final : public Counter {
 public:
  explicit PrometheusCounter(prometheus::Counter& counter) : counter_(counter) {}
  void add(double amount) override {
    UPDRAFT_CHECK(amount >= 0, "a counter never goes down");
    counter_.Increment(amount);
  }

 private:
  prometheus::Counter& counter_;
};

class PrometheusGauge final : public Gauge {
 public:
  explicit PrometheusGauge(prometheus::Gauge& gauge) : gauge_(gauge) {}
  void set(double value) override { gauge_.Set(value); }

 private:
  prometheus::Gauge& gauge_;
};

class PrometheusHistogram final : public Histogram {
 public:
  explicit PrometheusHistogram(prometheus::Histogram& histogram) : histogram_(histogram) {}
  void observe(double value) override { histogram_.Observe(value); }
  void add(const std::vector<double>& bucket_counts, double sum) override {
    histogram_.ObserveMultiple(bucket_counts, sum);
  }

 private:
  prometheus::Histogram& histogram_;
};

// All metrics of one name: the library's family, and our handle for each label set.
template <typename Native, typename Handle>
struct Named {
  prometheus::Family<Native>* family = nullptr;
  std::map<MetricLabels, std::unique_ptr<Handle>> handles;
};

class PrometheusMetrics final : public Metrics {
 public:
  Counter& counter(const std::string& name, const std::string& help,
                   const MetricLabels& labels) override {
    const std::lock_guard lock(mutex_);
    check_new_name(name, counters_);
    auto& named = counters_[name];
    if (named.family == nullptr) {
      named.family = &prometheus::BuildCounter().Name(name).Help(help).Register(registry_);
    }
    auto& handle = named.handles[labels];
    if (!handle) handle = std::make_unique<PrometheusCounter>(named.family->Add(labels));
    return *handle;
  }

  Gauge& gauge(const std::string& name, const std::string& help,
               const MetricLabels& labels) override {
    const std::lock_guard lock(mutex_);
    check_new_name(name, gauges_);
    auto& named = gauges_[name];
    if (named.family == nullptr) {
      named.family = &prometheus::BuildGauge().Name(name).Help(help).Register(registry_);
    }
    auto& handle = named.handles[labels];
    if (!handle) handle = std::make_unique<PrometheusGauge>(named.family->Add(labels));
    return *handle;
  }

  Histogram& histogram(const std::string& name, const std::string& help,
                       const std::vector<double>& bounds, const MetricLabels& labels) override {
    const std::lock_guard lock(mutex_);
    check_new_name(name, histograms_);
    auto& named = histograms_[name];
    if (named.family == nullptr) {
      named.family = &prometheus::BuildHistogram().Name(name).Help(help).Register(registry_);
    }
    auto& handle = named.handles[labels];
    if (!handle) {
      handle = std::make_unique<PrometheusHistogram>(named.family->Add(labels, bounds));
    }
    return *handle;
  }

  void on_scrape(std::function<void()> refresh) override {
    const std::lock_guard lock(mutex_);
    refreshers_.push_back(std::move(refresh));
  }

  std::string text() override {
    std::vector<std::function<void()>> refreshers;
    {
      const std::lock_guard lock(mutex_);
      refreshers = refreshers_;
    }
    // Outside the lock: a refresher looks up the gauges it sets.
    for (const auto& refresh : refreshers) refresh();
    return prometheus::TextSerializer().Serialize(registry_.Collect());
  }

 private:
  // A name has one kind for ever; two parts that disagree are a bug, found at the first use.
  template <typename Own>
  void check_new_name(const std::string& name, const Own& own) {
    if (own.contains(name)) return;
    UPDRAFT_CHECK(prometheus::CheckMetricName(name), "a metric name is [a-zA-Z_:][a-zA-Z0-9_:]*");
    UPDRAFT_CHECK(
        !counters_.contains(name) && !gauges_.contains(name) && !histograms_.contains(name),
        "this metric name already has another kind");
  }

  std::mutex mutex_;  // guards all below but the registry, which has its own
  prometheus::Registry registry_;
  std::map<std::string, Named<prometheus::Counter, PrometheusCounter>> counters_;
  std::map<std::string, Named<prometheus::Gauge, PrometheusGauge>> gauges_;
  std::map<std::string, Named<prometheus::Histogram, PrometheusHistogram>> histograms_;
  std::vector<std::function<void()>> refreshers_;
};

}  // namespace

std::unique_ptr<Metrics> Metrics::create() { return std::make_unique<PrometheusMetrics>(); }

}  // namespace updraft
