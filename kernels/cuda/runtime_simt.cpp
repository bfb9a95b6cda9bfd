// The runtime over the emulator. Device memory is the emulator's: bounds are checked. What is freed
// is poisoned and kept for a while, so that who still reads it reads NaN.
#include "kernels/cuda/runtime_simt.h"

#include <array>
#include <atomic>
#include <cstring>
#include <deque>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "kernels/cuda/runtime.h"
#include "kernels/simt/memory.h"
#include "kernels/simt/watch.h"

namespace updraft::cuda {
namespace {

constexpr int32_t kDevicesMax = 8;
constexpr size_t kFreedBytesMax = 16 << 20;  // kept poisoned

struct EmulatedDevice {
  std::shared_ptr<simt::StreamSet> streams = simt::make_stream_set();
  uint64_t used_bytes = 0;
};
struct Machine {
  std::mutex mutex;
  EmulatedDevices devices;
  std::array<EmulatedDevice, kDevicesMax> device;
  std::deque<std::shared_ptr<void>> freed;  // blocks, retired
  size_t freed_bytes = 0;
};
Machine& machine() {
  static Machine instance;
  return instance;
}

thread_local int32_t g_device = 0;

EmulatedDevice& current() { return machine().device[static_cast<size_t>(g_device)]; }

// A block of global memory and whose it is.
struct Block {
  Block(const std::string& what, size_t bytes, int32_t on)
      : memory(what, simt::Space::kGlobal, bytes), device(on) {}
  simt::MemoryBlock memory;
  int32_t device;
};

// Copies of either direction: the device's side is checked.
Result<void> copy(const char* name, void* to, const void* from, size_t bytes, const void* device_to,
                  const void* device_from, Stream stream) {
  return simt::submit(stream, [=]() -> Result<void> {
    for (const void* at : {device_to, device_from}) {
      if (at == nullptr) continue;
      if (auto error = simt::range_error(at, bytes)) return fail(std::string(name) + ": " + *error);
    }
    std::memcpy(to, from, bytes);
    if (simt::overlap() != nullptr) simt::overlap()->all_ended();
    return {};
  });
}

}  // namespace

void set_emulated_devices(const EmulatedDevices& devices) {
  UPDRAFT_CHECK(devices.count >= 0 && devices.count <= kDevicesMax, "emulated devices");
  const std::lock_guard lock(machine().mutex);
  machine().devices = devices;
}
void set_stream_order(const simt::StreamOrder& order) {
  simt::set_order(*current().streams, order);
}
uint64_t emulated_memory_used_bytes() {
  const std::lock_guard lock(machine().mutex);
  uint64_t sum = 0;
  for (const EmulatedDevice& device : machine().device) sum += device.used_bytes;
  return sum;
}

Result<int32_t> device_count() {
  const std::lock_guard lock(machine().mutex);
  if (machine().devices.count == 0) return fail("cuda: no GPU on this machine");
  return machine().devices.count;
}
Result<DeviceProperties> device_properties(int32_t /*device*/) {
  const std::lock_guard lock(machine().mutex);
  DeviceProperties out;
  out.name = "emulated GPU";
  out.compute_major = machine().devices.compute_major;
  out.multiprocessor_count = machine().devices.multiprocessor_count;
  out.driver = "none";
  out.emulated = true;
  return out;
}
Result<void> use_device(int32_t device) {
  const std::lock_guard lock(machine().mutex);
  if (device < 0 || device >= machine().devices.count) {
    return fail("cuda: no device " + std::to_string(device));
  }
  g_device = device;
  return {};
}
Result<MemoryFigures> memory_figures() {
  const std::lock_guard lock(machine().mutex);
  const uint64_t total = machine().devices.memory_bytes;
  const uint64_t used = current().used_bytes;
  return MemoryFigures{total > used ? total - used : 0, total};
}

// --- memory ---

DeviceMemory::~DeviceMemory() {
  if (!owner_) return;
  auto* block = static_cast<Block*>(owner_.get());
  block->memory.retire();
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  m.device[static_cast<size_t>(block->device)].used_bytes -= bytes_;
  m.freed.push_back(std::move(owner_));
  m.freed_bytes += bytes_;
  while (m.freed_bytes > kFreedBytesMax) {
    m.freed_bytes -= static_cast<Block*>(m.freed.front().get())->memory.bytes();
    m.freed.pop_front();
  }
}
DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      owner_(std::move(other.owner_)) {}
DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(owner_, other.owner_);
  return *this;
}
Result<DeviceMemory> DeviceMemory::allocate(size_t bytes, const std::string& what) {
  Machine& m = machine();
  if (simt::capturing(*current().streams)) {
    return fail("cuda: " + what + " of " + std::to_string(bytes) +
                " bytes: memory is taken while work is captured");
  }
  {
    const std::lock_guard lock(m.mutex);
    if (current().used_bytes + bytes > m.devices.memory_bytes) {
      return fail(what + " of " + std::to_string(bytes) +
                  " bytes: cuda: cudaMalloc: out of memory (cudaErrorMemoryAllocation)");
    }
    current().used_bytes += bytes;
  }
  DeviceMemory out;
  const auto block = std::make_shared<Block>(what, bytes, g_device);
  out.data_ = block->memory.data();
  out.bytes_ = bytes;
  out.owner_ = block;
  return out;
}

