// What the emulator tells the sanitizers: which stack runs now, and which bytes nobody may touch.
// Nothing where none is compiled in. The only file of this folder that asks for them.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define UPDRAFT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define UPDRAFT_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define UPDRAFT_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UPDRAFT_TSAN 1
#endif
#endif

#if defined(UPDRAFT_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(UPDRAFT_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace updraft::simt {

#if defined(UPDRAFT_ASAN)
inline constexpr bool kAddressSanitizer = true;
inline void leave_stack(void** fake_stack, const void* bottom, size_t bytes) {
  __sanitizer_start_switch_fiber(fake_stack, bottom, bytes);
}
inline void enter_stack(void* fake_stack, const void** old_bottom, size_t* old_bytes) {
  __sanitizer_finish_switch_fiber(fake_stack, old_bottom, old_bytes);
}
inline void forbid(const void* at, size_t bytes) { __asan_poison_memory_region(at, bytes); }
inline void allow(const void* at, size_t bytes) { __asan_unpoison_memory_region(at, bytes); }
#else
inline constexpr bool kAddressSanitizer = false;
inline void leave_stack(void**, const void*, size_t) {}
inline void enter_stack(void*, const void**, size_t*) {}
inline void forbid(const void*, size_t) {}
inline void allow(const void*, size_t) {}
#endif

#if defined(UPDRAFT_TSAN)
inline void* make_context() { return __tsan_create_fiber(0); }
inline void* own_context() { return __tsan_get_current_fiber(); }
inline void drop_context(void* context) { __tsan_destroy_fiber(context); }
inline void enter_context(void* context) { __tsan_switch_to_fiber(context, 0); }
#else
inline void* make_context() { return nullptr; }
inline void* own_context() { return nullptr; }
inline void drop_context(void*) {}
inline void enter_context(void*) {}
#endif

}  // namespace updraft::simt
