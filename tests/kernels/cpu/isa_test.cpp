// Which instruction sets are found on which processor.
#include "kernels/cpu/isa.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <string>

using namespace updraft;

TEST_CASE("the generic kernels are always there, and every set found has a table of its own name") {
  const std::vector<CpuIsa> isas = available_isas();
  REQUIRE_FALSE(isas.empty());
  CHECK(isas.front() == CpuIsa::kGeneric);
  for (size_t i = 0; i < isas.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      CHECK(std::string(isa_name(isas[i])) != isa_name(isas[j]));
      CHECK(&kernels_of(isas[i]) != &kernels_of(isas[j]));
    }
  }
}

// An emulator that plays a known processor gives the expected list in the environment.
TEST_CASE("a known processor has exactly its instruction sets") {
  const char* expected = std::getenv("UPDRAFT_EXPECTED_ISAS");
  if (expected == nullptr) {
    MESSAGE("skipped: UPDRAFT_EXPECTED_ISAS does not say what this processor has");
    return;
  }
  std::string found;
  for (const CpuIsa isa : available_isas()) {
    if (!found.empty()) found += ' ';
    found += isa_name(isa);
  }
  CHECK(found == expected);
}
