// Whether a vector type multiplies pairs of bf16: its pages of bf16 and its attention over them
// follow.
#pragma once

namespace updraft {

// dot_pairs(sum, x, two): sum + x's two values per lane times the two values at `two`.
template <class V>
concept HasBf16Pairs = requires(typename V::F sum, typename V::B x, const void* two) {
  V::dot_pairs(sum, x, two);
};

}  // namespace updraft
