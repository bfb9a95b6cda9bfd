// Prefill attention against softmax(q k) v in double precision, and against itself: a prompt cut
// otherwise, on another device, gives the same bits.
#include "kernels/cuda/prefill_attention.h"

#include "tests/kernels/cuda/kv_cache.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;

namespace {

// Rows [first, first + count) of a sequence.
struct Part {
  int32_t sequence;
  int32_t first;
  int32_t count;
};

// A query for every position of every sequence.
struct Prompts {
  const KvCache& cache;
  size_t row_elems;
  std::vector<size_t> rows_before;  // of the sequences before
  Buffer<Bf16> q;
  bool warpgroup;  // by the kernel for capability 9.0

  static size_t rows_of(const KvCache& cache) {
    size_t rows = 0;
    for (const int32_t length : cache.lengths) rows += static_cast<size_t>(length);
    return rows;
  }
  explicit Prompts(const KvCache& cache, bool warpgroup = false)
      : cache(cache),
        row_elems(static_cast<size_t>(cache.shape.head_count * cache.shape.head_dim)),
        q("q", rows_of(cache) * row_elems),
        warpgroup(warpgroup) {
    size_t rows = 0;
    for (const int32_t length : cache.lengths) {
      rows_before.push_back(rows);
      rows += static_cast<size_t>(length);
    }
    fill_normal(q.span(), 5);
  }
  const Bf16* query(const Part& part, int32_t row) const {
    return q.data() + (rows_before[static_cast<size_t>(part.sequence)] +
                       static_cast<size_t>(part.first + row)) *
                          row_elems;
  }

  std::vector<double> expected(const Part& part, int32_t row) const {
    std::vector<double> out;
    for (int32_t h = 0; h < cache.shape.head_count; ++h) {
      const auto one =
          cache.attend(static_cast<size_t>(part.sequence),
                       query(part, row) + h * cache.shape.head_dim, h, part.first + row + 1);
      out.insert(out.end(), one.begin(), one.end());
    }
    return out;
  }

  // Output rows of the parts, one launch, one part behind the other with a row of nobody's between.
  std::vector<std::vector<Bf16>> run(const std::vector<Part>& parts, const Schedule& schedule = {},
                                     int32_t multiprocessor_count = 2) const {
    const ScheduleScope scope(schedule);
    std::vector<PrefillSlice> slices;
    int32_t rows = 1;
    int32_t row_count_max = 0;
    int32_t length_max = 0;
    for (const Part& part : parts) {
      slices.push_back({rows, part.count, part.first, part.sequence});
      rows += part.count + 1;
      row_count_max = std::max(row_count_max, part.count);
      length_max = std::max(length_max, part.first + part.count);
    }
    const Buffer<PrefillSlice> device_slices("slices", std::span<const PrefillSlice>(slices));
    const size_t stride = row_elems + 8;
    const Buffer<Bf16> rows_q("rows q", static_cast<size_t>(rows) * stride);
    const Buffer<Bf16> out("out", static_cast<size_t>(rows) * row_elems);
    for (size_t i = 0; i < parts.size(); ++i) {
      for (int32_t r = 0; r < parts[i].count; ++r) {
        std::copy_n(query(parts[i], r), row_elems,
                    rows_q.data() + static_cast<size_t>(slices[i].row_first + r) * stride);
      }
    }
    const Buffer<std::byte> workspace(
        "workspace",
        prefill_attention_workspace_bytes(cache.pages, multiprocessor_count, length_max));
    PrefillAttention op;
    op.pages = cache.pages;
    op.layer = KvCache::kLayer;
    op.head_count = cache.shape.head_count;
    op.q = rows_q.data();
    op.q_stride = static_cast<int64_t>(stride);
    op.slices = device_slices.data();
    op.slice_count = static_cast<int32_t>(slices.size());
    op.row_count_max = row_count_max;
    op.length_max = length_max;
    op.table = cache.table.data();
    op.table_stride = cache.table_stride;
    op.multiprocessor_count = multiprocessor_count;
    op.scale = 1.0F / std::sqrt(static_cast<float>(cache.shape.head_dim));
    op.out = out.data();
    op.warpgroup = warpgroup;
    op.workspace = workspace.data();
    require_ok(run_prefill_attention(op, nullptr));
    std::vector<std::vector<Bf16>> result;
    size_t foreign = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      const Bf16* first = out.data() + static_cast<size_t>(slices[i].row_first) * row_elems;
      const Bf16* end = first + static_cast<size_t>(parts[i].count) * row_elems;
      result.emplace_back(first, end);
      for (size_t e = 0; e < row_elems; ++e) {
        foreign += end[e].bits != 0xFFFF ? 1U : 0U;
        foreign += (first - row_elems)[e].bits != 0xFFFF ? 1U : 0U;
      }
    }
    CHECK(foreign == 0);  // rows of nobody's are not touched
    return result;
  }

