// updraft router: the one endpoint.
#include "cloud/router/router.h"

#include <CLI/CLI.hpp>
#include <memory>

#include "tools/command.h"
#include "tools/daemon.h"

namespace updraft {
namespace {

constexpr int kStopGraceMs = 5000;

int run_router(const DaemonFlags& flags) {
  RouterConfig config;
  std::unique_ptr<Router> daemon;
  DaemonLife life;
  life.load = [&]() -> Result<LogConfig> {
    Result<RouterConfig> loaded = load_router_config(flags.config_path);
    if (!loaded) return loaded.error();
    config = std::move(loaded).value();
    return config.log;
  };
  life.start = [&]() -> Result<std::vector<std::pair<std::string, std::string>>> {
    Result<std::unique_ptr<Router>> started = Router::start(config);
    if (!started) return started.error();
    daemon = std::move(started).value();
    return std::vector<std::pair<std::string, std::string>>{
        {"http_port", std::to_string(daemon->http_port())},
        {"admin_port", std::to_string(daemon->admin_port())},
        {"pool", daemon->pool_endpoint()}};
  };
  life.reload = [&]() -> Result<std::vector<std::string>> {
    auto report = daemon->reload();
    if (!report) return report.error();
    return std::move(report->needs_restart);
  };
  life.stop = [&] { daemon->stop(kStopGraceMs); };
  return run_daemon(flags, life);
}

}  // namespace

void add_router(CLI::App& app, int& exit_status) {
  auto flags = std::make_shared<DaemonFlags>();
  CLI::App* command = app.add_subcommand(
      "router", "run the router: one OpenAI-compatible endpoint in front of every node");
  add_daemon_flags(*command, *flags, "configs/router.toml");
  command->callback([flags, &exit_status] { exit_status = run_router(*flags); });
}

}  // namespace updraft
