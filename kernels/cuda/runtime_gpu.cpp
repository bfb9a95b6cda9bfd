// The runtime over CUDA's own.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <utility>

#include "kernels/cuda/runtime.h"

namespace updraft::cuda {
namespace {

Result<void> said(const char* call, cudaError_t error) {
  if (error == cudaSuccess) return {};
  (void)cudaGetLastError();  // a later call is not to find it again
  return fail(std::string("cuda: ") + call + ": " + cudaGetErrorString(error) + " (" +
              cudaGetErrorName(error) + ")");
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

Error out_of_memory(const char* call, cudaError_t error, size_t bytes, const std::string& what) {
  return said(call, error).error(what + " of " + std::to_string(bytes) + " bytes");
}

}  // namespace

Result<int32_t> device_count() {
  int driver = 0;
  if (auto result = said("cudaDriverGetVersion", cudaDriverGetVersion(&driver)); !result) {
    return result.error();
  }
  if (driver == 0) return fail("cuda: no driver (libcuda.so.1) on this machine");
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver) {
    int runtime = 0;
    (void)cudaRuntimeGetVersion(&runtime);
    return fail("cuda: the driver knows CUDA " + version_text(driver) + ", this build wants " +
                version_text(runtime) + " or newer");
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    return fail(visible == nullptr
                    ? std::string("cuda: no GPU on this machine")
                    : std::string("cuda: no GPU: CUDA_VISIBLE_DEVICES is '") + visible + "'");
  }
  if (auto result = said("cudaGetDeviceCount", error); !result) return result.error();
  return count;
}

Result<DeviceProperties> device_properties(int32_t device) {
  cudaDeviceProp properties{};
  if (auto result = said("cudaGetDeviceProperties", cudaGetDeviceProperties(&properties, device));
      !result) {
    return result.error();
  }
  int driver = 0;
  (void)cudaDriverGetVersion(&driver);
  DeviceProperties out;
  out.name = properties.name;
  out.compute_major = properties.major;
  out.compute_minor = properties.minor;
  out.multiprocessor_count = properties.multiProcessorCount;
  out.multiprocessor_shared_bytes = static_cast<int32_t>(properties.sharedMemPerMultiprocessor);
  out.driver = version_text(driver);
  return out;
}

Result<void> use_device(int32_t device) { return said("cudaSetDevice", cudaSetDevice(device)); }

Result<MemoryFigures> memory_figures() {
  size_t free = 0;
  size_t total = 0;
  if (auto result = said("cudaMemGetInfo", cudaMemGetInfo(&free, &total)); !result) {
    return result.error();
  }
  return MemoryFigures{free, total};
}

// --- memory ---

DeviceMemory::~DeviceMemory() {
  if (data_ != nullptr) (void)cudaFree(data_);
}
DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}
Result<DeviceMemory> DeviceMemory::allocate(size_t bytes, const std::string& what) {
  void* data = nullptr;
  if (const cudaError_t error = cudaMalloc(&data, bytes); error != cudaSuccess) {
    return out_of_memory("cudaMalloc", error, bytes, what);
  }
  DeviceMemory out;
  out.data_ = static_cast<std::byte*>(data);
  out.bytes_ = bytes;
  return out;
}

