// The emulator's operations against their definitions in the PTX ISA, written down here once more
// in the plainest way.
#include "kernels/simt/ops.h"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "kernels/quant/quant.h"
#include "kernels/simt/watch.h"

using namespace updraft;
using namespace updraft::simt;

namespace {

constexpr LaunchShape kOneWarp{{1, 1, 1}, {32, 1, 1}, 0};

void require_runs(const LaunchShape& shape, const Schedule& schedule,
                  const std::function<void()>& kernel) {
  const Result<void> result = launch(shape, schedule, kernel);
  REQUIRE_MESSAGE(result.ok(), result.message());
}

std::string error_of(const LaunchShape& shape, const std::function<void()>& kernel) {
  return launch(shape, {}, kernel).message();
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("every thread of every block runs once and knows where it is") {
  std::map<std::array<uint32_t, 4>, int> seen;
  const LaunchShape shape{{3, 2, 2}, {48, 1, 1}, 0};
  require_runs(shape, {7}, [&] {
    CHECK(block_threads() == 48);
    CHECK(grid_x() == 3);
    CHECK(grid_y() == 2);
    ++seen[{block_x(), block_y(), block_z(), thread_x()}];
  });
  CHECK(seen.size() == 3 * 2 * 2 * 48);
  for (const auto& [where, count] : seen) CHECK(count == 1);
}

TEST_CASE("seeds give different orders of warps and blocks, and the same seed the same order") {
  const auto order_of = [](uint64_t seed) {
    std::vector<uint32_t> order;
    require_runs({{4, 1, 1}, {256, 1, 1}, 0}, {seed}, [&] {
      if (own_lane() == 0) order.push_back(block_x() * 8 + thread_x() / 32);
      sync_block();
    });
    return order;
  };
  std::set<std::vector<uint32_t>> orders;
  for (uint64_t seed = 0; seed < 20; ++seed) orders.insert(order_of(seed));
  CHECK(orders.size() == 20);
  CHECK(order_of(3) == order_of(3));
}

TEST_CASE("shuffles move values between the lanes of a mask") {
  std::array<uint32_t, 32> from9{}, crossed{}, down{}, up{}, halves{};
  std::array<double, 32> wide{};
  require_runs(kOneWarp, {3}, [&] {
    const uint32_t lane = own_lane();
    from9[lane] = shuffle(100 + lane, 9);
    crossed[lane] = shuffle_xor(100 + lane, 5);
    down[lane] = shuffle_down(100 + lane, 3);
    up[lane] = shuffle_up(100 + lane, 3);
    wide[lane] = shuffle(lane * 0.5, (lane + 1) % 32);
    if (lane < 16) {
      halves[lane] = shuffle_xor(lane, 8, 0x0000FFFF);
    } else {
      halves[lane] = shuffle_xor(lane, 1, 0xFFFF0000);
    }
  });
  for (uint32_t i = 0; i < 32; ++i) {
    CHECK(from9[i] == 109);
    CHECK(crossed[i] == 100 + (i ^ 5));
    CHECK(down[i] == 100 + (i + 3 < 32 ? i + 3 : i));
    CHECK(up[i] == 100 + (i >= 3 ? i - 3 : i));
    CHECK(wide[i] == (i + 1) % 32 * 0.5);
    CHECK(halves[i] == (i < 16 ? i ^ 8 : i ^ 1));
  }
}

TEST_CASE("votes and reductions see every lane of the mask") {
  std::array<uint32_t, 32> votes{}, sums{}, largest{}, smallest{}, odd_sums{};
  std::array<bool, 32> anyone{}, everyone{};
  require_runs(kOneWarp, {4}, [&] {
    const uint32_t lane = own_lane();
    votes[lane] = ballot(lane % 3 == 0);
    anyone[lane] = any(lane == 31);
    everyone[lane] = all(lane != 31);
    sums[lane] = reduce_add(lane);
    largest[lane] = reduce_max(lane ^ 7);
    smallest[lane] = reduce_min(lane + 5);
    if (lane % 2 == 1) odd_sums[lane] = reduce_add(lane, 0xAAAAAAAA);
  });
  for (uint32_t i = 0; i < 32; ++i) {
    CHECK(votes[i] == 0x49249249);
    CHECK(anyone[i]);
    CHECK_FALSE(everyone[i]);
    CHECK(sums[i] == 496);
    CHECK(largest[i] == 31);
    CHECK(smallest[i] == 5);
    if (i % 2 == 1) CHECK(odd_sums[i] == 256);
  }
}

TEST_CASE("ldmatrix hands each lane two neighbours of a row, transposed of a column") {
  std::array<std::array<uint32_t, 4>, 32> plain{}, turned{};
  std::array<uint32_t, 32> one{};
  std::array<std::array<uint32_t, 2>, 32> two{};
  require_runs({{1, 1, 1}, {32, 1, 1}, 4 * 8 * 16}, {5}, [&] {
    auto* tile = dynamic_shared<uint16_t>();  // matrix m, row r, column c holds 100 m + 10 r + c
    for (uint32_t i = own_lane(); i < 256; i += 32) {
      tile[i] = static_cast<uint16_t>(100 * (i / 64) + 10 * (i / 8 % 8) + i % 8);
    }
    sync_warp();
    const uint32_t lane = own_lane();
    uint32_t four[4];
    load_matrix(four, tile + 8 * lane);
    for (size_t m = 0; m < 4; ++m) plain[lane][m] = four[m];
    load_matrix_transposed(four, tile + 8 * lane);
    for (size_t m = 0; m < 4; ++m) turned[lane][m] = four[m];
    uint32_t single[1];
    load_matrix(single, lane < 8 ? tile + 64 + 8 * lane : nullptr);
    one[lane] = single[0];
    uint32_t pair[2];
    load_matrix(pair, lane < 16 ? tile + 128 + 8 * lane : nullptr);
    two[lane] = {pair[0], pair[1]};
  });
  const auto both = [](uint32_t low, uint32_t high) { return low | high << 16; };
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const uint32_t r = lane / 4;
    const uint32_t c = 2 * (lane % 4);
    for (uint32_t m = 0; m < 4; ++m) {
      CHECK(plain[lane][m] == both(100 * m + 10 * r + c, 100 * m + 10 * r + c + 1));
      CHECK(turned[lane][m] == both(100 * m + 10 * c + r, 100 * m + 10 * (c + 1) + r));
    }
    CHECK(one[lane] == both(100 + 10 * r + c, 100 + 10 * r + c + 1));
    CHECK(two[lane][0] == both(200 + 10 * r + c, 200 + 10 * r + c + 1));
    CHECK(two[lane][1] == both(300 + 10 * r + c, 300 + 10 * r + c + 1));
  }
}

TEST_CASE("mma.sync multiplies bf16, fp16 and int8 matrices in the layouts of the PTX ISA") {
  std::mt19937 random(11);
  std::uniform_int_distribution<int> small(-7, 7);
  float a[16][32], b[32][8], c[16][8];
  for (auto& row : a)
    for (float& v : row) v = static_cast<float>(small(random));
  for (auto& row : b)
    for (float& v : row) v = static_cast<float>(small(random));
  for (auto& row : c)
    for (float& v : row) v = static_cast<float>(small(random));
  float bf[16][8], fp[16][8];
  int32_t in[16][8];
  require_runs(kOneWarp, {6}, [&] {
    const uint32_t g = own_lane() / 4;
    const uint32_t t = own_lane() % 4;
    const auto pair = [](uint16_t (*encode)(float), float low, float high) {
      return static_cast<uint32_t>(encode(low)) | static_cast<uint32_t>(encode(high)) << 16;
    };
    for (auto* encode : {&float_to_bf16, &float_to_half}) {
      uint32_t ra[4];
      ra[0] = pair(encode, a[g][2 * t], a[g][2 * t + 1]);
      ra[1] = pair(encode, a[g + 8][2 * t], a[g + 8][2 * t + 1]);
      ra[2] = pair(encode, a[g][2 * t + 8], a[g][2 * t + 9]);
      ra[3] = pair(encode, a[g + 8][2 * t + 8], a[g + 8][2 * t + 9]);
      const uint32_t b0 = pair(encode, b[2 * t][g], b[2 * t + 1][g]);
      const uint32_t b1 = pair(encode, b[2 * t + 8][g], b[2 * t + 9][g]);
      float sums[4] = {c[g][2 * t], c[g][2 * t + 1], c[g + 8][2 * t], c[g + 8][2 * t + 1]};
      const bool is_bf16 = encode == &float_to_bf16;
      if (is_bf16) {
        mma_bf16(sums, ra, b0, b1);
      } else {
        mma_f16(sums, ra, b0, b1);
      }
      auto& out = is_bf16 ? bf : fp;
      out[g][2 * t] = sums[0];
      out[g][2 * t + 1] = sums[1];
      out[g + 8][2 * t] = sums[2];
      out[g + 8][2 * t + 1] = sums[3];
    }
    const auto four = [&](auto at) {
      uint32_t word = 0;
      for (uint32_t e = 0; e < 4; ++e) {
        word |= static_cast<uint32_t>(static_cast<uint8_t>(static_cast<int8_t>(at(e)))) << (8 * e);
      }
      return word;
    };
    uint32_t ra[4];
    for (uint32_t r = 0; r < 4; ++r) {
      ra[r] = four([&](uint32_t e) { return a[g + r % 2 * 8][4 * t + e + r / 2 * 16]; });
    }
    const uint32_t b0 = four([&](uint32_t e) { return b[4 * t + e][g]; });
    const uint32_t b1 = four([&](uint32_t e) { return b[4 * t + e + 16][g]; });
    int32_t sums[4];
    for (uint32_t i = 0; i < 4; ++i) {
      sums[i] = static_cast<int32_t>(c[g + i / 2 * 8][2 * t + i % 2]);
    }
    mma_s8(sums, ra, b0, b1);
    for (uint32_t i = 0; i < 4; ++i) in[g + i / 2 * 8][2 * t + i % 2] = sums[i];
  });
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      float sum16 = c[i][j];
      for (int k = 0; k < 16; ++k) sum16 += a[i][k] * b[k][j];
      float sum32 = c[i][j];
      for (int k = 0; k < 32; ++k) sum32 += a[i][k] * b[k][j];
      CHECK(bf[i][j] == sum16);
      CHECK(fp[i][j] == sum16);
      CHECK(in[i][j] == static_cast<int32_t>(sum32));
    }
  }
}

