// Hints about mapped files: memory is given back, the bytes stay.
#include "common/model/mapped_file.h"

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

using namespace updraft;

namespace {

// Bytes of [from, to) that this process has mapped now: "Rss" of its part of /proc/self/smaps.
uint64_t resident_bytes(ByteView range) {
  std::ifstream maps("/proc/self/smaps");
  std::string line;
  const auto begin = reinterpret_cast<unsigned long long>(range.data());
  bool inside = false;
  while (std::getline(maps, line)) {
    unsigned long long from = 0;
    unsigned long long to = 0;
    unsigned long long kib = 0;
    if (std::sscanf(line.c_str(), "%llx-%llx ", &from, &to) == 2) {
      inside = from <= begin && begin < to;
    } else if (inside && std::sscanf(line.c_str(), "Rss: %llu kB", &kib) == 1) {
      return kib * 1024;
    }
  }
  return 0;
}

}  // namespace

TEST_CASE("what was read leaves memory, and can be read again") {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("updraft_mapped_" + std::to_string(getpid())))
          .string();
  const size_t size = size_t{8} << 20;
  {
    std::ofstream file(path, std::ios::binary);
    std::vector<char> bytes(size);
    for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(i % 251);
    file.write(bytes.data(), static_cast<std::streamsize>(size));
  }
  auto opened = MappedFile::open(path);
  REQUIRE(opened.ok());
  const ByteView bytes = (*opened)->bytes();
  const auto all_right = [&] {
    for (size_t i = 0; i < size; ++i) {
      if (static_cast<uint8_t>(bytes[i]) != i % 251) return false;
    }
    return true;
  };
  (*opened)->will_read(bytes);
  CHECK(all_right());
  CHECK(resident_bytes(bytes) >= size);
  // From the middle of a page to the middle of another: both stay.
  (*opened)->was_read(bytes.subspan(100, size / 2));
  const uint64_t half = resident_bytes(bytes);
  CHECK(half >= size / 2);
  CHECK(half <= size / 2 + (256 << 10));
  CHECK(all_right());
  // Ranges outside the mapping, and empty ones, do nothing.
  const std::vector<std::byte> elsewhere(1 << 16, std::byte{7});
  (*opened)->was_read(elsewhere);
  (*opened)->will_read(elsewhere);
  (*opened)->was_read({});
  CHECK(elsewhere[1 << 15] == std::byte{7});
  CHECK(resident_bytes(bytes) >= size);
  std::filesystem::remove(path);
}
