// Cutting attention into items: blocks of queries per kv head, and segments of keys where there are
// few of them.
#include "kernels/cpu/attention.h"

#include <algorithm>

namespace updraft {
namespace {

// Room for the states of shared sequences, per thread; a step that would need more is not shared.
constexpr int64_t kSegmentStateFloats = 128 << 10;

int64_t round_up(int64_t floats) { return (floats + 15) / 16 * 16; }

}  // namespace

// One attention operation, cut into items of a block of queries and a kv head.
struct AttentionRunner::Work {
  const AttentionCall& call;
  const KvPool& kv;
  const Batch& batch;
  std::span<const QueryBlock> blocks;
  const Kernels& kernels;
  ThreadPool& pool;

  int64_t item_count() const {
    return static_cast<int64_t>(blocks.size()) * kv.shape().kv_head_count;
  }

  AttentionBlock item(int64_t index, float* scratch) const {
    const QueryBlock& block = blocks[static_cast<size_t>(index / kv.shape().kv_head_count)];
    const int kv_head = static_cast<int>(index % kv.shape().kv_head_count);
    const int64_t head_offset = static_cast<int64_t>(kv_head) * call.group * kv.shape().head_dim;
    AttentionBlock op;
    op.q = call.qkv + block.row_first * call.qkv_stride + head_offset;
    op.q_row_stride = call.qkv_stride;
    op.row_count = block.row_count;
    op.group = call.group;
    op.head_dim = kv.shape().head_dim;
    op.first_key_count = block.first_key_count;
    op.scale = call.scale;
    op.pool = kv.pages(call.layer, kv_head);
    op.pages = batch.sequences[static_cast<size_t>(block.sequence)].pages.data();
    op.kv = &kv.layout();
    op.out = call.out + block.row_first * call.out_stride + head_offset;
    op.out_row_stride = call.out_stride;
    op.scratch = scratch;
    return op;
  }

  int segments(const QueryBlock& block) const {
    const int keys = block.first_key_count + block.row_count - 1;
    const KvLayout& layout = kv.layout();
    const int last = keys - 1;
    const int groups = last / layout.page_tokens * layout.groups_per_page +
                       last % layout.page_tokens / kKeyGroup + 1;
    constexpr int kGroups = kSegmentChunks * kKeyChunk / kKeyGroup;
    return (groups + kGroups - 1) / kGroups;
  }
};

Result<void> AttentionRunner::reserve(int queries_max, const KvLayout& kv, int thread_count,
                                      MemoryBudget& budget) {
  state_offset_ = round_up(attention_scratch_floats(queries_max, kv.head_dim_padded));
  state_floats_ = round_up(attention_state_floats(queries_max, kv.head_dim_padded));
  scratch_stride_ = state_offset_ + 2 * state_floats_;
  const auto floats = static_cast<uint64_t>(scratch_stride_ * thread_count);
  if (scratch_.size_bytes() < floats * sizeof(float)) {
    Result<HugeBuffer> memory =
        HugeBuffer::allocate(budget, floats * sizeof(float), "attention's scratch");
    if (!memory) return memory.error();
    scratch_ = std::move(*memory);
  }
  if (thread_count > 1 && segment_states_.size_bytes() == 0) {
    Result<HugeBuffer> memory = HugeBuffer::allocate(
        budget, static_cast<uint64_t>(kSegmentStateFloats * thread_count) * sizeof(float),
        "attention's shared states");
    if (!memory) return memory.error();
    segment_states_ = std::move(*memory);
  }
  return {};
}

void AttentionRunner::run(const AttentionCall& call, const KvPool& kv, Step& step,
                          const Kernels& kernels, ThreadPool& pool) {
  const Work work{call, kv, step.batch(), step.query_blocks(call.group), kernels, pool};
  int segment_max = 1;
  int rows_max = 1;
  for (const QueryBlock& block : work.blocks) {
    segment_max = std::max(segment_max, work.segments(block));
    rows_max = std::max(rows_max, block.row_count);
  }
  // Fewer items than would keep the threads evenly busy, and long ones: share them.
  const int64_t state =
      round_up(attention_state_floats(rows_max * call.group, kv.layout().head_dim_padded));
  const bool few = work.item_count() < 4 * pool.thread_count() && pool.thread_count() > 1;
  const int64_t room = kSegmentStateFloats * pool.thread_count();
  if (few && segment_max > 1 && work.item_count() * segment_max * state <= room) {
    return run_split(work, segment_max);
  }
  pool.for_each(work.item_count(),
                [&](int64_t item, int thread) { run_whole(work, item, thread); });
}

void AttentionRunner::run_whole(const Work& work, int64_t item, int thread) {
  float* scratch = scratch_.as<float>() + thread * scratch_stride_;
  float* state = scratch + state_offset_;
  float* later = state + state_floats_;
  const AttentionBlock op = work.item(item, scratch);
  const int segments =
      work.segments(work.blocks[static_cast<size_t>(item / work.kv.shape().kv_head_count)]);
  work.kernels.attend_segment(op, 0, state);
  for (int segment = 1; segment < segments; ++segment) {
    work.kernels.attend_segment(op, segment, later);
    work.kernels.merge_segment(op, later, state);
  }
  work.kernels.finish_attention(op, state);
}

// Each segment is an item of its own; the merge afterwards has the order of run_whole().
void AttentionRunner::run_split(const Work& work, int segment_count) {
  const int64_t state_stride = kSegmentStateFloats * work.pool.thread_count() /
                               (work.item_count() * segment_count) / 16 * 16;
  const auto state_of = [&](int64_t item, int segment) {
    return segment_states_.as<float>() + (item * segment_count + segment) * state_stride;
  };
  const auto segments_of = [&](int64_t item) {
    return work.segments(work.blocks[static_cast<size_t>(item / work.kv.shape().kv_head_count)]);
  };
  work.pool.for_each(work.item_count() * segment_count, [&](int64_t index, int thread) {
    const int64_t item = index / segment_count;
    const int segment = static_cast<int>(index % segment_count);
    if (segment >= segments_of(item)) return;
    float* scratch = scratch_.as<float>() + thread * scratch_stride_;
    work.kernels.attend_segment(work.item(item, scratch), segment, state_of(item, segment));
  });
  for (int64_t item = 0; item < work.item_count(); ++item) {
    const AttentionBlock op = work.item(item, nullptr);
    for (int segment = 1; segment < segments_of(item); ++segment) {
      work.kernels.merge_segment(op, state_of(item, segment), state_of(item, 0));
    }
    work.kernels.finish_attention(op, state_of(item, 0));
  }
}

}  // namespace updraft