TEST_CASE("tensor cores cut off what a float does not hold") {
  // 1 + 16 * 1.5 * 2^-28: the nearest float is the next one above 1.
  for (const float sign : {1.0F, -1.0F}) {
    const uint32_t one = uint32_t{float_to_bf16(1.0F)} * 0x10001U;
    const uint32_t little = uint32_t{float_to_bf16(sign * 1.5F * 0x1p-28F)} * 0x10001U;
    const uint32_t enough = uint32_t{float_to_bf16(sign * 0x1p-27F)} * 0x10001U;
    int wrong = 0;
    require_runs(kOneWarp, {}, [&] {
      const uint32_t a[4] = {one, one, one, one};
      float sums[4] = {sign, sign, sign, sign};
      mma_bf16(sums, a, little, little);
      for (const float sum : sums) wrong += sum == sign ? 0 : 1;
      mma_bf16(sums, a, enough, enough);
      for (const float sum : sums) wrong += sum == sign * (1.0F + 0x1p-23F) ? 0 : 1;
    });
    CHECK(wrong == 0);
  }
}

TEST_CASE("cp.async lands at its wait, or at once when the schedule says so, and fills zeros") {
  Buffer<uint32_t> source("source", 8);
  for (uint32_t i = 0; i < 8; ++i) source[i] = i;
  for (const Landing landing : {Landing::kAtWait, Landing::kAtIssue}) {
    std::vector<uint32_t> before, middle, after;
    require_runs({{1, 1, 1}, {1, 1, 1}, 48}, {1, landing}, [&] {
      auto* to = dynamic_shared<uint32_t>();
      copy_async16(to, source.data(), true);
      copy_commit();
      copy_async16(to + 4, source.data() + 4, true);
      copy_async16(to + 8, nullptr, false);
      copy_commit();
      before.assign(to, to + 12);
      copy_wait<1>();
      middle.assign(to, to + 12);
      copy_wait<0>();
      after.assign(to, to + 12);
    });
    const std::vector<uint32_t> full = {0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0};
    CHECK(after == full);
    if (landing == Landing::kAtIssue) {
      CHECK(before == full);
    } else {
      CHECK(before == std::vector<uint32_t>(12, 0xFFFFFFFF));
      CHECK(middle == std::vector<uint32_t>{0, 1, 2, 3, UINT32_MAX, UINT32_MAX, UINT32_MAX,
                                            UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX,
                                            UINT32_MAX});
    }
  }
}

