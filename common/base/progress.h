// Progress of a long job (loading, quantising): the library calls it, the program decides how to
// show it.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

namespace updraft {

// stage: what is being done, e.g. "loading weights"; done/total in the stage's own unit (bytes,
// tensors); total > 0. Called from the thread that does the job, at most about 20 times a second.
using Progress = std::function<void(std::string_view stage, uint64_t done, uint64_t total)>;

}  // namespace updraft
