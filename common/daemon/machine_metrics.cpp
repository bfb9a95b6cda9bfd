// See the header.
#include "common/daemon/machine_metrics.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <system_error>

#include "common/base/memory_reading.h"

namespace updraft {
namespace {

constexpr const char* kThermalFolder = "/sys/class/thermal";

struct CpuTimes {
  uint64_t busy = 0, all = 0;  // jiffies since boot
};

// proc(5): user nice system idle iowait irq softirq steal.
CpuTimes read_cpu_times() {
  std::ifstream in("/proc/stat");
  std::string name;
  CpuTimes times;
  in >> name;
  for (int column = 0; column < 8; ++column) {
    uint64_t jiffies = 0;
    in >> jiffies;
    times.all += jiffies;
    if (column != 3 && column != 4) times.busy += jiffies;
  }
  return times;
}

}  // namespace

std::optional<double> hottest_zone_celsius(const std::string& folder) {
  std::optional<double> hottest;
  std::error_code error;
  std::filesystem::directory_iterator at(folder, error);
  for (; !error && at != std::filesystem::directory_iterator(); at.increment(error)) {
    std::ifstream in(at->path() / "temp");  // thousandths of a degree
    double milli = 0;
    if (in >> milli) hottest = std::max(hottest.value_or(milli / 1000), milli / 1000);
  }
  return hottest;
}

void export_machine_metrics(Metrics& metrics) {
  Gauge& cpu = metrics.gauge("updraft_machine_cpu_ratio",
                             "Busy share of all processors since the last scrape, 0 to 1.");
  Gauge& memory = metrics.gauge("updraft_machine_memory_available_ratio",
                                "Share of the memory that could be had without swapping.");
  Gauge* temperature =
      hottest_zone_celsius(kThermalFolder)
          ? &metrics.gauge("updraft_machine_temperature_celsius", "Of the hottest zone.")
          : nullptr;
  metrics.on_scrape([&cpu, &memory, temperature, before = std::make_shared<CpuTimes>()] {
    const CpuTimes now = read_cpu_times();
    const uint64_t all = now.all - before->all;
    if (all > 0) cpu.set(static_cast<double>(now.busy - before->busy) / static_cast<double>(all));
    *before = now;
    memory.set(1.0 - read_machine_memory().ratio());
    if (temperature != nullptr) temperature->set(hottest_zone_celsius(kThermalFolder).value_or(0));
  });
}

}  // namespace updraft
