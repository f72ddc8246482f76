#include "shared_memory.h"

#include <sys/mman.h>

#include <new>

#include "sanitizers.h"

namespace lepo_sim {
namespace {

constexpr size_t kGuardBytes = 128;
constexpr size_t kArenaBytes = 1 << 20;
constexpr unsigned char kGuard = 0xC3;

size_t rounded_up(size_t bytes) { return (bytes + kGuardBytes - 1) / kGuardBytes * kGuardBytes; }

// Not memset: the race check would see that, as a write by the running thread.
void fill(char* to, size_t bytes, unsigned char value) {
  volatile char* at = to;
  for (size_t i = 0; i < bytes; ++i) at[i] = static_cast<char>(value);
}

[[maybe_unused]] bool holds(const char* from, const char* to, unsigned char value) {
  for (; from < to; ++from) {
    if (static_cast<unsigned char>(*from) != value) return false;
  }
  return true;
}

}  // namespace

// A mapping of its own per block: for the race check, memory of an earlier block would bring that
// block's accesses along.
SharedMemory::SharedMemory(size_t dynamic_bytes, unsigned char poison) : poison_(poison) {
  void* map = mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) throw std::bad_alloc();
  arena_ = static_cast<char*>(map);
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(arena_, kArenaBytes);
#else
  fill(arena_, kGuardBytes, kGuard);
#endif
  used_ = kGuardBytes;
  allocate(nullptr, "dynamic shared memory", dynamic_bytes);
}

SharedMemory::~SharedMemory() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(arena_, kArenaBytes);
#endif
  munmap(arena_, kArenaBytes);
}

char* SharedMemory::allocate(const void* key, const char* name, size_t bytes) {
  char* data = arena_ + used_;
  const size_t room = rounded_up(bytes);
  used_ += room + kGuardBytes;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(data, bytes);
#else
  fill(data + bytes, room - bytes + kGuardBytes, kGuard);
#endif
  fill(data, bytes, poison_);
  arrays_.push_back({key, name, data, bytes});
  return data;
}

void* SharedMemory::static_array(const void* key, const char* name, size_t bytes) {
  for (const Array& array : arrays_) {
    if (array.key == key) return array.data;
  }
  static_bytes_ += bytes;
  const bool has_room = used_ + rounded_up(bytes) + kGuardBytes <= kArenaBytes;
  return static_bytes_ <= kMostStaticBytes && has_room ? allocate(key, name, bytes) : nullptr;
}

const char* SharedMemory::overrun() const {
#if !defined(__SANITIZE_ADDRESS__)
  if (!holds(arena_, arena_ + kGuardBytes, kGuard)) return arrays_.front().name;
  for (const Array& array : arrays_) {
    const char* end = array.data + array.bytes;
    if (!holds(end, array.data + rounded_up(array.bytes) + kGuardBytes, kGuard)) return array.name;
  }
#endif
  return nullptr;
}

}  // namespace lepo_sim
