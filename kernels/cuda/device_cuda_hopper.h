// The device functions of capability 9.0 as PTX: mbarrier objects, bulk copies, products of a
// warpgroup. Included through device.h. PTX ISA 9.0, "mbarrier", "cp.async.bulk",
// "cp.async.bulk.tensor", "wgmma", "setmaxnreg". Under another target than sm_90a each traps, and
// kHasWarpgroups is false: a kernel that needs them asks it and is empty there.
//
// These have been compiled and read, and their emulator twins (kernels/simt/hopper_ops.h) have run;
// on a GPU they have not run yet.
#pragma once

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define UPDRAFT_WARPGROUPS 1
#endif

namespace updraft::cuda {

#if defined(UPDRAFT_WARPGROUPS) || !defined(__CUDA_ARCH__)
inline constexpr bool kHasWarpgroups = true;
#else
inline constexpr bool kHasWarpgroups = false;
#endif

// Ends the launch with an error.
UPDRAFT_DEVICE void stop_device() { __trap(); }

// --- mbarrier objects ---
UPDRAFT_DEVICE void init_barrier(uint64_t* barrier, uint32_t arrivals) {
#if defined(UPDRAFT_WARPGROUPS)
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
#else
  __trap();
#endif
}
UPDRAFT_DEVICE void publish_barriers() {
#if defined(UPDRAFT_WARPGROUPS)
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  __trap();
#endif
}
UPDRAFT_DEVICE void arrive_at(uint64_t* barrier) {
#if defined(UPDRAFT_WARPGROUPS)
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
#else
  __trap();
#endif
}
UPDRAFT_DEVICE void arrive_expecting(uint64_t* barrier, uint32_t bytes) {
#if defined(UPDRAFT_WARPGROUPS)
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
#else
  __trap();
#endif
}
UPDRAFT_DEVICE bool phase_is_over(uint64_t* barrier, uint32_t parity) {
  uint32_t over = 0;
#if defined(UPDRAFT_WARPGROUPS)
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.b32 %0, 1, 0, p;\n}"
      : "=r"(over)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
#else
  __trap();
#endif
  return over != 0;
}
// A wait longer than this (about two seconds) is for something that will never come.
inline constexpr int64_t kWaitCyclesMax = int64_t{1} << 32;
UPDRAFT_DEVICE bool wait_phase(uint64_t* barrier, uint32_t parity) {
  if (phase_is_over(barrier, parity)) return true;
  const int64_t begin = clock64();
  UPDRAFT_NO_UNROLL
  while (!phase_is_over(barrier, parity)) {
    if (clock64() - begin > kWaitCyclesMax) return false;
  }
  return true;
}

// --- copies ---
UPDRAFT_DEVICE void copy_bulk(void* to_shared, const void* from_global, uint32_t bytes,
                              uint64_t* barrier) {
#if defined(UPDRAFT_WARPGROUPS)
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(shared_address(to_shared)),
      "l"(from_global), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
#else
  __trap();
#endif
}
UPDRAFT_DEVICE void copy_box(void* to_shared, const TensorMap* map, int32_t column, int32_t row,
                             uint64_t* barrier) {
#if defined(UPDRAFT_WARPGROUPS)
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(to_shared)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
#else
  __trap();
#endif
}

