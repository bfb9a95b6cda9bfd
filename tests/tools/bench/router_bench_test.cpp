// The instruments of `updraft bench router`: what they count is known here.
#include "tools/bench/router_bench.h"

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/http/server.h"
#include "tools/bench/http_load.h"
#include "tools/bench/mock_nodes.h"
#include "tools/bench/process_cost.h"

using namespace updraft;

namespace {

// A mock node's own HTTP endpoint.
class MockEndpoint {
 public:
  MockEndpoint() : service_("mock"), metrics_(Metrics::create()) {
    auto server = HttpServer::start({}, service_, *metrics_, [](const AccessRecord&) {});
    REQUIRE(server.ok());
    server_ = std::move(*server);
    endpoint_.port = server_->port();
  }
  const HttpEndpoint& endpoint() const { return endpoint_; }
  std::string post(const std::string& model, int tokens, bool stream) const {
    return http_post_bytes(endpoint_, "/v1/chat/completions",
                           "{\"model\":\"" + model + "\",\"max_tokens\":" + std::to_string(tokens) +
                               ",\"stream\":" + (stream ? "true" : "false") +
                               ",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}");
  }

 private:
  MockService service_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<HttpServer> server_;
  HttpEndpoint endpoint_;
};

}  // namespace

TEST_CASE("metric_sum adds the lines of one metric and of one label") {
  const std::string text =
      "# HELP nodes nodes\n"
      "nodes{state=\"fresh\",tier=\"edge\"} 2\n"
      "nodes{state=\"fresh\",tier=\"cloud\"} 3\n"
      "nodes{state=\"dead\",tier=\"cloud\"} 40\n"
      "nodes_total 500\n";
  CHECK(metric_sum(text, "nodes").value() == 45);
  CHECK(metric_sum(text, "nodes", "state=\"fresh\"").value() == 5);
  CHECK(metric_sum(text, "nodes_total").value() == 500);
  CHECK_FALSE(metric_sum(text, "node").has_value());
}

TEST_CASE("open-loop load sends every arrival and counts answers and refusals apart") {
  MockEndpoint mock;
  HttpLoadPlan plan;
  plan.endpoint = mock.endpoint();
  plan.request = mock.post(MockService::kInstantModel, 16, false);
  plan.rate_per_s = 500;
  plan.duration_ns = kNsPerSecond / 5;
  plan.connections = 2;
  const Result<HttpLoadResult> good = run_http_load(plan);
  REQUIRE_MESSAGE(good.ok(), good.message());
  CHECK(good->answered > 50);  // 100 on average; the seed is fixed
  CHECK(good->answered < 150);
  CHECK(good->refused + good->broken == 0);
  CHECK(good->p50_us > 0);
  CHECK(good->p99_us >= good->p50_us);

  plan.request = mock.post(MockService::kInstantModel, -1, false);
  const Result<HttpLoadResult> bad = run_http_load(plan);
  REQUIRE(bad.ok());
  CHECK(bad->answered == 0);
  CHECK(bad->refused == good->answered);  // the same seed: as many arrivals

  plan.endpoint.port = 1;
  CHECK_FALSE(run_http_load(plan).ok());
}

TEST_CASE("streams are counted by their events until they end") {
  MockEndpoint mock;
  Result<std::unique_ptr<HttpStreams>> streams =
      HttpStreams::open(mock.endpoint(), mock.post(MockService::kPacedModel, 3, true), 4);
  REQUIRE(streams.ok());
  const int64_t give_up_ns = monotonic_ns() + 20 * kNsPerSecond;
  while ((*streams)->ended() == 0 && (*streams)->started() < 4 && monotonic_ns() < give_up_ns)
    (*streams)->pump(10 * kNsPerMs);
  const int64_t tokens_give_up_ns = monotonic_ns() + 20 * kNsPerSecond;
  // The role's event, three tokens and [DONE] at least, of each.
  while ((*streams)->events() < 4 * 5 && monotonic_ns() < tokens_give_up_ns)
    (*streams)->pump(10 * kNsPerMs);
  CHECK((*streams)->started() == 4);
  CHECK((*streams)->events() >= 4 * 5);
  CHECK((*streams)->bytes() > 0);
}

TEST_CASE("the cost of a process grows with its work; nobody's is an error") {
  const Result<ProcessCost> before = read_process_cost(getpid());
  REQUIRE(before.ok());
  CHECK(before->resident_bytes > 1 << 20);
  const int64_t begin_ns = monotonic_ns();
  int64_t cpu_ns = 0;
  while (cpu_ns < 2 * kNsPerMs && monotonic_ns() - begin_ns < 20 * kNsPerSecond)
    cpu_ns = read_process_cost(getpid())->cpu_ns - before->cpu_ns;
  CHECK(cpu_ns >= 2 * kNsPerMs);
  const pid_t gone = fork();
  if (gone == 0) _exit(0);
  REQUIRE(gone > 0);
  REQUIRE(waitpid(gone, nullptr, 0) == gone);
  CHECK_FALSE(read_process_cost(gone).ok());
}
