// What Linux says of memory, from texts as kernels write them.
#include "common/base/memory_reading.h"

#include <doctest/doctest.h>

#include "tests/support/fake_memory.h"

using namespace updraft;
using updraft::testing::FakeMemory;

namespace {

constexpr uint64_t kKib = 1024;

}  // namespace

TEST_CASE("the machine's memory is found by its lines and read in KiB") {
  const auto use = parse_meminfo(
      "MemTotal:       8039936 kB\nMemFree:  1 kB\nMemAvailable:    6113400 kB\nBuffers: 2 kB\n");
  REQUIRE(use);
  CHECK(use->limit_bytes == 8039936 * kKib);
  CHECK(use->left_bytes() == 6113400 * kKib);
  CHECK_FALSE(parse_meminfo("MemTotal: 5 kB\nXMemAvailable: 7 kB\n"));
  CHECK_FALSE(parse_meminfo("MemTotal: 5 kB\nMemAvailable:\n"));
  CHECK_FALSE(parse_meminfo("MemAvailable: 5 kB\n"));
  CHECK_FALSE(parse_meminfo("MemTotal: 99999999999999999 kB\nMemAvailable: 1 kB\n"));
  CHECK_FALSE(parse_meminfo(""));
  CHECK(parse_meminfo("MemTotal: 5 kB\nMemAvailable: 9 kB\n")->used_bytes == 0);
}

TEST_CASE("a control group uses what it cannot give back of its limit") {
  const auto use =
      parse_group_memory("1000\n", "700\n", "anon 300\ninactive_file 200\nactive_file 9\n");
  REQUIRE(use);
  CHECK(use->limit_bytes == 1000);
  CHECK(use->used_bytes == 500);
  CHECK(use->left_bytes() == 500);
  CHECK_FALSE(parse_group_memory("max\n", "700\n", "inactive_file 200\n"));
  CHECK_FALSE(parse_group_memory("", "", ""));
  CHECK_FALSE(parse_group_memory("0\n", "0\n", ""));
  CHECK(parse_group_memory("1000\n", "1700\n", "")->left_bytes() == 0);
  CHECK(parse_group_memory("1000\n", "100\n", "inactive_file 900\n")->used_bytes == 0);
}

TEST_CASE("a process's own group is that of version 2") {
  CHECK(parse_own_group("0::/system.slice/updraft.service\n") == "/system.slice/updraft.service");
  CHECK(parse_own_group("12:cpu:/x\n10::/no\n0::/a\n") == "/a");
  CHECK(parse_own_group("0::/\n") == "/");
  CHECK(parse_own_group("4:memory:/docker/1\n") == "/");
  CHECK(parse_own_group("0::a\n") == "/");
  CHECK(parse_own_group("") == "/");
}

TEST_CASE("the fullest of the machine and the groups around the process counts") {
  const FakeMemory fake(40.0);
  CHECK(read_fullest_memory(fake.root()).ratio() == doctest::Approx(0.4));
  CHECK(read_memory_left_bytes(fake.root()) == 600'000 * kKib);
  fake.write("proc/self/cgroup", "0::/outer/inner\n");
  fake.write("sys/fs/cgroup/outer/inner/memory.max", "max\n");
  fake.write("sys/fs/cgroup/outer/inner/memory.current", "1000\n");
  CHECK(read_group_memory(fake.root()).empty());
  fake.write("sys/fs/cgroup/outer/memory.max", "2000\n");
  fake.write("sys/fs/cgroup/outer/memory.current", "1500\n");
  fake.write("sys/fs/cgroup/outer/memory.stat", "inactive_file 100\n");
  REQUIRE(read_group_memory(fake.root()).size() == 1);
  CHECK(read_fullest_memory(fake.root()).ratio() == doctest::Approx(0.7));
  CHECK(read_memory_left_bytes(fake.root()) == 600);
  fake.write("sys/fs/cgroup/outer/inner/memory.max", "1250\n");
  CHECK(read_fullest_memory(fake.root()).ratio() == doctest::Approx(0.8));
  CHECK(read_memory_left_bytes(fake.root()) == 250);
  fake.set(90.0);
  CHECK(read_fullest_memory(fake.root()).ratio() == doctest::Approx(0.9));
}

TEST_CASE("the limit of a container's own root counts where the group's path is another's") {
  const FakeMemory fake(10.0);
  fake.write("proc/self/cgroup", "0::/system.slice/docker-1.scope\n");
  fake.write("sys/fs/cgroup/memory.max", "4000\n");
  fake.write("sys/fs/cgroup/memory.current", "3000\n");
  CHECK(read_fullest_memory(fake.root()).ratio() == doctest::Approx(0.75));
}

TEST_CASE("a machine that tells nothing has no limit that is known") {
  const testing::TempDir nothing;
  CHECK(read_fullest_memory(nothing.path()).limit_bytes == 0);
  CHECK(read_memory_left_bytes(nothing.path()) == 0);
}

TEST_CASE("this machine has some memory left") {
  CHECK(read_memory_left_bytes() > (1 << 20));
  CHECK(read_fullest_memory().limit_bytes > (1 << 20));
}