// --- products of a warpgroup ---
UPDRAFT_DEVICE void fence_async() {
#if defined(UPDRAFT_WARPGROUPS)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  __trap();
#endif
}
// What was computed so far for these registers is computed here: the compiler does not move it
// between products under way, which ptxas would take for a reason to make them wait. Behind a
// group_wait(): what is computed from them stays behind it, which the wait, that does not name
// them, leaves open.
template <int Count>
UPDRAFT_DEVICE void pin(float (&registers)[Count]) {
  UPDRAFT_UNROLL
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
UPDRAFT_DEVICE void group_fence() {
#if defined(UPDRAFT_WARPGROUPS)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  __trap();
#endif
}
UPDRAFT_DEVICE void group_commit() {
#if defined(UPDRAFT_WARPGROUPS)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  __trap();
#endif
}
template <int Groups>
UPDRAFT_DEVICE void group_wait() {
#if defined(UPDRAFT_WARPGROUPS)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Groups) : "memory");
#else
  __trap();
#endif
}
template <int Registers>
UPDRAFT_DEVICE void fewer_registers() {
#if defined(UPDRAFT_WARPGROUPS)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
#endif
}
template <int Registers>
UPDRAFT_DEVICE void more_registers() {
#if defined(UPDRAFT_WARPGROUPS)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
#endif
}

#define UPDRAFT_SUMS4(at) "+f"(sums[at]), "+f"(sums[at + 1]), "+f"(sums[at + 2]), "+f"(sums[at + 3])
#define UPDRAFT_SUMS16(at) \
  UPDRAFT_SUMS4(at), UPDRAFT_SUMS4(at + 4), UPDRAFT_SUMS4(at + 8), UPDRAFT_SUMS4(at + 12)
#define UPDRAFT_OUT4(at) "=f"(sums[at]), "=f"(sums[at + 1]), "=f"(sums[at + 2]), "=f"(sums[at + 3])
#define UPDRAFT_OUT16(at) \
  UPDRAFT_OUT4(at), UPDRAFT_OUT4(at + 4), UPDRAFT_OUT4(at + 8), UPDRAFT_OUT4(at + 12)
// clang-format off
UPDRAFT_DEVICE void group_mma_bf16(float (&sums)[64], const uint32_t (&a)[4], uint64_t b) {
#if defined(UPDRAFT_WARPGROUPS)
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
      "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
      "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1, 0;\n}"
      : UPDRAFT_SUMS16(0), UPDRAFT_SUMS16(16), UPDRAFT_SUMS16(32), UPDRAFT_SUMS16(48)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
#else
  __trap();
#endif
}
UPDRAFT_DEVICE void group_mma_bf16(float (&sums)[128], const uint32_t (&a)[4], uint64_t b) {
#if defined(UPDRAFT_WARPGROUPS)
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
      "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
      "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, "
      "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, "
      "%87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, "
      "%103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, "
      "%117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "{%128, %129, %130, %131}, %132, p, 1, 1, 0;\n}"
      : UPDRAFT_SUMS16(0), UPDRAFT_SUMS16(16), UPDRAFT_SUMS16(32), UPDRAFT_SUMS16(48), UPDRAFT_SUMS16(64), UPDRAFT_SUMS16(80), UPDRAFT_SUMS16(96), UPDRAFT_SUMS16(112)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
#else
  __trap();
#endif
}
UPDRAFT_DEVICE void group_mma_bf16(float (&sums)[32], const uint32_t (&a)[4], uint64_t b) {
#if defined(UPDRAFT_WARPGROUPS)
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}"
      : UPDRAFT_SUMS16(0), UPDRAFT_SUMS16(16)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
#else
  __trap();
#endif
}
UPDRAFT_DEVICE void group_mma_bf16_first(float (&sums)[32], const uint32_t (&a)[4], uint64_t b) {
#if defined(UPDRAFT_WARPGROUPS)
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}"
      : UPDRAFT_OUT16(0), UPDRAFT_OUT16(16)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(0));
#else
  __trap();
#endif
}
UPDRAFT_DEVICE void group_mma_bf16_transposed(float (&sums)[32], const uint32_t (&a)[4], uint64_t b) {
#if defined(UPDRAFT_WARPGROUPS)
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}"
      : UPDRAFT_SUMS16(0), UPDRAFT_SUMS16(16)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
#else
  __trap();
#endif
}
UPDRAFT_DEVICE void group_mma_bf16_transposed(float (&sums)[64], const uint32_t (&a)[4], uint64_t b) {
#if defined(UPDRAFT_WARPGROUPS)
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
      "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
      "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"
      : UPDRAFT_SUMS16(0), UPDRAFT_SUMS16(16), UPDRAFT_SUMS16(32), UPDRAFT_SUMS16(48)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
#else
  __trap();
#endif
}
// clang-format on
#undef UPDRAFT_OUT16
#undef UPDRAFT_OUT4
#undef UPDRAFT_SUMS16
#undef UPDRAFT_SUMS4

}  // namespace updraft::cuda
