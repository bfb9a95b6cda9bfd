// Norm, rotation and append against their formulas in double precision.
#include "kernels/cuda/rope.h"

#include "tests/kernels/cuda/kv_cache.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;

namespace {

struct Case {
  KvType type;
  int32_t head_dim;
  int32_t rope_dims;
  bool interleaved;
  bool normed;
};

constexpr int32_t kHeads = 3;
constexpr int32_t kKvHeads = 2;
constexpr int32_t kPageTokens = 16;
constexpr double kEps = 1e-6;

std::vector<double> rotated(std::vector<double> head, const Case& c,
                            const Buffer<float>* norm, int32_t position,
                            const Buffer<float>& frequency) {
  if (norm != nullptr) {
    double sum = 0;
    for (const double v : head) sum += v * v;
    const double factor = 1 / std::sqrt(sum / static_cast<double>(head.size()) + kEps);
    for (size_t i = 0; i < head.size(); ++i) head[i] *= factor * static_cast<double>((*norm)[i]);
  }
  std::vector<double> out = head;
  const auto pairs = static_cast<size_t>(c.rope_dims / 2);
  for (size_t i = 0; i < pairs; ++i) {
    const size_t a = c.interleaved ? 2 * i : i;
    const size_t b = c.interleaved ? 2 * i + 1 : i + pairs;
    // The angle is a float on every device: its rounding is part of the definition.
    const auto angle = static_cast<double>(static_cast<float>(position) * frequency[i]);
    out[a] = head[a] * std::cos(angle) - head[b] * std::sin(angle);
    out[b] = head[a] * std::sin(angle) + head[b] * std::cos(angle);
  }
  return out;
}

}  // namespace

TEST_CASE("rotations are magnitude times cosine and sine of position times frequency") {
  const std::vector<int32_t> positions_list = {0, 1, 4095, 131071};
  const std::vector<float> frequency_list = {1.0F, 0.1F, 0.001F};
  const Buffer<int32_t> positions("positions", std::span(positions_list));
  const Buffer<float> frequency("frequency", std::span(frequency_list));
  Buffer<Float2> out("out", 12);
  require_ok(
      run_rope_table({4, 3, positions.data(), frequency.data(), 1.5F, out.data(), {}}, nullptr));
  for (size_t r = 0; r < 4; ++r) {
    for (size_t i = 0; i < 3; ++i) {
      const auto angle =
          static_cast<double>(static_cast<float>(positions_list[r]) * frequency_list[i]);
      CHECK(static_cast<double>(out[r * 3 + i].x) ==
            doctest::Approx(1.5 * std::cos(angle)).epsilon(1e-6));
      CHECK(static_cast<double>(out[r * 3 + i].y) ==
            doctest::Approx(1.5 * std::sin(angle)).epsilon(1e-6));
    }
  }
}

