// mbarrier objects, bulk copies and wgmma: each against its definition, then a small kernel with
// all of them, once as it should be and once with each bug planted.
#include "kernels/simt/hopper_ops.h"

#include <doctest/doctest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "kernels/quant/quant.h"

using namespace updraft;
using namespace updraft::simt;

namespace {

constexpr LaunchShape kOneGroup{{1, 1, 1}, {128, 1, 1}, 64 << 10};

std::vector<Schedule> schedules() {
  std::vector<Schedule> all;
  for (uint64_t seed = 1; seed <= 16; ++seed) {
    all.push_back({seed, seed % 2 == 0 ? Landing::kAtIssue : Landing::kAtWait});
  }
  return all;
}

// The next multiple of 1,024 of the shared window.
std::byte* aligned(std::byte* at) { return at + (1024 - shared_address(at) % 1024) % 1024; }

// "Matrix descriptor": K-major with 128-byte swizzling, 1,024 bytes from 8 rows to the next.
uint64_t descriptor(uint32_t address, uint32_t stride_bytes = 1024, uint64_t swizzling = 1) {
  return (address >> 4 & 0x3FFFU) | uint64_t{stride_bytes >> 4} << 32 | swizzling << 62;
}

TensorMap map_of(const Buffer<uint16_t>& matrix, uint64_t rows, uint64_t cols, uint32_t box_rows) {
  TensorMap map;
  map.data = reinterpret_cast<const std::byte*>(matrix.data());
  map.rows = rows;
  map.cols = cols;
  map.row_bytes = cols * 2;
  map.box_cols = 64;
  map.box_rows = box_rows;
  return map;
}

uint16_t encode(bool is_f16, float value) {
  return is_f16 ? float_to_half(value) : float_to_bf16(value);
}
uint32_t pair_of(const uint16_t* two) { return two[0] | static_cast<uint32_t>(two[1]) << 16; }

}  // namespace

TEST_CASE("a phase ends with the last arrival and the last byte, and the next begins") {
  for (const Schedule& schedule : schedules()) {
    Buffer<uint32_t> source("source", 64);
    for (uint32_t i = 0; i < 64; ++i) source[i] = i;
    std::vector<uint32_t> seen;
    int arrived = 0;
    const Result<void> ran = launch({{1, 1, 1}, {64, 1, 1}, 512}, schedule, [&] {
      auto* barrier = dynamic_shared<uint64_t>();
      auto* data = dynamic_shared<uint32_t>() + 4;
      if (thread_x() == 0) {
        init_barrier(barrier, 33);
        publish_barriers();
      }
      sync_block();
      for (uint32_t phase = 0; phase < 3; ++phase) {
        if (thread_x() == 0) {
          arrive_expecting(barrier, 256);
          copy_bulk(data, source.data(), 128, barrier);
          copy_bulk(data + 32, source.data() + 32, 128, barrier);
        }
        if (thread_x() >= 32) {
          ++arrived;
          arrive_at(barrier);
        }
        CHECK(wait_phase(barrier, phase % 2));
        CHECK(arrived == 32 * (static_cast<int>(phase) + 1));
        if (thread_x() == 63) seen.assign(data, data + 64);
        sync_block();
        if (thread_x() == 0) std::fill_n(data, 64, 7U);
        sync_block();
      }
    });
    REQUIRE_MESSAGE(ran.ok(), ran.message());
    CHECK(seen == std::vector<uint32_t>(source.span().begin(), source.span().end()));
  }
}

