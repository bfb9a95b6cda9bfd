// Decode attention against softmax(q k) v in double precision over the same pages.
#include "kernels/cuda/decode_attention.h"

#include <cstring>
#include <numeric>

#include "tests/kernels/cuda/support.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;

namespace {

struct Case {
  KvType type;
  int32_t head_dim;
  int32_t head_count;
  int32_t kv_head_count;
  int32_t page_tokens;
};

// Pages that hold the keys and values of some sequences, everything else NaN.
struct Cache {
  Case shape;
  KvPages pages;
  std::vector<int32_t> lengths;
  int32_t table_stride;
  simt::Buffer<std::byte> memory;
  simt::Buffer<int32_t> table;
  simt::Buffer<Bf16> q;
  std::vector<std::vector<double>>
      keys;  // [sequence][(position * kv_head_count + head) * head_dim + dim]
  std::vector<std::vector<double>> values;

  static constexpr int32_t kLayer = 1;

  Cache(const Case& shape, const std::vector<int32_t>& lengths)
      : shape(shape),
        pages(*KvPages::of(shape.type, 2, shape.kv_head_count, shape.head_dim, shape.page_tokens)),
        lengths(lengths),
        table_stride((*std::max_element(lengths.begin(), lengths.end()) + shape.page_tokens - 1) /
                         shape.page_tokens +
                     1),
        memory("pages", static_cast<size_t>(pages.page_bytes) * page_count()),
        table("table", lengths.size() * static_cast<size_t>(table_stride)),
        q("q", lengths.size() * static_cast<size_t>(shape.head_count * shape.head_dim)) {
    pages.base = memory.data();
    fill_normal(q.span(), 5);
    std::mt19937 random(9);
    std::normal_distribution<float> normal;
    std::vector<int32_t> order(page_count());
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    size_t next = 0;
    for (size_t s = 0; s < lengths.size(); ++s) {
      keys.emplace_back();
      values.emplace_back();
      for (int32_t p = 0; p < lengths[s]; ++p) {
        int32_t& page = table[s * static_cast<size_t>(table_stride) +
                              static_cast<size_t>(p / shape.page_tokens)];
        if (p % shape.page_tokens == 0) page = order[next++];
        for (int32_t h = 0; h < shape.kv_head_count; ++h) {
          std::vector<float> head(static_cast<size_t>(shape.head_dim));
          for (float& v : head) v = normal(random);
          write(page, h, p % shape.page_tokens, head, 0, pages.k_scale_offset, keys.back());
          for (float& v : head) v = normal(random) + 0.5F;
          write(page, h, p % shape.page_tokens, head, pages.v_offset, pages.v_scale_offset,
                values.back());
        }
      }
    }
  }

  size_t page_count() const {
    size_t count = 3;
    for (const int32_t length : lengths) {
      count += static_cast<size_t>((length + shape.page_tokens - 1) / shape.page_tokens);
    }
    return count;
  }

  void write(int32_t page, int32_t head, int32_t slot, const std::vector<float>& in,
             int64_t part_offset, int64_t scale_offset, std::vector<double>& exact) {
    std::byte* layer = memory.data() + page * pages.page_bytes + kLayer * pages.layer_bytes;
    std::byte* at =
        layer + part_offset + head * pages.head_bytes + slot * pages.head_bytes / shape.page_tokens;
    if (shape.type == KvType::kBf16) {
      for (const float v : in) {
        const uint16_t bits = float_to_bf16(v);
        std::memcpy(at, &bits, 2);
        at += 2;
        exact.push_back(static_cast<double>(bf16_to_float(bits)));
      }
      return;
    }
    float largest = 0;
    for (const float v : in) largest = std::max(largest, std::abs(v));
    const float scale = largest / 127;
    std::memcpy(layer + scale_offset + (head * shape.page_tokens + slot) * 4, &scale, 4);
    for (const float v : in) {
      const auto byte = static_cast<int8_t>(std::lround(v / scale));
      *at++ = static_cast<std::byte>(byte);
      exact.push_back(static_cast<double>(byte) * static_cast<double>(scale));
    }
  }

  std::vector<double> expected() const {
    std::vector<double> out;
    const auto dim = static_cast<size_t>(shape.head_dim);
    for (size_t s = 0; s < lengths.size(); ++s) {
      for (int32_t h = 0; h < shape.head_count; ++h) {
        const auto kv = static_cast<size_t>(h / (shape.head_count / shape.kv_head_count));
        std::vector<double> scores;
        for (int32_t p = 0; p < lengths[s]; ++p) {
          double score = 0;
          for (size_t d = 0; d < dim; ++d) {
            score +=
                static_cast<double>(value(
                    q[(s * static_cast<size_t>(shape.head_count) + static_cast<size_t>(h)) * dim +
                      d])) *
                keys[s][(static_cast<size_t>(p * shape.kv_head_count) + kv) * dim + d];
          }
          scores.push_back(score / std::sqrt(static_cast<double>(dim)));
        }
        const double top = scores.empty() ? 0 : *std::max_element(scores.begin(), scores.end());
        double weight = 0;
        std::vector<double> sum(dim);
        for (size_t p = 0; p < scores.size(); ++p) {
          const double w = std::exp(scores[p] - top);
          weight += w;
          for (size_t d = 0; d < dim; ++d) {
            sum[d] += w * values[s][(p * static_cast<size_t>(shape.kv_head_count) + kv) * dim + d];
          }
        }
        for (const double v : sum) out.push_back(scores.empty() ? 0.0 : v / weight);
      }
    }
    return out;
  }

