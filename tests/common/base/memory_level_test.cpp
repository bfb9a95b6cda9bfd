// Levels of memory: where they begin, where they end, what is not known.
#include "common/base/memory_level.h"

#include <doctest/doctest.h>

using namespace updraft;

namespace {

MemoryUse percent(uint64_t used) { return {used, 100}; }

}  // namespace

TEST_CASE("levels begin at their thresholds and end two points below") {
  MemoryScale scale({95, 98});
  CHECK(scale.update(percent(94)) == MemoryLevel::kNormal);
  CHECK(scale.update(percent(95)) == MemoryLevel::kShed);
  CHECK(scale.update(percent(93)) == MemoryLevel::kShed);
  CHECK(scale.update(percent(97)) == MemoryLevel::kShed);
  CHECK(scale.update(percent(98)) == MemoryLevel::kRefuse);
  CHECK(scale.update(percent(96)) == MemoryLevel::kRefuse);
  CHECK(scale.update(percent(95)) == MemoryLevel::kShed);
  CHECK(scale.update(percent(92)) == MemoryLevel::kNormal);
  CHECK(scale.update(percent(94)) == MemoryLevel::kNormal);
  CHECK(scale.level() == MemoryLevel::kNormal);
}

TEST_CASE("memory that fills or empties at once passes over the level between") {
  MemoryScale scale({95, 98});
  CHECK(scale.update(percent(100)) == MemoryLevel::kRefuse);
  CHECK(scale.update(percent(10)) == MemoryLevel::kNormal);
}

TEST_CASE("a reading that says nothing changes nothing") {
  MemoryScale scale({95, 98});
  CHECK(scale.update({}) == MemoryLevel::kNormal);
  CHECK(scale.update(percent(99)) == MemoryLevel::kRefuse);
  CHECK(scale.update({}) == MemoryLevel::kRefuse);
}

TEST_CASE("a threshold of 100 percent is never reached") {
  MemoryScale none({100, 100});
  CHECK(none.update(percent(100)) == MemoryLevel::kNormal);
  MemoryScale shed_only({95, 100});
  CHECK(shed_only.update(percent(100)) == MemoryLevel::kShed);
  MemoryScale both_at_once({90, 90});
  CHECK(both_at_once.update(percent(90)) == MemoryLevel::kRefuse);
  CHECK(both_at_once.update(percent(87)) == MemoryLevel::kNormal);
}

TEST_CASE("use beyond the limit is all of it, and none is left") {
  const MemoryUse over{150, 100};
  CHECK(over.ratio() == 1.0);
  CHECK(over.left_bytes() == 0);
  CHECK(percent(30).left_bytes() == 70);
}
