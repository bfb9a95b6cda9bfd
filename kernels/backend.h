// The seam between the engine and a device. One abstract Backend with the operations of one forward pass over a ragged
// batch; the forward pass itself is written once, above it (common/engine/forward.cpp).
//
// Life: open -> add_matrix/add_vector/add_activation (load time) -> make_kv_pool -> { begin, operations, end, read_logits or
// read_tokens } per step. Everything for serving is allocated before the first step. One thread, the engine's, calls a
// Backend; the backend may use threads, streams or graphs of its own inside. A backend that samples may have several steps
// begun and ended before the tokens of the first are read (steps_in_flight_max); reads come in the order of the steps.
//
// Activations live on the device in the precision the backend likes (the CPU's are f32) and are named by handles.
// A fused operation becomes a method that every backend implements, never a second forward pass.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "kernels/quant/dtype.h"

namespace updraft {

enum class Mat : int32_t {};  // a weight matrix [rows, cols] on the device
enum class Vec : int32_t {};  // an f32 vector on the device: norm weights, biases, inverse frequencies
enum class Act : int32_t {};  // an activation buffer [rows_max, cols] on the device
inline constexpr Vec kNoVec{-1};
inline constexpr Act kNoAct{-1};

// K and V memory: pages of page_tokens positions for all layers.
struct KvShape {
  int32_t layer_count = 0;
  int32_t kv_head_count = 0;
  int32_t head_dim = 0;
  int32_t page_tokens = 0;  // 16..256
  int32_t page_count = 0;
  DType type = DType::kF16;  // kF32, kF16 or kBF16 on the CPU; Q8_0 means int8 with one scale per head and token
  // What steps will ask of it, for a device that takes its scratch memory beforehand; 0: not known, all that could be.
  int32_t head_count = 0;      // query heads
  int32_t context_tokens = 0;  // positions of one sequence
};

// The rows of one sequence in a step.
struct SequenceSlice {
  int32_t row_first = 0;     // its rows are [row_first, row_first + row_count) of the batch
  int32_t row_count = 0;     // tokens of this step, > 0
  int32_t cached_count = 0;  // positions of this sequence already in KV
  // Page ids; entry i holds the positions [i * page_tokens, (i + 1) * page_tokens). Covers cached_count + row_count.
  std::span<const int32_t> pages;
  // The last rows that are no prompt: tokens that the model gave, or guesses of them. Prompts and answers may be computed
  // in ways that round differently (attention on a GPU does): a row's bits then follow from which of the two it is, not
  // from how many rows stand beside it.
  int32_t answer_count = 0;
};

// How a logit row's token is chosen on a device that samples: temperature, then min_p, top_k, top_p, then a draw, as the
// sampler does (common/engine/sampler.h).
struct RowSampling {
  float temperature = 0.0F;  // below 1e-5: greedy
  float min_p = 0.0F;        // 0: none
  float top_p = 1.0F;        // 1: all
  int32_t top_k = 0;         // 0: all
  double uniform = 0.0;      // [0, 1): the draw, made from (seed, position)
};

// One step. The spans stay valid until end(), where a backend samples, otherwise until read_logits().
struct Batch {
  std::span<const int32_t> token_ids;           // [rows]; below 0: the row's input is given instead
  std::span<const int32_t> positions;           // [rows] rotary position (may differ from the KV index)
  std::span<const SequenceSlice> sequences;     // ascending, disjoint, together all rows
  std::span<const int32_t> logit_rows;          // rows whose logits are wanted, ascending; may be empty
  // [rows with an id below 0, dim] f32 in host memory: what stands in place of a token's row of the
  // embedding table, in the order of the rows. So enters what is no text: a client's own
  // embeddings, an image's.
  std::span<const float> given_rows = {};
  // [logit_rows] or empty: of the step the tokens are wanted (read_tokens), not the logits.
  std::span<const RowSampling> samplings = {};
  // [rows] or empty. At least 0: the row's token is the one that this logit row of the step before gave, whether the host
  // has read it or not, and token_ids has 0 there. -1: token_ids says it.
  std::span<const int32_t> token_sources = {};
  // [2, rows] or empty: of rows of images, whose `positions` are their times, also height and width (Rope::sections).
  // Empty: all three are `positions`, as they are for text.
  std::span<const int32_t> plane_positions = {};
};

// How the devices of a tensor-parallel group share a matrix (kernels/parallel). A matrix split by rows is cut into `pieces`
// equal pieces of its first part, `group` neighbours of which go with one piece of each other part (heads and the K and V
// heads that they read; blocks of gate with those of up). One split by columns is cut into as many pieces as what made its
// input; its products are partial sums until all_reduce().
struct Split {
  enum class By : uint8_t { kNothing, kRows, kCols };
  By by = By::kNothing;  // each device has all of it
  int32_t pieces = 1;
  int32_t group = 1;
};

enum class RopeStyle : uint8_t {
  kInterleaved,  // rotates pairs (2i, 2i+1)
  kHalf,         // rotates pairs (i, i + rope_dims/2)
};

// Rotary embedding: angle of pair i at position p = p * inverse_frequency[i]; cos and sin are multiplied by magnitude.
// Dimensions >= rope_dims of a head pass through.
struct Rope {
  RopeStyle style = RopeStyle::kHalf;
  int32_t rope_dims = 0;              // even, <= head_dim
  Vec inverse_frequency = kNoVec;     // [rope_dims / 2]
  float magnitude = 1.0F;             // 1 except for YaRN
  // M-RoPE (Qwen2-VL, arXiv 2409.12191; GLM-4.1V): the first sections[0] pairs turn by a row's time, the next sections[1]
  // by its height, the rest by its width; together all pairs. Zeros: all by `positions`.
  std::array<int32_t, 3> sections = {};
};

struct ResidualNorm {
  Act hidden = kNoAct;      // [rows, dim] in and out: hidden += delta (normed first when delta_norm is given)
  Act delta = kNoAct;       // [rows, dim] or kNoAct: nothing is added
  Vec delta_norm = kNoVec;  // [dim]: hidden += rms_norm(delta) * delta_norm (the sandwich form of glm4)
  Vec norm = kNoVec;        // [dim]: out = rms_norm(hidden) * norm
  float eps = 0.0F;
  Act out = kNoAct;         // [rows, dim]; kNoAct: only the addition
};

struct QkvPrepare {
  Act qkv = kNoAct;  // [rows, (head_count + 2 * kv_head_count) * head_dim]: q heads, k heads, v heads. q is rotated in place
  int32_t layer = 0;
  int32_t head_count = 0;
  Vec q_norm = kNoVec;  // [head_dim], RMS-norm of each head before the rotation (qwen3), or kNoVec
  Vec k_norm = kNoVec;
  float eps = 0.0F;
  Rope rope;
};

struct Attention {
  Act qkv = kNoAct;  // as left by prepare_qkv
  int32_t layer = 0;
  int32_t head_count = 0;
  float scale = 0.0F;  // 1 / sqrt(head_dim)
  Act out = kNoAct;    // [rows, head_count * head_dim]
};

// What one device takes of a model, estimated before anything is loaded: for the memory plan.
struct DeviceNeeds {
  std::string name;            // description()
  uint64_t free_bytes = 0;     // of its own memory; 0: it uses the machine's
  uint64_t weight_bytes = 0;   // its share of layers, and its copy of what no device shares
  uint64_t page_bytes = 0;     // kv_page_bytes() of its KV heads
  uint64_t scratch_bytes = 0;  // scratch_bytes()
};
// As kept_bytes() says, on one device.
struct ModelBytes {
  uint64_t whole = 0;   // what every device of a group has all of: embedding, head, vectors
  uint64_t layers = 0;  // what they share
};

class Backend {
 public:
  virtual ~Backend() = default;

