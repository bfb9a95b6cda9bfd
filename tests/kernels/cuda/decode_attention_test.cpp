// Decode attention against softmax(q k) v in double precision over the same pages.
#include "kernels/cuda/decode_attention.h"

#include "tests/kernels/cuda/kv_cache.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;

namespace {

// A row of each sequence, which sees all of it.
struct Rows {
  const KvCache& cache;
  size_t row_elems;
  Buffer<Bf16> q;

  explicit Rows(const KvCache& cache)
      : cache(cache),
        row_elems(static_cast<size_t>(cache.shape.head_count * cache.shape.head_dim)),
        q("q", cache.lengths.size() * row_elems) {
    fill_normal(q.span(), 5);
  }

  std::vector<double> expected(const std::vector<int32_t>& which) const {
    std::vector<double> out;
    for (const int32_t w : which) {
      const auto s = static_cast<size_t>(w);
      for (int32_t h = 0; h < cache.shape.head_count; ++h) {
        const auto head = static_cast<size_t>(h * cache.shape.head_dim);
        const auto one =
            cache.attend(s, q.data() + s * row_elems + head, h, std::max(0, cache.lengths[s]));
        out.insert(out.end(), one.begin(), one.end());
      }
    }
    return out;
  }

  // The rows `which` in one launch; -1 is a row that is not ours.
  enum class Joined : uint8_t { kByLastBlock, kBySecondKernel };
  std::vector<Bf16> run(const std::vector<int32_t>& which, const Schedule& schedule = {},
                        int32_t multiprocessor_count = 132,
                        Joined joined = Joined::kByLastBlock) const {
    const ScheduleScope scope(schedule);
    const CacheShape& shape = cache.shape;
    Buffer<Bf16> rows_q("rows q", which.size() * row_elems);
    Buffer<int32_t> rows_length("lengths", which.size());
    Buffer<int32_t> rows_line("lines", which.size());
    int32_t length_max = 0;
    for (size_t i = 0; i < which.size(); ++i) {
      rows_length[i] = -1;
      if (which[i] < 0) continue;
      const auto s = static_cast<size_t>(which[i]);
      std::copy_n(q.data() + s * row_elems, row_elems, rows_q.data() + i * row_elems);
      rows_length[i] = cache.lengths[s];
      if (cache.lengths[s] != 0) rows_line[i] = which[i];  // a padded row has no sequence
      length_max = std::max(length_max, cache.lengths[s]);
    }
    const auto rows = static_cast<int32_t>(which.size());
    Buffer<Bf16> out("out", which.size() * row_elems);
    Buffer<std::byte> workspace("workspace", decode_attention_workspace_bytes(
                                                 cache.pages, rows, shape.head_count, length_max));
    Buffer<int32_t> item_count("item count", 1);
    Buffer<DecodeWorkItem> items("items",
                                 static_cast<size_t>(decode_work_items_max(rows, length_max)));
    require_ok(run_decode_work(
        {rows, rows_length.data(), rows_line.data(), length_max, item_count.data(), items.data()},
        nullptr));
    DecodeAttention op;
    op.pages = cache.pages;
    op.layer = KvCache::kLayer;
    op.rows = rows;
    op.head_count = shape.head_count;
    op.q = rows_q.data();
    op.q_stride = shape.head_count * shape.head_dim;
    op.lengths = rows_length.data();
    op.length_max = length_max;
    op.item_count = item_count.data();
    op.items = items.data();
    op.table = cache.table.data();
    op.table_stride = cache.table_stride;
    op.multiprocessor_count = multiprocessor_count;
    op.scale = 1.0F / std::sqrt(static_cast<float>(shape.head_dim));
    op.out = out.data();
    op.workspace = workspace.data();
    Buffer<uint32_t> counters("counters",
                              decode_attention_counter_bytes(rows, shape.head_count) / 4);
    std::fill(counters.span().begin(), counters.span().end(), 0U);
    if (joined == Joined::kByLastBlock) op.counters = counters.data();
    require_ok(run_decode_attention(op, nullptr));
    for (const uint32_t counter : counters.span()) CHECK(counter == 0);
    return {out.span().begin(), out.span().end()};
  }
};

constexpr CacheShape kShapes[] = {
    {KvType::kBf16, 64, 4, 2, 16},   {KvType::kBf16, 128, 16, 1, 64},
    {KvType::kBf16, 64, 20, 1, 32},  // two tiles of heads, the second one a quarter full
    {KvType::kInt8, 64, 4, 2, 16},   {KvType::kInt8, 128, 7, 1, 32},
    {KvType::kInt8, 128, 3, 3, 256}, {KvType::kFp8, 64, 5, 1, 32},
    {KvType::kFp8, 128, 4, 2, 16},   {KvType::kBf16, 8, 4, 2, 16},  // and heads that are padded
    {KvType::kBf16, 96, 3, 1, 32},   {KvType::kInt8, 80, 2, 1, 16},
    {KvType::kFp8, 32, 2, 2, 16},
};

}  // namespace

