// Checkpoints whose matrices are e4m3 with scales in tensors of their own. A weight is its byte's
// value times its scale, whatever the scale is called; what its shape says is what it is of:
//
//   one value                                   the whole matrix   (per tensor)
//   [rows] or [rows, 1]                         a row              (FBGEMM, compressed-tensors)
//   [rows / block, columns / block] rounded up  a block            (fine-grained fp8, DeepSeek)
//
// They stand beside "x.weight" as "x.weight_scale" or "x.weight_scale_inv" (not the inverse, in
// spite of its name: transformers' FP8Linear multiplies by it), in f32, f16 or bf16.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/base/result.h"
#include "common/model/weights_builder.h"

namespace updraft {

// Gives each e4m3 matrix of the table its scales and takes these out of it, with static scales of
// activations (ours are not quantised so). Scales of blocks have no place in a WeightView: such a
// matrix becomes bfloat16, in memory of its own. Reads every byte of e4m3, by several threads.
// Returns what the table points into from now on. Errors name the tensor, the place and the value:
// a byte that is NaN (0x7f, 0xff), a scale that is none, a shape or a name that is not known; e4m3
// in a file whose configuration does not say so (`expected`).
Result<std::vector<std::shared_ptr<const void>>> join_fp8_scales(
    TensorTable& table, bool expected, const std::array<int64_t, 2>& block);

}  // namespace updraft
