// What a process holds, for tests of bounds.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <string>

namespace updraft::testing {

// A sanitizer keeps what is freed: a bound is then printed, not judged.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kMemoryIsMeant = false;
#else
inline constexpr bool kMemoryIsMeant = true;
#endif

// Resident bytes of a process, by default this one; 0 when it is gone.
inline int64_t resident_bytes(const std::string& process = "self") {
  int64_t total_pages = 0;
  int64_t resident_pages = 0;
  std::ifstream("/proc/" + process + "/statm") >> total_pages >> resident_pages;
  return resident_pages * sysconf(_SC_PAGESIZE);
}

}  // namespace updraft::testing