  // The rows `which` in one launch.
  std::vector<Bf16> run(const std::vector<int32_t>& which,
                        const simt::Schedule& schedule = {}) const {
    const simt::ScheduleScope scope(schedule);
    const auto row_elems = static_cast<size_t>(shape.head_count * shape.head_dim);
    simt::Buffer<Bf16> rows_q("rows q", which.size() * row_elems);
    simt::Buffer<int32_t> rows_length("lengths", which.size());
    simt::Buffer<int32_t> rows_sequence("sequences", which.size());
    int32_t length_max = 0;
    for (size_t i = 0; i < which.size(); ++i) {
      const auto s = static_cast<size_t>(which[i]);
      std::copy_n(q.data() + s * row_elems, row_elems, rows_q.data() + i * row_elems);
      rows_length[i] = lengths[s];
      rows_sequence[i] = lengths[s] == 0 ? -1 : which[i];  // a padded row has no sequence
      length_max = std::max(length_max, lengths[s]);
    }
    const auto rows = static_cast<int32_t>(which.size());
    simt::Buffer<Bf16> out("out", which.size() * row_elems);
    simt::Buffer<std::byte> workspace(
        "workspace",
        decode_attention_workspace_bytes(rows, shape.head_count, shape.head_dim, length_max));
    DecodeAttention op;
    op.pages = pages;
    op.layer = kLayer;
    op.rows = rows;
    op.head_count = shape.head_count;
    op.q = rows_q.data();
    op.q_stride = shape.head_count * shape.head_dim;
    op.lengths = rows_length.data();
    op.sequences = rows_sequence.data();
    op.table = table.data();
    op.table_stride = table_stride;
    op.length_max = length_max;
    op.scale = 1.0F / std::sqrt(static_cast<float>(shape.head_dim));
    op.out = out.data();
    op.workspace = workspace.data();
    require_ok(run_decode_attention(op, nullptr));
    return {out.span().begin(), out.span().end()};
  }
};

constexpr Case kCases[] = {
    {KvType::kBf16, 64, 4, 2, 16},   {KvType::kBf16, 128, 16, 1, 64},
    {KvType::kBf16, 64, 20, 1, 32},  // two tiles of heads, the second one a quarter full
    {KvType::kInt8, 64, 4, 2, 16},   {KvType::kInt8, 128, 7, 1, 32},
    {KvType::kInt8, 128, 3, 3, 256},
};

bool same_bits(const Bf16* a, const Bf16* b, size_t count) {
  return std::memcmp(a, b, count * sizeof(Bf16)) == 0;
}

}  // namespace

TEST_CASE("decode attention equals softmax in double precision, whatever the schedule") {
  for (const Case& shape : kCases) {
    CAPTURE(shape.head_dim);
    CAPTURE(shape.head_count);
    CAPTURE(static_cast<int>(shape.type));
    const Cache cache(shape, {1, 0, 17, 64, 129, 200});
    for (const simt::Schedule& schedule : schedules()) {
      std::vector<Bf16> got = cache.run({0, 1, 2, 3, 4, 5}, schedule);
      CHECK(difference(std::span(got), cache.expected()) < 2 * kBf16Step);
      const auto row = static_cast<size_t>(shape.head_count * shape.head_dim);
      for (size_t i = row; i < 2 * row; ++i) CHECK(got[i].bits == 0);  // the padded row
    }
  }
}

TEST_CASE("a sequence of several chunks is joined from its parts") {
  for (const KvType type : {KvType::kBf16, KvType::kInt8}) {
    const Cache cache({type, 64, 2, 1, 64}, {1024, 1025, 2300});
    std::vector<Bf16> got = cache.run({0, 1, 2});
    CHECK(difference(std::span(got), cache.expected()) < 2 * kBf16Step);
  }
}

TEST_CASE("a row alone gets the same bits as beside others") {
  for (const KvType type : {KvType::kBf16, KvType::kInt8}) {
    const Cache cache({type, 64, 4, 1, 32}, {70, 1100, 5});
    const std::vector<Bf16> whole = cache.run({0, 1, 2});
    for (const int32_t s : {0, 1, 2}) {
      const std::vector<Bf16> alone = cache.run({s}, {17});
      CHECK(same_bits(alone.data(), whole.data() + static_cast<size_t>(s) * alone.size(),
                      alone.size()));
    }
  }
}

TEST_CASE("shapes that decode attention does not take are refused") {
  CHECK(KvPages::of(KvType::kBf16, 1, 1, 80, 16).message().find("80") != std::string::npos);
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
}
