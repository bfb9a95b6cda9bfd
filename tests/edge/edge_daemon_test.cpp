// The edge daemon whole: HTTP in front, a scripted model inside, a scripted router above.
#include "edge/edge_daemon.h"

#include <doctest/doctest.h>

#include <atomic>
#include <string>
#include <thread>

#include "common/base/clock.h"
#include "common/http/client.h"
#include "edge/client/local_client.h"
#include "tests/support/fake_memory.h"
#include "tests/support/scripted_model.h"
#include "tests/support/scripted_router.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

struct Setup {
  TempDir dir;
  FakeMemory memory;
  ScriptedRouter router;
  ScriptedModel* model = nullptr;  // owned by the daemon
  std::unique_ptr<EdgeDaemon> daemon;

  explicit Setup(bool with_pool = true, EdgeConfig config = {}) {
    config.node_id = "edge-1";
    config.memory_root = memory.root();
    config.http.port = 0;
    config.socket_path = dir.file("edge.sock");
    config.pool.beat_interval_ms = 20;
    config.drain_grace_ms = 5000;
    if (with_pool) {
      router.bind();
      REQUIRE(save_curve_keys(router.node_keys, dir.file("edge")).ok());
      REQUIRE(save_curve_keys(router.keys, dir.file("router")).ok());
      config.pool.router_endpoints = {router.listener->endpoint()};
      config.pool.router_key_file = dir.file("router.pub");
      config.pool.key_file = dir.file("edge");
    }
    auto owned = std::make_unique<ScriptedModel>(1000);
    model = owned.get();
    auto made = EdgeDaemon::start(config, std::move(owned));
    REQUIRE_MESSAGE(made.ok(), made.message());
    daemon = std::move(*made);
  }
  HttpClient client() const {
    return HttpClient(*HttpUrl::parse("http://127.0.0.1:" + std::to_string(daemon->http_port())));
  }
  // Asks in the background; the test answers through the model or the router meanwhile.
  struct Asked {
    std::thread thread;
    HttpResponse response;
    std::atomic<bool> done{false};
    ~Asked() {
      if (thread.joinable()) thread.join();
    }
  };
  void ask(Asked& asked, const std::string& body) {
    asked.thread = std::thread([this, &asked, body] {
      auto response = client().post_json("/v1/chat/completions", body);
      if (response) asked.response = *response;
      asked.done = true;
    });
  }
};

std::string body_of(const std::string& text) {
  return R"({"model":"tiny","messages":[{"role":"user","content":")" + text + R"("}]})";
}

// The id under which the HTTP surface passed the only request on.
std::string only_id(const ScriptedModel& model) {
  for (int i = 0; i < 5000; ++i) {
    if (model.submitted_count() == 1) return model.first_id();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return "";
}

TokenChunk last_chunk(const std::string& text) {
  TokenChunk chunk;
  chunk.ids = {7};
  chunk.text = text;
  chunk.finish = FinishReason::kStop;
  return chunk;
}

std::string words(int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += "w ";
  return out;
}

}  // namespace

TEST_CASE("a short chat over HTTP is answered by the gateway's own model") {
  Setup s(false);
  Setup::Asked asked;
  s.ask(asked, body_of("hello"));
  const std::string id = only_id(*s.model);
  REQUIRE_FALSE(id.empty());
  CHECK(s.model->emit(id, Started{"edge-1", Tier::kEdge, "tiny", "", 3}));
  CHECK(s.model->emit(id, last_chunk("hi there")));
  CHECK(s.model->emit(id, Finished{{3, 1, 0}, {}}));
  asked.thread.join();
  CHECK(asked.response.status == 200);
  CHECK(asked.response.body.find("hi there") != std::string::npos);
  CHECK(asked.response.field("x-updraft-node") == "edge-1");
  CHECK(asked.response.field("x-updraft-decision") == "fits the edge");
  CHECK_FALSE(s.daemon->connected());
  CHECK(s.client().get("/readyz")->status == 200);
  const std::string metrics = s.client().get("/metrics")->body;
  CHECK(metrics.find("vllm:num_requests_running") != std::string::npos);
  CHECK(metrics.find("updraft_edge_placed_total{place=\"local\"} 1") != std::string::npos);
  CHECK(metrics.find("updraft_local_sessions 0") != std::string::npos);
}

