// The peak probes: that they do the work that they count, on every instruction set of this machine.
#include "kernels/cpu/peak.h"

#include <doctest/doctest.h>

#include <cstring>
#include <vector>

using namespace updraft;

namespace {

const PeakLoops& loops_of(CpuIsa isa) {
  if (isa == CpuIsa::kAvx512Vnni) return avx512_peak_loops();
  return isa == CpuIsa::kAvx2 ? avx2_peak_loops() : generic_peak_loops();
}

}  // namespace

TEST_CASE("the arithmetic loops do as many operations as they say") {
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(isa_name(isa));
    const PeakLoops& loops = loops_of(isa);
    for (const int64_t rounds : {1, 7, 100}) {
      const double products = loops.int8_ops_per_round / 2 * static_cast<double>(rounds);
      CHECK(loops.int8(rounds) == static_cast<int32_t>(-3 * products));
      const double additions = loops.fma_ops_per_round / 2 * static_cast<double>(rounds);
      CHECK(loops.fma(rounds) == static_cast<float>(additions));
    }
  }
}

TEST_CASE("the reading loop sees every byte") {
  std::vector<uint64_t> words(8192);
  uint64_t expected = 0;
  for (size_t i = 0; i < words.size(); ++i) {
    words[i] = (i + 1) * 0x9E3779B97F4A7C15ULL;
    expected ^= words[i];
  }
  for (const CpuIsa isa : available_isas()) {
    CAPTURE(isa_name(isa));
    CHECK(loops_of(isa).read(words.data(), static_cast<int64_t>(words.size() * 8)) == expected);
  }
}

TEST_CASE("every rate is measured, with one thread and with two") {
  for (const int threads : {1, 2}) {
    ThreadPool::Config config;
    config.thread_count = threads;
    auto pool = ThreadPool::open(config);
    REQUIRE(pool.ok());
    for (const CpuIsa isa : available_isas()) {
      CAPTURE(isa_name(isa));
      auto peak = CpuPeak::open(isa, **pool, 3 << 20);
      REQUIRE_MESSAGE(peak.ok(), peak.message());
      CHECK(peak->int8_ops_per_s(2) > 1e8);
      CHECK(peak->fma_ops_per_s(2) > 1e8);
      CHECK(peak->read_bytes_per_s(2) > 1e8);
      CHECK((peak->core_to_core_ns() > 0) == (threads == 2));
    }
  }
}
