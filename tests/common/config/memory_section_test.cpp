// [memory], the same in every daemon.
#include "common/config/memory_section.h"

#include <doctest/doctest.h>

#include <string>

using namespace updraft;

namespace {

struct Read {
  MemoryThresholds memory;
  std::string error;
};
Read read(const std::string& text) {
  Read out;
  auto file = TomlFile::parse(text, "m.toml");
  REQUIRE(file.ok());
  read_memory_section(*file, out.memory);
  if (const auto done = file->finish(); !done) out.error = done.message();
  return out;
}

}  // namespace

TEST_CASE("memory is shed at 95 and refused at 98 percent unless a file says otherwise") {
  const Read none = read("");
  CHECK(none.error.empty());
  CHECK(none.memory.shed_percent == 95);
  CHECK(none.memory.refuse_percent == 98);
  const Read given = read("[memory]\nshed_percent = 80\nrefuse_percent = 100\n");
  CHECK(given.error.empty());
  CHECK(given.memory.shed_percent == 80);
  CHECK(given.memory.refuse_percent == 100);
}

TEST_CASE("thresholds of memory out of range or out of order are refused by name") {
  CHECK(read("[memory]\nshed_percent = 49\n").error.find("shed_percent = 49") != std::string::npos);
  CHECK(read("[memory]\nrefuse_percent = 101\n").error.find("refuse_percent = 101") !=
        std::string::npos);
  const std::string order = read("[memory]\nshed_percent = 97\nrefuse_percent = 96\n").error;
  CHECK(order.find("refuse_percent = 96 is less than shed_percent = 97") != std::string::npos);
  CHECK(order.find("m.toml:3") != std::string::npos);
}