TEST_CASE("q is normed and rotated in place, k and v go to their slots and nowhere else") {
  for (const Case& c :
       {Case{KvType::kBf16, 128, 128, false, true}, Case{KvType::kBf16, 64, 32, true, false},
        Case{KvType::kInt8, 128, 64, true, true}, Case{KvType::kInt8, 64, 64, false, false},
        Case{KvType::kBf16, 64, 48, false, true}, Case{KvType::kFp8, 128, 128, false, true},
        Case{KvType::kFp8, 64, 64, true, false}, Case{KvType::kBf16, 8, 8, false, true},
        Case{KvType::kInt8, 80, 40, false, true}, Case{KvType::kFp8, 96, 96, true, true}}) {
    CAPTURE(c.head_dim);
    CAPTURE(c.rope_dims);
    const auto dim = static_cast<size_t>(c.head_dim);
    const std::vector<int32_t> positions = {7, 100, 3, 31};     // of the rotation
    const std::vector<int32_t> kv_positions = {7, 40, -1, 31};  // the third row is padding
    const std::vector<int32_t> sequences = {0, 1, -1, 0};
    const std::vector<int32_t> table_list = {4, 1, 0, 2, 5, 3};  // [2, 3]
    constexpr size_t kRows = 4;
    constexpr size_t kAllHeads = kHeads + 2 * kKvHeads;

    KvPages pages = *KvPages::of(c.type, 2, kKvHeads, c.head_dim, kPageTokens);
    Buffer<Bf16> start("qkv", kRows * kAllHeads * dim);
    Buffer<float> q_norm("q norm", dim);
    Buffer<float> k_norm("k norm", dim);
    Buffer<float> frequency("frequency", static_cast<size_t>(c.rope_dims / 2));
    fill_normal(start.span(), 21);
    fill_normal(q_norm.span(), 22);
    fill_normal(k_norm.span(), 23);
    for (size_t i = 0; i < frequency.size(); ++i) {
      frequency[i] =
          std::pow(10000.0F, -static_cast<float>(i) / static_cast<float>(frequency.size()));
    }
    const Buffer<int32_t> device_positions("positions", std::span(positions));
    const Buffer<int32_t> device_kv_positions("kv positions", std::span(kv_positions));
    const Buffer<int32_t> device_sequences("sequences", std::span(sequences));
    const Buffer<int32_t> table("table", std::span(table_list));
    Buffer<Float2> rotations("rotations", kRows * frequency.size());
    require_ok(run_rope_table({kRows,
                               c.rope_dims / 2,
                               device_positions.data(),
                               frequency.data(),
                               1.0F,
                               rotations.data(),
                               {}},
                              nullptr));

    for (const Schedule& schedule : schedules()) {
      const ScheduleScope scope(schedule);
      Buffer<Bf16> qkv("qkv", start.span());
      Buffer<std::byte> memory("pages", static_cast<size_t>(pages.page_bytes) * 6);
      pages.base = memory.data();
      PrepareQkv op;
      op.pages = pages;
      op.layer = 1;
      op.rows = kRows;
      op.head_count = kHeads;
      op.qkv = qkv.data();
      op.q_norm = c.normed ? q_norm.data() : nullptr;
      op.k_norm = c.normed ? k_norm.data() : nullptr;
      op.eps = static_cast<float>(kEps);
      op.rotations = rotations.data();
      op.rope_dims = c.rope_dims;
      op.interleaved = c.interleaved;
      op.kv_positions = device_kv_positions.data();
      op.lines = device_sequences.data();
      op.table = table.data();
      op.table_stride = 3;
      require_ok(run_prepare_qkv(op, nullptr));

      std::vector<bool> written(memory.size());
      for (size_t r = 0; r < kRows; ++r) {
        for (size_t h = 0; h < kAllHeads; ++h) {
          const size_t at = (r * kAllHeads + h) * dim;
          std::vector<double> head;
          for (size_t d = 0; d < dim; ++d)
            head.push_back(static_cast<double>(value(start[at + d])));
          const bool is_q = h < kHeads;
          const bool is_v = h >= kHeads + kKvHeads;
          const Buffer<float>* norm = !c.normed ? nullptr : is_q ? &q_norm : &k_norm;
          if (!is_v) head = rotated(head, c, norm, positions[r], frequency);
          if (c.type == KvType::kInt8) hadamard(head, c.head_dim & -c.head_dim);
          if (is_q) {
            if (c.type == KvType::kInt8) {
              for (double& v : head) v /= c.head_dim & -c.head_dim;
            }
            CHECK(difference(std::span<Bf16>(qkv.data() + at, dim), head) < kBf16Step);
            continue;
          }
          CHECK(std::memcmp(qkv.data() + at, start.data() + at, dim * 2) == 0);
          if (kv_positions[r] < 0) continue;
          const auto page = static_cast<int64_t>(
              table_list[static_cast<size_t>(sequences[r] * 3 + kv_positions[r] / kPageTokens)]);
          const int64_t slot = kv_positions[r] % kPageTokens;
          const auto kv_head = static_cast<int64_t>(h) - kHeads - (is_v ? kKvHeads : 0);
          const int64_t layer = page * pages.page_bytes + pages.layer_bytes;
          const int64_t row_bytes = pages.head_bytes / kPageTokens;
          head.resize(static_cast<size_t>(pages.padded_dim));
          const int64_t bytes =
              layer + (is_v ? pages.v_offset : 0) + kv_head * pages.head_bytes + slot * row_bytes;
          for (int64_t b = 0; b < row_bytes; ++b) written[static_cast<size_t>(bytes + b)] = true;
          if (c.type == KvType::kBf16) {
            const auto* stored = reinterpret_cast<Bf16*>(memory.data() + bytes);
            CHECK(difference(std::span(stored, head.size()), head) < kBf16Step);
            continue;
          }
          const int64_t scale_at = layer + (is_v ? pages.v_scale_offset : pages.k_scale_offset) +
                                   (kv_head * kPageTokens + slot) * 4;
          for (int64_t b = 0; b < 4; ++b) written[static_cast<size_t>(scale_at + b)] = true;
          float scale = 0;
          std::memcpy(&scale, memory.data() + scale_at, 4);
          double largest = 0;
          for (const double v : head) largest = std::max(largest, std::abs(v));
          const bool int8 = c.type == KvType::kInt8;
          const double step = largest / (int8 ? 127 : 448);
          CHECK(static_cast<double>(scale) == doctest::Approx(step).epsilon(1e-5));
          for (size_t d = 0; d < head.size(); ++d) {
            const auto byte = static_cast<uint8_t>(memory[static_cast<size_t>(bytes) + d]);
            const double number = int8 ? static_cast<int8_t>(byte) : fp8_value(byte);
            // Half a step; fp8's grow with the number, 16 to the power of two.
            const double room =
                int8 ? 0.501
                     : 0.0005 + std::max(0x1p-10, std::exp2(std::floor(
                                                      std::log2(std::abs(head[d]) / step + 1e-9))) /
                                                      16);
            CHECK(std::abs(number * step - head[d]) <= room * step);
          }
        }
      }
      int elsewhere = 0;
      for (size_t i = 0; i < memory.size(); ++i) {
        elsewhere += !written[i] && memory[i] != std::byte{0xFF} ? 1 : 0;
      }
      CHECK(elsewhere == 0);
    }
  }
}