TEST_CASE("shared memory belongs to one block and begins as NaN, static arrays are told apart") {
  int nan_count = 0;
  std::set<const void*> arrays;
  require_runs({{3, 1, 1}, {64, 1, 1}, 256}, {2}, [&] {
    auto* dynamic = dynamic_shared<float>();
    float* one = shared_array<float, 64, 0>();
    float* other = shared_array<float, 64, 1>();
    CHECK(one != other);
    CHECK(one == shared_array<float, 64, 0>());
    nan_count += std::isnan(dynamic[thread_x()]) + std::isnan(one[thread_x()]) +
                 std::isnan(other[thread_x()]);
    sync_block();
    dynamic[thread_x()] = one[thread_x()] = other[thread_x()] = 1.0F;
  });
  CHECK(nan_count == 3 * 3 * 64);
}

TEST_CASE("named barriers hold the threads that they count and no others") {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    // Warps 0 and 1 produce for warp 2; warp 3 never comes near the barrier.
    std::vector<int> made;
    size_t seen = 0;
    require_runs({{1, 1, 1}, {128, 1, 1}, 0}, {seed}, [&] {
      const uint32_t warp = thread_x() / 32;
      if (warp < 2) {
        made.push_back(1);
        arrive_named(3, 96);
      } else if (warp == 2) {
        sync_named(3, 96);
        seen += made.size();
      }
    });
    CHECK(seen == 32 * 64);
  }
}

