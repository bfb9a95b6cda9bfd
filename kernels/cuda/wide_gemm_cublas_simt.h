// What tests put in the library's place; nobody else includes this.
#pragma once

#include <functional>
#include <memory>

#include "kernels/cuda/wide_gemm_cublas.h"

namespace updraft::cuda {

// What Cublas::open() gives from now on; an empty function: no library.
void set_emulated_cublas(std::function<std::unique_ptr<Cublas>()> make);

}  // namespace updraft::cuda
