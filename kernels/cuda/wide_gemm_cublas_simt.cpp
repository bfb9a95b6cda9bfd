// Beside the emulator there is no cuBLASLt, unless a test plays it.
#include "kernels/cuda/wide_gemm_cublas_simt.h"

#include <mutex>
#include <utility>

namespace updraft::cuda {
namespace {

std::mutex g_mutex;
std::function<std::unique_ptr<Cublas>()> g_make;

}  // namespace

void set_emulated_cublas(std::function<std::unique_ptr<Cublas>()> make) {
  const std::lock_guard lock(g_mutex);
  g_make = std::move(make);
}

Result<std::unique_ptr<Cublas>> Cublas::open() {
  const std::lock_guard lock(g_mutex);
  return g_make ? g_make() : std::unique_ptr<Cublas>();
}

}  // namespace updraft::cuda
