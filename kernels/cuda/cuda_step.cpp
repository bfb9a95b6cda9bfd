// A step: each operation as the launch of its kernels, at once or together with the one behind it.
#include <algorithm>
#include <bit>
#include <utility>

#include "kernels/cuda/cuda_backend_class.h"
#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/gemm_passes.h"
#include "kernels/cuda/prefill_attention.h"
#include "kernels/cuda/row_ops.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/step_ops.h"

namespace updraft::cuda {
namespace {

uint64_t mixed(uint64_t digest, uint64_t value) {
  return (std::rotl(digest, 13) ^ value) * 0x9E3779B97F4A7C15ULL;
}

}  // namespace

int32_t CudaBackend::attention_rows_at_once(int32_t length_max) const {
  const size_t row_bytes = decode_attention_workspace_bytes(pages_, 1, kv_.head_count, length_max);
  if (row_bytes == 0) return static_cast<int32_t>(rows_max_);
  return std::max(1, static_cast<int32_t>(workspace_.bytes() / row_bytes));
}

void CudaBackend::begin(const Batch& batch) {
  enter();
  UPDRAFT_CHECK(ring_.has_value(), "a KV pool before the first step");
  shape_ = StepShape::of(batch, kv_.page_tokens, kv_.page_count);
  UPDRAFT_CHECK(shape_.rows <= rows_max_, "no more rows than the activations hold");
  UPDRAFT_CHECK(shape_.logit_rows <= logit_rows_max_, "no more logit rows than reserved");
  // Steps with streamed weights are padded though not captured, and those of a device without
  // graphs: the devices of a group add up rows of one number, whichever of them capture.
  padded_ = config_.graphs && shape_.prefill_slices == 0 && shape_.given_rows == 0 &&
            shape_.rows <= kDecodeRowsMax;
  use_ = GraphCache::Use::kName;
  if (padded_) {
    shape_.rows_padded = decode_bucket(shape_.rows);
    shape_.logit_rows_padded = shape_.logit_rows == 0 ? 0 : decode_bucket(shape_.logit_rows);
    shape_.decode_length_max = padded_length(shape_.decode_length_max);
    key_ = {shape_.rows_padded, shape_.decode_length_max, shape_.logit_rows_padded, shape_.samples,
            shape_.sequences_share};
    if (captures_ && weights_.streamed_count() == 0) use_ = graphs_.begin(key_);
  }
  layout_ = StepLayout::of(shape_);
  UPDRAFT_CHECK(layout_.bytes <= metadata_.bytes(), "no more sequences than logit rows");

  must(swap_.end_moves(stream()));
  must(ring_->begin());
  write_step(batch, shape_, layout_, ring_->metadata());
  must(copy_to_device(metadata_.data(), ring_->metadata().data(), layout_.bytes, stream()));
  given_runs_.clear();
  if (shape_.given_rows > 0) {
    UPDRAFT_CHECK(batch.given_rows.size() <= ring_->given_rows().size(), "room for given rows");
    std::copy(batch.given_rows.begin(), batch.given_rows.end(), ring_->given_rows().begin());
    for (int32_t row = 0; row < shape_.rows; ++row) {
      if (batch.token_ids[static_cast<size_t>(row)] >= 0) continue;
      const bool next =
          !given_runs_.empty() && given_runs_.back().first + given_runs_.back().second == row;
      if (!next) given_runs_.emplace_back(row, 0);
      ++given_runs_.back().second;
    }
    UPDRAFT_CHECK(batch.given_rows.size() % static_cast<size_t>(shape_.given_rows) == 0,
                  "one given row for each id below 0");
  }
  names_ = 0;
  for (Activation& act : activations_) act.is_quantized = false;
  rotated_.reset();
  has_work_ = false;
  split_.reset();
  if (use_ == GraphCache::Use::kCapture) must(begin_capture(stream()));
}

// Notes the operation; false when a replay does it.
bool CudaBackend::names(Op op, std::initializer_list<int64_t> operands) {
  names_ = mixed(names_, static_cast<uint64_t>(op));
  for (const int64_t operand : operands) names_ = mixed(names_, static_cast<uint64_t>(operand));
  return use_ != GraphCache::Use::kReplay;
}

int64_t number(Mat mat) { return static_cast<int64_t>(mat); }
int64_t number(Vec vec) { return static_cast<int64_t>(vec); }
int64_t number(Act act) { return static_cast<int64_t>(act); }
int64_t number(float value) { return std::bit_cast<int32_t>(value); }

void CudaBackend::embed(Mat table, Act out) {
  if (!names(Op::kEmbed, {number(table), number(out)})) return;
  const Matrix& m = weights_.matrix(table);
  UPDRAFT_CHECK(m.parts.size() == 1, "an embedding table of one part");
  run_waiting();
  split_.reset();
  float* hidden = residual_of(out, m.cols);
  // A captured step takes tokens whether this one does or not: its sources are -1 then.
  if (shape_.takes_tokens || padded_) {
    must(run_take_tokens({shape_.rows_padded, metadata<int32_t>(layout_.token_sources),
                          tokens_.as<int32_t>(), metadata<int32_t>(layout_.token_ids)},
                         stream()));
  }
  must(run_embed({m.parts[0].layout, m.parts[0].memory.data(), metadata<int32_t>(layout_.token_ids),
                  shape_.rows_padded, hidden},
                 stream()));
  const float* given = ring_->given_rows().data();
  for (const auto& [row, count] : given_runs_) {
    must(copy_to_device(hidden + row * m.cols, given,
                        static_cast<size_t>(count * m.cols) * sizeof(float), stream()));
    given += count * m.cols;
  }
}

void CudaBackend::residual_norm(const updraft::ResidualNorm& op) {
  if (!names(Op::kNorm, {number(op.hidden), number(op.delta), number(op.delta_norm),
                         number(op.norm), number(op.eps), number(op.out)})) {
    return;
  }
  if (!joins(op)) run_waiting();
  norm_ = op;
}

// The product that waits makes what this norm adds, and in its own kernel it can add that and leave
// the norm's output but for its factors. In a step of any number of rows: how a norm is computed,
// and so a row's bits, is not to depend on what runs beside it.
bool CudaBackend::joins(const updraft::ResidualNorm& op) const {
  if (!product_ || norm_ || product_->out != op.delta || op.delta_norm != kNoVec ||
      op.norm == kNoVec || op.out == kNoAct || op.out == product_->in) {
    return false;
  }
  const Matrix& m = weights_.matrix(product_->weight);
  return m.parts.size() == 1 && m.rows % kTileRows == 0 && m.rows == activation(op.hidden).cols;
}

// `factors`: see ResidualNorm.
void CudaBackend::run_norm(const updraft::ResidualNorm& op, float* factors) {
  split_.reset();
  const int64_t dim = activation(op.hidden).cols;
  ResidualNorm run;
  run.rows = shape_.rows_padded;
  run.dim = static_cast<int32_t>(dim);
  run.hidden = residual_of(op.hidden, dim);
  if (op.delta != kNoAct) run.delta = rows_of(op.delta, dim);
  run.delta_norm = values(op.delta_norm, dim);
  run.norm = values(op.norm, dim);
  run.eps = op.eps;
  if (op.out != kNoAct) {
    UPDRAFT_CHECK(run.norm != nullptr, "an output has a norm");
    run.out = output_of(op.out, dim);
    Activation& out = activations_[static_cast<size_t>(op.out)];
    if (factors != nullptr) {
      run.factors = factors;
    } else if (out.quantized.bytes() != 0) {
      // From the f32 values, which the rows have lost.
      run.out_scale = out.scales.as<float>();
      if (config_.activations == CudaActivations::kInt8) {
        run.out_int8 = out.quantized.as<int8_t>();
      } else if (few_rows()) {
        run.out_widened = out.quantized.as<Bf16>();
      } else {
        run.out_float8 = out.quantized.as<Float8>();
      }
      out.is_quantized = true;
    }
  }
  must(run_residual_norm(run, stream()));
}

// What `in` still lacks for this matrix, when what waits has run: with the norm that makes `in` and
// the product in front of it in one kernel where that can be.
NormedInput CudaBackend::normed_input(const Matrix& m, Act in) {
  const bool takes = std::all_of(m.parts.begin(), m.parts.end(), [&](const MatrixPart& part) {
    return !part.quantized_input &&
           gemm_takes_factors(*gemm_device_, part.layout, shape_.rows_padded);
  });
  if (takes && product_ && norm_ && norm_->out == in) {
    const Product product = *std::exchange(product_, std::nullopt);
    const updraft::ResidualNorm norm = *std::exchange(norm_, std::nullopt);
    if (few_rows()) {
      const int64_t dim = weights_.matrix(product.weight).rows;
      run_product(product, {residual_of(norm.hidden, dim), values(norm.norm, dim),
                            output_of(norm.out, dim), band_sums_.as<float>()});
    } else {
      run_product(product, {});
      run_norm(norm, factors_.as<float>());
    }
    split_ = norm;
  }
  run_waiting();
  if (!split_ || split_->out != in) return {};
  if (!takes) {
    make_whole(in);
    return {};
  }
  if (few_rows()) return {band_sums_.as<float>(), nullptr, split_->eps};
  return {nullptr, factors_.as<float>(), split_->eps};
}

// For a reader that takes no factors.
void CudaBackend::make_whole(Act act) {
  if (!split_ || split_->out != act) return;
  run_norm({split_->hidden, kNoAct, kNoVec, split_->norm, split_->eps, act}, nullptr);
}

void CudaBackend::run_waiting() {
  if (prepare_) must(run_prepare_qkv(prepare_of(*std::exchange(prepare_, std::nullopt)), stream()));
  if (product_) run_product(*std::exchange(product_, std::nullopt), {});
  if (norm_) run_norm(*std::exchange(norm_, std::nullopt), nullptr);
}

// A row's bytes depend on the row alone, however many run beside it; in e4m3 only where they lie
// does, because products of few rows multiply bfloat16.
void CudaBackend::quantize(Activation& act) {
  QuantizeRows run;
  run.in = act.memory.as<Bf16>();
  run.in_stride = act.cols;
  run.rows = shape_.rows_padded;
  run.cols = static_cast<int32_t>(act.cols);
  run.scale = act.scales.as<float>();
  if (config_.activations == CudaActivations::kInt8) {
    run.out_int8 = act.quantized.as<int8_t>();
  } else if (few_rows()) {
    run.out_widened = act.quantized.as<Bf16>();
  } else {
    run.out_float8 = act.quantized.as<Float8>();
  }
  must(run_quantize_rows(run, stream()));
  act.is_quantized = true;
}

// Null: the matrix reads bfloat16 alone.
const Activation* CudaBackend::quantized_input(const Matrix& m, Act in) {
  const bool reads = std::any_of(m.parts.begin(), m.parts.end(),
                                 [](const MatrixPart& part) { return part.quantized_input; });
  if (!reads) return nullptr;
  Activation& act = activations_[static_cast<size_t>(in)];
  if (!act.is_quantized) quantize(act);
  return &act;
}

// `quantized`: what parts with quantised inputs read, in place of x.
void CudaBackend::multiply(const Matrix& m, const Bf16* x, const Activation* quantized,
                           int32_t rows, const float* bias, Bf16* y_bf16, float* y_f32,
                           const NormedInput& normed, const ResidualOutput& residual) {
  const int64_t y_cols = m.gated ? m.rows / 2 : m.rows;
  for (const MatrixPart& part : m.parts) {
    Gemm run;
    run.device = gemm_device_.get();
    run.layout = part.layout;
    run.weight = must(weights_.use(part, stream()));
    if (!part.quantized_input) {
      run.x = x;
    } else if (config_.activations == CudaActivations::kInt8) {
      run.x_int8 = {quantized->quantized.as<int8_t>(), quantized->scales.as<float>()};
    } else if (few_rows()) {
      run.x_float8.widened = quantized->quantized.as<Bf16>();
      run.x_float8.scale = quantized->scales.as<float>();
    } else {
      run.x_float8.x = quantized->quantized.as<Float8>();
      run.x_float8.scale = quantized->scales.as<float>();
    }
    run.x_stride = m.cols;
    run.tokens = rows;
    run.bias = bias == nullptr ? nullptr : bias + part.row_first;
    run.y_bf16 = y_bf16 == nullptr ? nullptr : y_bf16 + part.row_first;
    run.y_f32 = y_f32 == nullptr ? nullptr : y_f32 + part.row_first;
    run.y_stride = y_cols;
    run.normed = normed;
    run.residual = residual;
    run.scratch = {scratch_.data(), scratch_.bytes()};
    must(run_gemm(run, stream()));
    must(weights_.release(part, stream()));
  }
}

void CudaBackend::matmul(Mat weight, Vec bias, Act in, Act out) {
  if (!names(Op::kMatmul, {number(weight), number(bias), number(in), number(out)})) return;
  const Matrix& m = weights_.matrix(weight);
  UPDRAFT_CHECK(!m.gated, "a matrix that is no gate and up");
  const NormedInput normed = normed_input(m, in);
  product_ = {weight, bias, in, out, normed};
}

void CudaBackend::run_product(const Product& product, const ResidualOutput& residual) {
  const Matrix& m = weights_.matrix(product.weight);
  const Bf16* x = rows_of(product.in, m.cols);
  Bf16* y = residual.hidden == nullptr ? output_of(product.out, m.rows) : nullptr;
  if (split_ && split_->out == product.out) split_.reset();
  multiply(m, x, quantized_input(m, product.in), shape_.rows_padded, values(product.bias, m.rows),
           y, nullptr, product.normed, residual);
}

void CudaBackend::prepare_qkv(const QkvPrepare& op) {
  if (!names(Op::kPrepare,
             {number(op.qkv), op.layer, op.head_count, number(op.q_norm), number(op.k_norm),
              number(op.eps), static_cast<int64_t>(op.rope.style), op.rope.rope_dims,
              number(op.rope.inverse_frequency), number(op.rope.magnitude), op.rope.sections[0],
              op.rope.sections[1], op.rope.sections[2]})) {
    return;
  }
  run_waiting();
  prepare_ = op;
}

PrepareQkv CudaBackend::prepare_of(const QkvPrepare& op) {
  const Rope& rope = op.rope;
  const bool rotated = rotated_ && rotated_->inverse_frequency == rope.inverse_frequency &&
                       rotated_->rope_dims == rope.rope_dims &&
                       rotated_->magnitude == rope.magnitude && rotated_->sections == rope.sections;
  if (!rotated) {
    RopeTable table;
    table.rows = shape_.rows_padded;
    table.pairs = rope.rope_dims / 2;
    table.positions = metadata<int32_t>(layout_.positions);
    table.inverse_frequency = values(rope.inverse_frequency, table.pairs);
    table.magnitude = rope.magnitude;
    table.out = rotations_.as<Float2>();
    std::copy(rope.sections.begin(), rope.sections.end(), table.sections);
    must(run_rope_table(table, stream()));
    rotated_ = rope;
  }
  const int64_t heads = op.head_count + 2 * int64_t{kv_.kv_head_count};
  PrepareQkv run;
  run.pages = pages_;
  run.layer = op.layer;
  run.rows = shape_.rows_padded;
  run.head_count = op.head_count;
  run.qkv = rows_of(op.qkv, heads * kv_.head_dim);
  run.q_norm = values(op.q_norm, kv_.head_dim);
  run.k_norm = values(op.k_norm, kv_.head_dim);
  run.eps = op.eps;
  run.rotations = rotations_.as<Float2>();
  run.rope_dims = rope.rope_dims;
  run.interleaved = rope.style == RopeStyle::kInterleaved;
  run.kv_positions = metadata<int32_t>(layout_.kv_positions);
  run.lines = metadata<int32_t>(layout_.lines);
  run.table = metadata<int32_t>(layout_.table);
  run.table_stride = 1;
  return run;
}

void CudaBackend::attention(const Attention& op) {
  if (!names(Op::kAttention,
             {number(op.qkv), op.layer, op.head_count, number(op.scale), number(op.out)})) {
    return;
  }
  // Its kernel prepares what it reads, where no row waits for the key of another.
  std::optional<PrepareQkv> prepare;
  if (prepare_ && prepare_->qkv == op.qkv && prepare_->layer == op.layer &&
      prepare_->head_count == op.head_count && shape_.prefill_slices == 0 &&
      !shape_.sequences_share) {
    prepare = prepare_of(*std::exchange(prepare_, std::nullopt));
  }
  run_waiting();
  const int64_t heads = op.head_count + 2 * int64_t{kv_.kv_head_count};
  const int64_t q_stride = heads * kv_.head_dim;
  const int64_t out_cols = op.head_count * int64_t{kv_.head_dim};
  if (shape_.prefill_slices > 0) {
    PrefillAttention run;
    run.pages = pages_;
    run.layer = op.layer;
    run.head_count = op.head_count;
    run.q = rows_of(op.qkv, q_stride);
    run.q_stride = q_stride;
    run.slices = metadata<PrefillSlice>(layout_.slices);
    run.slice_count = shape_.prefill_slices;
    run.row_count_max = shape_.prefill_rows_max;
    run.length_max = shape_.prefill_length_max;
    run.table = metadata<int32_t>(layout_.table);
    run.table_stride = 1;
    run.multiprocessor_count = properties_.multiprocessor_count;
    run.scale = op.scale;
    run.out = output_of(op.out, out_cols);
    run.warpgroup = warpgroup_attention_;
    run.workspace = workspace_.data();
    must(run_prefill_attention(run, stream()));
    if (shape_.decode_rows == 0) return;
  }
  const int32_t length_max = shape_.decode_length_max;
  const int32_t rows_at_once = attention_rows_at_once(length_max);
  const int64_t items_per_row = decode_work_items_max(1, length_max);
  const bool has_work = std::exchange(has_work_, true);
  for (int32_t first = 0; first < shape_.rows_padded; first += rows_at_once) {
    const int32_t rows = std::min(rows_at_once, shape_.rows_padded - first);
    const int32_t* lengths = metadata<int32_t>(layout_.lengths) + first;
    int32_t* item_count = work_counts_.as<int32_t>() + first;
    auto* items = work_items_.as<DecodeWorkItem>() + first * items_per_row;
    if (!has_work) {
      must(run_decode_work(
          {rows, lengths, metadata<int32_t>(layout_.lines) + first, length_max, item_count, items},
          stream()));
    }
    DecodeAttention run;
    run.pages = pages_;
    run.layer = op.layer;
    run.rows = rows;
    run.head_count = op.head_count;
    run.q_stride = q_stride;
    run.q = rows_of(op.qkv, q_stride) + first * q_stride;
    run.lengths = lengths;
    run.length_max = length_max;
    run.item_count = item_count;
    run.items = items;
    run.table = metadata<int32_t>(layout_.table);
    run.table_stride = 1;
    run.multiprocessor_count = properties_.multiprocessor_count;
    run.multiprocessor_shared_bytes = properties_.multiprocessor_shared_bytes;
    run.scale = op.scale;
    run.out = output_of(op.out, out_cols) + first * out_cols;
    run.workspace = workspace_.data();
    run.counters = attention_counters_.as<uint32_t>();
    std::optional<PrepareQkv> prepare_rows = prepare;
    if (prepare_rows) {
      prepare_rows->rows = rows;
      prepare_rows->qkv += first * q_stride;
      prepare_rows->rotations += first * (prepare_rows->rope_dims / 2);
      prepare_rows->kv_positions += first;
      prepare_rows->lines += first;
      run.prepare = &*prepare_rows;
    }
    must(run_decode_attention(run, stream()));
  }
}

void CudaBackend::gated_matmul(Mat gate_up, Act in, Act out) {
  if (!names(Op::kGated, {number(gate_up), number(in), number(out)})) return;
  const Matrix& m = weights_.matrix(gate_up);
  UPDRAFT_CHECK(m.part_rows.size() == 2 && m.part_rows[0] == m.part_rows[1], "gate and up");
  const NormedInput normed = normed_input(m, in);
  const Bf16* x = rows_of(in, m.cols);
  const Activation* quantized = quantized_input(m, in);
  if (m.gated) {
    multiply(m, x, quantized, shape_.rows_padded, nullptr, output_of(out, m.part_rows[0]), nullptr,
             normed);
    return;
  }
  multiply(m, x, quantized, shape_.rows_padded, nullptr, gated_.as<Bf16>(), nullptr, normed);
  must(run_gated_unit({shape_.rows_padded, static_cast<int32_t>(m.part_rows[0]), gated_.as<Bf16>(),
                       output_of(out, m.part_rows[0])},
                      stream()));
}

void CudaBackend::logits(Mat head, Act in) {
  if (!names(Op::kLogits, {number(head), number(in)})) return;
  run_waiting();
  make_whole(in);
  const Matrix& m = weights_.matrix(head);
  UPDRAFT_CHECK(m.rows == vocab_count_, "a head of the reserved vocabulary");
  UPDRAFT_CHECK(shape_.logit_rows > 0, "rows whose logits are wanted");
  must(run_gather_rows({shape_.logit_rows_padded, static_cast<int32_t>(m.cols), rows_of(in, m.cols),
                        metadata<int32_t>(layout_.logit_rows), gathered_.as<Bf16>()},
                       stream()));
  multiply(m, gathered_.as<Bf16>(), nullptr, shape_.logit_rows_padded, nullptr, nullptr,
           logits_.as<float>());
  if (!shape_.samples) return;
  if (banned_count_ > 0) {
    must(run_ban_tokens({shape_.logit_rows_padded, static_cast<int32_t>(vocab_count_),
                         banned_.as<int32_t>(), banned_count_, logits_.as<float>()},
                        stream()));
  }
  must(
      run_sample({shape_.logit_rows_padded, static_cast<int32_t>(vocab_count_), logits_.as<float>(),
                  metadata<SampleRow>(layout_.samplings), tokens_.as<int32_t>()},
                 stream()));
}

// The partial sums are bf16 as all rows are; the group adds them up in f32 or better.
void CudaBackend::all_reduce(Act act) {
  if (config_.comm == nullptr || !names(Op::kAllReduce, {number(act)})) return;
  run_waiting();
  make_whole(act);
  const int64_t cols = activation(act).cols;
  must(config_.comm->all_reduce(rows_of(act, cols), shape_.rows_padded * cols, Comm::Values::kBF16,
                                stream()));
}

void CudaBackend::end() {
  run_waiting();
  if (use_ == GraphCache::Use::kCapture) {
    graphs_.keep(key_, must(end_capture(stream())), names_);
    must(graphs_.replay(key_, names_).launch(stream()));
  } else if (use_ == GraphCache::Use::kReplay) {
    must(graphs_.replay(key_, names_).launch(stream()));
  }
  const auto logit_rows = static_cast<size_t>(shape_.logit_rows);
  if (shape_.samples) {
    must(copy_to_host(ring_->tokens(), tokens_.data(), logit_rows * sizeof(int32_t), stream()));
  } else if (logit_rows > 0) {
    must(copy_to_host(host_logits_.data(), logits_.data(),
                      logit_rows * static_cast<size_t>(vocab_count_) * sizeof(float), stream()));
  }
  must(ring_->end(stream(), shape_.samples ? shape_.logit_rows : 0));
}

std::span<float> CudaBackend::read_logits() {
  enter();
  must(ring_->wait_newest());
  if (shape_.samples) return {};
  return {host_logits_.as<float>(),
          static_cast<size_t>(shape_.logit_rows) * static_cast<size_t>(vocab_count_)};
}

std::span<const int32_t> CudaBackend::read_tokens() {
  enter();
  return must(ring_->read_tokens());
}

// --- pages and debugging ---

void CudaBackend::copy_page(int32_t from, int32_t to) {
  enter();
  UPDRAFT_CHECK(from >= 0 && from < kv_.page_count && to >= 0 && to < kv_.page_count,
                "pages of the pool");
  must(copy_on_device(pool_.data() + to * pages_.page_bytes,
                      pool_.data() + from * pages_.page_bytes,
                      static_cast<size_t>(pages_.page_bytes), stream()));
}

void CudaBackend::swap_out(int32_t page, int32_t slot) {
  enter();
  UPDRAFT_CHECK(page >= 0 && page < kv_.page_count && slot >= 0 && slot < swap_.page_count(),
                "a page of the pool and a slot of the swap space");
  must(swap_.out(pool_.data() + page * pages_.page_bytes, slot, stream()));
}

void CudaBackend::swap_in(int32_t slot, int32_t page) {
  enter();
  UPDRAFT_CHECK(page >= 0 && page < kv_.page_count && slot >= 0 && slot < swap_.page_count(),
                "a page of the pool and a slot of the swap space");
  must(swap_.in(slot, pool_.data() + page * pages_.page_bytes, stream()));
}

int64_t CudaBackend::swap_ns() {
  enter();
  must(swap_.end_moves(stream()));
  return must(swap_.elapsed_ns());
}

void CudaBackend::read_activation(Act act, int64_t rows, std::span<float> out) {
  enter();
  const Activation& from = activation(act);
  UPDRAFT_CHECK(rows <= from.rows_max && static_cast<int64_t>(out.size()) == rows * from.cols,
                "rows of the activation");
  const size_t bytes = out.size() * (from.residual ? sizeof(float) : sizeof(Bf16));
  const PinnedMemory host = must(PinnedMemory::allocate(bytes, "activation"));
  must(copy_to_host(host.data(), from.memory.data(), bytes, stream()));
  must(wait(stream()));
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = from.residual ? host.as<float>()[i] : bf16_to_float(host.as<Bf16>()[i].bits);
  }
}

}  // namespace updraft::cuda
