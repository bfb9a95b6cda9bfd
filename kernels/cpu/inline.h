// UPDRAFT_INLINE: for the small functions of the kernels, which must be part of the loop that uses
// them.
#pragma once

#define UPDRAFT_INLINE inline __attribute__((always_inline))