TEST_CASE("what the gateway answers its own clients counts in the times that dashboards know") {
  Setup s(false);
  const auto count = [&](const std::string& name) {
    const std::string text = s.client().get("/metrics")->body;
    const std::string line = "\n" + name + "_count{model_name=\"tiny\"} ";
    const size_t at = text.find(line);
    return at == std::string::npos ? -1 : std::stoi(text.substr(at + line.size()));
  };
  CHECK(count("vllm:time_to_first_token_seconds") == 0);
  LocalClientOptions options;
  options.socket_path = s.daemon->socket_path();
  auto client = LocalClient::connect(options);
  REQUIRE_MESSAGE(client.ok(), client.message());
  REQUIRE((*client)->submit(chat_request("", "hello", "tiny")).ok());
  const std::string id = only_id(*s.model);
  REQUIRE_FALSE(id.empty());
  CHECK(s.model->emit(id, Started{"edge-1", Tier::kEdge, "tiny", "", 3}));
  TokenChunk first;
  first.ids = {5};
  first.text = "hi";
  CHECK(s.model->emit(id, first));
  CHECK(count("vllm:time_to_first_token_seconds") == 1);
  CHECK(count("vllm:inter_token_latency_seconds") == 0);
  CHECK(s.model->emit(id, last_chunk(" there")));
  CHECK(s.model->emit(id, Finished{{3, 2, 0}, {}}));
  CHECK(count("vllm:time_to_first_token_seconds") == 1);
  CHECK(count("vllm:inter_token_latency_seconds") == 1);
}

TEST_CASE("quotas of local programs reach the daemon's door, and refusals its metrics") {
  EdgeConfig config;
  config.sessions_per_uid_max = 1;
  config.requests_per_uid_max = 1;
  config.segment_bytes_max = 12 << 20;
  Setup s(false, config);
  LocalClientOptions options;
  options.socket_path = s.daemon->socket_path();
  auto client = LocalClient::connect(options);
  REQUIRE_MESSAGE(client.ok(), client.message());
  CHECK(LocalClient::connect(options).message().find("has 1 sessions already") !=
        std::string::npos);
  Request request;
  request.model = "tiny";
  request.messages.push_back({"user", {ContentPart{}}});
  request.messages[0].parts[0].text = "x";
  REQUIRE((*client)->submit(request).ok());
  REQUIRE_FALSE(only_id(*s.model).empty());
  REQUIRE((*client)->submit(request).ok());
  auto event = (*client)->next(10000);
  REQUIRE((event.ok() && event->has_value()));
  const auto* error = std::get_if<RequestError>(&(*event)->second);
  REQUIRE(error != nullptr);
  CHECK(error->code == ErrorCode::kRateLimited);
  const auto scraped = [&](const std::string& line) {
    return s.client().get("/metrics")->body.find(line) != std::string::npos;
  };
  for (int scrape = 0; scrape < 2; ++scrape) {  // a second one adds nothing
    CHECK(scraped("updraft_local_refused_total{what=\"session\"} 1\n"));
    CHECK(scraped("updraft_local_refused_total{what=\"request\"} 1\n"));
    CHECK(scraped("updraft_local_refused_total{what=\"segment\"} 0\n"));
    CHECK(scraped("updraft_local_refused_total{what=\"stalled_answer\"} 0\n"));
  }
}

TEST_CASE("a long chat rises to the router and its answer comes back over HTTP") {
  Setup s;
  REQUIRE(s.router.run_until([&] { return s.daemon->connected(); }));
  Setup::Asked asked;
  s.ask(asked, body_of(words(3000)));
  const auto submit = [&]() -> const Submit* {
    for (const PoolMessage& message : s.router.got) {
      if (const auto* m = std::get_if<Submit>(&message)) return m;
    }
    return nullptr;
  };
  REQUIRE(s.router.run_until([&] { return submit() != nullptr; }));
  const RequestId id = submit()->request.id;
  CHECK(submit()->request.hints.tier == Tier::kCloud);
  s.router.send(id,
                Accepted{id, 1, 3001, Started{"cloud-1", Tier::kCloud, "big", "least wait", 3001}});
  s.router.send(id, Tokens{id, 1, {last_chunk("from above")}});
  s.router.send(id, Done{id, 1, {{3001, 1, 0}, {}}});
  REQUIRE(s.router.run_until([&] { return asked.done.load(); }));
  CHECK(asked.response.status == 200);
  CHECK(asked.response.body.find("from above") != std::string::npos);
  CHECK(asked.response.field("x-updraft-node") == "cloud-1");
}

