// Child processes of this program: the daemons that `updraft up` runs. Owned by the main thread.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "common/base/result.h"

namespace updraft {

// This program's own path.
std::string program_path();

class ChildProcess {
 public:
  // Runs the program with these arguments; its output goes to log_path (truncated). The child gets
  // SIGTERM when this process dies, however it dies.
  static Result<ChildProcess> start(const std::string& name,
                                    const std::vector<std::string>& arguments,
                                    const std::string& log_path);
  // The same with any program: a path, or a name that PATH finds.
  static Result<ChildProcess> start_program(const std::string& name, const std::string& program,
                                            const std::vector<std::string>& arguments,
                                            const std::string& log_path);
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ~ChildProcess();  // ends it, at the latest after stop()'s grace

  pid_t pid() const { return pid_; }  // -1 when it has ended
  const std::string& name() const { return name_; }
  const std::string& log_path() const { return log_path_; }
  bool running();  // reaps it when it has ended
  // "exit status 1" or "signal 11", once it has ended.
  std::string how_it_ended() const;
  std::string last_log_line() const;
  void terminate();         // SIGTERM
  void stop(int grace_ms);  // SIGTERM, wait, then SIGKILL

 private:
  ChildProcess() = default;
  std::string name_;
  std::string log_path_;
  pid_t pid_ = -1;
  int status_ = 0;
};

}  // namespace updraft
