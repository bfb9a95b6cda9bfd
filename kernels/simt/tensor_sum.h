// How the tensor cores round: a sum of a product's terms and what it is added to is cut off, not
// rounded to the nearest (Fasi, Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA tensor
// cores", PeerJ Computer Science 7:e330, 2021; the same was found of capability 9.0 since). So a
// running sum of many products shrinks by half a unit in the last place each time: rounding to the
// nearest would promise an accuracy that no GPU has. Real ones also cut each term where it falls
// below the largest by more than 24 bits and a few; that is not emulated.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace updraft::simt {

// The nearest float that is not larger in magnitude.
inline float toward_zero(double value) {
  const auto nearest = static_cast<float>(value);
  if (std::isnan(value) || std::abs(static_cast<double>(nearest)) <= std::abs(value)) {
    return nearest;
  }
  return std::bit_cast<float>(std::bit_cast<uint32_t>(nearest) - 1);  // it is no zero
}

}  // namespace updraft::simt
