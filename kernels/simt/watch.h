// How a test watches launches, and makes them overlap as a device does. Each object is for the
// launches of the operating-system thread that made it, while it lives; at most one of a kind.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace updraft::simt {

struct LaunchRecord {
  std::string kernel;            // as the launch named it
  bool early_start = false;      // might start before the one in front of it had ended
  bool lets_next_start = false;  // each of its blocks said let_next_start()
};

// What was launched.
class LaunchLog {
 public:
  LaunchLog();
  ~LaunchLog();
  LaunchLog(const LaunchLog&) = delete;
  LaunchLog& operator=(const LaunchLog&) = delete;
  const std::vector<LaunchRecord>& records() const { return records_; }
  void add(LaunchRecord record) { records_.push_back(std::move(record)); }

 private:
  std::vector<LaunchRecord> records_;
};

// Launches with early_start begin as early as a device may let them: until all threads of a block
// have come to wait_for_previous(), the block finds 0xFF in place of what launches changed that may
// still be under way. Those are the one in front, and further ones in front of it as long as each
// started early itself: it may be waiting still. So who reads too early reads NaN, and who writes
// there too early is reported, as is who reads it later through the read-only path.
class Overlap {
 public:
  Overlap();
  ~Overlap();
  Overlap(const Overlap&) = delete;
  Overlap& operator=(const Overlap&) = delete;

  // For launch(): around each launch, and around what a block does before it has waited.
  void begin_launch(bool early_start);
  void end_launch();
  void hide();
  // What was written meanwhile where it was hidden, or nothing.
  std::optional<std::string> show();

  // Whether launches that may still be under way when the one that runs now began have changed
  // anything of the 16-byte units that these bytes lie in.
  bool changed_in_front(const void* at, size_t bytes) const;

  // What was launched so far has ended: the stream did something else than launching.
  void all_ended();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Kernels whose name contains `part` do nothing, as those of a module that lacks their code for the
// device.
class EmptyKernels {
 public:
  explicit EmptyKernels(std::string part);
  ~EmptyKernels();
  EmptyKernels(const EmptyKernels&) = delete;
  EmptyKernels& operator=(const EmptyKernels&) = delete;
  bool holds(std::string_view kernel) const { return kernel.find(part_) != std::string_view::npos; }

 private:
  const std::string part_;
};

// Those of this thread, or null.
LaunchLog* launch_log();
Overlap* overlap();
EmptyKernels* empty_kernels();

}  // namespace updraft::simt
