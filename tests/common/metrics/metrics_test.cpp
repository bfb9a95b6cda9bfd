// Metrics: the expected lines are those of Prometheus' text format 0.0.4.
#include "common/metrics/metrics.h"

#include <thread>

#include <doctest/doctest.h>

using namespace updraft;

namespace {

bool has_line(const std::string& text, const std::string& line) {
  return ("\n" + text).find("\n" + line + "\n") != std::string::npos;
}

}  // namespace

TEST_CASE("counters, gauges and histograms appear in Prometheus' text format") {
  const auto metrics = Metrics::create();
  metrics->counter("updraft_things_total", "Things seen.", {{"kind", "red"}}).add(2);
  metrics->gauge("vllm:num_requests_running", "Running.").set(3);
  auto& seconds = metrics->histogram("updraft_wait_seconds", "Waits.", {0.1, 1.0});
  seconds.observe(0.05);
  seconds.observe(0.5);
  seconds.observe(7);

  const std::string text = metrics->text();
  CHECK(has_line(text, "# HELP updraft_things_total Things seen."));
  CHECK(has_line(text, "# TYPE updraft_things_total counter"));
  CHECK(has_line(text, "updraft_things_total{kind=\"red\"} 2"));
  CHECK(has_line(text, "# TYPE vllm:num_requests_running gauge"));
  CHECK(has_line(text, "vllm:num_requests_running 3"));
  CHECK(has_line(text, "# TYPE updraft_wait_seconds histogram"));
  CHECK(has_line(text, "updraft_wait_seconds_bucket{le=\"0.1\"} 1"));
  CHECK(has_line(text, "updraft_wait_seconds_bucket{le=\"1\"} 2"));
  CHECK(has_line(text, "updraft_wait_seconds_bucket{le=\"+Inf\"} 3"));
  CHECK(has_line(text, "updraft_wait_seconds_count 3"));
}

TEST_CASE("the same name and labels give the same metric, other labels another one") {
  const auto metrics = Metrics::create();
  Counter& first = metrics->counter("updraft_a_total", "A.", {{"route", "x"}});
  Counter& again = metrics->counter("updraft_a_total", "another help", {{"route", "x"}});
  Counter& other = metrics->counter("updraft_a_total", "A.", {{"route", "y"}});
  CHECK(&first == &again);
  CHECK(&first != &other);
  first.add();
  again.add();
  const std::string text = metrics->text();
  CHECK(has_line(text, "updraft_a_total{route=\"x\"} 2"));
  CHECK(has_line(text, "updraft_a_total{route=\"y\"} 0"));
  CHECK(has_line(text, "# HELP updraft_a_total A."));
}

TEST_CASE("label values are escaped") {
  const auto metrics = Metrics::create();
  metrics->gauge("updraft_b", "B.", {{"path", "a\"b\\c\nd"}}).set(1);
  CHECK(has_line(metrics->text(), "updraft_b{path=\"a\\\"b\\\\c\\nd\"} 1"));
}

TEST_CASE("a refresher runs before each exposition and may look up metrics") {
  const auto metrics = Metrics::create();
  int runs = 0;
  metrics->on_scrape([&] { metrics->gauge("updraft_runs", "Runs.").set(++runs); });
  CHECK(has_line(metrics->text(), "updraft_runs 1"));
  CHECK(has_line(metrics->text(), "updraft_runs 2"));
}

TEST_CASE("counts from several threads are all there") {
  const auto metrics = Metrics::create();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) metrics->counter("updraft_c_total", "C.").add();
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(has_line(metrics->text(), "updraft_c_total 4000"));
}