PinnedMemory::~PinnedMemory() {
  if (data_ != nullptr) (void)cudaFreeHost(data_);
}
PinnedMemory::PinnedMemory(PinnedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
PinnedMemory& PinnedMemory::operator=(PinnedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}
Result<PinnedMemory> PinnedMemory::allocate(size_t bytes, const std::string& what) {
  void* data = nullptr;
  if (const cudaError_t error = cudaHostAlloc(&data, bytes, cudaHostAllocPortable);
      error != cudaSuccess) {
    return out_of_memory("cudaHostAlloc", error, bytes, what);
  }
  PinnedMemory out;
  out.data_ = static_cast<std::byte*>(data);
  out.bytes_ = bytes;
  return out;
}

// --- streams and events ---

OwnedStream::~OwnedStream() {
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
}
OwnedStream::OwnedStream(OwnedStream&& other) noexcept
    : stream_(std::exchange(other.stream_, nullptr)) {}
OwnedStream& OwnedStream::operator=(OwnedStream&& other) noexcept {
  std::swap(stream_, other.stream_);
  return *this;
}
Result<OwnedStream> OwnedStream::create() {
  OwnedStream out;
  if (auto result = said("cudaStreamCreateWithFlags",
                         cudaStreamCreateWithFlags(&out.stream_, cudaStreamNonBlocking));
      !result) {
    return result.error();
  }
  return out;
}

Event::~Event() {
  if (event_ != nullptr) (void)cudaEventDestroy(static_cast<cudaEvent_t>(event_));
}
Event::Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
Event& Event::operator=(Event&& other) noexcept {
  std::swap(event_, other.event_);
  return *this;
}
Result<Event> Event::create() {
  cudaEvent_t event = nullptr;
  if (auto result = said("cudaEventCreateWithFlags",
                         cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
      !result) {
    return result.error();
  }
  Event out;
  out.event_ = event;
  return out;
}
Result<void> Event::record(Stream stream) {
  return said("cudaEventRecord", cudaEventRecord(static_cast<cudaEvent_t>(event_), stream));
}
Result<void> Event::hold(Stream stream) const {
  return said("cudaStreamWaitEvent",
              cudaStreamWaitEvent(stream, static_cast<cudaEvent_t>(event_), 0));
}
Result<void> Event::wait() const {
  return said("cudaEventSynchronize", cudaEventSynchronize(static_cast<cudaEvent_t>(event_)));
}

namespace {

struct Clock {
  cudaEvent_t first = nullptr;
  cudaEvent_t last = nullptr;
  ~Clock() {
    for (const cudaEvent_t event : {first, last}) {
      if (event != nullptr) (void)cudaEventDestroy(event);
    }
  }
};

}  // namespace

Result<Stopwatch> Stopwatch::create() {
  auto clock = std::make_shared<Clock>();
  for (cudaEvent_t* event : {&clock->first, &clock->last}) {
    if (auto result = said("cudaEventCreate", cudaEventCreate(event)); !result)
      return result.error();
  }
  Stopwatch out;
  out.clock_ = std::move(clock);
  return out;
}
Result<void> Stopwatch::start(Stream stream) {
  return said("cudaEventRecord", cudaEventRecord(static_cast<Clock*>(clock_.get())->first, stream));
}
Result<void> Stopwatch::stop(Stream stream) {
  return said("cudaEventRecord", cudaEventRecord(static_cast<Clock*>(clock_.get())->last, stream));
}
Result<std::optional<int64_t>> Stopwatch::elapsed_ns() const {
  const auto* clock = static_cast<const Clock*>(clock_.get());
  const cudaError_t state = cudaEventQuery(clock->last);
  if (state == cudaErrorNotReady) {
    (void)cudaGetLastError();
    return std::optional<int64_t>();
  }
  if (auto result = said("cudaEventQuery", state); !result) return result.error();
  float milliseconds = 0.0F;
  if (auto result = said("cudaEventElapsedTime",
                         cudaEventElapsedTime(&milliseconds, clock->first, clock->last));
      !result) {
    return result.error();
  }
  return std::optional<int64_t>(static_cast<int64_t>(static_cast<double>(milliseconds) * 1e6));
}

// --- graphs ---

Graph::~Graph() {
  if (graph_ != nullptr) (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph_));
}
Graph::Graph(Graph&& other) noexcept : graph_(std::exchange(other.graph_, nullptr)) {}
Graph& Graph::operator=(Graph&& other) noexcept {
  std::swap(graph_, other.graph_);
  return *this;
}
Result<void> Graph::launch(Stream stream) const {
  return said("cudaGraphLaunch", cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph_), stream));
}
Result<void> begin_capture(Stream stream) {
  return said("cudaStreamBeginCapture",
              cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
}
Result<Graph> end_capture(Stream stream) {
  cudaGraph_t graph = nullptr;
  if (auto result = said("cudaStreamEndCapture", cudaStreamEndCapture(stream, &graph)); !result) {
    return result.error();
  }
  cudaGraphExec_t executable = nullptr;
  auto result = said("cudaGraphInstantiate", cudaGraphInstantiate(&executable, graph, 0));
  (void)cudaGraphDestroy(graph);
  if (!result) return result.error();
  Graph out;
  out.graph_ = executable;
  return out;
}

// --- copies ---

Result<void> copy_to_device(void* to, const void* from, size_t bytes, Stream stream) {
  return said("cudaMemcpyAsync to the device",
              cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream));
}
Result<void> copy_to_host(void* to, const void* from, size_t bytes, Stream stream) {
  return said("cudaMemcpyAsync to the host",
              cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream));
}
Result<void> copy_on_device(void* to, const void* from, size_t bytes, Stream stream) {
  return said("cudaMemcpyAsync on the device",
              cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream));
}
Result<void> fill(void* at, uint8_t byte, size_t bytes, Stream stream) {
  return said("cudaMemsetAsync", cudaMemsetAsync(at, byte, bytes, stream));
}
Result<void> wait(Stream stream) {
  return said("cudaStreamSynchronize", cudaStreamSynchronize(stream));
}

}  // namespace updraft::cuda