TEST_CASE("decode attention equals softmax in double precision, whatever the schedule") {
  for (const CacheShape& shape : kShapes) {
    CAPTURE(shape.head_dim);
    CAPTURE(shape.head_count);
    CAPTURE(static_cast<int>(shape.type));
    const KvCache cache(shape, {1, 0, 17, 64, 129, 200});
    const Rows rows(cache);
    const std::vector<int32_t> all = {0, 1, 2, 3, 4, 5};
    for (const Schedule& schedule : schedules()) {
      // On a device so small that a block has several chunks.
      std::vector<Bf16> got = rows.run(all, schedule, 1);
      CHECK(difference(std::span(got), rows.expected(all)) < 2 * kBf16Step);
      for (size_t i = rows.row_elems; i < 2 * rows.row_elems; ++i) {
        CHECK(got[i].bits == 0);  // the padded row
      }
    }
  }
}

TEST_CASE("a sequence of several chunks is joined from its parts") {
  for (const KvType type : {KvType::kBf16, KvType::kInt8, KvType::kFp8}) {
    const KvCache cache({type, 64, 2, 1, 64},
                        {kAttentionChunk, kAttentionChunk + 1, 9 * kAttentionChunk + 100});
    const Rows rows(cache);
    std::vector<Bf16> got = rows.run({0, 1, 2});
    CHECK(difference(std::span(got), rows.expected({0, 1, 2})) < 2 * kBf16Step);
  }
}

TEST_CASE("the block that comes last joins a row's chunks as a second kernel does, bit for bit") {
  for (const CacheShape& shape :
       {CacheShape{KvType::kBf16, 64, 4, 2, 64}, CacheShape{KvType::kInt8, 128, 18, 1, 64}}) {
    const KvCache cache(shape, {kAttentionChunk + 1, 90, 0, 8 * kAttentionChunk - 3});
    const Rows rows(cache);
    for (const Schedule& schedule : schedules()) {
      const std::vector<int32_t> which = {3, -1, 2, 0, 1};
      const auto inside = rows.run(which, schedule);
      const auto behind = rows.run(which, schedule, 132, Rows::Joined::kBySecondKernel);
      CHECK(same_bits(inside.data(), behind.data(), inside.size()));
    }
  }
}

