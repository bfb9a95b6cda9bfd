// The emulator catches the bugs that CUDA kernels have. One kernel, small but with all the usual
// parts, is compiled once as it should be and once with each bug planted; the right one gives the
// right result in every schedule, each wrong one is found out: by a report, or by a wrong result in
// at least one of the schedules that every kernel's test runs.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "kernels/quant/quant.h"
#include "kernels/simt/ops.h"
#include "kernels/simt/sanitizers.h"

using namespace updraft;
using namespace updraft::simt;

namespace {

enum class Bug {
  kNone,
  kMissingBarrier,  // tiles are read without a barrier behind the wait
  kLateBarrier,  // the next tile is fetched before the barrier: over the one that others still read
  kNoWait,       // tiles are read before their cp.async has been waited for
  kWrongMatrixRow,      // ldmatrix gets the rows of its matrices in the wrong order
  kWrongSwizzle,        // the tile is read with another swizzle than it was written with
  kWrongPage,           // the page table is not asked
  kWrongPageIndex,      // the table's entry is one off
  kMissingMask,         // positions beyond the end count
  kMissingZeroFill,     // rows beyond the end of the tile are not filled
  kReusedScratch,       // scratch is written anew while other warps still read it
  kUninitialised,       // a shared array is added to that nobody set
  kDivergentShuffle,    // half a warp shuffles with everyone's mask
  kShuffleFromOutside,  // a lane outside the mask is asked
  kDivergentBarrier,    // one warp skips a barrier
  kTwoBarriers,         // warps meet at two different barriers
  kWrongBarrierCount,   // a named barrier counts more threads than come
  kCopyBeyondEnd,       // cp.async reads beyond its buffer
  kMisalignedCopy,      // cp.async from an address that is no multiple of 16
  kForgottenCopy,       // the kernel ends with a copy under way
  kWriteBeyondEnd,      // a plain store behind global memory
  kReadBeyondEnd,       // a plain load behind global memory
  kSharedBeyondEnd,     // a plain store behind shared memory
};

constexpr int kDim = 64;  // of a row, in bf16
constexpr int kQueries = 16;
constexpr int kTile = 64;  // positions that the block stages at once
constexpr int kPageTokens = 16;
constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kTileBytes = kTile * kDim * 2;
constexpr size_t kShared = 2 * kTileBytes + kQueries * kDim * 2 + kWarps * kQueries * kDim * 4;

struct Arguments {
  const uint16_t* queries;  // [kQueries, kDim] bf16
  const uint16_t* keys;     // [pages, kPageTokens, kDim] bf16
  const int32_t* table;     // page of each kPageTokens positions
  int32_t length;
  float* out;  // [kQueries, kDim]: mean over positions of key with the weights 2^score
};

// Element offset of 16 bytes `chunk` of a row: chunks are spread over the banks.
int swizzled(int row, int chunk) { return row * kDim + (chunk ^ (row & 7)) * 8; }

uint32_t bf16_pair(float low, float high) {
  return static_cast<uint32_t>(float_to_bf16(low)) | static_cast<uint32_t>(float_to_bf16(high))
                                                         << 16;
}

// Attention with the weights 2^score over a paged list of keys: two tiles in flight, scores and
// sums by mma, each warp a quarter of a tile, their sums joined in shared memory.
template <Bug kBug>
void paged_mean(const Arguments& in) {
  auto* tiles = dynamic_shared<uint16_t>();
  uint16_t* queries = tiles + kTileBytes;  // two tiles of kTileBytes / 2 elements
  auto* partial = reinterpret_cast<float*>(queries + kQueries * kDim);
  const int tid = static_cast<int>(thread_x());
  const int warp = tid / 32;
  const int lane = tid % 32;
  const int tile_count = (in.length + kTile - 1) / kTile;

  for (int i = tid; i < kQueries * kDim / 8; i += kThreads) {
    const uint16_t* from = in.queries + i * 8 + (kBug == Bug::kMisalignedCopy ? 4 : 0);
    copy_async16(queries + swizzled(i / 8, i % 8), from, true);
  }
  const auto fetch = [&](int tile) {
    for (int i = tid; i < kTile * kDim / 8; i += kThreads) {
      const int row = i / 8;
      const int position = tile * kTile + row;
      const bool valid = position < in.length || kBug == Bug::kCopyBeyondEnd;
      if (kBug == Bug::kMissingZeroFill && !valid) continue;
      const int known = valid ? position : 0;
      int page = known / kPageTokens;
      if (kBug == Bug::kWrongPageIndex) page ^= 1;
      if (kBug != Bug::kWrongPage) {
        page = kBug == Bug::kCopyBeyondEnd && page > (in.length - 1) / kPageTokens ? 1000
                                                                                   : in.table[page];
      }
      copy_async16(tiles + tile % 2 * kTile * kDim + swizzled(row, i % 8),
                   in.keys + (page * kPageTokens + known % kPageTokens) * kDim + i % 8 * 8, valid);
    }
    copy_commit();
  };
  fetch(0);

  float sums[kDim / 8][4] = {};
  float weight_sums[2] = {};  // of the rows lane / 4 and lane / 4 + 8
  for (int tile = 0; tile < tile_count; ++tile) {
    if (kBug != Bug::kNoWait) copy_wait<0>();
    if (kBug == Bug::kLateBarrier && tile + 1 < tile_count) fetch(tile + 1);
    if (kBug != Bug::kMissingBarrier) sync_block();
    if (kBug != Bug::kLateBarrier && tile + 1 < tile_count) fetch(tile + 1);
    const uint16_t* keys = tiles + tile % 2 * kTile * kDim;
    const auto read_chunk = [&](int row, int chunk) {
      return kBug == Bug::kWrongSwizzle ? row * kDim + (chunk ^ (row & 3)) * 8
                                        : swizzled(row, chunk);
    };

    float scores[2][4] = {};
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t q[4];
      load_matrix(q, queries + swizzled(lane % 16, 2 * k + lane / 16));
      uint32_t r[4];
      const int row =
          kBug == Bug::kWrongMatrixRow ? lane / 8 % 2 * 8 + lane % 8 : lane / 16 * 8 + lane % 8;
      load_matrix(r, keys + read_chunk(warp * 16 + row, 2 * k + lane / 8 % 2));
      mma_bf16(scores[0], q, r[0], r[1]);
      mma_bf16(scores[1], q, r[2], r[3]);
    }
    uint32_t weights[4];
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) {
        const int position = tile * kTile + warp * 16 + half * 8 + lane % 4 * 2 + i % 2;
        const bool counts = position < in.length || kBug == Bug::kMissingMask;
        scores[half][i] = counts ? std::exp2(scores[half][i]) : 0.0F;
        weight_sums[i / 2] += scores[half][i];
      }
      weights[2 * half] = bf16_pair(scores[half][0], scores[half][1]);
      weights[2 * half + 1] = bf16_pair(scores[half][2], scores[half][3]);
    }
    for (int n = 0; n < kDim / 16; ++n) {
      uint32_t r[4];
      load_matrix_transposed(r, keys + read_chunk(warp * 16 + lane % 16, 2 * n + lane / 16));
      mma_bf16(sums[2 * n], weights, r[0], r[1]);
      mma_bf16(sums[2 * n + 1], weights, r[2], r[3]);
    }
  }
  if (kBug == Bug::kNoWait) copy_wait<0>();
  if (kBug == Bug::kForgottenCopy) copy_async16(queries, in.queries, true);
  if (kBug == Bug::kDivergentShuffle && lane < 16) sums[0][0] = shuffle_xor(sums[0][0], 0);
  if (kBug == Bug::kShuffleFromOutside && lane < 16) {
    sums[0][0] = shuffle(sums[0][0], 16, 0x0000FFFF);
  }
  if (kBug == Bug::kDivergentBarrier && warp != 2) sync_block();
  if (kBug == Bug::kTwoBarriers) {
    if (warp < 2) {
      sync_block();
    } else {
      sync_block();
    }
  }
  if (kBug == Bug::kWrongBarrierCount && warp < 2) sync_named(1, 96);

  float* totals = shared_array<float, kWarps * kQueries, 1>();
  for (int i = 0; i < 2; ++i) {
    weight_sums[i] += shuffle_xor(weight_sums[i], 1);
    weight_sums[i] += shuffle_xor(weight_sums[i], 2);
    totals[warp * kQueries + lane / 4 + 8 * i] = weight_sums[i];
  }

  // The joining, one half of the columns after the other through the same scratch.
  for (int half = 0; half < 2; ++half) {
    for (int n = 0; n < kDim / 16; ++n) {
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8;
        const int column = n * 8 + lane % 4 * 2 + i % 2;
        partial[(warp * kQueries + row) * kDim / 2 + column] = sums[half * kDim / 16 + n][i];
      }
    }
    sync_block();
    for (int i = tid; i < kQueries * kDim / 2; i += kThreads) {
      float* unset = shared_array<float, kQueries * kDim / 2>();
      float total = kBug == Bug::kUninitialised ? unset[i] : 0.0F;
      for (int w = 0; w < kWarps; ++w) total += partial[w * kQueries * kDim / 2 + i];
      float weight = 0.0F;
      for (int w = 0; w < kWarps; ++w) weight += totals[w * kQueries + i / (kDim / 2)];
      const int end = kBug == Bug::kWriteBeyondEnd ? 1 : 0;
      in.out[i / (kDim / 2) * kDim + half * kDim / 2 + i % (kDim / 2) + end] = total / weight;
    }
    if (kBug != Bug::kReusedScratch) sync_block();
  }
  if (kBug == Bug::kReadBeyondEnd && tid == 0) in.out[0] += in.out[kQueries * kDim];
  if (kBug == Bug::kSharedBeyondEnd && tid == 0) {
    reinterpret_cast<volatile std::byte*>(tiles)[kShared] = std::byte{1};
  }
}

