// What the host does with a device besides launching kernels: memory, streams, events, graphs. One
// interface over the CUDA runtime (runtime_gpu.cpp) and over the emulator (runtime_simt.cpp); which
// of them is linked decides what runs. Errors name the call and say what the device said.
//
// Objects belong to the device that was current when they were made, and are freed by any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "common/base/result.h"
#include "kernels/cuda/types.h"

namespace updraft::cuda {

struct DeviceProperties {
  std::string name;
  int32_t compute_major = 0;  // 8.0: A100; 9.0: H100, H200
  int32_t compute_minor = 0;
  int32_t multiprocessor_count = 0;
  int32_t multiprocessor_shared_bytes = 228 << 10;  // H100's
  std::string driver;                               // its version, "13.0"
  bool emulated = false;
};
struct MemoryFigures {
  uint64_t free_bytes = 0;
  uint64_t total_bytes = 0;
};

// Errors: no driver, a driver too old for this runtime, no device.
Result<int32_t> device_count();
Result<DeviceProperties> device_properties(int32_t device);
// The device that this thread's calls are about from now on.
Result<void> use_device(int32_t device);
Result<MemoryFigures> memory_figures();

// Memory of the device, aligned to 256 bytes, its content undefined. Not while work is captured.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;
  // `what` is what messages call it.
  static Result<DeviceMemory> allocate(size_t bytes, const std::string& what);

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  std::shared_ptr<void> owner_;  // the emulator's block
};

// Host memory that the device copies from and to without the host's help.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  ~PinnedMemory();
  PinnedMemory(PinnedMemory&& other) noexcept;
  PinnedMemory& operator=(PinnedMemory&& other) noexcept;
  static Result<PinnedMemory> allocate(size_t bytes, const std::string& what);

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

// A stream of its own: its work runs in order, and beside that of other streams.
class OwnedStream {
 public:
  OwnedStream() = default;
  ~OwnedStream();
  OwnedStream(OwnedStream&& other) noexcept;
  OwnedStream& operator=(OwnedStream&& other) noexcept;
  static Result<OwnedStream> create();
  Stream get() const { return stream_; }

 private:
  Stream stream_ = nullptr;
};

class Event {
 public:
  Event() = default;
  ~Event();
  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;
  static Result<Event> create();

  // Happens when the work given to the stream so far is done.
  Result<void> record(Stream stream);
  // What is given to `stream` from now on runs behind the last record; never recorded: at once.
  Result<void> hold(Stream stream) const;
  // Until it has happened; never recorded: it has.
  Result<void> wait() const;

 private:
  void* event_ = nullptr;
};

// The time between two places in a stream's work, by the device's clock. Not while work is
// captured.
class Stopwatch {
 public:
  Stopwatch() = default;
  static Result<Stopwatch> create();
  // The clock is read when the stream's work so far is done.
  Result<void> start(Stream stream);
  Result<void> stop(Stream stream);
  // Nothing: the stream is not there yet.
  Result<std::optional<int64_t>> elapsed_ns() const;

 private:
  std::shared_ptr<void> clock_;
};

// Work that was captured, ready to run again and again with the arguments that it had.
class Graph {
 public:
  Graph() = default;
  ~Graph();
  Graph(Graph&& other) noexcept;
  Graph& operator=(Graph&& other) noexcept;
  Result<void> launch(Stream stream) const;
  explicit operator bool() const { return graph_ != nullptr; }

 private:
  friend Result<Graph> end_capture(Stream stream);
  void* graph_ = nullptr;
};
// Between the two, what is given to the stream is kept, not run. Meanwhile no memory is taken and
// nobody waits.
Result<void> begin_capture(Stream stream);
Result<Graph> end_capture(Stream stream);

// In the order of the stream. Host memory is pinned, and stays as it is until the copy is done.
Result<void> copy_to_device(void* to, const void* from, size_t bytes, Stream stream);
Result<void> copy_to_host(void* to, const void* from, size_t bytes, Stream stream);
Result<void> copy_on_device(void* to, const void* from, size_t bytes, Stream stream);
Result<void> fill(void* at, uint8_t byte, size_t bytes, Stream stream);
// Until all that was given to the stream is done. Errors: also those of its kernels.
Result<void> wait(Stream stream);

}  // namespace updraft::cuda
