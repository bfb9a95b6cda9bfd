// Cutting a matrix product into items: passes of tokens that fit the cache, over chunks of tiles.
#include "kernels/cpu/matmul.h"

#include <algorithm>

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
constexpr int64_t kItemsPerThread = 8;
constexpr int kTileRowsMax = 16;

// How the product is cut into items: passes of tokens, each over chunks of tiles of each part.
struct Plan {
  bool panels = false;  // the quantised parts take activations in the panel layout
  int64_t tokens_per_pass = 0;
  int64_t pass_count = 0;
  int64_t tiles_per_chunk = 0;
  int64_t chunks_per_pass = 0;
};

int64_t chunk_count(const MatrixPart& part, const Plan& plan) {
  return (part.tile_count + plan.tiles_per_chunk - 1) / plan.tiles_per_chunk;
}

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
  int64_t tiles = 0;
  for (const MatrixPart& part : m.parts) tiles += part.tile_count;
  // Several items per thread, so that a thread that lost its core for a while is not waited for
  // with half of the work.
  const int64_t wanted = thread_count * kItemsPerThread;
  plan.tiles_per_chunk = std::max<int64_t>(1, tiles * plan.pass_count / wanted);
  plan.tiles_per_chunk = (plan.tiles_per_chunk + 3) / 4 * 4;
  for (const MatrixPart& part : m.parts) plan.chunks_per_pass += chunk_count(part, plan);
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

Piece piece_of(const MatmulCall& call, const Plan& plan, int64_t item) {
  Piece piece{};
  piece.token_first = item / plan.chunks_per_pass * plan.tokens_per_pass;
  piece.token_count = std::min(plan.tokens_per_pass, call.rows - piece.token_first);
  int64_t chunk = item % plan.chunks_per_pass;
  for (const MatrixPart& part : call.weight->parts) {
    const int64_t chunks = chunk_count(part, plan);
    if (chunk < chunks) {
      piece.part = &part;
      piece.tile_first = chunk * plan.tiles_per_chunk;
      piece.tile_count = std::min(plan.tiles_per_chunk, part.tile_count - piece.tile_first);
      break;
    }
    chunk -= chunks;
  }
  return piece;
}

void multiply(const MatmulCall& call, const Plan& plan, const Kernels& kernels,
              const Piece& piece) {
  const Matrix& m = *call.weight;
  const MatrixPart& part = *piece.part;
  const bool quantised = !is_float_format(part.type);
  const int64_t row_first = piece.tile_first * m.tile_rows;
  const int64_t row_last = std::min(part.rows, row_first + piece.tile_count * m.tile_rows);
  // Whole tiles; a last part of one goes through `edge`.
  const int64_t whole_tiles = (row_last - row_first) / m.tile_rows;
  const std::byte* tiles = part.tiles + piece.tile_first * part.tile_stride_bytes;
  float* out = call.out + piece.token_first * call.out_stride + part.row_first + row_first;
  const auto run = [&](const std::byte* first_tile, int64_t tile_count, float* to,
                       int64_t to_stride) {
    const int type = static_cast<int>(part.type);
    if (quantised && plan.panels) {
      MatmulPanel op;
      op.tiles = first_tile;
      op.tile_stride_bytes = part.tile_stride_bytes;
      op.header_bytes = part.header_bytes;
      op.tile_count = tile_count;
      op.cols = m.cols;
      op.acts = reinterpret_cast<const std::byte*>(call.blocks) +
                piece.token_first * (m.cols / kBlockCols) * kPanelBytesPerBlock;
      op.tokens = piece.token_count;
      op.out = to;
      op.out_stride = to_stride;
      return kernels.matmul_panel[type](op);
    }
    MatmulTiles op;
    op.tiles = first_tile;
    op.tile_stride_bytes = part.tile_stride_bytes;
    op.header_bytes = part.header_bytes;
    op.tile_count = tile_count;
    op.cols = m.cols;
    op.act_stride_bytes = quantised ? m.cols / kBlockCols * static_cast<int64_t>(sizeof(ActBlock))
                                    : call.in_stride * 4;
    const auto* acts = quantised ? reinterpret_cast<const std::byte*>(call.blocks)
                                 : reinterpret_cast<const std::byte*>(call.in);
    op.acts = acts + piece.token_first * op.act_stride_bytes;
    op.tokens = piece.token_count;
    op.out = to;
    op.out_stride = to_stride;
    kernels.matmul[type](op);
  };
  if (whole_tiles > 0) run(tiles, whole_tiles, out, call.out_stride);

  const int64_t whole_rows = whole_tiles * m.tile_rows;
  const int64_t edge_rows = row_last - row_first - whole_rows;
  if (edge_rows > 0) {
    float edge[kPanelTokensPerPassMax * kTileRowsMax];
    run(tiles + whole_tiles * part.tile_stride_bytes, 1, edge, m.tile_rows);
    for (int64_t t = 0; t < piece.token_count; ++t) {
      std::copy_n(edge + t * m.tile_rows, edge_rows, out + t * call.out_stride + whole_rows);
    }
  }
  if (call.bias != nullptr) {
    const float* bias = call.bias + part.row_first + row_first;
    for (int64_t t = 0; t < piece.token_count; ++t) {
      float* row = out + t * call.out_stride;
      for (int64_t r = 0; r < row_last - row_first; ++r) row[r] += bias[r];
    }
  }
}

}  // namespace

void run_matmul(const MatmulCall& call, const Kernels& kernels, ThreadPool& pool) {
  if (call.rows == 0) return;
  const Plan plan = make_plan(call, kernels, pool.thread_count());
  if (call.weight->has_quantised) quantize_rows(call, plan, kernels, pool);
  const int64_t items = plan.pass_count * plan.chunks_per_pass;
  const auto run_item = [&](int64_t item, int) {
    multiply(call, plan, kernels, piece_of(call, plan, item));
  };
  if (call.weight->rows * call.weight->cols * call.rows <= kInlineMultiplyAdds) {
    for (int64_t item = 0; item < items; ++item) run_item(item, 0);
  } else {
    pool.for_each(items, run_item);
  }
}

}  // namespace updraft
