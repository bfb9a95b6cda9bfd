// updraft edge: the gateway's daemon.
#include <CLI/CLI.hpp>
#include <memory>

#include "edge/edge_daemon.h"
#include "tools/command.h"
#include "tools/daemon.h"

namespace updraft {
namespace {

int run_edge(const DaemonFlags& flags) {
  EdgeConfig config;
  std::unique_ptr<EdgeDaemon> daemon;
  DaemonLife life;
  life.load = [&]() -> Result<LogConfig> {
    Result<EdgeConfig> loaded = load_edge_config(flags.config_path);
    if (!loaded) return loaded.error();
    config = std::move(loaded).value();
    return config.log;
  };
  life.start = [&]() -> Result<std::vector<std::pair<std::string, std::string>>> {
    Result<std::unique_ptr<EdgeDaemon>> started = EdgeDaemon::start(config, terminal_progress());
    if (!started) return started.error();
    daemon = std::move(started).value();
    return std::vector<std::pair<std::string, std::string>>{
        {"http_port", std::to_string(daemon->http_port())}, {"socket", daemon->socket_path()}};
  };
  life.stop = [&] { daemon->stop(); };
  life.reload = [&] { return daemon->reload(); };
  return run_daemon(flags, life);
}

}  // namespace

void add_edge(CLI::App& app, int& exit_status) {
  auto flags = std::make_shared<DaemonFlags>();
  CLI::App* command = app.add_subcommand(
      "edge",
      "run the edge daemon: a small model on this gateway, local clients, a link to the pool");
  add_daemon_flags(*command, *flags, "configs/edge.toml");
  command->callback([flags, &exit_status] { exit_status = run_edge(*flags); });
}

}  // namespace updraft
