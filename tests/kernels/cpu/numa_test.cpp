// Memory nodes: a folder as sysfs shows it on machines with several, and the kernel's own word on
// where pages will be taken from.
#include "kernels/cpu/numa.h"

#include <doctest/doctest.h>
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "kernels/cpu/memory.h"
#include "kernels/cpu/thread_pool.h"
#include "tests/support/emulated.h"

using namespace updraft;

namespace {

// Two sockets of four cores with two threads each, numbered as Linux does it; node 2 is memory
// alone.
struct TwoSockets {
  std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("updraft-numa-" + std::to_string(getpid()));
  TwoSockets() {
    add("node0", "0-3,8-11");
    add("node1", "4-7,12-15");
    add("node2", "");
    std::filesystem::create_directories(folder / "power");
    std::ofstream(folder / "online") << "0-2\n";
  }
  ~TwoSockets() { std::filesystem::remove_all(folder); }
  void add(const char* node, const char* cores) const {
    std::filesystem::create_directories(folder / node);
    std::ofstream(folder / node / "cpulist") << cores << "\n";
  }
};

}  // namespace

TEST_CASE("the nodes of cores are those whose lists hold them") {
  const TwoSockets machine;
  const auto nodes = [&](const std::vector<int>& cores) {
    return numa_nodes_of(cores, machine.folder.string());
  };
  CHECK(nodes({0}) == std::vector<int>{0});
  CHECK(nodes({11}) == std::vector<int>{0});
  CHECK(nodes({4, 5, 12}) == std::vector<int>{1});
  CHECK(nodes({3, 4}) == std::vector<int>{0, 1});
  CHECK(nodes({15, 8}) == std::vector<int>{0, 1});
  CHECK(nodes({16}).empty());
  CHECK(nodes({}).empty());
  machine.add("node1", "4-x,5");
  CHECK(nodes({4, 5}).empty());
  CHECK(numa_nodes_of({0}, "/nonexistent").empty());
}

TEST_CASE("pages of large buffers are taken from the nodes in turn where there are several") {
  if (testing::kEmulated) return;  // qemu-user passes no memory policies on
  const auto policy_of = [](const HugeBuffer& buffer) {
    int policy = -1;
    const long done =
        syscall(SYS_get_mempolicy, &policy, nullptr, 0UL, buffer.data(), MPOL_F_ADDR | 0UL);
    return done == 0 ? policy : -1;
  };
  const std::vector<int> here = numa_nodes_of(process_cores());
  if (here.empty()) return;  // a kernel without NUMA
  MemoryBudget plain(0);
  auto ordinary = HugeBuffer::allocate(plain, 4 << 20, "test");
  REQUIRE(ordinary.ok());
  if (policy_of(*ordinary) == -1) return;  // the sandbox forbids the question
  CHECK(policy_of(*ordinary) == MPOL_DEFAULT);

  // One node is enough to see that the wish arrives; its repetition stands for a second one.
  MemoryBudget spread(0, {here[0], here[0]});
  auto interleaved = HugeBuffer::allocate(spread, 4 << 20, "test");
  REQUIRE(interleaved.ok());
  CHECK(policy_of(*interleaved) == MPOL_INTERLEAVE);
  auto small = HugeBuffer::allocate(spread, 4096, "test");
  REQUIRE(small.ok());
  CHECK(policy_of(*small) == MPOL_DEFAULT);

  CHECK_FALSE(interleave_pages(ordinary->data(), ordinary->size_bytes(), {4000}));
}