TEST_CASE("atomics return what was there before") {
  uint32_t counter = 0;
  std::set<uint32_t> tickets;
  uint32_t largest = 0;
  uint32_t locked = 7;
  require_runs({{2, 1, 1}, {64, 1, 1}, 0}, {9}, [&] {
    tickets.insert(atomic_add(&counter, 1U));
    atomic_max(&largest, block_x() * 64 + thread_x());
    if (block_x() == 0 && thread_x() == 0) {
      CHECK(atomic_compare_exchange(&locked, 8U, 1U) == 7);
      CHECK(atomic_compare_exchange(&locked, 7U, 1U) == 7);
      CHECK(atomic_exchange(&locked, 2U) == 1);
    }
  });
  CHECK(counter == 128);
  CHECK(tickets.size() == 128);
  CHECK(largest == 127);
  CHECK(locked == 2);
}

TEST_CASE("a launch that the hardware would refuse is refused") {
  const auto nothing = [] {};
  CHECK(contains(error_of({{1, 1, 1}, {1025, 1, 1}, 0}, nothing), "1025 threads"));
  CHECK(contains(error_of({{1, 65536, 1}, {32, 1, 1}, 0}, nothing), "65536"));
  CHECK(contains(error_of({{1, 1, 1}, {32, 1, 1}, 232449}, nothing), "232449 bytes"));
  CHECK(error_of({{1, 1, 1}, {1024, 1, 1}, 232448}, nothing).empty());
  // Static arrays count too: all in all, and within what a launch has without asking for more.
  const auto few = [] { shared_array<uint32_t, 1>(); };
  CHECK(contains(error_of({{1, 1, 1}, {32, 1, 1}, 232448}, few), "232452 bytes"));
  CHECK(error_of({{1, 1, 1}, {32, 1, 1}, 232444}, few).empty());
  CHECK(contains(error_of({{1, 1, 1}, {32, 1, 1}, 0}, [] { shared_array<uint32_t, 4097>(); }),
                 "16388 bytes"));
  CHECK(error_of({{1, 1, 1}, {32, 1, 1}, 0}, [] { shared_array<uint32_t, 4096>(); }).empty());
}

TEST_CASE("after a launch that failed the next one runs as if nothing had been") {
  for (int round = 0; round < 3; ++round) {
    const std::string error = error_of({{2, 1, 1}, {96, 1, 1}, 64}, [] {
      if (thread_x() < 64) sync_block();
    });
    CHECK(contains(error, "deadlock in block"));
    int sum = 0;
    require_runs({{1, 1, 1}, {128, 1, 1}, 64}, {}, [&] {
      sync_block();
      sum += 1;
    });
    CHECK(sum == 128);
  }
}

TEST_CASE("a kernel that may start early waits before it touches what others write") {
  Buffer<uint64_t> memory("memory", 32);
  LaunchShape shape = kOneWarp;
  shape.early_start = true;
  const auto touches = [&](int which, bool waits) {
    return error_of(shape, [&, which, waits] {
      let_next_start();
      if (waits) wait_for_previous();
      if (which == 0) store(memory.data() + thread_x(), uint64_t{1});
      if (which == 1) load_written(memory.data() + thread_x());
      if (which == 2) {
        copy_async16(shared_array<uint64_t, 2>(), memory.data(), true);
        copy_commit();
        copy_wait<0>();
      }
      if (which == 3) load(memory.data() + thread_x());  // what nobody writes
      wait_for_previous();
    });
  };
  CHECK(contains(touches(0, false), "store before wait_for_previous"));
  CHECK(contains(touches(1, false), "load_written before wait_for_previous"));
  CHECK(contains(touches(2, false), "cp.async before wait_for_previous"));
  CHECK(touches(3, false).empty());
  for (int which = 0; which < 4; ++which) CHECK(touches(which, true).empty());
  shape.early_start = false;
  CHECK(touches(0, false).empty());
}