  // "cpu avx512, 2 threads": for logs and `updraft doctor`.
  virtual std::string description() const = 0;
  // Memory taken on the device so far, and what the device has in all.
  virtual uint64_t memory_used_bytes() const = 0;
  virtual uint64_t memory_total_bytes() const = 0;
  // True: the device's memory is its own, not the machine's.
  virtual bool has_own_memory() const { return false; }
  // What steps of `rows_max` rows take besides weights, activations and pages.
  virtual uint64_t scratch_bytes(const KvShape& /*shape*/, int64_t /*rows_max*/) const { return 0; }

  // Bytes in which a matrix is kept, in add_split_matrix() (of_layer) or add_matrix().
  virtual uint64_t kept_bytes(const WeightView& view, bool of_layer) const;
  // One for each device of a group, in the order of their ranks.
  virtual std::vector<DeviceNeeds> needs(const ModelBytes& model, const KvShape& shape, int64_t rows_max) const;

  // --- load time ---
  // First: how much of its memory weights may take on each device of needs(); 0: no limit. One that
  // keeps_weights_outside() has those beyond it in host memory and fetches them in each step.
  virtual void set_weight_rooms(std::span<const uint64_t> /*bytes*/) {}
  virtual bool keeps_weights_outside() const { return false; }
  // Takes the rows of all parts, one below the other, as one matrix (q, k, v are one; gate and up are one). Parts have the
  // same cols and may differ in format. The backend copies or repacks; the views may be unmapped afterwards.
  virtual Result<Mat> add_matrix(std::span<const WeightView> parts) = 0;
  virtual Result<Vec> add_vector(std::span<const float> values) = 0;
  // A buffer of at most rows_max rows.
  virtual Result<Act> add_activation(int64_t rows_max, int64_t cols) = 0;
  // The residual stream: what embed() fills and residual_norm() adds to. A device whose activations have few bits has
  // more for this one.
  virtual Result<Act> add_residual(int64_t rows_max, int64_t cols) { return add_activation(rows_max, cols); }
  // The same for devices that share; a single device is the whole group. add_bias: of the rows of `matrix`. What `matrix`
  // makes, of the rows of its first `part_count` parts; `cols` is the width on a single device.
  virtual Result<Mat> add_split_matrix(std::span<const WeightView> parts, const Split& /*split*/) {
    return add_matrix(parts);
  }
  virtual Result<Vec> add_bias(Mat /*matrix*/, std::span<const float> values) { return add_vector(values); }
  virtual Result<Act> add_split_activation(int64_t rows_max, int64_t cols, Mat /*matrix*/, int32_t /*part_count*/) {
    return add_activation(rows_max, cols);
  }
  // Room for the logits of `logit_rows_max` rows.
  virtual Result<void> reserve_logits(int64_t logit_rows_max, int64_t vocab_count) = 0;
  // Once. Bytes of one page of this shape: kv_page_bytes().
  virtual Result<void> make_kv_pool(const KvShape& shape) = 0;
  virtual uint64_t kv_page_bytes(const KvShape& shape) const = 0;
  // Host memory for `page_count` pages that gave way, after make_kv_pool(). Errors: a device whose pages are host memory.
  virtual Result<void> make_swap_space(int32_t page_count);

