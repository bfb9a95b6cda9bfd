// Signals, the ready file and the progress bar of the daemon commands.
#include "tools/daemon.h"

#include <pthread.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <memory>

#include "common/base/clock.h"
#include "common/config/toml_file.h"
#include "tools/command.h"

namespace updraft {
namespace {

sigset_t stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGHUP);
  return set;
}

int wait_for_signal() {
  const sigset_t set = stop_signals();
  int signal = 0;
  while (sigwait(&set, &signal) != 0) {
  }
  return signal;
}

// After the first signal a second one must end a daemon that hangs while stopping.
void restore_interrupt() {
  std::signal(SIGINT, SIG_DFL);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

}  // namespace

void add_daemon_flags(CLI::App& command, DaemonFlags& flags, const std::string& default_config) {
  flags.config_path = default_config;
  command.add_option("-c,--config", flags.config_path, "configuration file (TOML)");
  command.add_option("--set", flags.settings,
                     "override one setting, section.key=value; repeatable (wins over "
                     "UPDRAFT_SECTION_KEY and the file)");
  command.add_flag("--check-config", flags.check_config,
                   "read and check the configuration, then exit");
  command.add_option("--ready-file", flags.ready_file,
                     "write addresses to this file once requests are served");
}

int run_daemon(const DaemonFlags& flags, const DaemonLife& life) {
  block_stop_signals();
  for (const std::string& setting : flags.settings) {
    if (const auto added = add_config_override(setting); !added) return complain(added.message());
  }
  if (std::error_code error; !std::filesystem::exists(flags.config_path, error)) {
    return complain(
        flags.config_path +
        ": no such file; name the configuration with --config (Updraft's configs folder "
        "has one to start from)");
  }
  const Result<LogConfig> log_config = life.load();
  if (!log_config) return complain(log_config.message());
  if (flags.check_config) {
    std::printf("%s is valid\n", flags.config_path.c_str());
    return 0;
  }
  if (const auto logging = configure_log(*log_config); !logging) return complain(logging.message());
  const auto facts = life.start();
  if (!facts) return complain(facts.message());
  if (!flags.ready_file.empty()) {
    if (const auto written = write_ready_file(flags.ready_file, *facts); !written)
      return complain(written.message());
  }
  int signal = wait_for_signal();
  for (; signal == SIGHUP; signal = wait_for_signal()) {
    const auto reloaded = life.reload();
    if (!reloaded) {
      log_error("configuration not reloaded, the old one stays in force",
                {{"why", reloaded.message()}});
    }
    for (const std::string& name : reloaded ? *reloaded : std::vector<std::string>())
      log_warn("setting differs and needs a restart", {{"name", name}});
  }
  restore_interrupt();
  log_info("stopping", {{"signal", signal}});
  life.stop();
  return 0;
}

void block_stop_signals() {
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);  // a limit on file sizes is a full disk: the write's error says so
  const sigset_t set = stop_signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

int wait_for_stop_signal() {
  const int signal = wait_for_signal();
  restore_interrupt();
  return signal;
}

int poll_stop_signal(int timeout_ms) {
  const sigset_t set = stop_signals();
  const timespec timeout{timeout_ms / 1000, static_cast<long>(timeout_ms % 1000) * kNsPerMs};
  const int signal = sigtimedwait(&set, nullptr, &timeout);
  if (signal <= 0) return 0;
  restore_interrupt();
  return signal;
}

Result<void> write_ready_file(const std::string& path,
                              const std::vector<std::pair<std::string, std::string>>& facts) {
  const std::string temporary = path + ".tmp";
  {
    std::ofstream out(temporary, std::ios::trunc);
    for (const auto& [key, value] : facts) out << key << '=' << value << '\n';
    if (!out.flush()) return fail("ready file " + temporary + ": cannot be written");
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    return fail("ready file " + path + ": cannot be renamed into place");
  }
  return {};
}

std::map<std::string, std::string> read_ready_file(const std::string& path) {
  std::map<std::string, std::string> facts;
  std::ifstream in(path);
  std::string line;
  while (std::getline(in, line)) {
    const size_t equals = line.find('=');
    if (equals != std::string::npos) facts[line.substr(0, equals)] = line.substr(equals + 1);
  }
  return facts;
}

Progress terminal_progress() {
  if (isatty(STDERR_FILENO) == 0) return [](std::string_view, uint64_t, uint64_t) {};
  auto last_ns = std::make_shared<int64_t>(0);
  return [last_ns](std::string_view stage, uint64_t done, uint64_t total) {
    const int64_t now_ns = monotonic_ns();
    const bool finished = done >= total;
    if (!finished && now_ns - *last_ns < 50 * kNsPerMs) return;
    *last_ns = now_ns;
    const int width = 30;
    const int filled =
        total == 0
            ? width
            : static_cast<int>(static_cast<double>(done) * width / static_cast<double>(total));
    std::string bar(static_cast<size_t>(filled), '=');
    bar.resize(width, ' ');
    std::fprintf(stderr, "\r%.*s [%s] %3d %%%s", static_cast<int>(stage.size()), stage.data(),
                 bar.c_str(), filled * 100 / width, finished ? "\n" : "");
    std::fflush(stderr);
  };
}

}  // namespace updraft
