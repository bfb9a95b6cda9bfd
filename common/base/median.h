// The middle of repeated measurements.
#pragma once

#include <algorithm>
#include <vector>

#include "common/base/check.h"

namespace updraft {

// Of an even count the mean of the two in the middle. At least one value.
inline double median(std::vector<double> values) {
  UPDRAFT_CHECK(!values.empty(), "a median is of something");
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

}  // namespace updraft
