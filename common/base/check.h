// Always-on checks for bugs in this program. A failed check aborts with file, line and the values
// given: a state that cannot be is never served. Outside input is not checked here, it gets a
// Result (result.h).
#pragma once

#include <cstdio>
#include <cstdlib>

namespace updraft {

[[noreturn]] inline void check_failed(const char* file, int line, const char* expression,
                                      const char* why) {
  std::fprintf(stderr, "%s:%d: check failed: %s%s%s\n", file, line, expression,
               why[0] != '\0' ? ": " : "", why);
  std::fflush(stderr);
  std::abort();
}

}  // namespace updraft

// UPDRAFT_CHECK(condition) or UPDRAFT_CHECK(condition, "why it must hold").
#define UPDRAFT_CHECK(condition, ...)                                          \
  do {                                                                         \
    if (!(condition)) [[unlikely]] {                                           \
      ::updraft::check_failed(__FILE__, __LINE__, #condition, "" __VA_ARGS__); \
    }                                                                          \
  } while (false)
