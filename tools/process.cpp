// Starting, watching and ending the daemons of `updraft up`.
#include "tools/process.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <fstream>
#include <thread>

#include "common/base/clock.h"

namespace updraft {

std::string program_path() {
  char path[PATH_MAX] = {};
  return readlink("/proc/self/exe", path, sizeof path - 1) > 0 ? path : "updraft";
}

Result<ChildProcess> ChildProcess::start(const std::string& name,
                                         const std::vector<std::string>& arguments,
                                         const std::string& log_path) {
  return start_program(name, program_path(), arguments, log_path);
}

Result<ChildProcess> ChildProcess::start_program(const std::string& name,
                                                 const std::string& program,
                                                 const std::vector<std::string>& arguments,
                                                 const std::string& log_path) {
  const int log = ::open(log_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (log < 0) return fail(log_path + ": " + std::strerror(errno));
  std::vector<char*> argv{const_cast<char*>(program.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) {
    ::close(log);
    return fail(name + ": fork: " + std::strerror(errno));
  }
  if (pid == 0) {
    // Only async-signal-safe calls between fork and exec (glibc's execvp is one).
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1);
    setpgid(0, 0);  // Ctrl-C reaches `updraft up` alone, which stops the daemons in order
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    const int null = ::open("/dev/null", O_RDONLY);
    if (null >= 0) dup2(null, STDIN_FILENO);
    execvp(program.c_str(), argv.data());
    _exit(127);
  }
  ::close(log);
  ChildProcess child;
  child.name_ = name;
  child.log_path_ = log_path;
  child.pid_ = pid;
  return child;
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept { *this = std::move(other); }

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  std::swap(name_, other.name_);
  std::swap(log_path_, other.log_path_);
  std::swap(pid_, other.pid_);
  std::swap(status_, other.status_);
  return *this;
}

ChildProcess::~ChildProcess() {
  if (pid_ > 0) stop(1000);
}

bool ChildProcess::running() {
  if (pid_ <= 0) return false;
  if (waitpid(pid_, &status_, WNOHANG) == pid_) pid_ = -1;
  return pid_ > 0;
}

std::string ChildProcess::how_it_ended() const {
  if (WIFSIGNALED(status_)) return "signal " + std::to_string(WTERMSIG(status_));
  return "exit status " + std::to_string(WEXITSTATUS(status_));
}

std::string ChildProcess::last_log_line() const {
  std::ifstream in(log_path_);
  std::string line;
  std::string last;
  while (std::getline(in, line)) {
    if (!line.empty()) last = line;
  }
  return last;
}

void ChildProcess::terminate() {
  if (pid_ > 0) ::kill(pid_, SIGTERM);
}

void ChildProcess::stop(int grace_ms) {
  terminate();
  const int64_t deadline_ns = monotonic_ns() + grace_ms * kNsPerMs;
  while (running()) {
    if (monotonic_ns() > deadline_ns) {
      ::kill(pid_, SIGKILL);
      waitpid(pid_, &status_, 0);
      pid_ = -1;
      return;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

}  // namespace updraft
