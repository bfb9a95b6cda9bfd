#include "tools/gpu/load_bench.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <thread>
#include <vector>

#include "common/base/clock.h"
#include "tools/gpu/random_file.h"
#include "tools/gpu/random_weights.h"
#include "tools/gpu/stepper.h"

namespace updraft::gpu {
namespace {

constexpr int kLayers = 10;  // of qwen3-8b: 6.3 GB with both tables
constexpr uint64_t kReadBytes = 8 << 20;

class File {
 public:
  explicit File(const std::string& path)
      : descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~File() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  bool open() const { return descriptor_ >= 0; }
  // On the disk, and out of the page cache.
  bool forget() const {
    return fsync(descriptor_) == 0 && posix_fadvise(descriptor_, 0, 0, POSIX_FADV_DONTNEED) == 0;
  }

  // Seconds of reading all of it by several threads; below 0: it could not be read.
  double read_all(uint64_t bytes, int threads) const {
    std::atomic<uint64_t> next{0};
    std::atomic<bool> failed{false};
    const int64_t begin_ns = monotonic_ns();
    {
      std::vector<std::jthread> readers;
      for (int i = 0; i < threads; ++i) {
        readers.emplace_back([&] {
          std::vector<std::byte> buffer(kReadBytes);
          for (uint64_t at = next.fetch_add(kReadBytes); at < bytes;
               at = next.fetch_add(kReadBytes)) {
            uint64_t left = std::min(kReadBytes, bytes - at);
            for (uint64_t from = at; left > 0;) {
              const ssize_t got = pread(descriptor_, buffer.data(), left, static_cast<off_t>(from));
              if (got <= 0) {
                failed = true;
                return;
              }
              from += static_cast<uint64_t>(got);
              left -= static_cast<uint64_t>(got);
            }
          }
        });
      }
    }
    return failed ? -1.0 : static_cast<double>(monotonic_ns() - begin_ns) * 1e-9;
  }

 private:
  const int descriptor_;
};

// The folder and what is in it, gone at the end.
struct Scratch {
  std::string folder;
  ~Scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(folder, ignored);
  }
};

Result<double> load_seconds(const std::string& folder, const OpenBackend& open) {
  auto backend = open();
  if (!backend) return backend.error();
  const int64_t begin_ns = monotonic_ns();
  auto model = open_model(folder);
  if (!model) return model.error();
  const auto stepper = Stepper::open(std::move(*model), std::move(*backend), {64, 8, 64, 1024});
  if (!stepper) return stepper.error();
  return static_cast<double>(monotonic_ns() - begin_ns) * 1e-9;
}

}  // namespace

Result<void> run_load_bench(const LoadBenchConfig& config, const OpenBackend& open,
                            const std::function<void(const Line&)>& print) {
  auto shape = shape_of("qwen3-8b");
  if (!shape) return shape.error();
  shape->layer_count = kLayers;
  if (config.smoke) {
    shape->layer_count = 2;
    shape->hidden_dim = shape->ff_dim = 256;
    shape->head_count = shape->kv_head_count = 2;
    shape->vocab_count = 512;
  }
  const Scratch scratch{config.folder + "/load_bench"};
  if (const auto written = write_random_safetensors(*shape, scratch.folder); !written)
    return written;
  const std::string path = scratch.folder + "/model.safetensors";
  const auto bytes = static_cast<uint64_t>(std::filesystem::file_size(path));
  const int threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1U, 16U));
  const File file(path);
  const auto forget = [&]() -> Result<void> {
    if (file.open() && file.forget()) return {};
    return fail(path + ": " + std::generic_category().message(errno));
  };
  const auto line = [&](const std::string& name, double seconds) {
    Line out;
    out.group = "load";
    out.name = name;
    out.value = static_cast<double>(bytes) * 1e-9 / seconds;
    out.unit = "GB/s";
    return out;
  };

  if (const auto done = forget(); !done) return done;
  const double disk_s = file.read_all(bytes, threads);
  if (disk_s < 0.0) return fail(path + ": could not be read");
  print(line("read by " + std::to_string(threads) + " threads, cold", disk_s));

  if (const auto done = forget(); !done) return done;
  const auto cold_s = load_seconds(scratch.folder, open);
  if (!cold_s) return cold_s.error();
  Line cold = line("file to device, cold", *cold_s);
  cold.share = disk_s / *cold_s;
  cold.of = "read";
  // A small file's time is that of opening the device's memory.
  if (!config.smoke) cold.target = 0.9;
  print(cold);

  (void)file.read_all(bytes, threads);
  const auto warm_s = load_seconds(scratch.folder, open);
  if (!warm_s) return warm_s.error();
  Line warm = line("file to device, in the page cache", *warm_s);
  if (config.ceilings.upload_bytes_per_s > 0.0) {
    warm.share = static_cast<double>(bytes) / config.ceilings.upload_bytes_per_s / *warm_s;
    warm.of = "upload";
  }
  print(warm);
  return {};
}

}  // namespace updraft::gpu
