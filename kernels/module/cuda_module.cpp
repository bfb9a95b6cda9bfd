// Finding and loading.
#include "kernels/module/cuda_module.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <vector>

namespace updraft {
namespace {

namespace fs = std::filesystem;
constexpr const char* kFileName = "libupdraft_cuda.so";

// The places in order; the first that is there counts.
Result<std::string> find_module() {
  if (const char* named = std::getenv("UPDRAFT_CUDA_MODULE"); named != nullptr && *named != '\0') {
    std::error_code error;
    if (fs::exists(named, error)) return std::string(named);
    return fail(CudaFailure::kNoModule,
                "cuda: UPDRAFT_CUDA_MODULE names " + std::string(named) + ", which is not there");
  }
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  const fs::path folder = program.parent_path();
  for (const fs::path& place : {folder / kFileName, folder.parent_path() / "lib" / kFileName}) {
    if (fs::exists(place, error)) return place.string();
  }
  return fail(CudaFailure::kNoModule, "cuda: no module " + std::string(kFileName) + " in " +
                                          folder.string() + " or " +
                                          (folder.parent_path() / "lib").string());
}

Result<const CudaModule*> load_module() {
  const auto path = find_module();
  if (!path) return path.error();
  void* handle = dlopen(path->c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return fail("cuda: the module does not load: " + std::string(dlerror()));
  const auto entry = reinterpret_cast<CudaModuleEntry>(dlsym(handle, kCudaModuleEntry));
  if (entry == nullptr) {
    return fail("cuda: " + *path + " is no module: it has no function " + kCudaModuleEntry);
  }
  const CudaModule& module = *entry();
  if (module.version != kCudaModuleVersion || std::string(module.release) != UPDRAFT_VERSION) {
    return fail("cuda: " + *path + " is of Updraft " + module.release + ", interface " +
                std::to_string(module.version) +
                "; this is Updraft " UPDRAFT_VERSION ", interface " +
                std::to_string(kCudaModuleVersion));
  }
  return &module;
}

}  // namespace

Result<std::unique_ptr<Backend>> open_cuda_module(const CudaConfig& config) {
  const auto module = load_module();
  if (!module) return module.error();
  return (*module)->open(config);
}

Result<std::vector<std::shared_ptr<Comm>>> open_cuda_comms(std::span<const int32_t> devices) {
  const auto module = load_module();
  if (!module) return module.error();
  return (*module)->open_comms(devices);
}

}  // namespace updraft
