// What a measurement says: a value, the ceiling of the same run that it is a share of, and what it
// should reach. Printed as one JSON object a line, for tools/gpu_check.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace updraft::gpu {

struct Line {
  std::string group;               // "ceiling", "decode", "prefill", ...
  std::string name;                // within its group
  double value = 0.0;              // median of the repetitions
  std::string unit;                // "GB/s", "tokens/s", "ms", "error"
  std::optional<double> share;     // of the ceiling that `of` names, 0..1
  std::string of;                  // "copy", "bf16", "copy or bf16"
  std::optional<double> target;    // of the share where there is one, else of the value
  std::optional<double> moonshot;  // likewise
  bool lower_is_better = false;
  // Where given, the verdict: of a comparison that has no target.
  std::optional<bool> passed;
  std::string note;
};

// To standard output, at once.
void print(const Line& line);

}  // namespace updraft::gpu
