// Memory that lives as long as one call: measured first, then allocated once and handed out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace lepo {

class Workspace {
 public:
  // Room for `count` items in each of `copies` places; returns where the first will be.
  template <typename T>
  size_t reserve(int64_t count, int64_t copies = 1) {
    const size_t offset = size_;
    size_ += stride<T>(count) * static_cast<size_t>(copies);
    return offset;
  }

  // Once, after all reservations. The memory is not initialised.
  void allocate() { memory_.reset(new Line[size_ / sizeof(Line)]); }

  template <typename T>
  T* at(size_t offset, int64_t count = 0, int64_t copy = 0) const {
    char* const base = reinterpret_cast<char*>(memory_.get());
    return reinterpret_cast<T*>(base + offset + stride<T>(count) * static_cast<size_t>(copy));
  }

 private:
  // Whole cache lines, so that threads share none.
  struct alignas(64) Line {
    char bytes[64];
  };

  template <typename T>
  static size_t stride(int64_t count) {
    return (static_cast<size_t>(count) * sizeof(T) + sizeof(Line) - 1) / sizeof(Line) *
           sizeof(Line);
  }

  size_t size_ = 0;
  std::unique_ptr<Line[]> memory_;
};

}  // namespace lepo
