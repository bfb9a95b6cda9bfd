// The backends that a body of tests runs on: the reference and what this machine has.
#pragma once

#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "tests/common/engine/reference_backend.h"

namespace updraft::testing {

inline std::unique_ptr<Backend> exact_cpu(CpuIsa isa = CpuIsa::kGeneric, int threads = 2) {
  CpuConfig config;
  config.isa = isa;
  config.thread_count = threads;
  config.pin = false;
  config.exact = true;
  auto backend = open_cpu_backend(config);
  REQUIRE_MESSAGE(backend.ok(), backend.message());
  return std::move(*backend);
}

// "reference" and each instruction set's exact CPU backend.
inline std::vector<std::string> backend_names() {
  std::vector<std::string> names = {"reference"};
  for (const CpuIsa isa : available_isas()) names.emplace_back(isa_name(isa));
  return names;
}

inline std::unique_ptr<Backend> open_backend(const std::string& name) {
  if (name == "reference") return std::make_unique<ReferenceBackend>();
  for (const CpuIsa isa : available_isas()) {
    if (name == isa_name(isa)) return exact_cpu(isa);
  }
  FAIL("no backend " << name);
  return nullptr;
}

}  // namespace updraft::testing
