// The real router between real nodes: HTTP in, work down to a cloud node, requests that rise from
// an edge's link, and what happens when one of the three goes.
#include <doctest/doctest.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>

#include "cloud/node/cloud_node.h"
#include "cloud/router/router.h"
#include "common/base/clock.h"
#include "common/daemon/node_metrics.h"
#include "common/daemon/pool_links.h"
#include "common/http/client.h"
#include "tests/support/fake_memory.h"
#include "tests/support/scripted_model.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

bool eventually(const std::function<bool()>& done) {
  const int64_t end_ns = monotonic_ns() + 15 * kNsPerSecond;
  while (monotonic_ns() < end_ns) {
    if (done()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return false;
}

// Answers every request by itself with three chunks, unless told to wait for the script.
class AnsweringModel : public ScriptedModel {
 public:
  using ScriptedModel::ScriptedModel;
  std::atomic<bool> answers{true};
  std::string node_id = "cloud-1";

  void submit(Request request, EventSink sink) override {
    const RequestId id = request.id;
    ScriptedModel::submit(std::move(request), std::move(sink));
    if (!answers) return;
    begin(id);
    for (int i = 1; i < 3; ++i) emit(id, chunk(i, i == 2));
    emit(id, Finished{{2, 3, 0}, {}});
  }
  void begin(const RequestId& id) {
    emit(id, Started{node_id, Tier::kCloud, "tiny", "", 2});
    emit(id, chunk(0, false));
  }
  static TokenChunk chunk(int32_t offset, bool last) {
    TokenChunk c;
    c.offset = offset;
    c.ids = {offset + 100};
    c.text = std::string(1, static_cast<char>('a' + offset));
    if (last) c.finish = FinishReason::kStop;
    return c;
  }
};

struct Pool {
  TempDir dir;
  FakeMemory memory;
  RouterConfig router_config;
  std::unique_ptr<Router> router;

  Pool() {
    std::filesystem::create_directory(dir.file("nodes"));
    REQUIRE(save_curve_keys(new_curve_keys(), dir.file("router-key")).ok());
    for (const char* node : {"cloud-1", "cloud-2", "edge-1"}) {
      REQUIRE(save_curve_keys(new_curve_keys(), dir.file(node)).ok());
      std::filesystem::copy_file(dir.file(node) + ".pub", dir.file("nodes") + "/" + node + ".pub");
    }
    router_config.http.port = 0;
    router_config.memory_root = memory.root();
    router_config.pool_endpoint = "tcp://127.0.0.1:0";
    router_config.key_file = dir.file("router-key");
    router_config.allowed_keys_folder = dir.file("nodes");
    router_config.queue_timeout_ms = 3000;
    start_router();
  }
  void start_router() {
    auto made = Router::start(router_config);
    REQUIRE_MESSAGE(made.ok(), made.message());
    router = std::move(*made);
    router_config.pool_endpoint = router->pool_endpoint();
  }
  std::unique_ptr<CloudNode> add_cloud(const std::string& id, AnsweringModel*& model) {
    CloudConfig config;
    config.memory_root = memory.root();
    config.node_id = id;
    config.pool.router_endpoints = {router->pool_endpoint()};
    config.pool.router_key_file = dir.file("router-key.pub");
    config.pool.key_file = dir.file(id);
    config.pool.beat_interval_ms = 50;
    config.drain_grace_ms = 300;
    auto owned = std::make_unique<AnsweringModel>(1000);
    model = owned.get();
    model->node_id = id;
    auto made = CloudNode::start(config, std::move(owned));
    REQUIRE_MESSAGE(made.ok(), made.message());
    return std::move(*made);
  }
  bool knows(const std::string& id) const {
    for (const Router::NodeView& node : router->nodes()) {
      if (node.id == id && node.state == "fresh") return true;
    }
    return false;
  }
  HttpClient client() const {
    return HttpClient(*HttpUrl::parse("http://127.0.0.1:" + std::to_string(router->http_port())));
  }
};

const char* const kBody = R"({"model":"tiny","messages":[{"role":"user","content":"hi"}]})";

}  // namespace

TEST_CASE("a request at the router is answered by the cloud node, whole and streamed") {
  Pool pool;
  AnsweringModel* model = nullptr;
  const auto node = pool.add_cloud("cloud-1", model);
  REQUIRE(eventually([&] { return pool.knows("cloud-1"); }));
  const auto whole = pool.client().post_json("/v1/chat/completions", kBody);
  REQUIRE_MESSAGE(whole.ok(), whole.message());
  CHECK(whole->status == 200);
  CHECK(whole->body.find("\"abc\"") != std::string::npos);
  CHECK(whole->field("x-updraft-node") == "cloud-1");
  std::string streamed;
  const auto events = pool.client().post_events(
      "/v1/chat/completions",
      R"({"model":"tiny","stream":true,"messages":[{"role":"user","content":"hi"}]})",
      [&](std::string_view data) {
        streamed += data;
        return true;
      });
  REQUIRE(events.ok());
  CHECK(streamed.find("[DONE]") != std::string::npos);
  CHECK(eventually(
      [&] { return pool.client().get("/v1/models")->body.find("\"tiny\"") != std::string::npos; }));
}

TEST_CASE("a request that rises from an edge is answered by the cloud node") {
  Pool pool;
  AnsweringModel* model = nullptr;
  const auto node = pool.add_cloud("cloud-1", model);
  AnsweringModel edge_model(1000);
  PoolSection section;
  section.router_endpoints = {pool.router->pool_endpoint()};
  section.router_key_file = pool.dir.file("router-key.pub");
  section.key_file = pool.dir.file("edge-1");
  MemoryWatch memory({100, 100});
  auto links = PoolLinks::start(section, make_hello("edge-1", Tier::kEdge, edge_model, {}),
                                edge_model, memory, [&] { return BeatFiller(edge_model); });
  REQUIRE(links.ok());
  (*links)->set_state(NodeState::kReady);
  REQUIRE(eventually([&] { return pool.knows("cloud-1") && pool.knows("edge-1"); }));
  Answer answer;
  (*links)->upward().submit(chat_request("0123456789abcdef0123456789abcdef", "hi", "tiny"),
                            answer.sink());
  REQUIRE(eventually([&] { return answer.end_count() == 1; }));
  CHECK(answer.text() == "abc");
  CHECK(answer.started().node_id == "cloud-1");
  CHECK(answer.error().message.empty());
  CHECK(edge_model.submitted_count() == 0);
  // An image of a few megabytes goes in parts.
  Request large = chat_request("f123456789abcdef0123456789abcdef", "what is it", "tiny");
  large.messages[0].parts.push_back(
      {ContentPart::Kind::kText, std::string(3'000'000, 'x'), "", ""});
  Answer large_answer;
  (*links)->upward().submit(large, large_answer.sink());
  REQUIRE(eventually([&] { return large_answer.end_count() == 1; }));
}

TEST_CASE("a cancelled request is cancelled at the node") {
  Pool pool;
  AnsweringModel* model = nullptr;
  const auto node = pool.add_cloud("cloud-1", model);
  model->answers = false;
  REQUIRE(eventually([&] { return pool.knows("cloud-1"); }));
  std::thread helper([&] {
    eventually([&] { return model->submitted_count() == 1; });
    model->begin(model->first_id());
  });
  const auto left = pool.client().post_events(
      "/v1/chat/completions",
      R"({"model":"tiny","stream":true,"messages":[{"role":"user","content":"hi"}]})",
      [&](std::string_view) { return false; });  // leaves at the first event
  helper.join();
  CHECK(eventually([&] { return model->cancelled_count() >= 1; }));
}

TEST_CASE("a node that stops mid-stream ends it with a typed error, or another node goes on") {
  Pool pool;
  AnsweringModel* model = nullptr;
  auto node = pool.add_cloud("cloud-1", model);
  model->answers = false;
  REQUIRE(eventually([&] { return pool.knows("cloud-1"); }));
  std::atomic<bool> done{false};
  Result<HttpResponse> response = fail("not yet");
  std::thread asking([&] {
    response = pool.client().post_json("/v1/chat/completions", kBody);
    done = true;
  });
  REQUIRE(eventually([&] { return model->submitted_count() == 1; }));
  model->begin(model->first_id());
  node.reset();
  REQUIRE(eventually([&] { return done.load(); }));
  asking.join();
  REQUIRE_MESSAGE(response.ok(), response.message());
  CHECK(response->status >= 500);
  CHECK(response->body.find("\"error\"") != std::string::npos);
}

TEST_CASE("a restarted router has its pool back by itself") {
  Pool pool;
  AnsweringModel* model = nullptr;
  const auto node = pool.add_cloud("cloud-1", model);
  REQUIRE(eventually([&] { return pool.knows("cloud-1"); }));
  pool.router.reset();
  REQUIRE(eventually([&] { return !node->connected(); }));
  pool.start_router();
  REQUIRE(eventually([&] { return pool.knows("cloud-1"); }));
  const auto answer = pool.client().post_json("/v1/chat/completions", kBody);
  REQUIRE(answer.ok());
  CHECK(answer->status == 200);
}