  // The worst difference of `got` from the reference over every `step`-th row and the last one.
  double worst(const Part& part, std::vector<Bf16>& got, int32_t step = 1) const {
    double worst = 0;
    for (int32_t r = 0; r < part.count;
         r = r + step < part.count || r + 1 == part.count ? r + step : part.count - 1) {
      worst = std::max(
          worst, difference(std::span(got).subspan(static_cast<size_t>(r) * row_elems, row_elems),
                            expected(part, r)));
    }
    return worst;
  }
};

constexpr CacheShape kShapes[] = {
    {KvType::kBf16, 64, 4, 2, 16},  {KvType::kBf16, 128, 16, 1, 64},
    {KvType::kBf16, 128, 7, 1, 32},  // query rows cut between two tiles
    {KvType::kBf16, 64, 1, 1, 256}, {KvType::kInt8, 64, 4, 2, 16},
    {KvType::kInt8, 128, 3, 1, 32}, {KvType::kFp8, 64, 5, 1, 64},
    {KvType::kFp8, 128, 4, 2, 16},  {KvType::kBf16, 8, 4, 2, 16},  // and heads that are padded
    {KvType::kBf16, 96, 3, 1, 32},  {KvType::kInt8, 80, 2, 1, 16},
};

}  // namespace

TEST_CASE("prefill attention equals softmax in double precision, whatever the schedule") {
  for (const CacheShape& shape : kShapes) {
    CAPTURE(shape.head_dim);
    CAPTURE(shape.head_count);
    CAPTURE(static_cast<int>(shape.type));
    const KvCache cache(shape, {150, 33, 64});
    const Prompts prompts(cache);
    // A chunk behind a prefix, a whole prompt, one row at a tile's end.
    const std::vector<Part> parts = {{0, 97, 53}, {1, 0, 33}, {2, 63, 1}};
    for (const Schedule& schedule : schedules()) {
      auto got = prompts.run(parts, schedule);
      for (size_t i = 0; i < parts.size(); ++i) {
        CHECK(prompts.worst(parts[i], got[i], 5) < 2 * kBf16Step);
      }
    }
  }
}

TEST_CASE("a prompt has the same bits whole, in chunks, behind a prefix and beside others") {
  for (const KvType type : {KvType::kBf16, KvType::kInt8, KvType::kFp8}) {
    const KvCache cache({type, 64, 3, 1, 16}, {150, 40});
    const Prompts prompts(cache);
    const std::vector<Bf16> whole = prompts.run({{0, 0, 150}})[0];
    const auto agrees = [&](const Part& part, const std::vector<Bf16>& got) {
      CHECK(same_bits(got.data(),
                      whole.data() + static_cast<size_t>(part.first) * prompts.row_elems,
                      got.size()));
    };
    for (const std::vector<Part>& cut : {std::vector<Part>{{0, 0, 64}, {0, 64, 86}},
                                         std::vector<Part>{{0, 0, 1}, {0, 1, 100}, {0, 101, 49}},
                                         std::vector<Part>{{0, 149, 1}, {0, 33, 17}}}) {
      for (const Part& part : cut) {
        agrees(part, prompts.run({part}, {11}, 1)[0]);
        agrees(part, prompts.run({{1, 3, 37}, part}, {12}, 132)[1]);
      }
    }
  }
}

TEST_CASE("rows far into a context have the same bits from one block and from a block per chunk") {
  for (const KvType type : {KvType::kBf16, KvType::kInt8}) {
    constexpr int32_t kLength = 2 * kPrefillChunk + 70;
    const KvCache cache({type, 64, 2, 1, 64}, {kLength});
    const Prompts prompts(cache);
    // Its rows lie on both sides of the last chunk's begin: some see nothing of it.
    const Part part{0, 2 * kPrefillChunk - 30, 100};
    std::vector<Bf16> together = prompts.run({part}, {}, 1)[0];
    CHECK(prompts.worst(part, together, 4) < 2 * kBf16Step);
    const std::vector<Bf16> split = prompts.run({part}, {5}, 132)[0];
    CHECK(same_bits(split.data(), together.data(), together.size()));
    const Part last{0, kLength - 1, 1};
    const std::vector<Bf16> alone = prompts.run({last}, {6}, 132)[0];
    CHECK(same_bits(alone.data(), together.data() + 99 * prompts.row_elems, alone.size()));
  }
}

TEST_CASE("warpgroup prefill attention equals softmax in double precision, in every order") {
  if (!has_warpgroups()) return;
  for (const CacheShape& shape : kShapes) {
    if (shape.type != KvType::kBf16) continue;
    CAPTURE(shape.head_dim);
    CAPTURE(shape.head_count);
    CAPTURE(shape.page_tokens);
    // 330 positions: a ring of four comes round, with a second unit behind the first.
    const KvCache cache(shape, {150, 33, 330});
    const Prompts prompts(cache, true);
    const std::vector<Part> parts = {{0, 97, 53}, {1, 0, 33}, {2, 269, 61}};
    for (const Schedule& schedule : schedules()) {
      auto got = prompts.run(parts, schedule);
      for (size_t i = 0; i < parts.size(); ++i) {
        CHECK(prompts.worst(parts[i], got[i], 7) < 2 * kBf16Step);
      }
    }
  }
}

