// Runs a CUDA kernel's source on the CPU: every thread of a block is a fiber, warps take turns in a
// random order that a seed fixes, and what cannot go on is reported with the block, warp and place
// where it stands.
//
// What a kernel may use is in ops.h. Its blocks run one after another, in random order. A thread
// gives way only inside an operation of ops.h, so a kernel that spins on memory never ends here.
// Kernels hold no objects with destructors: a launch that fails leaves its threads where they are.
#pragma once

#include <cstdint>
#include <functional>

#include "common/base/result.h"

namespace updraft::simt {

struct Dim3 {
  uint32_t x = 1;
  uint32_t y = 1;
  uint32_t z = 1;
  uint64_t count() const { return static_cast<uint64_t>(x) * y * z; }
};

// When the bytes of a cp.async or of a bulk copy arrive, and when a wgmma reads its operands. Real
// ones do at any time between the two.
enum class Landing : uint8_t {
  kAtWait,   // the wait for their group: whoever reads without it, or without a barrier behind it,
             // reads old bytes. Bulk copies: one by one in a random order, while somebody waits. A
             // wgmma reads at its issue
  kAtIssue,  // at once: whoever still reads what they overwrite reads new bytes; so does a wgmma,
             // which reads at the wait for its group
};

// What becomes of a wait for a phase that can never be over.
enum class Stuck : uint8_t {
  kReport,  // the launch ends with a report
  kGiveUp,  // the wait says so to the kernel, as it does on a GPU after its bound
};

// One of the orders in which the hardware might have run a launch.
struct Schedule {
  uint64_t seed = 1;
  Landing landing = Landing::kAtWait;
  Stuck stuck = Stuck::kReport;
};

// Of a block: dynamic shared memory and static arrays together.
inline constexpr size_t kSharedBytesMax = 227 << 10;

// Launches of this operating-system thread as on a device whose blocks have less: 163 KiB (8.0) or
// 99 (8.6, 8.9, 12.0).
class SharedLimit {
 public:
  explicit SharedLimit(size_t bytes);
  ~SharedLimit();
  SharedLimit(const SharedLimit&) = delete;
  SharedLimit& operator=(const SharedLimit&) = delete;

 private:
  size_t before_;
};
size_t shared_bytes_max();

struct LaunchShape {
  Dim3 grid;
  Dim3 block;               // at most 1024 threads
  size_t shared_bytes = 0;  // dynamic shared memory
  // May start before the launch before it on the stream has ended: up to its wait_for_previous(),
  // which every thread comes to, the kernel touches only what no kernel writes. Devices before
  // capability 90 do not; here a launch overlaps those in front where a test wants it (watch.h).
  bool early_start = false;
  const char* kernel = "";  // its name, for who watches
};

// The schedule of launches that name none, per operating-system thread: the host code of a kernel,
// which runs unchanged on a GPU, knows of no schedules.
class ScheduleScope {
 public:
  explicit ScheduleScope(const Schedule& schedule);
  ~ScheduleScope();
  ScheduleScope(const ScheduleScope&) = delete;
  ScheduleScope& operator=(const ScheduleScope&) = delete;

 private:
  Schedule before_;
};
const Schedule& current_schedule();

// Runs the kernel; `kernel` is called once per thread. Errors name the block, the warp and the
// place: a barrier that not all threads reach, lanes that differ at a warp operation, an access
// outside its buffer or not aligned to its size, a guard that was written, a copy that nobody
// waited for, warps of a warpgroup that did not do the same products, an early start whose thread
// did not wait for the launch before.
Result<void> launch(const LaunchShape& shape, const Schedule& schedule,
                    const std::function<void()>& kernel);

}  // namespace updraft::simt