struct Outcome {
  std::string error;      // of the first launch that failed
  double difference = 0;  // the largest, relative to the largest value; infinity for a NaN
};

// Every schedule that a kernel's test runs.
std::vector<Schedule> schedules() {
  std::vector<Schedule> all;
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    all.push_back({seed, seed % 2 == 0 ? Landing::kAtIssue : Landing::kAtWait});
  }
  return all;
}

// `length` positions; the last tile is not full.
template <Bug kBug>
Outcome run(int length) {
  constexpr int kPages = 16;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  Buffer<uint16_t> queries("queries", kQueries * kDim);
  Buffer<uint16_t> keys("keys", kPages * kPageTokens * kDim);
  for (uint16_t& v : queries.span()) v = float_to_bf16(0.1F * normal(random));
  for (uint16_t& v : keys.span()) v = float_to_bf16(normal(random));
  Buffer<int32_t> table("table", static_cast<size_t>((length + kPageTokens - 1) / kPageTokens));
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>((i * 5 + 3) % kPages);

  std::vector<double> expected(kQueries * kDim);
  double largest = 0;
  for (int q = 0; q < kQueries; ++q) {
    double weight = 0;
    for (int p = 0; p < length; ++p) {
      const auto page = static_cast<size_t>(table[static_cast<size_t>(p / kPageTokens)]);
      const uint16_t* key = keys.data() + (page * kPageTokens + p % kPageTokens) * kDim;
      double score = 0;
      for (int d = 0; d < kDim; ++d) {
        score += static_cast<double>(bf16_to_float(queries[static_cast<size_t>(q * kDim + d)])) *
                 static_cast<double>(bf16_to_float(key[d]));
      }
      weight += std::exp2(score);
      for (int d = 0; d < kDim; ++d) {
        expected[static_cast<size_t>(q * kDim + d)] +=
            std::exp2(score) * static_cast<double>(bf16_to_float(key[d]));
      }
    }
    for (int d = 0; d < kDim; ++d) expected[static_cast<size_t>(q * kDim + d)] /= weight;
  }
  for (const double value : expected) largest = std::max(largest, std::abs(value));

  Outcome outcome;
  for (const Schedule& schedule : schedules()) {
    Buffer<float> out("out", kQueries * kDim);
    const Arguments in{queries.data(), keys.data(), table.data(), length, out.data()};
    const Result<void> result =
        launch({{1, 1, 1}, {kThreads, 1, 1}, kShared}, schedule, [&] { paged_mean<kBug>(in); });
    if (!result.ok()) {
      outcome.error = result.message();
      return outcome;
    }
    for (size_t i = 0; i < expected.size(); ++i) {
      const double difference = std::abs(static_cast<double>(out[i]) - expected[i]) / largest;
      outcome.difference =
          std::max(outcome.difference, std::isnan(difference) ? INFINITY : difference);
    }
  }
  return outcome;
}

