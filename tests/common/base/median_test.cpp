#include "common/base/median.h"

#include <doctest/doctest.h>

using updraft::median;

TEST_CASE("the median is the middle, or half way between the two in the middle") {
  CHECK(median({7}) == 7);
  CHECK(median({3, 1, 2}) == 2);
  CHECK(median({4, 1, 2, 3}) == 2.5);
}
