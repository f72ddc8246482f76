// A block's walk over a row in global memory.
//
// Contract: every element is visited once, by one thread; 16-byte loads for all but what lies
// before the first and behind the last aligned address. Which thread visits an element depends on
// the row's alignment: use it where the order of visits does not change the result.
#pragma once

#include "cuda/element.cuh"

namespace lepo {

// visit(i, x) for each of the calling thread's elements x = row[i], as float32.
template <int kThreads, typename T, typename Visit>
LEPO_DEVICE void visit_row(const T* __restrict__ row,  // [count]
                           int count, Visit visit) {
  constexpr int kSize = Vector<T>::kSize;
  const int thread = static_cast<int>(threadIdx.x);
  const auto misaligned = static_cast<int>(reinterpret_cast<uintptr_t>(row) % kVectorBytes);
  const int to_aligned = (kVectorBytes - misaligned) % kVectorBytes / static_cast<int>(sizeof(T));
  const int head = to_aligned < count ? to_aligned : count;
  const int vectors = (count - head) / kSize;
  const int tail = head + vectors * kSize;
  if (thread < head) visit(thread, widen(row[thread]));
  for (int v = thread; v < vectors; v += kThreads) {
    const int first = head + v * kSize;
    const Vector<T> x = load_vector(row + first);
    LEPO_UNROLL
    for (int i = 0; i < kSize; ++i) visit(first + i, widen(x.element[i]));
  }
  if (tail + thread < count) visit(tail + thread, widen(row[tail + thread]));
}

}  // namespace lepo
