// Matrix products of bfloat16 numbers with float32 sums.
//
// Both factors are packed first. A pack holds pairs: two neighbours along the summed dimension in
// one 32-bit word, the earlier one in the low half; what is missing to a whole pair or a whole
// panel is 0. The left factor's panels are of kLeftRows rows, the right one's of `right_columns`
// columns; within a panel, pair after pair, each pair's rows or columns side by side.
#pragma once

#include <cstdint>

#include "cpu/capability.h"

namespace lepo {

constexpr int64_t kLeftRows = 8;

// A factor of shape [outer, inner], the sum being over `inner`: x(o, k) is at
// data[o * outer_stride + k * inner_stride], and one of the strides is 1. float32 numbers are
// rounded to bfloat16 as they are packed.
struct ProductFactor {
  const void* data;
  bool is_float32;
  int64_t outer;
  int64_t inner;
  int64_t outer_stride;
  int64_t inner_stride;
};

// What a product is written to, as float32 or rounded once to bfloat16.
struct ProductResult {
  void* data;
  bool is_float32;
  bool add;  // float32 only: to what is there
  int64_t rows;
  int64_t columns;
  int64_t stride;
};

constexpr int64_t pairs_of(int64_t inner) { return (inner + 1) / 2; }

struct BFloat16ProductsKernels {
  int64_t right_columns;
  // Pack panels [first, last).
  void (*pack_left)(const ProductFactor& factor, int64_t first, int64_t last, uint32_t* packed);
  void (*pack_right)(const ProductFactor& factor, int64_t first, int64_t last, uint32_t* packed);
  // The part of left * right^T that panels [left_first, left_last) and the right one's panel make.
  void (*multiply)(const uint32_t* left, const uint32_t* right, int64_t pairs, int64_t left_first,
                   int64_t left_last, int64_t right_panel, const ProductResult& result);
};

LEPO_DECLARE_KERNELS(BFloat16ProductsKernels, bfloat16_products_kernels)

}  // namespace lepo
