// What AddressSanitizer and ThreadSanitizer must be told about fibers; nothing where neither is on.
//
// The scheduler itself is compiled without -fsanitize=thread (with EMULATOR_TSAN instead), so that the only order
// between fibers is the one stated here.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator::sanitizers {

#if defined(EMULATOR_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
constexpr bool kThread = true;
constexpr unsigned kUnordered = 1;  // a switch of fibers by itself orders nothing
inline void* current() { return __tsan_get_current_fiber(); }
inline void* create() { return __tsan_create_fiber(kUnordered); }
inline void destroy(void* fiber) { __tsan_destroy_fiber(fiber); }
inline void announce(void* fiber) { __tsan_switch_to_fiber(fiber, kUnordered); }
inline void acquire(const void* place) { __tsan_acquire(const_cast<void*>(place)); }
inline void release(const void* place) { __tsan_release(const_cast<void*>(place)); }
#else
constexpr bool kThread = false;
inline void* current() { return nullptr; }
inline void* create() { return nullptr; }
inline void destroy(void*) {}
inline void announce(void*) {}
inline void acquire(const void*) {}
inline void release(const void*) {}
#endif

#if defined(__SANITIZE_ADDRESS__)
inline void leave(void** fake_stack, const void* to, size_t bytes) {
  __sanitizer_start_switch_fiber(fake_stack, to, bytes);
}
inline void arrive(void* fake_stack, const void** from, size_t* bytes) {
  __sanitizer_finish_switch_fiber(fake_stack, from, bytes);
}
inline void poison(void* place, size_t bytes) { __asan_poison_memory_region(place, bytes); }
inline void unpoison(void* place, size_t bytes) { __asan_unpoison_memory_region(place, bytes); }
#else
inline void leave(void**, const void*, size_t) {}
inline void arrive(void*, const void**, size_t*) {}
inline void poison(void*, size_t) {}
inline void unpoison(void*, size_t) {}
#endif

}  // namespace emulator::sanitizers
