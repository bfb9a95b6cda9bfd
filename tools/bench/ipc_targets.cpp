// See the header.
#include "tools/bench/ipc_targets.h"

#include <algorithm>

namespace updraft {
namespace {

constexpr uint64_t kMiB = 1 << 20;
// Idle is nothing but a clock's tick now and then.
constexpr double kIdleShareMax = 0.001;

const DaemonLine* find_pace(const std::vector<DaemonLine>& lines, DaemonPace pace) {
  const auto at = std::find_if(lines.begin(), lines.end(),
                               [&](const DaemonLine& line) { return line.pace == pace; });
  return at == lines.end() ? nullptr : &*at;
}

// Largest over smallest p50 of the handed-over payload, all sizes; 0: not measured.
double spread_of_sizes(const std::vector<IpcLine>& lines) {
  double least = 0, most = 0;
  for (const IpcLine& line : lines) {
    if (line.test != IpcTest::kHand || line.peer != "updraft" || !line.spins) continue;
    least = least == 0 ? line.p50_us : std::min(least, line.p50_us);
    most = std::max(most, line.p50_us);
  }
  return least == 0 ? 0 : most / least;
}

}  // namespace

const IpcLine* find_ipc_line(const std::vector<IpcLine>& lines, IpcTest test, uint64_t bytes,
                             const std::string& peer, bool spins) {
  const auto at = std::find_if(lines.begin(), lines.end(), [&](const IpcLine& line) {
    return line.test == test && line.bytes == bytes && line.peer == peer && line.spins == spins;
  });
  return at == lines.end() ? nullptr : &*at;
}

std::vector<IpcTarget> ipc_targets(const std::vector<IpcLine>& lines,
                                   const std::vector<DaemonLine>& daemon,
                                   std::optional<double> idle_daemon_share) {
  std::vector<IpcTarget> out;
  const auto ours = [&](IpcTest test, uint64_t bytes, bool spins = true) {
    return find_ipc_line(lines, test, bytes, "updraft", spins);
  };
  if (const IpcLine* hand = ours(IpcTest::kHand, 64)) {
    std::optional<double> floor;
    if (const IpcLine* line = find_ipc_line(lines, IpcTest::kHand, 64, "cache line", true))
      floor = line->p50_us;
    const char* const floor_name = "one cache line there and one back";
    out.push_back({"handed over, 64 B, p50", 0.3, false, hand->p50_us, "us", floor, floor_name});
    out.push_back({"handed over, 64 B, p99", 0.5, false, hand->p99_us, "us", floor, floor_name});
    out.push_back({"handed over, slowest size / fastest", 1.2, false, spread_of_sizes(lines), "x",
                   1.0, "the same for all"});
  }
  if (const IpcLine* rate = ours(IpcTest::kRate, 64))
    out.push_back(
        {"descriptors one way", 10, true, rate->per_s / 1e6, "million/s", std::nullopt, {}});
  const IpcLine* sparse = ours(IpcTest::kSparse, 64, false);
  const IpcLine* eventfd = find_ipc_line(lines, IpcTest::kSparse, 64, "eventfd", false);
  if (sparse != nullptr && eventfd != nullptr)
    out.push_back({"sparse and blocking / raw eventfd",
                   1.15,
                   false,
                   sparse->p50_us / eventfd->p50_us,
                   "x",
                   std::nullopt,
                   {}});
  if (const IpcLine* fill = ours(IpcTest::kFill, kMiB))
    out.push_back({"filled one way, 1 MiB", 30, true, fill->gb_per_s, "GB/s", std::nullopt, {}});
  if (const IpcLine* fill = ours(IpcTest::kFill, 16 * kMiB))
    out.push_back({"filled one way, 16 MiB", 15, true, fill->gb_per_s, "GB/s", std::nullopt, {}});
  if (const IpcLine* echo = ours(IpcTest::kEcho, 16 * kMiB))
    out.push_back({"echo of 16 MiB", 2.3, false, echo->p50_us / 1e3, "ms", std::nullopt, {}});
  if (const IpcLine* idle = ours(IpcTest::kIdle, 64, false))
    out.push_back({"idle channel, of a core", 100 * kIdleShareMax, false, 100 * idle->cpu_share,
                   "%", 0.0, "sleep"});

  const DaemonLine* busy = find_pace(daemon, DaemonPace::kBusy);
  const DaemonLine* blocking = find_pace(daemon, DaemonPace::kBlocking);
  // Both ends sleep between requests with kBlocking, as a program that waits in next() does.
  std::optional<double> one_wake;
  if (eventfd != nullptr) one_wake = eventfd->p50_us / 2;
  const char* const one_wake_name = "one wake-up of raw eventfd";
  if (blocking != nullptr)
    out.push_back({"daemon asleep: submit to first step", 60, false, blocking->first_step_p50_us,
                   "us", one_wake, one_wake_name});
  if (busy != nullptr)
    out.push_back({"daemon busy: submit to first step",
                   5,
                   false,
                   busy->first_step_p50_us,
                   "us",
                   std::nullopt,
                   {}});
  if (blocking != nullptr)
    out.push_back({"token to a sleeping client", 65, false, blocking->token_back_p50_us, "us",
                   one_wake, one_wake_name});
  if (idle_daemon_share)
    out.push_back({"idle daemon with a session, of a core", 100 * kIdleShareMax, false,
                   100 * *idle_daemon_share, "%", 0.0, "sleep"});
  return out;
}

}  // namespace updraft
