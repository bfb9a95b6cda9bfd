// Peak loops in plain C++: what the compiler makes of them is the rate of the generic kernels.
#include <cstring>

#include "kernels/cpu/peak.h"

namespace updraft {
namespace {

constexpr int kBytes = 64;  // per round
constexpr int kChains = 8;
constexpr int kLanes = 4;
typedef float Floats __attribute__((vector_size(16)));

// The compiler may not know the values, or it would compute the sums itself.
template <typename T>
inline void hide(T& value) {
  asm volatile("" : "+m"(value));
}

int32_t int8_loop(int64_t rounds) {
  int8_t a[kBytes];
  int8_t b[kBytes];
  std::memset(a, 3, sizeof a);
  std::memset(b, -1, sizeof b);
  int32_t sum = 0;
  for (int64_t r = 0; r < rounds; ++r) {
    hide(a);
    for (int i = 0; i < kBytes; ++i) sum += a[i] * b[i];
  }
  return sum;
}

float fma_loop(int64_t rounds) {
  Floats sums[kChains] = {};
  Floats one = {1.0F, 1.0F, 1.0F, 1.0F};
  hide(one);
  const Floats factor = one;
  for (int64_t r = 0; r < rounds; ++r) {
    for (Floats& sum : sums) sum = sum * factor + factor;
  }
  Floats all = {};
  for (const Floats& sum : sums) all += sum;
  return (all[0] + all[1]) + (all[2] + all[3]);
}

uint64_t read_loop(const void* at, int64_t bytes) {
  uint64_t words[4] = {};
  for (int64_t i = 0; i < bytes; i += 32) {
    uint64_t next[4];
    std::memcpy(next, static_cast<const char*>(at) + i, sizeof next);
    for (int k = 0; k < 4; ++k) words[k] ^= next[k];
  }
  return (words[0] ^ words[1]) ^ (words[2] ^ words[3]);
}

}  // namespace

const PeakLoops& generic_peak_loops() {
  static constexpr PeakLoops kLoops = {2.0 * kBytes, 2.0 * kLanes * kChains, int8_loop, fma_loop,
                                       read_loop};
  return kLoops;
}

}  // namespace updraft