// A long list, whose stages are filled again and again, and one whose last stage was never filled
// before.
template <Bug kBug>
Outcome run() {
  Outcome outcome = run<kBug>(3 * kTile + 21);
  if (!outcome.error.empty()) return outcome;
  const Outcome short_one = run<kBug>(kTile + 21);
  return {short_one.error, std::max(outcome.difference, short_one.difference)};
}

constexpr double kTolerance = 0.01;  // weights are rounded to bf16

template <Bug kBug>
void expect_wrong_result() {
  const Outcome outcome = run<kBug>();
  CHECK_MESSAGE(outcome.error.empty(), outcome.error);
  CHECK(outcome.difference > 3 * kTolerance);
}

template <Bug kBug>
void expect_report(const std::vector<std::string>& parts) {
  const std::string error = run<kBug>().error;
  for (const std::string& part : parts) {
    CHECK_MESSAGE(error.find(part) != std::string::npos,
                  "'" << error << "' names no '" << part << "'");
  }
}

// What AddressSanitizer stops ends the process, so a child runs it.
template <Bug kBug>
void expect_end_by_address_sanitizer() {
  std::fflush(stdout);
  int report[2];
  REQUIRE(pipe(report) == 0);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    dup2(report[1], STDERR_FILENO);
    run<kBug>();
    _exit(0);
  }
  close(report[1]);
  std::string text;
  char piece[4096];
  for (ssize_t n = 0; (n = read(report[0], piece, sizeof piece)) > 0;) {
    text.append(piece, static_cast<size_t>(n));
  }
  close(report[0]);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK_FALSE((WIFEXITED(status) && WEXITSTATUS(status) == 0));
  CHECK(text.find("AddressSanitizer: use-after-poison") != std::string::npos);
  CHECK(text.find("paged_mean") != std::string::npos);
}

}  // namespace