TEST_CASE("pairs of three sections turn by three positions") {
  const std::vector<int32_t> positions_list = {3, 4, 70, 80, 900, 1000};  // [3, 2]
  const std::vector<float> frequency_list = {1.0F, 0.5F, 0.25F, 0.1F, 0.05F, 0.01F};
  const Buffer<int32_t> positions("positions", std::span(positions_list));
  const Buffer<float> frequency("frequency", std::span(frequency_list));
  Buffer<Float2> out("out", 12);
  RopeTable op{2, 6, positions.data(), frequency.data(), 1.0F, out.data(), {1, 2, 3}};
  require_ok(run_rope_table(op, nullptr));
  const size_t axis[6] = {0, 1, 1, 2, 2, 2};
  for (size_t r = 0; r < 2; ++r) {
    for (size_t i = 0; i < 6; ++i) {
      const auto angle = static_cast<double>(static_cast<float>(positions_list[axis[i] * 2 + r]) *
                                             frequency_list[i]);
      CHECK(static_cast<double>(out[r * 6 + i].x) == doctest::Approx(std::cos(angle)));
      CHECK(static_cast<double>(out[r * 6 + i].y) == doctest::Approx(std::sin(angle)));
    }
  }
  op.sections[2] = 4;
  CHECK(run_rope_table(op, nullptr).message().find("7 pairs in sections, 6 in all") !=
        std::string::npos);
}

TEST_CASE("a rotation wider than the head is refused with its value") {
  PrepareQkv op;
  op.pages = *KvPages::of(KvType::kBf16, 1, 1, 64, 16);
  op.rows = 1;
  op.head_count = 1;
  op.rope_dims = 66;
  CHECK(run_prepare_qkv(op, nullptr).message().find("66 rotated dimensions of 64") !=
        std::string::npos);
}
