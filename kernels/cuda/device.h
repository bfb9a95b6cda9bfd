// What every kernel includes: the operations of a GPU under one name each, as PTX when nvcc
// compiles the file and as the emulator's when g++ does. Below this header no kernel asks which of
// the two it is.
//
//   UPDRAFT_DEVICE            a function that kernels call
//   UPDRAFT_KERNEL(threads)   void name(arguments) { ... } that launch() starts with at most
//                             `threads` per block
//   UPDRAFT_KERNEL_ALONE(threads)
//                             likewise, of which a multiprocessor holds one block: what compilers
//                             want to know before they let fewer_registers() and more_registers()
//                             divide a block's registers (else ptxas may leave both out, and says
//                             so in a remark only)
//   UPDRAFT_UNROLL            unroll the loop behind it: indices of register arrays must be
//                             constants
//   UPDRAFT_UNROLL_BY(count)  so many turns of it at a time
//   UPDRAFT_NO_UNROLL         leave the loop behind it rolled: what it computes is not worth
//                             registers
//   UPDRAFT_GRID_CONSTANT     before a const parameter that the kernel takes the address of
//   launch(kernel, shape, stream, arguments...)
//
// The functions, their layouts and rules: kernels/simt/ops.h; those of capability 9.0, for kernels
// that ask kHasWarpgroups: kernels/simt/hopper_ops.h.
#pragma once

#include "kernels/cuda/types.h"

#if defined(__CUDACC__)
#include "kernels/cuda/device_cuda.h"
#include "kernels/cuda/device_cuda_hopper.h"
#else
#include "kernels/cuda/device_simt.h"
#endif
