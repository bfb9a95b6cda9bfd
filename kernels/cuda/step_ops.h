// What a step does on the device beside its model: tokens that the step before chose, the rows
// whose logits are wanted, tokens that are never chosen.
#pragma once

#include <cstdint>

#include "common/base/result.h"
#include "kernels/cuda/types.h"

namespace updraft::cuda {

// token_ids[row] = chosen[sources[row]] where that source is at least 0.
struct TakeTokens {
  int32_t rows = 0;
  const int32_t* sources = nullptr;  // [rows]
  const int32_t* chosen = nullptr;   // of the step before
  int32_t* token_ids = nullptr;      // [rows]
};
Result<void> run_take_tokens(const TakeTokens& op, Stream stream);

// out[i] = in[rows[i]]; a negative row gives zeros.
struct GatherRows {
  int32_t count = 0;
  int32_t cols = 0;               // a multiple of 8
  const Bf16* in = nullptr;       // [.., cols]
  const int32_t* rows = nullptr;  // [count]
  Bf16* out = nullptr;            // [count, cols]
};
Result<void> run_gather_rows(const GatherRows& op, Stream stream);

// logits[row, ids[i]] = -infinity.
struct BanTokens {
  int32_t rows = 0;
  int32_t vocab = 0;
  const int32_t* ids = nullptr;  // [count], each below vocab
  int32_t count = 0;
  float* logits = nullptr;  // [rows, vocab]
};
Result<void> run_ban_tokens(const BanTokens& op, Stream stream);

}  // namespace updraft::cuda
