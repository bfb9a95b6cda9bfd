// Whether the test programs run under an emulator (cross-compiled, CMAKE_CROSSCOMPILING_EMULATOR),
// some twenty times slower than the processor: tests whose work grows with their shapes then take
// smaller ones. No format, instruction set or case is left out.
#pragma once

namespace updraft::testing {

#if defined(UPDRAFT_TESTS_EMULATED)
inline constexpr bool kEmulated = true;
#else
inline constexpr bool kEmulated = false;
#endif

}  // namespace updraft::testing