TEST_CASE("the kernel without a bug is right in every schedule") {
  const Outcome outcome = run<Bug::kNone>();
  CHECK_MESSAGE(outcome.error.empty(), outcome.error);
  CHECK(outcome.difference < kTolerance);
}

TEST_CASE("missing and late barriers and waits change the result") {
  expect_wrong_result<Bug::kMissingBarrier>();
  expect_wrong_result<Bug::kLateBarrier>();
  expect_wrong_result<Bug::kNoWait>();
  expect_wrong_result<Bug::kReusedScratch>();
}

TEST_CASE("wrong rows, swizzles, pages and masks change the result") {
  expect_wrong_result<Bug::kWrongMatrixRow>();
  expect_wrong_result<Bug::kWrongSwizzle>();
  expect_wrong_result<Bug::kWrongPage>();
  expect_wrong_result<Bug::kWrongPageIndex>();
  expect_wrong_result<Bug::kMissingMask>();
}

TEST_CASE("shared memory that nobody filled is NaN") {
  expect_wrong_result<Bug::kMissingZeroFill>();
  expect_wrong_result<Bug::kUninitialised>();
}

TEST_CASE("lanes that differ at a warp operation are reported") {
  expect_report<Bug::kDivergentShuffle>(
      {"deadlock in block (0,0,0)", "lanes 0000ffff wait at shuffle_xor with mask ffffffff",
       "lanes ffff0000 wait at shuffle_xor with mask ffffffff", "planted_bugs_test.cpp:"});
  expect_report<Bug::kShuffleFromOutside>(
      {"shuffle from lane 16, which is not in the mask", "warp"});
}

TEST_CASE("barriers that not everyone reaches are reported with block, warp and place") {
  expect_report<Bug::kDivergentBarrier>(
      {"block (0,0,0)", "divergent barrier", "planted_bugs_test.cpp:"});
  expect_report<Bug::kTwoBarriers>(
      {"block (0,0,0)", "divergent barrier", "planted_bugs_test.cpp:"});
  expect_report<Bug::kWrongBarrierCount>(
      {"deadlock in block (0,0,0)", "wait at barrier 1, where 64 of 96 threads have arrived",
       "wait at barrier 0, where 64 of 128 threads have arrived"});
}

TEST_CASE("copies that leave their buffer, are not aligned or not waited for are reported") {
  expect_report<Bug::kCopyBeyondEnd>({"cp.async from of 16 bytes", "lies in no global buffer"});
  expect_report<Bug::kMisalignedCopy>({"cp.async from", "'queries'", "is not aligned"});
  expect_report<Bug::kForgottenCopy>({"ended with a cp.async that it did not wait for"});
}

TEST_CASE("plain accesses beyond the end are caught, by AddressSanitizer where it is there") {
  if constexpr (kAddressSanitizer) {
    expect_end_by_address_sanitizer<Bug::kWriteBeyondEnd>();
    expect_end_by_address_sanitizer<Bug::kReadBeyondEnd>();
    expect_end_by_address_sanitizer<Bug::kSharedBeyondEnd>();
  } else {
    expect_report<Bug::kWriteBeyondEnd>(
        {"global buffer 'out' (4096 bytes) was written 0 bytes beyond"});
    expect_wrong_result<Bug::kReadBeyondEnd>();
    expect_report<Bug::kSharedBeyondEnd>(
        {"shared buffer 'dynamic'", "was written 0 bytes beyond its end"});
  }
}
