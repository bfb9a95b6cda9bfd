// A local server in this process, in front of the service that a test brings along.
#pragma once

#include <doctest/doctest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "common/base/clock.h"
#include "edge/local_server.h"
#include "tests/support/shared_data.h"

namespace updraft::testing {

template <typename Service, int kPatienceSeconds>
struct LocalDaemon {
  explicit LocalDaemon(LocalServerConfig config = {}) { start(std::move(config)); }
  void start(LocalServerConfig config = {}) {
    config.socket_path = socket();
    Result<std::unique_ptr<LocalServer>> started = LocalServer::start(config, service);
    REQUIRE_MESSAGE(started.ok(), started.message());
    server = std::move(started).value();
  }
  std::string socket() const { return dir.file("edge.sock"); }
  // Waits until `done` holds; the daemon works on its own thread.
  template <typename Condition>
  bool eventually(Condition done) {
    const int64_t deadline_ns = monotonic_ns() + kPatienceSeconds * kNsPerSecond;
    while (!done()) {
      if (monotonic_ns() > deadline_ns) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }

  TempDir dir;
  Service service;
  std::unique_ptr<LocalServer> server;
};

}  // namespace updraft::testing