TEST_CASE(
    "attention that prepares its rows gives the bits of both kernels, and leaves their pages") {
  for (const CacheShape& shape :
       {CacheShape{KvType::kBf16, 64, 4, 2, 16}, CacheShape{KvType::kBf16, 128, 20, 1, 64},
        CacheShape{KvType::kInt8, 128, 3, 3, 32}, CacheShape{KvType::kInt8, 80, 2, 1, 16},
        CacheShape{KvType::kFp8, 64, 5, 1, 32}, CacheShape{KvType::kBf16, 96, 3, 1, 16}}) {
    CAPTURE(shape.head_dim);
    CAPTURE(shape.head_count);
    CAPTURE(static_cast<int>(shape.type));
    // Alone in its page, at a page's begin, at a chunk's end and begin, padded.
    const std::vector<int32_t> lengths = {1, 65, kAttentionChunk, 0, kAttentionChunk + 1, 300};
    const auto rows = static_cast<int32_t>(lengths.size());
    const auto row_elems =
        static_cast<size_t>((shape.head_count + 2 * shape.kv_head_count) * shape.head_dim);
    const auto out_elems = static_cast<size_t>(shape.head_count * shape.head_dim);
    Buffer<Bf16> start("qkv", lengths.size() * row_elems);
    fill_normal(start.span(), 7);
    Buffer<float> norm("norm", static_cast<size_t>(shape.head_dim));
    fill_normal(norm.span(), 8);
    Buffer<Float2> rotations("rotations", lengths.size() * static_cast<size_t>(shape.head_dim / 2));
    fill_normal(std::span(&rotations.data()->x, 2 * rotations.size()), 9);
    std::vector<int32_t> lines(lengths.size());
    std::vector<int32_t> positions;
    for (const int32_t length : lengths) positions.push_back(length - 1);
    std::iota(lines.begin(), lines.end(), 0);
    const Buffer<int32_t> device_lengths("lengths", std::span(lengths));
    const Buffer<int32_t> device_lines("lines", std::span(lines));
    const Buffer<int32_t> device_positions("kv positions", std::span(positions));
    const int32_t length_max = *std::max_element(lengths.begin(), lengths.end());
    const Buffer<int32_t> item_count("item count", 1);
    const Buffer<DecodeWorkItem> items(
        "items", static_cast<size_t>(decode_work_items_max(rows, length_max)));
    require_ok(run_decode_work({rows, device_lengths.data(), device_lines.data(), length_max,
                                item_count.data(), items.data()},
                               nullptr));
    // What either way leaves: the output, then the pages.
    const auto run = [&](bool together, const Schedule& schedule, int32_t multiprocessor_count) {
      const ScheduleScope scope(schedule);
      const KvCache cache(shape, lengths);
      const Buffer<Bf16> qkv("qkv", start.span());
      PrepareQkv prepare;
      prepare.pages = cache.pages;
      prepare.layer = KvCache::kLayer;
      prepare.rows = rows;
      prepare.head_count = shape.head_count;
      prepare.qkv = qkv.data();
      prepare.q_norm = norm.data();
      prepare.k_norm = norm.data();
      prepare.eps = 1e-5F;
      prepare.rotations = rotations.data();
      prepare.rope_dims = shape.head_dim;
      prepare.kv_positions = device_positions.data();
      prepare.lines = device_lines.data();
      prepare.table = cache.table.data();
      prepare.table_stride = cache.table_stride;
      const Buffer<Bf16> out("out", lengths.size() * out_elems);
      const Buffer<std::byte> workspace(
          "workspace",
          decode_attention_workspace_bytes(cache.pages, rows, shape.head_count, length_max));
      DecodeAttention op;
      op.pages = cache.pages;
      op.layer = KvCache::kLayer;
      op.rows = rows;
      op.head_count = shape.head_count;
      op.q = qkv.data();
      op.q_stride = static_cast<int64_t>(row_elems);
      op.lengths = device_lengths.data();
      op.length_max = length_max;
      op.item_count = item_count.data();
      op.items = items.data();
      op.table = cache.table.data();
      op.table_stride = cache.table_stride;
      op.multiprocessor_count = multiprocessor_count;
      op.scale = 0.1F;
      op.out = out.data();
      op.workspace = workspace.data();
      if (together) {
        op.prepare = &prepare;
      } else {
        require_ok(run_prepare_qkv(prepare, nullptr));
      }
      require_ok(run_decode_attention(op, nullptr));
      const auto* bytes = reinterpret_cast<const std::byte*>(out.data());
      std::vector<std::byte> left(bytes, bytes + out.size() * sizeof(Bf16));
      left.insert(left.end(), cache.memory.span().begin(), cache.memory.span().end());
      return left;
    };
    const auto expected = run(false, {}, 132);
    for (const Schedule& schedule : schedules()) CHECK(run(true, schedule, 132) == expected);
    CHECK(run(true, {5}, 1) == expected);  // blocks have several chunks one after another
  }
}

TEST_CASE("a row alone gets the same bits as beside others, on a device of any size") {
  for (const KvType type : {KvType::kBf16, KvType::kInt8}) {
    const KvCache cache({type, 64, 4, 1, 32}, {70, 600, 5});
    const Rows rows(cache);
    const std::vector<Bf16> whole = rows.run({0, 1, 2}, {}, 1);
    for (const int32_t s : {0, 1, 2}) {
      const std::vector<Bf16> alone = rows.run({s}, {17});
      CHECK(same_bits(alone.data(), whole.data() + static_cast<size_t>(s) * alone.size(),
                      alone.size()));
    }
  }
}

