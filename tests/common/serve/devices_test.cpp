// The devices that a model runs on, as configured: several parts of the CPU give the answer of one.
#include "common/serve/devices.h"

#include <doctest/doctest.h>
#include <stdlib.h>

#include <string>
#include <utility>

#include "common/serve/local_model.h"
#include "kernels/cpu/thread_pool.h"
#include "tests/common/serve/events.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

LocalModelConfig demo_config(int32_t devices) {
  LocalModelConfig config;
  config.model_path = repo_file("configs/models/updraft-demo-edge-q4_0.gguf");
  config.backend = "cpu";
  config.slots = 2;
  config.context_tokens = 256;
  config.exact = true;
  config.threads = devices;
  // As many as there are devices, on any machine.
  config.cores.assign(static_cast<size_t>(devices), process_cores().front());
  config.tensor_parallel = devices;
  return config;
}

std::string answer(const LocalModelConfig& config) {
  auto model = LocalModel::open(config, {});
  REQUIRE_MESSAGE(model.ok(), model.message());
  CHECK(((*model)->device().find("tensor parallel, 2 x (cpu") == 0) ==
        (config.tensor_parallel == 2));
  Request request;
  request.id = "a";
  request.messages = {{"user", {{ContentPart::Kind::kText, "Open the settings.", "", ""}}}};
  request.sampling.max_tokens = 24;
  request.sampling.temperature = 0.0F;
  EventLog log;
  (*model)->submit(request, log.sink());
  log.wait_end();
  return assemble(log.events(), 1).choices.at(0).text;
}

}  // namespace

TEST_CASE("two parts of the CPU answer as one does") {
  const std::string expected = answer(demo_config(1));
  CHECK(!expected.empty());
  CHECK(answer(demo_config(2)) == expected);
}

TEST_CASE("more devices than cores or threads are refused") {
  CpuConfig config;
  config.cores = {process_cores().front()};
  config.thread_count = 1;
  const auto opened = open_cpus(config, 2);
  REQUIRE_FALSE(opened.ok());
  CHECK(opened.message() == "cpu: 1 cores and 1 threads are too few for 2 devices");
}

TEST_CASE("measurements are kept in the user's cache folder, where there is one") {
  const auto was = [](const char* name) {
    const char* value = std::getenv(name);
    return std::pair<bool, std::string>(value != nullptr, value == nullptr ? "" : value);
  };
  const auto cache = was("XDG_CACHE_HOME");
  const auto home = was("HOME");
  REQUIRE(setenv("HOME", "/home/some", 1) == 0);
  REQUIRE(setenv("XDG_CACHE_HOME", "/var/cache/some", 1) == 0);
  CHECK(default_tune_folder() == "/var/cache/some/updraft");
  REQUIRE(setenv("XDG_CACHE_HOME", "relative", 1) == 0);
  CHECK(default_tune_folder() == "/home/some/.cache/updraft");
  REQUIRE(unsetenv("XDG_CACHE_HOME") == 0);
  CHECK(default_tune_folder() == "/home/some/.cache/updraft");
  REQUIRE(unsetenv("HOME") == 0);
  CHECK(default_tune_folder().empty());
  if (cache.first) REQUIRE(setenv("XDG_CACHE_HOME", cache.second.c_str(), 1) == 0);
  if (home.first) REQUIRE(setenv("HOME", home.second.c_str(), 1) == 0);
}
