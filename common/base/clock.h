// Time as the program uses it: monotonic nanoseconds. Pure cores never call this; they take now_ns
// as an argument.
#pragma once

#include <cstdint>

namespace updraft {

inline constexpr int64_t kNsPerUs = 1'000;
inline constexpr int64_t kNsPerMs = 1'000'000;
inline constexpr int64_t kNsPerSecond = 1'000'000'000;

// CLOCK_MONOTONIC in nanoseconds; comparable between processes of one machine, never between
// machines.
int64_t monotonic_ns();

// Wall clock in whole seconds since 1970, for `created` fields and logs only; never for ordering or
// ageing.
int64_t unix_seconds();

}  // namespace updraft
