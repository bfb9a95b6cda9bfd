// ldmatrix and mma.sync. Sums are exact products added in double precision and cut off once per
// instruction (tensor_sum.h).
#include <array>
#include <type_traits>

#include "kernels/quant/quant.h"
#include "kernels/simt/ops.h"
#include "kernels/simt/tensor_sum.h"

namespace updraft::simt {
namespace {

void check_whole_warp(const char* name, const Place& place) {
  const uint64_t threads = block().shape.block.count();
  if (self().linear / kWarpLanes * kWarpLanes + kWarpLanes > threads) {
    stop(std::string(name) + " by a warp of fewer than 32 threads", place);
  }
}

struct LoadMatrices {
  const void* row;
  int count;
  bool transposed;
};

void execute_load_matrices(WarpRequest* const* lanes) {
  const auto& first = *static_cast<const LoadMatrices*>(lanes[0]->in);
  std::array<std::array<uint16_t, 8>, 8> matrix;
  for (uint32_t m = 0; m < static_cast<uint32_t>(first.count); ++m) {
    for (uint32_t r = 0; r < 8; ++r) {
      std::memcpy(matrix[r].data(), static_cast<const LoadMatrices*>(lanes[8 * m + r]->in)->row,
                  16);
    }
    for (uint32_t lane = 0; lane < kWarpLanes; ++lane) {
      const uint32_t major = lane / 4;
      const uint32_t minor = 2 * (lane % 4);
      const uint32_t low = first.transposed ? matrix[minor][major] : matrix[major][minor];
      const uint32_t high = first.transposed ? matrix[minor + 1][major] : matrix[major][minor + 1];
      static_cast<uint32_t*>(lanes[lane]->out)[m] = low | high << 16;
    }
  }
}

struct MmaOperands {
  uint32_t a[4];
  uint32_t b[2];
};

float bf16_value(uint32_t bits) { return bf16_to_float(static_cast<uint16_t>(bits)); }
float f16_value(uint32_t bits) { return half_to_float(static_cast<uint16_t>(bits)); }
int32_t s8_value(uint32_t bits) { return static_cast<int8_t>(bits); }

// One product of m16n8k(16 or 32). Value decodes one element of PerRegister in each register.
template <typename Wide, typename Sum, int PerRegister, auto Value>
void execute_mma(WarpRequest* const* lanes) {
  constexpr int kBits = 32 / PerRegister;
  constexpr uint32_t kMask = (1U << kBits) - 1U;
  constexpr int kDepth = 8 * PerRegister;
  std::array<std::array<Wide, kDepth>, 16> a;
  std::array<std::array<Wide, 8>, kDepth> b;
  for (int lane = 0; lane < 32; ++lane) {
    const auto& in = *static_cast<const MmaOperands*>(lanes[lane]->in);
    const int g = lane / 4;
    const int t = lane % 4;
    for (int e = 0; e < PerRegister; ++e) {
      const int k = PerRegister * t + e;
      for (int r = 0; r < 4; ++r) {
        a[static_cast<size_t>(g + r % 2 * 8)][static_cast<size_t>(k + r / 2 * kDepth / 2)] =
            static_cast<Wide>(Value(in.a[r] >> (kBits * e) & kMask));
      }
      for (int r = 0; r < 2; ++r) {
        b[static_cast<size_t>(k + r * kDepth / 2)][static_cast<size_t>(g)] =
            static_cast<Wide>(Value(in.b[r] >> (kBits * e) & kMask));
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    auto* sums = static_cast<Sum*>(lanes[lane]->out);
    for (int i = 0; i < 4; ++i) {
      const auto row = static_cast<size_t>(lane / 4 + i / 2 * 8);
      const auto column = static_cast<size_t>(2 * (lane % 4) + i % 2);
      Wide total{};
      for (size_t k = 0; k < kDepth; ++k) total += a[row][k] * b[k][column];
      total += static_cast<Wide>(sums[i]);
      if constexpr (std::is_same_v<Sum, float>) {
        sums[i] = toward_zero(total);
      } else {
        sums[i] = static_cast<Sum>(total);
      }
    }
  }
}

template <typename Sum>
void multiply(const char* name, Sum* sums, const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
              const Place& place, void (*execute)(WarpRequest* const*)) {
  check_whole_warp(name, place);
  const MmaOperands in{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  WarpRequest request{name, kAllLanes, place, &in, sums, execute};
  wait_for(request);
}

}  // namespace

void load_matrices(uint32_t* out, const void* row, int count, bool transposed, const Place& place) {
  check_whole_warp("ldmatrix", place);
  if (static_cast<int>(own_lane()) < 8 * count) {
    check_access("ldmatrix", row, 16, Space::kShared, place);
  }
  const LoadMatrices in{row, count, transposed};
  WarpRequest request{"ldmatrix", kAllLanes, place, &in, out, execute_load_matrices};
  wait_for(request);
}

void mma_bf16(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Place place) {
  multiply("mma_bf16", sums, a, b0, b1, place, execute_mma<double, float, 2, bf16_value>);
}
void mma_f16(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Place place) {
  multiply("mma_f16", sums, a, b0, b1, place, execute_mma<double, float, 2, f16_value>);
}
void mma_s8(int32_t (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Place place) {
  multiply("mma_s8", sums, a, b0, b1, place, execute_mma<int64_t, int32_t, 4, s8_value>);
}

}  // namespace updraft::simt
