// What Linux says of memory, from texts as kernels write them.
#include "common/serve/memory_left.h"

#include <doctest/doctest.h>

using namespace updraft;

TEST_CASE("MemAvailable is found by its line and read in KiB") {
  CHECK(parse_mem_available("MemTotal:       8039936 kB\nMemFree:  1 kB\nMemAvailable:    6113400 "
                            "kB\nBuffers: 2 kB\n") == uint64_t{6113400} * 1024);
  CHECK_FALSE(parse_mem_available("MemTotal: 5 kB\nXMemAvailable: 7 kB\n").has_value());
  CHECK_FALSE(parse_mem_available("MemAvailable:\n").has_value());
  CHECK_FALSE(parse_mem_available("").has_value());
}

TEST_CASE("a control group leaves its limit minus what it cannot give back") {
  CHECK(parse_cgroup_left("1000\n", "700\n", "anon 300\ninactive_file 200\nactive_file 9\n") ==
        uint64_t{500});
  CHECK_FALSE(parse_cgroup_left("max\n", "700\n", "inactive_file 200\n").has_value());
  CHECK_FALSE(parse_cgroup_left("", "", "").has_value());
  CHECK(parse_cgroup_left("1000\n", "1700\n", "") == uint64_t{0});
  CHECK(parse_cgroup_left("1000\n", "100\n", "inactive_file 900\n") == uint64_t{1000});
}

TEST_CASE("this machine has some memory left") { CHECK(memory_left_bytes() > (1 << 20)); }
