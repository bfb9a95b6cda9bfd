// What tells this build of our kernels from every other: a choice that was measured with other
// code says nothing about this one.
#pragma once

#include <string>

namespace updraft::cuda {

// The release and, where the linker wrote one, the build id of the program or module that this code
// is in, in hexadecimal: "0.1.0 3f2a...".
std::string build_id();

}  // namespace updraft::cuda
