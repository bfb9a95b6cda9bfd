// What the devices of a tensor-parallel group say to each other: sums. Each device's backend has
// one end, given to it when it is opened, and calls it from the thread that runs the backend; a sum
// is there when every end has asked for it, so all ask for the same sums in the same order.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/base/result.h"

struct CUstream_st;

namespace updraft {

class Comm {
 public:
  enum class Values : uint8_t { kF32, kBF16, kF16 };

  virtual ~Comm() = default;
  virtual int32_t rank() const = 0;  // 0 .. size() - 1
  virtual int32_t size() const = 0;
  // "NCCL 2.28.9": for logs.
  virtual std::string description() const = 0;

  // values[0, count) of every rank become the sum of all ranks' ones, the same bits everywhere.
  // With a device's memory: behind what was given to `stream` (a cudaStream_t) before, without
  // waiting, and it may be captured in a graph. With host memory (f32 alone): `stream` is null, and
  // it is done on return. Errors: what the library underneath says; a broken group does not heal.
  virtual Result<void> all_reduce(void* values, int64_t count, Values type,
                                  CUstream_st* stream) = 0;
};

// One end for each of `size` > 0 threads of this process, for host memory. An element's sum is
// added up in the order of the ranks.
std::vector<std::shared_ptr<Comm>> make_host_comms(int32_t size);

}  // namespace updraft