TEST_CASE("a box lies in swizzled rows of 128 bytes, with zeros beyond the matrix") {
  // 70 columns, 11 rows; the box at (64, 8) has 6 columns and 3 rows of them.
  Buffer<uint16_t> matrix("matrix", 72 * 11);
  for (size_t i = 0; i < matrix.size(); ++i) matrix[i] = static_cast<uint16_t>(i + 1);
  TensorMap map = map_of(matrix, 11, 70, 16);
  map.row_bytes = 144;
  for (const Schedule& schedule : schedules()) {
    std::vector<uint16_t> box(16 * 64);
    const Result<void> ran = launch({{1, 1, 1}, {32, 1, 1}, 8192}, schedule, [&] {
      std::byte* to =
          aligned(dynamic_shared<std::byte>() + 64) + 256;  // row 0 is row 2 of a pattern
      auto* barrier = dynamic_shared<uint64_t>();
      if (thread_x() == 0) {
        init_barrier(barrier, 1);
        publish_barriers();
        arrive_expecting(barrier, 16 * 128);
        copy_box(to, &map, 64, 8, barrier);
        CHECK(wait_phase(barrier, 0));
        std::memcpy(box.data(), to, box.size() * 2);
      }
    });
    REQUIRE_MESSAGE(ran.ok(), ran.message());
    int wrong = 0;
    for (size_t r = 0; r < 16; ++r) {
      for (size_t c = 0; c < 64; ++c) {
        const size_t unit = c / 8 ^ (r + 2) % 8;
        const uint16_t expected =
            r < 3 && c < 6 ? static_cast<uint16_t>((8 + r) * 72 + 64 + c + 1) : uint16_t{0};
        wrong += box[r * 64 + unit * 8 + c % 8] == expected ? 0 : 1;
      }
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("copies that leave their buffer or are not aligned are reported") {
  Buffer<uint16_t> matrix("matrix", 64 * 8);
  TensorMap map = map_of(matrix, 9, 64, 16);  // one row more than there is
  const auto error_of = [&](int which) {
    return launch({{1, 1, 1}, {32, 1, 1}, 8192}, {1},
                  [&, which] {
                    auto* barrier = dynamic_shared<uint64_t>();
                    std::byte* to = aligned(dynamic_shared<std::byte>() + 64);
                    if (thread_x() != 0) return;
                    init_barrier(barrier, 1);
                    publish_barriers();
                    arrive_expecting(barrier, 2048);
                    if (which == 0) copy_box(to, &map, 0, 0, barrier);
                    if (which == 1) copy_box(to + 64, &map, 0, 0, barrier);
                    if (which == 2) copy_bulk(to, matrix.data() + 8, 1024, barrier);
                    if (which == 3) copy_bulk(to, matrix.data() + 4, 64, barrier);
                    if (which == 4) copy_bulk(to, matrix.data(), 24, barrier);
                  })
        .message();
  };
  const std::vector<std::string> expected = {"'matrix'", "no multiple of 128", "'matrix'",
                                             "is not aligned", "24 bytes"};
  for (int which = 0; which < 5; ++which) {
    const std::string error = error_of(which);
    CHECK_MESSAGE(error.find(expected[static_cast<size_t>(which)]) != std::string::npos, error);
  }
}

namespace {

// sums + a * b of 64 x 16 by 16 x Columns, A from registers or by descriptor; operands at the third
// step of their rows of 64.
template <int Columns>
void check_product(bool is_f16, bool a_in_registers, const Schedule& schedule) {
  CAPTURE(Columns);
  std::mt19937 random(3);
  std::uniform_int_distribution<int> small(-7, 7);
  Buffer<uint16_t> a("a", 64 * 64);
  Buffer<uint16_t> b("b", Columns * 64);
  for (uint16_t& v : a.span()) v = encode(is_f16, static_cast<float>(small(random)));
  for (uint16_t& v : b.span()) v = encode(is_f16, static_cast<float>(small(random)));
  const TensorMap a_map = map_of(a, 64, 64, 64);
  const TensorMap b_map = map_of(b, Columns, 64, Columns);
  std::vector<float> got(64 * Columns, NAN);
  const Result<void> ran = launch(kOneGroup, schedule, [&] {
    auto* barrier = dynamic_shared<uint64_t>();
    std::byte* a_tile = aligned(dynamic_shared<std::byte>() + 64);
    std::byte* b_tile = a_tile + 64 * 128;
    if (thread_x() == 0) {
      init_barrier(barrier, 1);
      publish_barriers();
      arrive_expecting(barrier, (64 + Columns) * 128);
      copy_box(a_tile, &a_map, 0, 0, barrier);
      copy_box(b_tile, &b_map, 0, 0, barrier);
    }
    sync_block();
    wait_phase(barrier, 0);
    const uint32_t warp = thread_x() / 32;
    const uint32_t g = own_lane() / 4;
    const uint32_t t = own_lane() % 4;
    float sums[Columns / 2];
    for (float& sum : sums) sum = 5.0F;
    uint32_t registers[4];
    for (uint32_t j = 0; j < 4; ++j) {
      const size_t row = 16 * warp + g + j % 2 * 8;
      registers[j] = pair_of(a.data() + row * 64 + 32 + 2 * t + j / 2 * 8);
    }
    const uint64_t a_matrix = descriptor(shared_address(a_tile) + 64);
    const uint64_t b_matrix = descriptor(shared_address(b_tile) + 64);
    group_fence();
    for (int twice = 0; twice < 2; ++twice) {
      if (is_f16) {
        if (a_in_registers) group_mma_f16(sums, registers, b_matrix);
        if (!a_in_registers) group_mma_f16(sums, a_matrix, b_matrix);
      } else {
        if (a_in_registers) group_mma_bf16(sums, registers, b_matrix);
        if (!a_in_registers) group_mma_bf16(sums, a_matrix, b_matrix);
      }
    }
    group_commit();
    CHECK(std::isnan(sums[0]));
    group_wait<0>();
    for (uint32_t i = 0; i < Columns / 2; ++i) {
      const size_t row = 16 * warp + g + i / 2 % 2 * 8;
      got[row * Columns + i / 4 * 8 + 2 * t + i % 2] = sums[i];
    }
  });
  REQUIRE_MESSAGE(ran.ok(), ran.message());
  const auto value = [&](uint16_t bits) {
    return is_f16 ? half_to_float(bits) : bf16_to_float(bits);
  };
  int wrong = 0;
  for (size_t r = 0; r < 64; ++r) {
    for (size_t n = 0; n < Columns; ++n) {
      float sum = 0;
      for (size_t k = 32; k < 48; ++k) sum += value(a[r * 64 + k]) * value(b[n * 64 + k]);
      wrong += got[r * Columns + n] == 5.0F + 2 * sum ? 0 : 1;
    }
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("wgmma multiplies 64 rows by any number of columns in the layouts of the PTX ISA") {
  for (const bool is_f16 : {false, true}) {
    for (const bool a_in_registers : {false, true}) {
      CAPTURE(is_f16);
      CAPTURE(a_in_registers);
      check_product<8>(is_f16, a_in_registers, {1});
      check_product<64>(is_f16, a_in_registers, {2, Landing::kAtIssue});
      check_product<256>(is_f16, a_in_registers, {3});
    }
  }
}

TEST_CASE("a wgmma cuts off what a float does not hold") {
  // 16 * 1.5 * 2^-28 on 1: the nearest float is the next one above 1.
  Buffer<uint16_t> b("b", 8 * 64);
  for (uint16_t& v : b.span()) v = float_to_bf16(1.5F * 0x1p-28F);
  const TensorMap map = map_of(b, 8, 64, 8);
  const uint32_t one = uint32_t{float_to_bf16(1.0F)} * 0x10001U;
  int wrong = 0;
  const Result<void> ran = launch(kOneGroup, {1}, [&] {
    auto* barrier = dynamic_shared<uint64_t>();
    std::byte* tile = aligned(dynamic_shared<std::byte>() + 64);
    if (thread_x() == 0) {
      init_barrier(barrier, 1);
      publish_barriers();
      arrive_expecting(barrier, 8 * 128);
      copy_box(tile, &map, 0, 0, barrier);
    }
    sync_block();
    wait_phase(barrier, 0);
    const uint32_t a[4] = {one, one, one, one};
    float sums[4] = {1.0F, 1.0F, 1.0F, 1.0F};
    group_fence();
    group_mma_bf16(sums, a, descriptor(shared_address(tile)));
    group_commit();
    group_wait<0>();
    for (const float sum : sums) wrong += sum == 1.0F ? 0 : 1;
  });
  REQUIRE_MESSAGE(ran.ok(), ran.message());
  CHECK(wrong == 0);
}

TEST_CASE("a product finds what threads wrote before a fence between them and it") {
  const uint32_t one = uint32_t{float_to_bf16(1.0F)} * 0x10001U;
  for (const bool fenced : {true, false}) {
    int sixteens = 0;
    const Result<void> ran = launch(kOneGroup, {1}, [&] {
      std::byte* tile = aligned(dynamic_shared<std::byte>());
      for (uint32_t i = thread_x(); i < 8 * 64 / 2; i += 128) {
        std::memcpy(tile + 4 * i, &one, sizeof one);
      }
      if (fenced) fence_async();
      sync_block();
      const uint32_t a[4] = {one, one, one, one};
      float sums[4] = {};
      group_fence();
      group_mma_bf16(sums, a, descriptor(shared_address(tile)));
      group_commit();
      group_wait<0>();
      for (const float sum : sums) sixteens += sum == 16.0F ? 1 : 0;
    });
    REQUIRE_MESSAGE(ran.ok(), ran.message());
    CHECK(sixteens == (fenced ? 512 : 0));
  }
}

TEST_CASE("groups that want registers which the block does not have are reported") {
  const LaunchShape three{{1, 1, 1}, {384, 1, 1}, 0};
  const auto error_of = [](const LaunchShape& shape, const std::function<void()>& kernel) {
    return launch(shape, {1}, kernel).message();
  };
  const Result<void> fits = launch(three, {1}, [] {
    if (thread_x() >= 256) {
      fewer_registers<40>();
    } else {
      more_registers<232>();
    }
  });
  CHECK_MESSAGE(fits.ok(), fits.message());
  CHECK(error_of(three, [] {
          if (thread_x() >= 256) {
            fewer_registers<48>();
          } else {
            more_registers<232>();
          }
        }).find("want 65536 registers of 64512") != std::string::npos);
  CHECK(error_of(three, [] { fewer_registers<176>(); }).find("from 168 to 176") !=
        std::string::npos);
  CHECK(error_of(three, [] { more_registers<160>(); }).find("from 168 to 160") !=
        std::string::npos);
  CHECK(error_of(three, [] {
          if (thread_x() < 32) fewer_registers<40>();
        }).find("of its group") != std::string::npos);
  CHECK(error_of({{1, 1, 1}, {96, 1, 1}, 0}, [] {
          fewer_registers<40>();
        }).find("fewer than 128 threads") != std::string::npos);
}

TEST_CASE("a phase of more bytes than an mbarrier counts, and no parity, are reported") {
  const auto error_of = [](const std::function<void(uint64_t*)>& use) {
    return launch({{1, 1, 1}, {1, 1, 1}, 64}, {1},
                  [&] {
                    auto* barrier = dynamic_shared<uint64_t>();
                    init_barrier(barrier, 2);
                    use(barrier);
                  })
        .message();
  };
  CHECK(error_of([](uint64_t* barrier) {
          arrive_expecting(barrier, 1U << 20);
        }).find("lacks 1048576 bytes") != std::string::npos);
  CHECK(error_of([](uint64_t* barrier) { wait_phase(barrier, 2); }).find("parity 2") !=
        std::string::npos);
}

TEST_CASE("a transposed matrix has its columns in rows of 64, those beyond in the next rows") {
  // b [k][n] of 64 x 128, in two boxes of 64 columns; the product takes k = 32 .. 47.
  std::mt19937 random(4);
  std::uniform_int_distribution<int> small(-7, 7);
  Buffer<uint16_t> b("b", 64 * 128);
  for (uint16_t& v : b.span()) v = float_to_bf16(static_cast<float>(small(random)));
  const TensorMap map = map_of(b, 64, 128, 64);
  for (const uint32_t leading_bytes : {8192U, 4096U}) {
    std::vector<float> got(64 * 128, NAN);
    const Result<void> ran = launch(kOneGroup, {1}, [&] {
      auto* barrier = dynamic_shared<uint64_t>();
      std::byte* tile = aligned(dynamic_shared<std::byte>() + 64);
      if (thread_x() == 0) {
        init_barrier(barrier, 1);
        publish_barriers();
        arrive_expecting(barrier, 2 * 64 * 128);
        copy_box(tile, &map, 0, 0, barrier);
        copy_box(tile + 8192, &map, 64, 0, barrier);
      }
      sync_block();
      wait_phase(barrier, 0);
      const uint32_t warp = thread_x() / 32;
      const uint32_t g = own_lane() / 4;
      const uint32_t t = own_lane() % 4;
      float sums[64] = {};
      // a[row][k] = row + k
      uint32_t a[4];
      for (uint32_t j = 0; j < 4; ++j) {
        const auto at = static_cast<float>(16 * warp + g + j % 2 * 8 + 2 * t + j / 2 * 8);
        const uint16_t both[2] = {float_to_bf16(at), float_to_bf16(at + 1)};
        a[j] = pair_of(both);
      }
      const uint64_t matrix =
          descriptor(shared_address(tile) + 32 * 128) | uint64_t{leading_bytes >> 4} << 16;
      group_fence();
      group_mma_bf16_transposed(sums, a, matrix);
      group_commit();
      group_wait<0>();
      for (uint32_t i = 0; i < 64; ++i) {
        const size_t row = 16 * warp + g + i / 2 % 2 * 8;
        got[row * 128 + i / 4 * 8 + 2 * t + i % 2] = sums[i];
      }
    });
    REQUIRE_MESSAGE(ran.ok(), ran.message());
    int wrong = 0;
    for (size_t r = 0; r < 64; ++r) {
      for (size_t n = 0; n < 128; ++n) {
        float sum = 0;
        for (size_t k = 0; k < 16; ++k) {
          sum += static_cast<float>(r + k) * bf16_to_float(b[(32 + k) * 128 + n]);
        }
        wrong += got[r * 128 + n] == sum ? 0 : 1;
      }
    }
    CHECK((wrong == 0) == (leading_bytes == 8192));
  }
}

namespace {

enum class Bug {
  kNone,
  kNoFence,           // no wgmma.fence before a group
  kNoGroupWait,       // accumulators are read before their products are done
  kChangedOperand,    // registers of A are written while a product reads them
  kNoPhaseWait,       // the tile is read before it has landed
  kWrongParity,       // the wait is for the phase before
  kNothingExpected,   // the phase ends without its bytes
  kEarlyRelease,      // the tile is given back while products read it
  kNoReleaseWait,     // the producer fetches over tiles in use
  kWrongStride,       // descriptor: 512 bytes from 8 rows to the next
  kAddressUnshifted,  // descriptor: the start address without >> 4
  kWrongStep,         // descriptor: 16 columns are 64 bytes
  kUnaligned,         // tiles at a multiple of 128, not of 1,024
  kWrongMode,         // descriptor: no swizzling
  kNoPublishing,      // copies before the barriers are known to them
  kFewExpected,       // half of the bytes
  kMissingArrival,    // one thread does not give tiles back
  kOneWarpLess,       // a warp leaves out a product
  kForgottenWait,     // the kernel ends with products under way
  kBarrierOverwritten,
};

constexpr int kTokens = 32;
constexpr int kStages = 2;
constexpr int kTileBytes = kTokens * 128;
constexpr uint32_t kThreads = 160;  // a warpgroup that multiplies, a warp that fetches

struct Arguments {
  const TensorMap* x;       // [kTokens, 64 * tiles]
  const uint16_t* weights;  // [64, 64 * tiles]
  uint32_t tiles;
  float* y;  // [64, kTokens]
};

template <Bug kBug>
void fetch(const Arguments& in, std::byte* tiles, uint64_t* full, uint64_t* empty) {
  for (uint32_t i = 0; i < in.tiles; ++i) {
    const uint32_t stage = i % kStages;
    if (i >= kStages && kBug != Bug::kNoReleaseWait &&
        !wait_phase(empty + stage, (i / kStages - 1) % 2)) {
      return;
    }
    if (kBug == Bug::kNothingExpected) {
      arrive_at(full + stage);
    } else {
      arrive_expecting(full + stage, kBug == Bug::kFewExpected ? kTileBytes / 2 : kTileBytes);
    }
    copy_box(tiles + stage * kTileBytes, in.x, static_cast<int32_t>(64 * i), 0, full + stage);
  }
}

template <Bug kBug>
void multiply(const Arguments& in, std::byte* tiles, uint64_t* full, uint64_t* empty) {
  const uint32_t warp = thread_x() / 32;
  const uint32_t g = own_lane() / 4;
  const uint32_t t = own_lane() % 4;
  float sums[kTokens / 2] = {};
  uint32_t a[4][4];
  bool whole = true;
  for (uint32_t i = 0; i < in.tiles && whole; ++i) {
    const uint32_t stage = i % kStages;
    if (kBug != Bug::kNoPhaseWait) {
      whole = wait_phase(full + stage, (i / kStages + (kBug == Bug::kWrongParity ? 1 : 0)) % 2);
    }
    const auto load_a = [&](uint32_t step) {
      for (uint32_t j = 0; j < 4; ++j) {
        const size_t row = 16 * warp + g + j % 2 * 8;
        a[step][j] =
            pair_of(in.weights + row * 64 * in.tiles + 64 * i + 16 * step + 2 * t + j / 2 * 8);
      }
    };
    for (uint32_t step = 0; step < 4; ++step) load_a(step);
    if (kBug != Bug::kNoFence) group_fence();
    const uint32_t address = shared_address(tiles + stage * kTileBytes);
    for (uint32_t step = 0; step < 4; ++step) {
      const uint32_t at = address + step * (kBug == Bug::kWrongStep ? 64 : 32);
      uint64_t b =
          descriptor(at, kBug == Bug::kWrongStride ? 512 : 1024, kBug == Bug::kWrongMode ? 0 : 1);
      if (kBug == Bug::kAddressUnshifted) b = (b & ~uint64_t{0x3FFF}) | (at & 0x3FFFU);
      if (kBug == Bug::kOneWarpLess && warp == 2 && i == 1 && step == 3) continue;
      group_mma_bf16(sums, a[step], b);
    }
    group_commit();
    if (kBug == Bug::kChangedOperand) a[3][0] = a[3][1] = 0x3F803F80;
    if (kBug == Bug::kEarlyRelease) arrive_at(empty + stage);
    if (kBug == Bug::kNoGroupWait && i + 1 == in.tiles) {
      for (uint32_t n = 0; n < kTokens / 2; ++n) {
        in.y[(16 * warp + g + n / 2 % 2 * 8) * kTokens + n / 4 * 8 + 2 * t + n % 2] = sums[n];
      }
    }
    if (kBug != Bug::kForgottenWait) group_wait<0>();
    if (kBug == Bug::kEarlyRelease) continue;
    if (kBug == Bug::kMissingArrival && thread_x() == 77) continue;
    arrive_at(empty + stage);
  }
  if (kBug == Bug::kNoGroupWait) return;
  for (uint32_t n = 0; n < kTokens / 2; ++n) {
    const size_t row = 16 * warp + g + n / 2 % 2 * 8;
    in.y[row * kTokens + n / 4 * 8 + 2 * t + n % 2] = whole ? sums[n] : NAN;
  }
}

template <Bug kBug>
void pipelined(const Arguments& in) {
  auto* full = dynamic_shared<uint64_t>();
  uint64_t* empty = full + kStages;
  std::byte* tiles = aligned(dynamic_shared<std::byte>() + 64);
  if (kBug == Bug::kUnaligned) tiles += 128;
  if (thread_x() == 0) {
    for (int i = 0; i < kStages; ++i) {
      init_barrier(full + i, 1);
      init_barrier(empty + i, 128);
    }
    if (kBug != Bug::kNoPublishing) publish_barriers();
    if (kBug == Bug::kBarrierOverwritten) empty[0] = 0;
  }
  sync_block();
  if (thread_x() >= 128) {
    if (thread_x() == 128) fetch<kBug>(in, tiles, full, empty);
  } else {
    multiply<kBug>(in, tiles, full, empty);
  }
}

struct Outcome {
  std::string error;
  int wrong = 0;
};

template <Bug kBug>
Outcome run(Stuck stuck = Stuck::kReport) {
  constexpr uint32_t kTiles = 5;
  constexpr uint32_t kCols = 64 * kTiles;
  std::mt19937 random(5);
  std::uniform_int_distribution<int> small(-7, 7);
  Buffer<uint16_t> x("x", kTokens * kCols);
  Buffer<uint16_t> weights("weights", 64 * kCols);
  for (uint16_t& v : x.span()) v = float_to_bf16(static_cast<float>(small(random)));
  for (uint16_t& v : weights.span()) v = float_to_bf16(static_cast<float>(small(random)));
  const TensorMap map = map_of(x, kTokens, kCols, kTokens);
  Outcome out;
  for (Schedule schedule : schedules()) {
    schedule.stuck = stuck;
    Buffer<float> y("y", 64 * kTokens);
    const Arguments in{&map, weights.data(), kTiles, y.data()};
    const Result<void> ran = launch({{1, 1, 1}, {kThreads, 1, 1}, 3072 + kStages * kTileBytes},
                                    schedule, [&] { pipelined<kBug>(in); });
    if (!ran.ok()) {
      out.error = ran.message();
      return out;
    }
    for (size_t r = 0; r < 64; ++r) {
      for (size_t token = 0; token < kTokens; ++token) {
        float sum = 0;
        for (size_t k = 0; k < kCols; ++k) {
          sum += bf16_to_float(weights[r * kCols + k]) * bf16_to_float(x[token * kCols + k]);
        }
        out.wrong += y[r * kTokens + token] == sum ? 0 : 1;
      }
    }
  }
  return out;
}

template <Bug kBug>
void expect_wrong_result() {
  CAPTURE(static_cast<int>(kBug));
  const Outcome outcome = run<kBug>();
  CHECK_MESSAGE(outcome.error.empty(), outcome.error);
  CHECK(outcome.wrong > 0);
}

template <Bug kBug>
void expect_found() {
  CAPTURE(static_cast<int>(kBug));
  const Outcome outcome = run<kBug>();
  CHECK((outcome.wrong > 0 || !outcome.error.empty()));
}

template <Bug kBug>
void expect_report(const std::string& part) {
  const std::string error = run<kBug>().error;
  CHECK_MESSAGE(error.find(part) != std::string::npos,
                "'" << error << "' names no '" << part << "'");
}

}  // namespace

TEST_CASE("the pipelined product without a bug is right in every schedule") {
  const Outcome outcome = run<Bug::kNone>();
  CHECK_MESSAGE(outcome.error.empty(), outcome.error);
  CHECK(outcome.wrong == 0);
}

TEST_CASE("missing fences and waits of products change the result") {
  expect_wrong_result<Bug::kNoFence>();
  expect_wrong_result<Bug::kNoGroupWait>();
  expect_wrong_result<Bug::kChangedOperand>();
}

TEST_CASE("tiles that are overwritten while products read them change the result") {
  expect_wrong_result<Bug::kEarlyRelease>();
}

TEST_CASE("tiles that are read or fetched out of turn change the result or upset a phase") {
  expect_found<Bug::kNoPhaseWait>();
  expect_found<Bug::kWrongParity>();
  expect_found<Bug::kNothingExpected>();
  expect_found<Bug::kNoReleaseWait>();
}

TEST_CASE("wrong descriptors change the result, and one that leads astray is reported") {
  expect_wrong_result<Bug::kWrongStride>();
  expect_wrong_result<Bug::kWrongStep>();
  expect_wrong_result<Bug::kUnaligned>();
  expect_report<Bug::kAddressUnshifted>("outside shared memory");
  expect_report<Bug::kWrongMode>("swizzling mode 0");
}

TEST_CASE("barriers that are used wrongly are reported") {
  expect_report<Bug::kNoPublishing>("before publish_barriers()");
  expect_report<Bug::kFewExpected>("of an mbarrier that lacks 0 arrivals and -2048 bytes");
  expect_report<Bug::kMissingArrival>("of an mbarrier that lacks 1 arrivals and 0 bytes");
  expect_report<Bug::kBarrierOverwritten>("something was written over");
}

TEST_CASE("a wait that cannot be passed gives up when the schedule says so") {
  const Outcome outcome = run<Bug::kMissingArrival>(Stuck::kGiveUp);
  CHECK_MESSAGE(outcome.error.empty(), outcome.error);
  CHECK(outcome.wrong > 0);
}

TEST_CASE("warps that leave out a product, and products that nobody waits for, are found out") {
  const Outcome one_less = run<Bug::kOneWarpLess>();
  CHECK_MESSAGE(one_less.error.find("warp 2 issued 19 wgmma") != std::string::npos, one_less.error);
  expect_report<Bug::kForgottenWait>("ended with a wgmma that it did not wait for");
}
