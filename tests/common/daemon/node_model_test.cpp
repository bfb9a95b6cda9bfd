// A daemon's model says who answered.
#include "common/daemon/node_model.h"

#include <doctest/doctest.h>

#include <future>

#include "tests/support/scripted_model.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

TEST_CASE("answers of a node's model carry the node's id and tier") {
  LocalModelConfig config;
  config.model_path = repo_file("configs/models/updraft-demo-edge-q4_0.gguf");
  config.threads = 1;
  config.node_id = "somebody-else";
  config.tier = Tier::kCloud;
  const Progress silent = [](std::string_view, uint64_t, uint64_t) {};
  auto model = open_node_model(config, "edge-7", Tier::kEdge, silent);
  REQUIRE_MESSAGE(model.ok(), model.message());
  Request request = chat_request("a", "Go back.");
  request.sampling.max_tokens = 1;
  Answer answer;
  std::promise<void> ended;
  (*model)->submit(request, [&, sink = answer.sink()](const Event& event) {
    sink(event);
    if (is_end(event)) ended.set_value();
  });
  ended.get_future().wait();
  CHECK(answer.started().node_id == "edge-7");
  CHECK(answer.started().tier == Tier::kEdge);
}

TEST_CASE("a model that cannot be opened is an error that names the file") {
  LocalModelConfig config;
  config.model_path = "/nonexistent/model.gguf";
  const auto model = open_node_model(config, "edge-7", Tier::kEdge, {});
  REQUIRE(!model.ok());
  CHECK(model.message().find("/nonexistent/model.gguf") != std::string::npos);
}
