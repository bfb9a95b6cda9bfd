// The CPU backend: repacked weights, int8 activations per block for quantised weights, a pinned
// thread pool. The instruction set is chosen once at open; each set is a file compiled with its own
// flags.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.h"
#include "kernels/parallel/comm.h"

namespace updraft {

// Every set that there are kernels for; which of them this machine has: available_isas().
enum class CpuIsa {
  kGeneric,
  kAvx2,
  kAvxVnni,
  kAvx512Vnni,
  kAvx512Bf16,
  kNeon,
  kNeonDotprod,
  kNeonI8mm
};

struct CpuConfig {
  int thread_count = 0;  // 0: one per core in `cores`, or per core of this process's affinity mask
  std::vector<int> cores;  // pin thread i to cores[i % size]; empty: the process's affinity mask
  bool pin = true;
  std::optional<CpuIsa>
      isa;  // empty: the best this machine has. Asking for a missing one is an error
  uint64_t max_memory_bytes = 0;  // 0: no limit besides the machine's
  std::shared_ptr<Comm> comm;     // of a tensor-parallel group in host memory; null: alone
  bool exact = false;             // f32 arithmetic for every format (reference numerics), slow
};

// Errors: unknown core, ISA not there, memory.
Result<std::unique_ptr<Backend>> open_cpu_backend(const CpuConfig& config);

// What this machine can run, best last; for tests and `updraft doctor`.
std::vector<CpuIsa> available_isas();
// The names that configuration and command line take: those of all sets that there are kernels for.
const char* isa_name(CpuIsa isa);
std::vector<std::string> isa_names();
// Errors: another name; the message lists the known ones.
Result<CpuIsa> parse_isa(std::string_view name);

}  // namespace updraft
