// A process that a test forks while it has no threads yet: in such a child memory can be allocated,
// which after a fork beside threads may wait for ever (a lock of the allocator is held by nobody
// who is there). It begins when it is told where the daemon listens, and ends with the test.
#pragma once

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <string>

#include "common/base/check.h"

namespace updraft::testing {

class EarlyChild {
 public:
  // What the child does with the text of begin(), to its exit status.
  explicit EarlyChild(const std::function<int(const std::string&)>& work) {
    int ends[2];
    UPDRAFT_CHECK(pipe(ends) == 0, "a pipe");
    pid_ = fork();
    UPDRAFT_CHECK(pid_ >= 0, "a process");
    if (pid_ == 0) {
      close(ends[1]);
      std::string text;
      char buffer[256];
      for (ssize_t got = 0; (got = read(ends[0], buffer, sizeof buffer)) > 0;)
        text.append(buffer, static_cast<size_t>(got));
      _exit(text.empty() ? 0 : work(text));
    }
    close(ends[0]);
    begin_ = ends[1];
  }
  ~EarlyChild() {
    if (begin_ >= 0) close(begin_);
    if (pid_ < 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  EarlyChild(const EarlyChild&) = delete;
  EarlyChild& operator=(const EarlyChild&) = delete;

  void begin(const std::string& text) {
    UPDRAFT_CHECK(write(begin_, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
    close(begin_);
    begin_ = -1;
  }
  void end_at_once() const { kill(pid_, SIGKILL); }
  // As waitpid() has it.
  int wait() {
    int status = 0;
    UPDRAFT_CHECK(waitpid(pid_, &status, 0) == pid_);
    pid_ = -1;
    return status;
  }

 private:
  pid_t pid_ = -1;
  int begin_ = -1;
};

}  // namespace updraft::testing
