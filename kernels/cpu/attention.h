// Attention above the kernels: which thread attends which queries of which sequence over which
// keys. Owner: the backend.
#pragma once

#include <cstdint>

#include "common/base/result.h"
#include "kernels/backend.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/kv_pool.h"
#include "kernels/cpu/step.h"
#include "kernels/cpu/thread_pool.h"

namespace updraft {

struct AttentionCall {
  const float* qkv = nullptr;  // [rows, q | k | v]
  int64_t qkv_stride = 0;
  float* out = nullptr;  // [rows, head_count * head_dim]
  int64_t out_stride = 0;
  int layer = 0;
  int group = 0;  // query heads per kv head
  float scale = 0.0F;
};

class AttentionRunner {
 public:
  // Takes the memory for blocks of up to `queries_max` queries of this pool's heads.
  Result<void> reserve(int queries_max, const KvLayout& kv, int thread_count, MemoryBudget& budget);
  void run(const AttentionCall& call, const KvPool& kv, Step& step, const Kernels& kernels,
           ThreadPool& pool);

 private:
  struct Work;
  void run_whole(const Work& work, int64_t item, int thread);
  void run_split(const Work& work, int segment_count);

  HugeBuffer scratch_;          // per thread: scratch and two states
  int64_t scratch_stride_ = 0;  // floats
  int64_t state_offset_ = 0;    // floats from a thread's begin to its first state
  int64_t state_floats_ = 0;
  HugeBuffer segment_states_;  // of the sequences that several threads share
};

}  // namespace updraft
