// wgmma: the products of four warps at a time. A warp's share is computed when the schedule says
// so: at the issue, or at the wait that covers it; in between the accumulators hold NaN.
#include <algorithm>
#include <limits>

#include "kernels/quant/quant.h"
#include "kernels/simt/group_products.h"
#include "kernels/simt/hopper_ops.h"
#include "kernels/simt/tensor_sum.h"

namespace updraft::simt {
namespace {

constexpr uint32_t kDepth = 16;
constexpr uint32_t kGroupWarps = 4;
constexpr float kNothing = std::numeric_limits<float>::quiet_NaN();

uint32_t own_warp() { return self().linear / kWarpLanes; }

// "Matrix descriptor": fields of 14 bits hold bits 4..17 of a byte count.
struct Matrix {
  uint32_t start;
  uint32_t leading_bytes;  // MN-major: from 64 rows to the next 64
  uint32_t stride_bytes;   // K-major: from 8 rows to the next 8; MN-major: from 8 k to the next 8
  uint32_t base_offset;
  uint32_t swizzling;

  explicit Matrix(uint64_t bits)
      : start(static_cast<uint32_t>(bits & 0x3FFF) << 4),
        leading_bytes(static_cast<uint32_t>(bits >> 16 & 0x3FFF) << 4),
        stride_bytes(static_cast<uint32_t>(bits >> 32 & 0x3FFF) << 4),
        base_offset(static_cast<uint32_t>(bits >> 49 & 7)),
        swizzling(static_cast<uint32_t>(bits >> 62)) {}
  // The pattern of 1,024 bytes begins where the base offset says; here only at multiples of 1,024.
  bool has_meaning() const { return base_offset == 0 && (start >> 7 & 7U) == 0; }
  uint32_t address_of(uint32_t row, uint32_t k, bool transposed) const {
    const uint32_t address = transposed ? start + row / 64 * leading_bytes + k / 8 * stride_bytes +
                                              k % 8 * 128 + row % 64 * 2
                                        : start + row / 8 * stride_bytes + row % 8 * 128 + k * 2;
    return address ^ (address >> 7 & 7U) << 4;
  }
};

const std::byte* shared_byte(uint32_t address) {
  return in_async_view(block().dynamic_shared->data() + (address - block().shared_base));
}

void check_matrix(const char* name, const Matrix& matrix, uint32_t rows, bool transposed,
                  const Place& place) {
  constexpr uint32_t kSwizzled128 = 1;
  if (matrix.swizzling != kSwizzled128) {
    stop(std::string(name) + " of a matrix with swizzling mode " +
             std::to_string(matrix.swizzling) + " (only 1, 128 bytes, is emulated)",
         place);
  }
  const uint32_t last = transposed ? (rows - 1) / 64 * matrix.leading_bytes + matrix.stride_bytes
                                   : (rows / 8 - 1) * matrix.stride_bytes;
  const uint32_t end = matrix.start / 1024 * 1024 + last + 1024;
  const uint32_t base = block().shared_base;
  if (matrix.start < base || end > base + block().dynamic_shared->bytes()) {
    stop(std::string(name) + " of a matrix that reaches from " + std::to_string(matrix.start) +
             " to " + std::to_string(end) + ", outside shared memory",
         place);
  }
}

float element(bool is_f16, uint32_t bits) {
  return is_f16 ? half_to_float(static_cast<uint16_t>(bits))
                : bf16_to_float(static_cast<uint16_t>(bits));
}
float matrix_element(const GroupProduct& product, const Matrix& matrix, uint32_t row, uint32_t k,
                     bool transposed) {
  uint16_t bits = 0;
  std::memcpy(&bits, shared_byte(matrix.address_of(row, k, transposed)), sizeof bits);
  return element(product.is_f16, bits);
}

// The 16 rows of warp `warp` of its group.
std::array<std::array<double, kDepth>, 16> rows_of(const GroupProduct& product, uint32_t warp) {
  std::array<std::array<double, kDepth>, 16> out{};
  if (!product.a_in_registers) {
    const Matrix matrix(product.a_matrix);
    for (uint32_t r = 0; r < 16; ++r) {
      for (uint32_t k = 0; k < kDepth; ++k) {
        out[r][k] = static_cast<double>(
            matrix_element(product, matrix, warp % kGroupWarps * 16 + r, k, false));
      }
    }
    return out;
  }
  for (uint32_t lane = 0; lane < kWarpLanes; ++lane) {
    for (uint32_t j = 0; j < 4; ++j) {
      const uint32_t r = lane / 4 + j % 2 * 8;
      const uint32_t k = 2 * (lane % 4) + j / 2 * 8;
      const uint32_t pair = product.a[lane][j];
      out[r][k] = static_cast<double>(element(product.is_f16, pair & 0xFFFFU));
      out[r][k + 1] = static_cast<double>(element(product.is_f16, pair >> 16));
    }
  }
  return out;
}

void compute(GroupProduct& product, uint32_t warp, GroupSums& sums) {
  product.done = true;
  const Matrix b(product.b_matrix);
  const uint32_t half = product.columns / 2;
  if (product.undefined || !b.has_meaning() ||
      (!product.a_in_registers && !Matrix(product.a_matrix).has_meaning())) {
    std::fill(sums.values.begin(), sums.values.end(), kNothing);
    return;
  }
  const auto a = rows_of(product, warp);
  std::array<std::array<double, 256>, kDepth> columns;
  for (uint32_t n = 0; n < product.columns; ++n) {
    for (uint32_t k = 0; k < kDepth; ++k) {
      columns[k][n] = static_cast<double>(matrix_element(product, b, n, k, product.b_transposed));
    }
  }
  std::array<double, 256> row;
  for (uint32_t r = 0; r < 16; ++r) {
    std::fill_n(row.begin(), product.columns, 0.0);
    for (uint32_t k = 0; k < kDepth; ++k) {
      for (uint32_t n = 0; n < product.columns; ++n) row[n] += a[r][k] * columns[k][n];
    }
    for (uint32_t n = 0; n < product.columns; ++n) {
      const uint32_t lane = 4 * (r % 8) + n % 8 / 2;
      const uint32_t i = n / 8 * 4 + r / 8 * 2 + n % 2;
      float& sum = sums.values[size_t{lane} * half + i];
      sum = toward_zero((product.first ? 0.0 : static_cast<double>(sum)) + row[n]);
    }
  }
}

struct Issue {
  uint32_t warp;
  const GroupOperands* in;
};

// All lanes are there: poisons their accumulators and notes the product.
void execute_issue(WarpRequest* const* lanes) {
  const auto& first = *static_cast<const Issue*>(lanes[0]->in);
  GroupProducts& all = *block().products;
  WarpProducts& warp = all.warps[first.warp];
  GroupProduct product{};
  product.columns = first.in->columns;
  product.is_f16 = first.in->is_f16;
  product.b_transposed = first.in->b_transposed;
  product.first = first.in->first;
  product.a_in_registers = first.in->a != nullptr;
  product.a_matrix = first.in->a_matrix;
  product.b_matrix = first.in->b_matrix;
  product.sums = first.in->sums;
  product.undefined = !warp.fenced;
  const uint32_t half = product.columns / 2;
  GroupSums& sums = warp.sums[product.sums];
  for (uint32_t i = 0; i < kWarpLanes; ++i) {
    const GroupOperands& in = *static_cast<const Issue*>(lanes[i]->in)->in;
    product.a[i] = in.a;
    // A descriptor that lanes do not agree about, or no order between threads' writes and products.
    if (in.b_matrix != product.b_matrix || in.a_matrix != product.a_matrix) {
      product.undefined = true;
    }
    if (sums.open != 0) continue;
    sums.at[i] = in.sums;
    sums.values.insert(sums.values.end(), in.sums, in.sums + half);
    std::fill_n(in.sums, half, kNothing);
  }
  ++sums.open;
  std::vector<GroupProduct>& issued = all.issued[first.warp / kGroupWarps];
  if (warp.issued_count == issued.size()) issued.push_back(product);
  if (!product.like(issued[warp.issued_count])) product.undefined = true;
  ++warp.issued_count;
  if (block().schedule.landing == Landing::kAtWait) compute(product, first.warp, sums);
  warp.open.push_back(product);
}

void execute_fence(WarpRequest* const* lanes) {
  block().products->warps[*static_cast<const uint32_t*>(lanes[0]->in)].fenced = true;
}

void execute_commit(WarpRequest* const* lanes) {
  WarpProducts& warp = block().products->warps[*static_cast<const uint32_t*>(lanes[0]->in)];
  warp.groups.push_back(std::move(warp.open));
  warp.open.clear();
  warp.fenced = false;
}

struct WaitGroups {
  uint32_t warp;
  size_t groups;
};

void execute_wait(WarpRequest* const* lanes) {
  const auto& in = *static_cast<const WaitGroups*>(lanes[0]->in);
  WarpProducts& warp = block().products->warps[in.warp];
  warp.fenced = false;
  while (warp.groups.size() > in.groups) {
    for (GroupProduct& product : warp.groups.front()) {
      GroupSums& sums = warp.sums.at(product.sums);
      if (!product.done) compute(product, in.warp, sums);
      if (--sums.open != 0) continue;
      const size_t half = sums.values.size() / kWarpLanes;
      for (uint32_t i = 0; i < kWarpLanes; ++i) {
        std::copy_n(sums.values.begin() + static_cast<ptrdiff_t>(i * half), half, sums.at[i]);
      }
      warp.sums.erase(product.sums);
    }
    warp.groups.pop_front();
  }
}

// That each thread of the block begins with.
uint32_t registers_at_first() {
  constexpr uint64_t kRegisters = 65536;
  constexpr uint64_t kOfThreadMax = 256;
  return static_cast<uint32_t>(
      std::min(kRegisters / block().shape.block.count() / 8 * 8, kOfThreadMax));
}

struct SetRegisters {
  uint32_t warp;
  uint32_t count;
};

void execute_set_registers(WarpRequest* const* lanes) {
  const auto& in = *static_cast<const SetRegisters*>(lanes[0]->in);
  block().products->warps[in.warp].registers.push_back(in.count);
}

void check_whole_group(const char* name, const Place& place) {
  if ((own_warp() / kGroupWarps + 1) * kGroupWarps * kWarpLanes > block().shape.block.count()) {
    stop(std::string(name) + " by a warpgroup of fewer than 128 threads", place);
  }
}

}  // namespace

void multiply_group(const char* name, const GroupOperands& in, const Place& place) {
  check_whole_group(name, place);
  if (in.columns % 8 != 0 || in.columns > 256) {
    stop(std::string(name) + " of " + std::to_string(in.columns) + " columns", place);
  }
  check_matrix(name, Matrix(in.b_matrix), in.columns, in.b_transposed, place);
  if (in.a == nullptr) check_matrix(name, Matrix(in.a_matrix), 64, false, place);
  const Issue issue{own_warp(), &in};
  WarpRequest request{name, kAllLanes, place, &issue, nullptr, execute_issue};
  wait_for(request);
}

void group_fence(Place place) {
  check_whole_group("wgmma.fence", place);
  const uint32_t warp = own_warp();
  WarpRequest request{"wgmma.fence", kAllLanes, place, &warp, nullptr, execute_fence};
  wait_for(request);
}

void group_commit(Place place) {
  check_whole_group("wgmma.commit_group", place);
  const uint32_t warp = own_warp();
  WarpRequest request{"wgmma.commit_group", kAllLanes, place, &warp, nullptr, execute_commit};
  wait_for(request);
}

void wait_groups(size_t groups, const Place& place) {
  check_whole_group("wgmma.wait_group", place);
  pause();  // products take their time
  const WaitGroups wait{own_warp(), groups};
  WarpRequest request{"wgmma.wait_group", kAllLanes, place, &wait, nullptr, execute_wait};
  wait_for(request);
}

void set_registers(uint32_t registers, bool more, const Place& place) {
  const char* name = more ? "setmaxnreg.inc" : "setmaxnreg.dec";
  check_whole_group(name, place);
  const uint32_t warp = own_warp();
  const std::vector<uint32_t>& before = block().products->warps[warp].registers;
  const uint32_t now = before.empty() ? registers_at_first() : before.back();
  if (more ? registers < now : registers > now) {
    stop(std::string(name) + " from " + std::to_string(now) + " to " + std::to_string(registers) +
             " registers",
         place);
  }
  const SetRegisters set{warp, registers};
  WarpRequest request{name, kAllLanes, place, &set, nullptr, execute_set_registers};
  wait_for(request);
}

std::optional<std::string> wrong_registers() {
  const std::vector<WarpProducts>& warps = block().products->warps;
  const uint64_t have = uint64_t{registers_at_first()} * kWarpLanes * warps.size();
  uint64_t wanted = 0;
  for (size_t i = 0; i < warps.size(); ++i) {
    const WarpProducts& warp = warps[i];
    if (warp.registers != warps[i / kGroupWarps * kGroupWarps].registers) {
      return "warp " + std::to_string(i) + " set other registers than another of its group";
    }
    wanted += uint64_t{kWarpLanes} *
              (warp.registers.empty() ? registers_at_first() : warp.registers.back());
  }
  if (wanted <= have) return std::nullopt;
  return "its groups want " + std::to_string(wanted) + " registers of " + std::to_string(have);
}

std::optional<std::string> unfinished_products() {
  const GroupProducts& all = *block().products;
  for (size_t i = 0; i < all.warps.size(); ++i) {
    const WarpProducts& warp = all.warps[i];
    if (!warp.open.empty() || !warp.groups.empty()) {
      return "warp " + std::to_string(i) + " ended with a wgmma that it did not wait for";
    }
    const size_t issued = all.issued[i / kGroupWarps].size();
    if (warp.issued_count != issued) {
      return "warp " + std::to_string(i) + " issued " + std::to_string(warp.issued_count) +
             " wgmma where another of its group issued " + std::to_string(issued);
    }
  }
  return std::nullopt;
}

}  // namespace updraft::simt
