// Matrix products of bfloat16 numbers with float32 sums.
//
// Contract: products are exact, and added to float32 sums in the order of the summed dimension, the
// same for each entry whatever the shape and the number of threads. With the instruction that
// multiplies pairs (VDPBF16PS: Zen 4 and 5, Cooper Lake and later) sums round to nearest and
// subnormal numbers, be they factors, products or sums, count as 0; so an entry's error is that of
// a float32 sum, plus 2^-126 per pair and the same times the other factor for a subnormal one. On
// other instruction sets the same source makes two fused or plain additions of a pair. Packing
// reads each number once and touches nothing outside of its factor.
#include "cpu/bfloat16_products.h"

#include "cpu/element.h"
#include "cpu/vector.h"

namespace lepo {
namespace LEPO_CAPABILITY {
namespace {

constexpr int kVectors = 3;
constexpr int64_t kRightColumns = kVectors * kLanes;
// Pairs of a panel that are worked on at a time: the left factor's block of rows and a panel of the
// right one then stay in the second-level cache.
constexpr int64_t kBlockPairs = 512;

// --- Packing -------------------------------------------------------------------------------------

LEPO_INLINE U16 load_bits(const float* from) { return narrow_bfloat16(load(from)); }

LEPO_INLINE U16 load_bits(const BFloat16* from) {
  U16 raw;
  std::memcpy(&raw, from, sizeof(raw));
  return raw;
}

template <typename T>
LEPO_INLINE U16 load_some_bits(const T* from, int64_t count) {
  if (count >= kLanes) return load_bits(from);
  T padded[kLanes] = {};
  if (count > 0) std::memcpy(padded, from, count * sizeof(T));
  return load_bits(padded);
}

// A panel of `Width` rows of a factor whose rows are dense along the summed dimension.
template <int Width, typename T>
LEPO_INLINE void pack_dense_inner(const ProductFactor& factor, int64_t panel, uint32_t* to) {
  const T* const from = static_cast<const T*>(factor.data);
  const int64_t pairs = pairs_of(factor.inner);
  const int64_t first = panel * Width;
  const int64_t rows = factor.outer - first < Width ? factor.outer - first : Width;
  if (rows < Width) std::memset(to, 0, pairs * Width * sizeof(uint32_t));
  // Some words at a time, so that what is written lies in the cache until all rows are there.
  constexpr int64_t kWords = 64;
  for (int64_t pair = 0; pair < pairs; pair += kWords) {
    const int64_t words = pairs - pair < kWords ? pairs - pair : kWords;
    for (int64_t row = 0; row < rows; ++row) {
      const T* const at = from + (first + row) * factor.outer_stride + 2 * pair;
      uint32_t buffer[kWords];
      const int64_t left = factor.inner - 2 * pair;
      for (int64_t i = 0; i < 2 * kWords; i += kLanes) {
        const U16 bits = load_some_bits(at + i, left - i);
        std::memcpy(reinterpret_cast<char*>(buffer) + i * sizeof(uint16_t), &bits, sizeof(bits));
      }
      uint32_t* const out = to + pair * Width + row;
      for (int64_t i = 0; i < words; ++i) out[i * Width] = buffer[i];
    }
  }
}

// `Panels` panels of a factor whose columns, along the outer dimension, are dense. Side by side,
// since rows of the factor may lie a power of two apart, where few of their lines fit the cache.
template <int Width, int Panels, typename T>
LEPO_INLINE void pack_dense_outer(const ProductFactor& factor, int64_t panel, uint32_t* to) {
  constexpr int kWidth = (Width * Panels + kLanes - 1) / kLanes * kLanes;
  const T* const from = static_cast<const T*>(factor.data) + panel * Width;
  const int64_t width = factor.outer - panel * Width;
  const int64_t pairs = pairs_of(factor.inner);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const T* const even = from + 2 * pair * factor.inner_stride;
    const bool has_odd = 2 * pair + 1 < factor.inner;
    uint32_t words[kWidth];
    for (int i = 0; i < kWidth; i += kLanes) {
      const U16 low = load_some_bits(even + i, width - i);
      const U16 high = has_odd ? load_some_bits(even + factor.inner_stride + i, width - i) : U16{};
      const U32 both =
          __builtin_convertvector(low, U32) | (__builtin_convertvector(high, U32) << 16);
      std::memcpy(words + i, &both, sizeof(both));
    }
    for (int i = 0; i < Panels; ++i) {
      std::memcpy(to + (i * pairs + pair) * Width, words + i * Width, Width * sizeof(uint32_t));
    }
  }
}

template <int Width, typename T>
LEPO_INLINE void pack_panels(const ProductFactor& factor, int64_t first, int64_t last,
                             uint32_t* packed) {
  const int64_t size = pairs_of(factor.inner) * Width;
  int64_t panel = first;
  if (factor.inner_stride == 1) {
    for (; panel < last; ++panel) {
      pack_dense_inner<Width, T>(factor, panel, packed + panel * size);
    }
    return;
  }
  constexpr int kPanels = Width == kLeftRows ? 8 : 1;
  for (; panel + kPanels <= last; panel += kPanels) {
    pack_dense_outer<Width, kPanels, T>(factor, panel, packed + panel * size);
  }
  for (; panel < last; ++panel) {
    pack_dense_outer<Width, 1, T>(factor, panel, packed + panel * size);
  }
}

template <int Width>
void pack(const ProductFactor& factor, int64_t first, int64_t last, uint32_t* packed) {
  factor.is_float32 ? pack_panels<Width, float>(factor, first, last, packed)
                    : pack_panels<Width, BFloat16>(factor, first, last, packed);
}

// --- Products ------------------------------------------------------------------------------------

// sum + low(a) * low(b) + high(a) * high(b).
LEPO_INLINE F32 add_pair(F32 sum, U32 a, U32 b) {
#if defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
#else
  sum += as_float(a << 16) * as_float(b << 16);
  return sum + as_float(a & 0xFFFF0000u) * as_float(b & 0xFFFF0000u);
#endif
}

struct Tile {
  F32 sum[kLeftRows][kVectors];
};

LEPO_INLINE void add_pairs(const uint32_t* left, const uint32_t* right, int64_t pairs, Tile& tile) {
  F32 sum[kLeftRows][kVectors];
  for (int r = 0; r < kLeftRows; ++r) {
    for (int i = 0; i < kVectors; ++i) sum[r][i] = tile.sum[r][i];
  }
  for (int64_t pair = 0; pair < pairs; ++pair) {
    U32 b[kVectors];
    for (int i = 0; i < kVectors; ++i) std::memcpy(&b[i], right + i * kLanes, sizeof(U32));
    for (int r = 0; r < kLeftRows; ++r) {
      const U32 a = broadcast(left[r]);
      for (int i = 0; i < kVectors; ++i) sum[r][i] = add_pair(sum[r][i], a, b[i]);
    }
    left += kLeftRows;
    right += kRightColumns;
  }
  for (int r = 0; r < kLeftRows; ++r) {
    for (int i = 0; i < kVectors; ++i) tile.sum[r][i] = sum[r][i];
  }
}

// How much of a tile lies inside of the result.
struct Extent {
  int rows;
  int columns;
};

template <typename T>
LEPO_INLINE void load_tile(const T* from, int64_t stride, const Extent& extent, Tile& tile) {
  tile = Tile{};
  for (int r = 0; r < extent.rows; ++r) {
    for (int i = 0; i < kVectors; ++i) {
      const int left = extent.columns - i * kLanes;
      const T* const at = from + r * stride + i * kLanes;
      if (left >= kLanes) {
        tile.sum[r][i] = load(at);
      } else if (left > 0) {
        tile.sum[r][i] = load_some(at, left, 0.0f);
      }
    }
  }
}

template <typename T>
LEPO_INLINE void store_tile(const Tile& tile, const Extent& extent, int64_t stride, T* to) {
  for (int r = 0; r < extent.rows; ++r) {
    for (int i = 0; i < kVectors; ++i) {
      const int left = extent.columns - i * kLanes;
      T* const at = to + r * stride + i * kLanes;
      if (left >= kLanes) {
        store(at, tile.sum[r][i]);
      } else if (left > 0) {
        store_some(at, tile.sum[r][i], left);
      }
    }
  }
}

void multiply(const uint32_t* left, const uint32_t* right, int64_t pairs, int64_t left_first,
              int64_t left_last, int64_t right_panel, const ProductResult& result) {
  right += right_panel * kRightColumns * pairs;
  const int64_t column = right_panel * kRightColumns;
  const int64_t width = result.columns - column;
  const int columns = static_cast<int>(width < kRightColumns ? width : kRightColumns);
  // Sums between blocks of pairs: those of a float32 result are kept in it.
  constexpr int64_t kMostPanels = 16;
  Tile between[kMostPanels];
  for (int64_t panels = left_first; panels < left_last; panels += kMostPanels) {
    const int64_t last = panels + kMostPanels < left_last ? panels + kMostPanels : left_last;
    for (int64_t begin = 0; begin < pairs || begin == 0; begin += kBlockPairs) {
      const int64_t end = begin + kBlockPairs < pairs ? begin + kBlockPairs : pairs;
      for (int64_t panel = panels; panel < last; ++panel) {
        const int64_t row = panel * kLeftRows;
        const int64_t height = result.rows - row;
        const Extent extent = {static_cast<int>(height < kLeftRows ? height : kLeftRows), columns};
        const int64_t at = row * result.stride + column;
        Tile& tile = between[panel - panels];
        if (begin == 0) {
          if (result.add) {
            load_tile(static_cast<const float*>(result.data) + at, result.stride, extent, tile);
          } else {
            tile = Tile{};
          }
        }
        add_pairs(left + panel * kLeftRows * pairs + begin * kLeftRows,
                  right + begin * kRightColumns, end - begin, tile);
        if (end < pairs) continue;
        if (result.is_float32) {
          store_tile(tile, extent, result.stride, static_cast<float*>(result.data) + at);
        } else {
          store_tile(tile, extent, result.stride, static_cast<BFloat16*>(result.data) + at);
        }
      }
    }
  }
}

}  // namespace

extern const BFloat16ProductsKernels bfloat16_products_kernels;
const BFloat16ProductsKernels bfloat16_products_kernels = {kRightColumns, &pack<kLeftRows>,
                                                           &pack<kRightColumns>, &multiply};

}  // namespace LEPO_CAPABILITY
}  // namespace lepo