  // What the device does by itself: choose tokens, and go on to a next step that needs them.
  virtual bool samples() const { return false; }
  virtual int32_t steps_in_flight_max() const { return 1; }
  // Load time, after reserve_logits(): tokens that a step with samplings never gives, as if their logits were -infinity.
  // Logits that are read have them all. Ids beyond the vocabulary are ignored. False: the device cannot leave out any.
  virtual bool never_sample(std::span<const int32_t> /*ids*/) { return false; }

  // --- one step: begin, then the operations in order, then end; a device may run them later, a read waits ---
  virtual void begin(const Batch& batch) = 0;
  // out[row] = table row token_ids[row], decoded; the next of given_rows, unchanged, where that id
  // is below 0. Ids are within the table (the engine checks).
  virtual void embed(Mat table, Act out) = 0;
  virtual void residual_norm(const ResidualNorm& op) = 0;
  // out[row, r] = sum_c in[row, c] * w[r, c] (+ bias[r]).
  virtual void matmul(Mat weight, Vec bias, Act in, Act out) = 0;
  // Norm (optional) and rotation of q and k; appends k and v at positions cached_count.. of each sequence.
  virtual void prepare_qkv(const QkvPrepare& op) = 0;
  // Causal attention of each row over its sequence's positions [0, cached_count + index of the row in its slice].
  virtual void attention(const Attention& op) = 0;
  // gate_up is a matrix of two parts of n rows each: out [rows, n] = silu(in * gate) * (in * up), silu(x) = x / (1 + e^-x).
  virtual void gated_matmul(Mat gate_up, Act in, Act out) = 0;
  // Logits of batch.logit_rows: in [rows, dim] times head [vocab, dim].
  virtual void logits(Mat head, Act in) = 0;
  // Partial sums of a matrix split by columns become the sums, on every device.
  virtual void all_reduce(Act /*act*/) {}
  // All operations of the step were named.
  virtual void end() {}
  // [logit_rows, vocab] f32 in host memory, writable, valid until the next begin(). Waits for the step, which no other was
  // begun behind. An error of the device is a bug or a broken machine: it aborts with what the device said.
  virtual std::span<float> read_logits() = 0;
  // [logit_rows] of the oldest step with samplings whose tokens were not read, valid until the next begin(). Waits for it.
  // A step whose logits are wanted may be begun behind it, before it is read; its own read comes after this one.
  // -1: its logits have a NaN or +infinity, or all are -infinity.
  virtual std::span<const int32_t> read_tokens();

  // --- pages and debugging; in the order of the steps around them ---
  virtual void copy_page(int32_t from, int32_t to) = 0;
  // Pages to and from the swap space, slots 0..page_count - 1 of it. The host side is done when the next read is.
  virtual void swap_out(int32_t page, int32_t slot);
  virtual void swap_in(int32_t slot, int32_t page);
  // Time that moved pages took the device, of those that are over; a device of a group: the slowest's. Between steps.
  virtual int64_t swap_ns() { return 0; }
  // Copies rows [0, rows) of an activation to host memory as f32; for tests and numerics.
  virtual void read_activation(Act act, int64_t rows, std::span<float> out) = 0;
};

}  // namespace updraft