PinnedMemory::~PinnedMemory() {
  if (data_ == nullptr) return;
  std::memset(data_, 0xFF, bytes_);
  ::operator delete (data_, std::align_val_t{256});
}
PinnedMemory::PinnedMemory(PinnedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
PinnedMemory& PinnedMemory::operator=(PinnedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}
Result<PinnedMemory> PinnedMemory::allocate(size_t bytes, const std::string& what) {
  if (simt::capturing(*current().streams)) {
    return fail("cuda: " + what + ": pinned memory is taken while work is captured");
  }
  PinnedMemory out;
  out.data_ = static_cast<std::byte*>(::operator new (bytes, std::align_val_t{256}));
  out.bytes_ = bytes;
  std::memset(out.data_, 0xFF, bytes);
  return out;
}

// --- streams and events ---

OwnedStream::~OwnedStream() {
  if (stream_ != nullptr) simt::destroy_stream(stream_);
}
OwnedStream::OwnedStream(OwnedStream&& other) noexcept
    : stream_(std::exchange(other.stream_, nullptr)) {}
OwnedStream& OwnedStream::operator=(OwnedStream&& other) noexcept {
  std::swap(stream_, other.stream_);
  return *this;
}
Result<OwnedStream> OwnedStream::create() {
  OwnedStream out;
  out.stream_ = simt::make_stream(current().streams);
  return out;
}

Event::~Event() {
  if (event_ != nullptr) simt::destroy_event(static_cast<CUevent_st*>(event_));
}
Event::Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
Event& Event::operator=(Event&& other) noexcept {
  std::swap(event_, other.event_);
  return *this;
}
Result<Event> Event::create() {
  Event out;
  out.event_ = simt::make_event();
  return out;
}
Result<void> Event::record(Stream stream) {
  return simt::record(static_cast<CUevent_st*>(event_), stream);
}
Result<void> Event::hold(Stream stream) const {
  return simt::wait_event(stream, static_cast<CUevent_st*>(event_));
}
Result<void> Event::wait() const { return simt::wait(static_cast<CUevent_st*>(event_)); }

namespace {

struct Clock {
  std::atomic<int64_t> first_ns = 0;
  std::atomic<int64_t> last_ns = 0;  // 0: not there yet
};

}  // namespace

Result<Stopwatch> Stopwatch::create() {
  Stopwatch out;
  out.clock_ = std::make_shared<Clock>();
  return out;
}
Result<void> Stopwatch::start(Stream stream) {
  auto clock = std::static_pointer_cast<Clock>(clock_);
  clock->last_ns = 0;
  return simt::submit(stream, [clock]() -> Result<void> {
    clock->first_ns = monotonic_ns();
    return {};
  });
}
Result<void> Stopwatch::stop(Stream stream) {
  auto clock = std::static_pointer_cast<Clock>(clock_);
  return simt::submit(stream, [clock]() -> Result<void> {
    clock->last_ns = monotonic_ns();
    return {};
  });
}
Result<std::optional<int64_t>> Stopwatch::elapsed_ns() const {
  const auto* clock = static_cast<const Clock*>(clock_.get());
  const int64_t last_ns = clock->last_ns;
  if (last_ns == 0) return std::optional<int64_t>();
  return std::optional<int64_t>(last_ns - clock->first_ns);
}

// --- graphs ---

Graph::~Graph() { delete static_cast<std::vector<simt::Work>*>(graph_); }
Graph::Graph(Graph&& other) noexcept : graph_(std::exchange(other.graph_, nullptr)) {}
Graph& Graph::operator=(Graph&& other) noexcept {
  std::swap(graph_, other.graph_);
  return *this;
}
Result<void> Graph::launch(Stream stream) const {
  for (const simt::Work& work : *static_cast<const std::vector<simt::Work>*>(graph_)) {
    if (auto given = simt::submit(stream, work); !given) return given;
  }
  return {};
}
Result<void> begin_capture(Stream stream) {
  {
    const std::lock_guard lock(machine().mutex);
    if (!machine().devices.captures) return fail("cuda: no capture here");
  }
  return simt::begin_capture(stream);
}
Result<Graph> end_capture(Stream stream) {
  auto captured = simt::end_capture(stream);
  if (!captured) return captured.error();
  Graph out;
  out.graph_ = new std::vector<simt::Work>(std::move(*captured));
  return out;
}

// --- copies ---

Result<void> copy_to_device(void* to, const void* from, size_t bytes, Stream stream) {
  return copy("copy to the device", to, from, bytes, to, nullptr, stream);
}
Result<void> copy_to_host(void* to, const void* from, size_t bytes, Stream stream) {
  return copy("copy to the host", to, from, bytes, nullptr, from, stream);
}
Result<void> copy_on_device(void* to, const void* from, size_t bytes, Stream stream) {
  return copy("copy on the device", to, from, bytes, to, from, stream);
}
Result<void> fill(void* at, uint8_t byte, size_t bytes, Stream stream) {
  return simt::submit(stream, [=]() -> Result<void> {
    if (auto error = simt::range_error(at, bytes)) return fail("fill: " + *error);
    std::memset(at, byte, bytes);
    if (simt::overlap() != nullptr) simt::overlap()->all_ended();
    return {};
  });
}
Result<void> wait(Stream stream) { return simt::wait(stream); }

}  // namespace updraft::cuda
