// What the bindings of every device check of their tensors.
//
// The public ops check their arguments with better messages; these checks keep a raw call of a
// binding from reading where it must not.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>

namespace lepo {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Contiguous, of this dtype and these sizes.
inline void check_layout(const char* name, const Tensor& x, ScalarType dtype,
                         std::initializer_list<int64_t> sizes) {
  STD_TORCH_CHECK(x.scalar_type() == dtype, name, ": wrong dtype");
  STD_TORCH_CHECK(x.dim() == static_cast<int64_t>(sizes.size()), name,
                  ": wrong number of dimensions");
  int64_t axis = 0;
  for (const int64_t size : sizes) {
    STD_TORCH_CHECK(x.size(axis) == size, name, ": wrong size in dimension ", axis);
    ++axis;
  }
  STD_TORCH_CHECK(x.is_contiguous(), name, ": expected a contiguous tensor");
}

// A matrix without gaps in its rows, at any distance from each other. The strides of one without
// entries say nothing.
inline void check_rows(const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 2, name, ": expected a matrix");
  STD_TORCH_CHECK(x.size(0) == 0 || x.size(1) <= 1 || x.stride(1) == 1, name,
                  ": expected rows without gaps");
}

// A per-row argument holds one entry for all rows, or one for each.
inline int64_t per_row_stride(const char* name, const Tensor& x, int64_t rows) {
  STD_TORCH_CHECK(x.dim() == 1 && (x.size(0) == 1 || x.size(0) == rows), name,
                  ": expected one entry, or one per row");
  return x.size(0) == 1 ? 0 : 1;
}

}  // namespace lepo
