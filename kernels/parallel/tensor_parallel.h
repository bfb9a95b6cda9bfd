// Several devices as one: a Backend made of backends, each on a thread of its own, that all run the
// same operations on their shares of the weights. Matrices split by rows (q, k, v; gate and up)
// give each device some heads or some of the inner dimension; those split by columns (o; down) turn
// these into partial sums, which the devices' own Comm adds up in all_reduce(). All else every
// device has and computes whole: embedding, norms, the residual stream, logits, samples. Tokens and
// logits are read from the first.
//
// Shares follow the memory that each device had free when the group was opened (shares.h).
// Attention of a head reads only that head's K and V, so each device keeps the KV heads of its own
// query heads.
//
// Owned by the engine's thread. A device that fails while weights are handed over is an error that
// names it; one that fails in a step aborts, as a backend does.
#pragma once

#include <memory>
#include <vector>

#include "kernels/backend.h"

namespace updraft {

// At least two backends, each opened with its end of one group of Comms, in the order of their
// ranks. weights: the shares' proportions, > 0, one for each; empty: what each has free, or equal
// ones where a device does not say. Where devices are not all alike (description()) their results
// may differ in the last bit, and so may the tokens that they would choose: then no step is begun
// before the tokens of the last are read.
Result<std::unique_ptr<Backend>> open_tensor_parallel(std::vector<std::unique_ptr<Backend>> ranks,
                                                      std::vector<double> weights = {});

}  // namespace updraft
