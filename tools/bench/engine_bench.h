// `updraft bench`: speeds of the real engine on one model file, each beside what the machine's
// peaks allow, measured in the same run. One thread, which also runs the peak probes between the
// repetitions.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "common/base/progress.h"
#include "common/base/result.h"
#include "common/serve/local_model.h"

namespace updraft {

struct BenchConfig {
  LocalModelConfig model;  // path, threads, cores, isa, KV type, step budget
  std::vector<int32_t> prompt_tokens = {512, 2048};  // 0: no line
  int32_t decode_tokens = 128;                       // 0: no decode lines
  std::vector<int32_t> depths = {4096};  // decode after this many tokens, besides depth 0
  int32_t parallel = 8;                  // sequences at once; 0: no such lines
  int32_t arriving_tokens = 2000;        // the prompt that arrives while `parallel` sequences run
  int32_t repetitions = 3;
  bool cold_load = false;  // also load with the file dropped from the page cache
  int probe_ms = 60;       // of each peak probe
};

// What one line says. Speeds are medians of the repetitions.
struct BenchLine {
  std::string test;  // "pp512", "tg128", "tg128@d4096", "tg128x8", "stall2000x8", "load", ...
  double value = 0;
  std::string unit;  // "tokens/s", "ms", "s", "MB", "us"
  std::vector<double> samples;
  // Of the time, the part that the machine's peak would have needed (for memory: of the bytes).
  // Nothing where no peak exists.
  std::optional<double> share;
  std::string limit;  // the peak in question: "int8", "fma", "read", ...
  double peak = 0;    // its value in peak_unit
  std::string peak_unit;
  std::string hash;  // of the output ids of the first repetition; empty: no output
};

struct BenchSubject {
  std::string model;  // general.name
  std::string quantization;
  std::string device;  // "cpu avx512, 2 threads"
  uint64_t file_bytes = 0;
  uint64_t parameter_count = 0;
  std::string kv_type;
  int threads = 0;
};

struct BenchOutput {
  std::function<void(const BenchSubject&)> subject;  // once, first
  std::function<void(const BenchLine&)> line;        // each line when it is there
  std::function<void(const std::string&)> skipped;   // "pp2048: the model's context is 512 tokens"
};

// Errors: the model does not open, or does not fit the memory; an output that is no numbers.
Result<void> run_engine_bench(const BenchConfig& config, const BenchOutput& output,
                              const Progress& progress);

}  // namespace updraft
