// How the devices of a group share the pieces of a matrix. Pure; the same arguments give the same
// shares, so what makes an activation and what takes it are cut alike.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/base/result.h"

namespace updraft {

// Neighbouring pieces of one device.
struct Share {
  int32_t first = 0;
  int32_t count = 0;
  int32_t end() const { return first + count; }
  friend bool operator==(const Share&, const Share&) = default;
};

// `pieces` neighbours handed out in proportion to the weights (> 0), at least one to each and
// nobody further than one piece from its exact part, but for that one: the largest remainders are
// rounded up. Errors: fewer pieces than devices.
Result<std::vector<Share>> share_out(int32_t pieces, std::span<const double> weights);

struct HeadShare {
  Share heads;     // of query heads
  Share kv_heads;  // that they read; each for the same number of the share's heads
  friend bool operator==(const HeadShare&, const HeadShare&) = default;
};

// Query heads, `group` neighbours of which read one KV head, by weights. As long as there are KV
// heads for all devices a device has whole groups; otherwise several devices share a group and each
// has a copy of its KV head. unit: cuts between heads that are multiples of it are preferred (whole
// blocks of a quantised matrix). Errors: fewer heads than devices, heads that are no whole groups.
Result<std::vector<HeadShare>> share_heads(int32_t heads, int32_t group, int32_t unit,
                                           std::span<const double> weights);

}  // namespace updraft
