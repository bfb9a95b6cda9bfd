// What the three daemon commands share: flags, signals, the ready file, the progress line.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "common/base/progress.h"
#include "common/base/result.h"
#include "common/log/log.h"

namespace CLI {
class App;
}

namespace updraft {

struct DaemonFlags {
  std::string config_path;
  std::vector<std::string> settings;  // --set section.key=value
  bool check_config = false;
  std::string ready_file;  // written once the daemon serves: lines "key=value"
};

// --config, --set, --check-config, --ready-file.
void add_daemon_flags(CLI::App& command, DaemonFlags& flags, const std::string& default_config);

// The life of a daemon command, the same for all three: settings -> load (reads and checks the
// configuration) -> start
// -> ready file -> until a stop signal (SIGHUP: reload, and on) -> stop. Returns the exit status;
// every failure is one line on standard error.
struct DaemonLife {
  std::function<Result<LogConfig>()> load;
  std::function<Result<std::vector<std::pair<std::string, std::string>>>()>
      start;  // facts for the ready file
  std::function<void()> stop;
  // SIGHUP: the file is read again, and what can change while the daemon runs changes. Returns the
  // names of what cannot and differs; an error has changed nothing.
  std::function<Result<std::vector<std::string>>()> reload;
};
int run_daemon(const DaemonFlags& flags, const DaemonLife& life);

// Blocks SIGINT, SIGTERM and SIGHUP in this thread and every thread started later, ignores SIGPIPE
// and SIGXFSZ. Call first.
void block_stop_signals();
// Waits for one of them and returns it. A second SIGINT after that ends the process at once.
int wait_for_stop_signal();
// One that is already pending, or 0; waits at most timeout_ms.
int poll_stop_signal(int timeout_ms);

// Writes "key=value" lines to a temporary file and renames it into place, so a reader never sees
// half of it.
Result<void> write_ready_file(const std::string& path,
                              const std::vector<std::pair<std::string, std::string>>& facts);
// What it says; nothing where there is no such file.
std::map<std::string, std::string> read_ready_file(const std::string& path);

// Draws "loading weights  43 % (150/346 MB)" on a terminal's standard error; nothing when it is no
// terminal.
Progress terminal_progress();

}  // namespace updraft
