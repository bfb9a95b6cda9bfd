// /proc and /sys of a machine whose memory is as full as the test says.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>

#include "tests/support/shared_data.h"

namespace updraft::testing {

class FakeMemory {
 public:
  explicit FakeMemory(double used_percent = 10.0) {
    std::filesystem::create_directories(dir_.file("proc"));
    set(used_percent);
  }
  // Of 1,000,000 KiB. Whole at any moment, for whoever reads meanwhile.
  void set(double used_percent) const {
    const auto available = static_cast<long>(1'000'000 - used_percent * 10'000);
    write("proc/meminfo", "MemTotal:        1000000 kB\nMemFree:  1 kB\nMemAvailable: " +
                              std::to_string(available) + " kB\n");
  }
  // A file under the root, with its folders.
  void write(const std::string& path, const std::string& text) const {
    const std::filesystem::path file = dir_.file(path);
    std::filesystem::create_directories(file.parent_path());
    const std::string fresh = file.string() + ".new";
    std::ofstream(fresh) << text;
    std::filesystem::rename(fresh, file);
  }
  std::string root() const { return dir_.file(""); }

 private:
  TempDir dir_;
};

}  // namespace updraft::testing
