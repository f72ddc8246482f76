// What the sanitizers must be told about fibers; nothing in a plain build.
//
// The engine itself is never compiled with -fsanitize=thread: the race check must see the kernels'
// accesses and not the engine's, which would order everything. LEPO_SIM_TSAN says that the kernels
// are.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)

extern "C" {
void __asan_poison_memory_region(const volatile void* address, size_t size);
void __asan_unpoison_memory_region(const volatile void* address, size_t size);
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** old_bottom, size_t* old_size);
}

#endif

#if defined(LEPO_SIM_TSAN)

extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_set_fiber_name(void* fiber, const char* name);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}

#endif

namespace lepo_sim {

#if defined(LEPO_SIM_TSAN)
constexpr bool kRaceCheck = true;
inline void acquire(void* sync) { __tsan_acquire(sync); }
inline void release(void* sync) { __tsan_release(sync); }
#else
constexpr bool kRaceCheck = false;
inline void acquire(void*) {}
inline void release(void*) {}
#endif

}  // namespace lepo_sim
