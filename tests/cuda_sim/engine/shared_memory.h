// The shared memory of one block: filled with a pattern, and with a guard behind every array.
#pragma once

#include <cstddef>
#include <vector>

#include "cuda_sim/types.h"

namespace lepo_sim {

// CUDA's limits: arrays of fixed size, and all shared memory of a block on the larger GPUs.
constexpr size_t kMostStaticBytes = 48 * 1024;
constexpr size_t kMostSharedBytes = 227 * 1024;

class SharedMemory {
 public:
  SharedMemory(size_t dynamic_bytes, unsigned char poison);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  // One array per `key`; nullptr if the arrays of fixed size would grow beyond CUDA's limit.
  void* static_array(const void* key, const char* name, size_t bytes);
  void* dynamic_array() const { return arrays_.front().data; }
  size_t dynamic_bytes() const { return arrays_.front().bytes; }
  // The name of an array behind or before which something was written, or nullptr.
  const char* overrun() const;

 private:
  struct Array {
    const void* key;
    const char* name;
    char* data;
    size_t bytes;
  };
  char* allocate(const void* key, const char* name, size_t bytes);

  unsigned char poison_;
  size_t static_bytes_ = 0;
  size_t used_ = 0;
  char* arena_;
  std::vector<Array> arrays_;
};

}  // namespace lepo_sim
