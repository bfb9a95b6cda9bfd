// What the emulator knows of the wgmma products under way in a block; between launch.cpp, which
// makes it anew for each block, and group_ops.cpp. Internal to kernels/simt.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <vector>

#include "kernels/simt/thread.h"

namespace updraft::simt {

// One wgmma.mma_async as one warp sees it: its 16 of the 64 rows.
struct GroupProduct {
  uint32_t columns;  // N
  bool is_f16;
  bool b_transposed;
  bool first;  // not added to what the accumulator holds
  bool a_in_registers;
  uint64_t a_matrix;  // descriptors
  uint64_t b_matrix;
  std::array<const uint32_t*, kWarpLanes> a;  // four registers of each lane
  float* sums;                                // of lane 0: which accumulator it is
  bool undefined;  // registers that no wgmma.fence has ordered: anything may come out
  bool done;

  // The same for the four warps of a group, whatever their registers.
  bool like(const GroupProduct& other) const {
    return columns == other.columns && is_f16 == other.is_f16 &&
           b_transposed == other.b_transposed && a_in_registers == other.a_in_registers &&
           b_matrix == other.b_matrix && (a_in_registers || a_matrix == other.a_matrix);
  }
};

// An accumulator that products under way will write: until then the thread's own array holds NaN.
struct GroupSums {
  std::array<float*, kWarpLanes> at;
  std::vector<float> values;  // [lane][columns / 2]
  int open = 0;               // products under way
};

struct WarpProducts {
  bool fenced = false;
  std::vector<GroupProduct> open;                // issued, not committed
  std::deque<std::vector<GroupProduct>> groups;  // committed, oldest first
  std::map<const float*, GroupSums> sums;
  size_t issued_count = 0;
  std::vector<uint32_t> registers;  // of a thread, as it set them
};

struct GroupProducts {
  explicit GroupProducts(uint32_t warp_count) : warps(warp_count), issued((warp_count + 3) / 4) {}
  std::vector<WarpProducts> warps;
  std::vector<std::vector<GroupProduct>> issued;  // by warpgroup: what its first warp there issued
};

}  // namespace updraft::simt