TEST_CASE("warpgroup prefill gives a prompt the same bits whole, in chunks and in every order") {
  if (!has_warpgroups()) return;
  const KvCache cache({KvType::kBf16, 64, 3, 1, 16}, {150, 40});
  const Prompts prompts(cache, true);
  const std::vector<Bf16> whole = prompts.run({{0, 0, 150}})[0];
  for (const Part& part : {Part{0, 0, 64}, Part{0, 64, 86}, Part{0, 149, 1}, Part{0, 33, 17}}) {
    const auto agrees = [&](const std::vector<Bf16>& got) {
      CHECK(same_bits(got.data(),
                      whole.data() + static_cast<size_t>(part.first) * prompts.row_elems,
                      got.size()));
    };
    agrees(prompts.run({part}, {11}, 1)[0]);
    agrees(prompts.run({{1, 3, 37}, part}, {12, Landing::kAtIssue}, 132)[1]);
  }
  for (uint64_t seed = 10; seed < 18; ++seed) {
    const Landing landing = seed % 4 == 0 ? Landing::kAtWait : Landing::kAtIssue;
    const std::vector<Bf16> again = prompts.run({{0, 0, 150}}, {seed, landing}, 1)[0];
    CHECK(same_bits(again.data(), whole.data(), whole.size()));
  }
}

TEST_CASE("warpgroup prefill far into a context: one block and a block per chunk, the same bits") {
  if (!has_warpgroups()) return;
  constexpr int32_t kLength = 2 * kPrefillChunk + 70;
  const KvCache cache({KvType::kBf16, 64, 2, 1, 64}, {kLength});
  const Prompts prompts(cache, true);
  const Part part{0, 2 * kPrefillChunk - 30, 100};
  std::vector<Bf16> together = prompts.run({part}, {}, 1)[0];
  CHECK(prompts.worst(part, together, 4) < 2 * kBf16Step);
  const std::vector<Bf16> split = prompts.run({part}, {5}, 132)[0];
  CHECK(same_bits(split.data(), together.data(), together.size()));
  // A tile whose first group sees nothing of the last chunk, at the begin of a chunk.
  const Part early{0, kPrefillChunk - 60, 64};
  std::vector<Bf16> around = prompts.run({early}, {}, 1)[0];
  CHECK(prompts.worst(early, around, 3) < 2 * kBf16Step);
  const std::vector<Bf16> around_split = prompts.run({early}, {6}, 132)[0];
  CHECK(same_bits(around_split.data(), around.data(), around.size()));
}

TEST_CASE("prefill reads pages beyond 2^31 bytes and elements") {
  const CacheShape shape{KvType::kBf16, 64, 2, 1, 16};
  const KvCache near(shape, {70});
  const auto id_first = static_cast<int32_t>((int64_t{1} << 33) / near.pages.page_bytes);
  const KvCache far(shape, {70}, id_first);
  const std::vector<Bf16> got = Prompts(far).run({{0, 5, 65}})[0];
  CHECK(same_bits(got.data(), Prompts(near).run({{0, 5, 65}})[0].data(), got.size()));
}

TEST_CASE("warpgroup prefill reads pages beyond 2^31 bytes and elements") {
  if (!has_warpgroups()) return;
  const CacheShape shape{KvType::kBf16, 64, 2, 1, 16};
  const KvCache near(shape, {70});
  const auto id_first = static_cast<int32_t>((int64_t{1} << 33) / near.pages.page_bytes);
  const KvCache far(shape, {70}, id_first);
  const std::vector<Bf16> got = Prompts(far, true).run({{0, 5, 65}})[0];
  CHECK(same_bits(got.data(), Prompts(near, true).run({{0, 5, 65}})[0].data(), got.size()));
}

TEST_CASE("shapes that prefill attention does not take are refused") {
  PrefillAttention op;
  op.pages = *KvPages::of(KvType::kBf16, 1, 2, 64, 16);
  op.slice_count = 1;
  op.row_count_max = 9;
  op.length_max = 9;
  op.head_count = 3;
  CHECK(run_prefill_attention(op, nullptr).message().find("3 heads over 2") != std::string::npos);
  op.head_count = 4;
  op.length_max = 8;
  CHECK(run_prefill_attention(op, nullptr).message().find("9 rows within 8 positions") !=
        std::string::npos);
  op.length_max = kPrefillChunk + 1;
  CHECK(run_prefill_attention(op, nullptr).message().find("workspace") != std::string::npos);
}