TEST_CASE("router away: short chats are served, long ones are 503 with Retry-After") {
  Setup s;
  REQUIRE(s.router.run_until([&] { return s.daemon->connected(); }));
  s.router.listener.reset();
  REQUIRE(s.router.run_until([&] { return !s.daemon->connected(); }));
  const auto refused = s.client().post_json("/v1/chat/completions", body_of(words(3000)));
  REQUIRE(refused.ok());
  CHECK(refused->status == 503);
  const int retry_after = std::stoi("0" + std::string(refused->field("retry-after")));
  CHECK(retry_after >= 1);
  CHECK(retry_after <= 5);
  Setup::Asked asked;
  s.ask(asked, body_of("hello"));
  const std::string id = only_id(*s.model);
  REQUIRE_FALSE(id.empty());
  CHECK(s.model->emit(id, Started{}));
  CHECK(s.model->emit(id, last_chunk("still here")));
  CHECK(s.model->emit(id, Finished{}));
  asked.thread.join();
  CHECK(asked.response.status == 200);
}

TEST_CASE("work from the router goes to the local model, however long") {
  Setup s;
  REQUIRE(s.router.run_until([&] {
    return s.daemon->connected() && !s.router.beats.empty() &&
           s.router.beats.back().state == NodeState::kReady;
  }));
  REQUIRE(s.router.hellos.size() == 1);
  CHECK(s.router.hellos[0].tier == Tier::kEdge);
  s.router.send("w", Submit{chat_request("w", words(3000), "tiny"), 1, 1});
  REQUIRE(s.router.run_until([&] { return s.model->has("w"); }));
  CHECK(s.model->emit("w", make_error(ErrorCode::kContextLength)));
  REQUIRE(s.router.run_until([&] { return s.router.find<Rejected>("w") != nullptr; }));
  CHECK(s.router.find<Rejected>("w")->error.code == ErrorCode::kRejectedTooLong);
}

TEST_CASE("stopping lets a running answer end and refuses new ones") {
  Setup s(false);
  Setup::Asked asked;
  s.ask(asked, body_of("hello"));
  const std::string id = only_id(*s.model);
  REQUIRE_FALSE(id.empty());
  CHECK(s.model->emit(id, Started{}));
  std::thread stopper([&] { s.daemon->stop(); });
  CHECK(s.model->emit(id, last_chunk("to the end")));
  CHECK(s.model->emit(id, Finished{}));
  asked.thread.join();
  stopper.join();
  CHECK(asked.response.status == 200);
  CHECK(asked.response.body.find("to the end") != std::string::npos);
}

TEST_CASE("a daemon that cannot start says why in one line") {
  Setup s(false);
  EdgeConfig config;
  config.node_id = "edge-2";
  config.http.port = s.daemon->http_port();
  config.socket_path = "";
  const auto taken = EdgeDaemon::start(config, std::make_unique<ScriptedModel>());
  CHECK(taken.message().find(std::to_string(s.daemon->http_port())) != std::string::npos);
  config.http.port = 0;
  config.socket_path = s.daemon->socket_path();
  CHECK(EdgeDaemon::start(config, std::make_unique<ScriptedModel>())
            .message()
            .find(s.daemon->socket_path()) != std::string::npos);
  config.socket_path = "";
  config.model.model_path = "/nowhere/m.gguf";
  CHECK(EdgeDaemon::start(config, Progress()).message().find("/nowhere/m.gguf") !=
        std::string::npos);
}

TEST_CASE("a gateway of its own whose memory is almost full answers 503 and finishes what it has") {
  Setup s(false);
  Setup::Asked asked;
  s.ask(asked, body_of("hello"));
  const std::string id = only_id(*s.model);
  REQUIRE_FALSE(id.empty());
  s.memory.set(99.0);
  const auto level_is = [&](const char* level) {
    return s.client().get("/metrics")->body.find(std::string("\nupdraft_memory_level ") + level) !=
           std::string::npos;
  };
  const int64_t until_ns = monotonic_ns() + 10 * kNsPerSecond;
  while (!level_is("2") && monotonic_ns() < until_ns) {
  }
  const HttpClient hasty(
      *HttpUrl::parse("http://127.0.0.1:" + std::to_string(s.daemon->http_port())), {},
      {2000, 10'000});
  const auto refused = hasty.post_json("/v1/chat/completions", body_of("more"));
  // No REQUIRE before the first request has ended: its thread waits for that.
  CHECK_MESSAGE(refused.ok(), refused.message());
  CHECK((refused.ok() && refused->status == 503));
  CHECK((refused.ok() && refused->field("retry-after") == "5"));
  CHECK(s.client().get("/livez")->status == 200);
  CHECK(s.client().get("/readyz")->status == 503);
  CHECK(s.model->emit(id, Started{"edge-1", Tier::kEdge, "tiny", "", 3}));
  CHECK(s.model->emit(id, last_chunk("hi there")));
  CHECK(s.model->emit(id, Finished{{3, 1, 0}, {}}));
  asked.thread.join();
  CHECK(asked.response.status == 200);
  CHECK(asked.response.body.find("hi there") != std::string::npos);
  CHECK(s.model->submitted_count() == 1);
}