TEST_CASE("rows of a negative length keep the output that they have") {
  const KvCache cache({KvType::kBf16, 64, 4, 1, 32}, {70, 600});
  const Rows rows(cache);
  const std::vector<Bf16> got = rows.run({-1, 1, -1, 0, -1});
  std::vector<Bf16> ours(got.begin() + static_cast<std::ptrdiff_t>(rows.row_elems),
                         got.begin() + static_cast<std::ptrdiff_t>(2 * rows.row_elems));
  CHECK(difference(std::span(ours), rows.expected({1})) < 2 * kBf16Step);
  for (const size_t r : {0, 2, 4}) {
    for (size_t i = 0; i < rows.row_elems; ++i) CHECK(got[r * rows.row_elems + i].bits == 0xFFFF);
  }
}

TEST_CASE("the list of work names each chunk of each row once, in order") {
  std::vector<int32_t> lengths(600, -1);  // more rows than the kernel has threads
  std::vector<int32_t> lines(600);
  std::mt19937 random(4);
  std::vector<DecodeWorkItem> expected;
  for (int32_t r = 0; r < 600; ++r) {
    lines[static_cast<size_t>(r)] = 1000 + r;
    auto& length = lengths[static_cast<size_t>(r)];
    length = static_cast<int32_t>(random() % 3000) - 2000;
    if (length == 0) expected.push_back({r, 0, 0, 1000 + r});
    for (int32_t p = 0; p < length; p += kAttentionChunk) {
      expected.push_back({r, p, length, 1000 + r});
    }
  }
  const Buffer<int32_t> device_lengths("lengths", std::span(lengths));
  const Buffer<int32_t> device_lines("lines", std::span(lines));
  const Buffer<int32_t> count("count", 1);
  const Buffer<DecodeWorkItem> items("items", expected.size());
  for (const Schedule& schedule : schedules()) {
    const ScheduleScope scope(schedule);
    require_ok(run_decode_work(
        {600, device_lengths.data(), device_lines.data(), 1000, count.data(), items.data()},
        nullptr));
    REQUIRE(count[0] == static_cast<int32_t>(expected.size()));
    CHECK(std::memcmp(items.data(), expected.data(), expected.size() * sizeof(DecodeWorkItem)) ==
          0);
  }
}

TEST_CASE("pages beyond 2^31 bytes and elements are found") {
  for (const KvType type : {KvType::kBf16, KvType::kInt8}) {
    const CacheShape shape{type, 64, 2, 1, 16};
    const KvCache near(shape, {40});
    const auto id_first = static_cast<int32_t>((int64_t{1} << 33) / near.pages.page_bytes);
    const KvCache far(shape, {40}, id_first);
    const std::vector<Bf16> got = Rows(far).run({0});
    CHECK(same_bits(got.data(), Rows(near).run({0}).data(), got.size()));
  }
}

TEST_CASE("shapes that decode attention does not take are refused") {
  CHECK(KvPages::of(KvType::kBf16, 1, 1, 132, 16).message().find("132") != std::string::npos);
  CHECK(KvPages::of(KvType::kBf16, 1, 1, 136, 16).message().find("136") != std::string::npos);
  CHECK(KvPages::of(KvType::kBf16, 1, 1, 60, 16).message().find("60") != std::string::npos);
  CHECK(KvPages::of(KvType::kBf16, 1, 1, 64, 48).message().find("48") != std::string::npos);
  CHECK(KvPages::of(KvType::kBf16, 0, 1, 64, 16).message().find("0 layers") != std::string::npos);
  DecodeAttention op;
  op.pages = *KvPages::of(KvType::kBf16, 1, 2, 64, 16);
  op.rows = 1;
  op.head_count = 3;
  CHECK(run_decode_attention(op, nullptr).message().find("3 heads over 2") != std::string::npos);
  op.head_count = 4;
  op.length_max = 2000;
  CHECK(run_decode_attention(op, nullptr).message().find("workspace") != std::string::npos);
  CHECK(run_decode_work({}, nullptr).message().find("0 rows") != std::string::npos);
}