TEST_CASE("a kernel that may start early waits before it ends") {
  LaunchShape shape = kOneWarp;
  shape.early_start = true;
  const auto error = error_of(shape, [] {
    if (thread_x() < 31) wait_for_previous();
  });
  CHECK(contains(error, "lane 31: ended without wait_for_previous()"));
}

TEST_CASE("launches that overlap find nothing of those in front before they have waited") {
  Buffer<uint32_t> memory("memory", 64);
  const Overlap overlap;
  LaunchShape plain = kOneWarp;
  LaunchShape early = kOneWarp;
  early.early_start = true;
  uint32_t number = 0;
  const auto writes = [&](const LaunchShape& shape) {
    ++number;
    require_runs(shape, {}, [&] {
      wait_for_previous();
      memory[thread_x()] = number;
    });
  };
  uint32_t before = 0;
  uint32_t after = 0;
  uint32_t untouched = 0;
  memory[40] = 7;
  const auto reads = [&] {
    require_runs(early, {}, [&] {
      if (thread_x() == 3) {
        before = memory[3];
        untouched = memory[40];
      }
      sync_block();  // a barrier before the wait is met
      wait_for_previous();
      if (thread_x() == 3) after = memory[3];
    });
  };
  writes(plain);
  reads();
  CHECK(before == 0xFFFFFFFF);
  CHECK(after == 1);
  CHECK(untouched == 7);
  // The reader started early and may be waiting still, and what it waits for may not have ended.
  reads();
  CHECK(before == 0xFFFFFFFF);
  writes(early);
  reads();
  CHECK(before == 0xFFFFFFFF);
  CHECK(after == 2);
  // A launch that does not start early waits for all in front of it.
  require_runs(plain, {}, [] {});
  reads();
  CHECK(before == 2);

  writes(plain);
  const auto error = error_of(early, [&] {
    if (thread_x() == 5) memory[5] = 9;
    wait_for_previous();
  });
  CHECK(contains(error, "a write before wait_for_previous() to byte 20 of global buffer 'memory'"));
  CHECK(memory[5] == 3);
}

TEST_CASE("what a launch in front may still be writing is not read through the read-only path") {
  Buffer<uint32_t> memory("memory", 64);
  const Overlap overlap;
  LaunchShape early = kOneWarp;
  early.early_start = true;
  const auto write = [&] {
    require_runs(kOneWarp, {}, [&] {
      if (thread_x() < 2) memory[16 + thread_x()] = 5 + memory[0];
    });
  };
  std::fill_n(memory.data(), 64, 0U);
  const auto reads = [&](const LaunchShape& shape, int which) {
    return error_of(shape, [&, which] {
      wait_for_previous();
      if (thread_x() != 0) return;
      if (which == 0) load(memory.data() + 17);
      if (which == 1) load_once(reinterpret_cast<const uint64_t*>(memory.data() + 16));
      if (which == 2) load(memory.data() + 15);
      if (which == 3) load(memory.data() + 20);
      if (which == 4) load_written(memory.data() + 17);
    });
  };
  write();
  CHECK(contains(reads(early, 0), "load through the read-only path of byte 68 of global buffer"));
  CHECK(contains(reads(early, 1), "load_once through the read-only path of byte 64"));
  for (const int which : {2, 3, 4}) CHECK(reads(early, which).empty());
  // Behind a launch that waited for all in front of it, what was written is constant.
  CHECK(reads(kOneWarp, 0).empty());
  CHECK(reads(early, 0).empty());
}

TEST_CASE("a log has each launch, and whether all its blocks let the next one start") {
  LaunchShape shape{{2, 1, 1}, {32, 1, 1}, 0};
  shape.kernel = "one";
  const LaunchLog log;
  require_runs(shape, {}, [] { let_next_start(); });
  shape.early_start = true;
  require_runs(shape, {}, [] {
    if (block_x() == 1 && thread_x() == 4) let_next_start();
    wait_for_previous();
  });
  REQUIRE(log.records().size() == 2);
  CHECK(log.records()[0].kernel == "one");
  CHECK(!log.records()[0].early_start);
  CHECK(log.records()[0].lets_next_start);
  CHECK(log.records()[1].early_start);
  CHECK(!log.records()[1].lets_next_start);
}
