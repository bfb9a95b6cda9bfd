// updraft cloud: a node of the central pool.
#include <CLI/CLI.hpp>
#include <memory>

#include "cloud/node/cloud_node.h"
#include "tools/command.h"
#include "tools/daemon.h"

namespace updraft {
namespace {

int run_cloud(const DaemonFlags& flags) {
  CloudConfig config;
  std::unique_ptr<CloudNode> daemon;
  DaemonLife life;
  life.load = [&]() -> Result<LogConfig> {
    Result<CloudConfig> loaded = load_cloud_config(flags.config_path);
    if (!loaded) return loaded.error();
    config = std::move(loaded).value();
    return config.log;
  };
  life.start = [&]() -> Result<std::vector<std::pair<std::string, std::string>>> {
    Result<std::unique_ptr<CloudNode>> started = CloudNode::start(config, terminal_progress());
    if (!started) return started.error();
    daemon = std::move(started).value();
    return std::vector<std::pair<std::string, std::string>>{
        {"http_port", std::to_string(daemon->http_port())}};
  };
  life.stop = [&] { daemon->stop(); };
  life.reload = [&] { return daemon->reload(); };
  return run_daemon(flags, life);
}

}  // namespace

void add_cloud(CLI::App& app, int& exit_status) {
  auto flags = std::make_shared<DaemonFlags>();
  CLI::App* command = app.add_subcommand(
      "cloud", "run a cloud node: a model that serves what rises from the edges");
  add_daemon_flags(*command, *flags, "configs/cloud.toml");
  command->callback([flags, &exit_status] { exit_status = run_cloud(*flags); });
}

}  // namespace updraft
