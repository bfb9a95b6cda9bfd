// Cutting a matrix product into items: passes of tokens that fit the cache, over ranges of tiles.
#include "kernels/cpu/matmul.h"

#include <algorithm>
#include <span>

#include "kernels/cpu/tile_layout.h"

namespace updraft {
namespace {

// Activations that a thread goes through again for each tile should stay in its second-level cache,
// beside a tile.
constexpr int64_t kActBytesPerPass = 256 << 10;
constexpr int64_t kTokensPerPassMin = 32;
constexpr int64_t kTokensPerPassMax = 256;  // a multiple of every kernel's token count
// A panel kernel reads a stretch of them per panel, at a few bytes a cycle; more tokens per pass
// mean less unpacking.
constexpr int64_t kPanelActBytesPerPass = 640 << 10;
constexpr int64_t kPanelTokensPerPassMin = 96;
constexpr int64_t kPanelTokensPerPassMax = 512;
// Fewer tokens than this do not pay for unpacking into a panel.
constexpr int64_t kPanelTokensMin = 24;
// Below this many values a second thread costs more than it saves.
constexpr int64_t kInlineValues = 16 << 10;
constexpr int64_t kInlineMultiplyAdds = 128 << 10;
// Several items per thread, so that a thread that lost its core for a while is not waited for with
// half of the work; but each begins a stream of weights anew, so not too short ones.
constexpr int64_t kItemsPerThread = 8;
constexpr int64_t kItemsPerThreadMin = 2;
constexpr int64_t kStreamBytes = 256 << 10;
constexpr int64_t kTileUnit =
    4;  // what the panels and the kernels of the float formats take at once
constexpr int kTileRowsMax = 16;
constexpr int64_t kGatedTiles = 4;
static_assert(kGatedScratchFloats >= 2 * kGatedTiles * kTileRowsMax * kPanelTokensPerPassMax);

// How the product is cut into items: passes of tokens, each over ranges of the parts' tiles.
struct Plan {
  bool panels = false;  // the quantised parts take activations in the panel layout
  int64_t tokens_per_pass = 0;
  int64_t pass_count = 0;
  int64_t tile_count = 0;  // of all parts; of a gated product's first
  int64_t tile_unit = 1;   // ranges begin at its multiples
  int64_t items_per_pass = 0;
};

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

Plan make_plan(const MatmulCall& call, const Kernels& kernels, int thread_count) {
  const Matrix& m = *call.weight;
  Plan plan;
  plan.panels = m.has_quantised && kernels.panel_tokens > 0 && call.rows >= kPanelTokensMin;
  if (plan.panels) {
    const int64_t fitting = kPanelActBytesPerPass / (m.cols / kBlockCols * kPanelBytesPerBlock);
    const int64_t most = std::clamp(fitting, kPanelTokensPerPassMin, kPanelTokensPerPassMax);
    const int64_t passes = (call.rows + most - 1) / most;
    plan.tokens_per_pass =
        round_up((call.rows + passes - 1) / passes, kernels.panel_tokens);  // whole groups
  } else {
    const int64_t row_bytes =
        m.has_quantised ? m.cols / kBlockCols * static_cast<int64_t>(sizeof(ActBlock)) : m.cols * 4;
    const int64_t fitting = kActBytesPerPass / row_bytes / 8 * 8;
    plan.tokens_per_pass = std::clamp(fitting, kTokensPerPassMin, kTokensPerPassMax);
  }
  plan.tokens_per_pass = std::min(call.rows, plan.tokens_per_pass);
  plan.pass_count = (call.rows + plan.tokens_per_pass - 1) / plan.tokens_per_pass;
  // A gated product goes through its two parts side by side.
  const auto parts = std::span(m.parts).first(call.gated ? 1 : m.parts.size());
  int64_t bytes = 0;
  for (const MatrixPart& part : parts) {
    plan.tile_count += part.tile_count;
    bytes += part.tile_count * part.tile_stride_bytes;
  }
  if (plan.panels || !m.has_quantised) plan.tile_unit = kTileUnit;
  if (plan.panels) {
    plan.items_per_pass = (thread_count * kItemsPerThread + plan.pass_count - 1) / plan.pass_count;
  } else {
    plan.items_per_pass = thread_count * std::clamp(bytes / thread_count / kStreamBytes,
                                                    kItemsPerThreadMin, kItemsPerThread);
  }
  const int64_t units = (plan.tile_count + plan.tile_unit - 1) / plan.tile_unit;
  plan.items_per_pass = std::min(plan.items_per_pass, units);
  return plan;
}

void quantize_rows(const MatmulCall& call, const Plan& plan, const Kernels& kernels,
                   ThreadPool& pool) {
  const int64_t cols = call.weight->cols;
  const int64_t blocks = cols / kBlockCols;
  const int64_t unit = plan.panels ? kernels.panel_tokens : 1;  // rows laid out together
  const auto quantize = [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row += unit) {
      const float* in = call.in + row * call.in_stride;
      if (plan.panels) {
        kernels.quantize_panel(
            in, call.in_stride, static_cast<int>(std::min(unit, last - row)), cols,
            reinterpret_cast<std::byte*>(call.blocks) + row * blocks * kPanelBytesPerBlock);
      } else {
        kernels.quantize(in, cols, call.blocks + row * blocks);
      }
    }
  };
  if (call.rows * cols <= kInlineValues) return quantize(0, call.rows);
  const int64_t rows_per_item = round_up(std::max<int64_t>(1, kInlineValues / cols / 2), unit);
  pool.for_each((call.rows + rows_per_item - 1) / rows_per_item, [&](int64_t item, int) {
    quantize(item * rows_per_item, std::min(call.rows, (item + 1) * rows_per_item));
  });
}

// Some tiles of one part times the tokens of one pass.
struct Piece {
  const MatrixPart* part;
  int64_t tile_first;
  int64_t tile_count;
  int64_t token_first;
  int64_t token_count;
};

// Begin of the item's range; that of the next is its end.
int64_t tile_of_item(const Plan& plan, int64_t item) {
  if (item == plan.items_per_pass) return plan.tile_count;
  return plan.tile_count * item / plan.items_per_pass / plan.tile_unit * plan.tile_unit;
}

// Calls run(piece) for each part that the item meets.
template <typename Run>
void for_pieces(const MatmulCall& call, const Plan& plan, int64_t item, Run run) {
  Piece piece{};
  piece.token_first = item / plan.items_per_pass * plan.tokens_per_pass;
  piece.token_count = std::min(plan.tokens_per_pass, call.rows - piece.token_first);
  int64_t first = tile_of_item(plan, item % plan.items_per_pass);
  int64_t last = tile_of_item(plan, item % plan.items_per_pass + 1);
  for (const MatrixPart& part : call.weight->parts) {
    piece.part = &part;
    piece.tile_first = first;
    piece.tile_count = std::min(last, part.tile_count) - first;
    if (piece.tile_count > 0) run(piece);
    first = std::max<int64_t>(first - part.tile_count, 0);
    last -= part.tile_count;
    if (last <= 0) break;
  }
}

// The kernel over whole tiles; results at `out`, whose first column is the first tile's first row.
void run_kernel(const MatmulCall& call, const Plan& plan, const Kernels& kernels,
                const Piece& piece, int64_t tile_count, float* out, int64_t out_stride) {
  const int64_t blocks = call.weight->cols / kBlockCols;
  const MatrixPart& part = *piece.part;
  const int type = static_cast<int>(part.type);
  const bool quantised = !is_float_format(part.type);
  const std::byte* tiles = part.tiles + piece.tile_first * part.tile_stride_bytes;
  if (quantised && plan.panels) {
    MatmulPanel op;
    op.tiles = tiles;
    op.tile_stride_bytes = part.tile_stride_bytes;
    op.tile_count = tile_count;
    op.cols = call.weight->cols;
    op.acts = reinterpret_cast<const std::byte*>(call.blocks) +
              piece.token_first * blocks * kPanelBytesPerBlock;
    op.tokens = piece.token_count;
    op.out = out;
    op.out_stride = out_stride;
    return kernels.matmul_panel[type](op);
  }
  MatmulTiles op;
  op.tiles = tiles;
  op.tile_stride_bytes = part.tile_stride_bytes;
  op.tile_count = tile_count;
  op.cols = call.weight->cols;
  op.act_stride_bytes =
      quantised ? blocks * static_cast<int64_t>(sizeof(ActBlock)) : call.in_stride * 4;
  const auto* acts = quantised ? reinterpret_cast<const std::byte*>(call.blocks)
                               : reinterpret_cast<const std::byte*>(call.in);
  op.acts = acts + piece.token_first * op.act_stride_bytes;
  op.tokens = piece.token_count;
  op.out = out;
  op.out_stride = out_stride;
  kernels.matmul[type](op);
}

// Rows of the piece that exist: its last tile may reach beyond the part.
int64_t rows_of(const MatmulCall& call, const Piece& piece) {
  const int64_t tile_rows = call.weight->tile_rows;
  return std::min(piece.tile_count * tile_rows, piece.part->rows - piece.tile_first * tile_rows);
}

// The piece's product, out[t * out_stride + r] for its token t and its row r.
void multiply(const MatmulCall& call, const Plan& plan, const Kernels& kernels, const Piece& piece,
              float* out, int64_t out_stride) {
  const int64_t tile_rows = call.weight->tile_rows;
  const int64_t rows = rows_of(call, piece);
  const int64_t whole_tiles = rows / tile_rows;
  if (whole_tiles > 0) run_kernel(call, plan, kernels, piece, whole_tiles, out, out_stride);
  const int64_t edge_rows = rows - whole_tiles * tile_rows;
  if (edge_rows > 0) {
    float edge[kPanelTokensPerPassMax * kTileRowsMax];
    Piece last = piece;
    last.tile_first += whole_tiles;
    run_kernel(call, plan, kernels, last, 1, edge, tile_rows);
    float* to = out + whole_tiles * tile_rows;
    for (int64_t t = 0; t < piece.token_count; ++t)
      std::copy_n(edge + t * tile_rows, edge_rows, to + t * out_stride);
  }
  if (call.bias != nullptr) {
    const float* bias = call.bias + piece.part->row_first + piece.tile_first * tile_rows;
    kernels.add_bias(out, out_stride, piece.token_count, bias, rows);
  }
}

void multiply_plain(const MatmulCall& call, const Plan& plan, const Kernels& kernels,
                    const Piece& piece) {
  float* out = call.out + piece.token_first * call.out_stride + piece.part->row_first +
               piece.tile_first * call.weight->tile_rows;
  multiply(call, plan, kernels, piece, out, call.out_stride);
}

// Some tiles of the gate and the same of the other part at a time, so that what they give is still
// in the cache when it is multiplied: few for many tokens, long runs of weights for few.
void multiply_gated(const MatmulCall& call, const Plan& plan, const Kernels& kernels,
                    const Piece& piece, int thread) {
  float* scratch = call.scratch + thread * kGatedScratchFloats;
  const int64_t tile_rows = call.weight->tile_rows;
  const int64_t fitting = kGatedScratchFloats / (2 * tile_rows * piece.token_count);
  const int64_t step = plan.panels ? kGatedTiles : std::max(kGatedTiles, fitting / 4 * 4);
  for (int64_t tile = 0; tile < piece.tile_count; tile += step) {
    Piece gate = piece;
    gate.tile_first += tile;
    gate.tile_count = std::min(step, piece.tile_count - tile);
    Piece up = gate;
    up.part = &call.weight->parts[1];
    const int64_t rows = rows_of(call, gate);
    multiply(call, plan, kernels, gate, scratch, 2 * rows);
    multiply(call, plan, kernels, up, scratch + rows, 2 * rows);
    float* out = call.out + piece.token_first * call.out_stride + gate.tile_first * tile_rows;
    for (int64_t t = 0; t < piece.token_count; ++t)
      kernels.silu_mul(scratch + t * 2 * rows, out + t * call.out_stride, rows);
  }
}

// Items are claimed in order by whichever thread is free. Few tokens: the claims are dealt out so
// that each thread, while they keep step, goes through consecutive weights, which the hardware
// fetches ahead.
int64_t item_of_claim(int64_t claim, int64_t items, int64_t thread_count) {
  const int64_t lane = claim % thread_count;
  return lane * (items / thread_count) + std::min(lane, items % thread_count) +
         claim / thread_count;
}

}  // namespace

void run_matmul(const MatmulCall& call, const Kernels& kernels, ThreadPool& pool) {
  if (call.rows == 0) return;
  const Plan plan = make_plan(call, kernels, pool.thread_count());
  if (call.weight->has_quantised) quantize_rows(call, plan, kernels, pool);
  const int64_t items = plan.pass_count * plan.items_per_pass;
  const auto run_item = [&](int64_t claim, int thread) {
    const int64_t item = plan.panels ? claim : item_of_claim(claim, items, pool.thread_count());
    for_pieces(call, plan, item, [&](const Piece& piece) {
      if (call.gated) {
        multiply_gated(call, plan, kernels, piece, thread);
      } else {
        multiply_plain(call, plan, kernels, piece);
      }
    });
  };
  if (call.weight->rows * call.weight->cols * call.rows <= kInlineMultiplyAdds) {
    for (int64_t claim = 0; claim < items; ++claim) run_item(claim, 0);
  } else {
    pool.for_each(items, run_item);
  }
}

}  // namespace updraft
