// The embedding mixture and its gradients.
//
// Contract: a sum over rows is formed in float32 in the order the rows are given, element by
// element, and rounded once, so neither threads nor slices change a bit; a dot product adds fixed
// lanes. Only the rows that are named are read, each once per tile of up to 18 vectors.
#include "cpu/mix_embeddings.h"

#include "cpu/element.h"
#include "cpu/vector.h"

namespace lepo {
namespace LEPO_CAPABILITY {
namespace {

// --- Ids and weights -----------------------------------------------------------------------------

template <typename T>
void read_ids(const void* ids, int64_t count, WeightedRow* rows, IdRange& range) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t id = static_cast<const T*>(ids)[i];
    rows[i].row = id;
    range.low = id < range.low ? id : range.low;
    range.high = id > range.high ? id : range.high;
  }
}

template <typename T>
void read_weights(const void* weights, int64_t count, WeightedRow* rows) {
  const T* const values = static_cast<const T*>(weights);
  for (int64_t i = 0; i < count; ++i) rows[i].weight = load_one(values + i);
}

template <>
void read_weights<double>(const void* weights, int64_t count, WeightedRow* rows) {
  const double* const values = static_cast<const double*>(weights);
  for (int64_t i = 0; i < count; ++i) rows[i].weight = static_cast<float>(values[i]);
}

template <typename T>
void write_weights(const float* values, int64_t count, void* weights) {
  T* const to = static_cast<T*>(weights);
  for (int64_t i = 0; i < count; ++i) store_one(to + i, values[i]);
}

template <>
void write_weights<double>(const float* values, int64_t count, void* weights) {
  double* const to = static_cast<double*>(weights);
  for (int64_t i = 0; i < count; ++i) to[i] = values[i];
}

// --- Sums of rows --------------------------------------------------------------------------------

// Cache lines of rows that are asked for before they are needed.
constexpr int64_t kLinesAhead = 128;

// Rows that a thread goes through: the first `count` make a sum, those up to `ahead` come next.
struct RowList {
  const WeightedRow* rows;
  int64_t count;
  int64_t ahead;
};

// `Vectors` vectors of the result, held in registers over all rows. Rows lie at random in a table
// that no cache holds: some lines are always on their way, also past the last row, where the same
// rows come again from column `next` on, or those of the next sum from 0.
template <int Vectors, typename T>
LEPO_INLINE void sum_tile(const T* matrix, int64_t stride, const RowList& list, int64_t at,
                          int64_t next, T* out) {
  constexpr int64_t kLine = 64 / sizeof(T);
  constexpr int64_t kLines = (Vectors * kLanes + kLine - 1) / kLine;
  constexpr int64_t kAhead = (kLinesAhead + kLines - 1) / kLines;
  F32 sum[Vectors] = {};
  for (int64_t k = 0; k < list.count; ++k) {
    int64_t row = k + kAhead, column = at;
    if (row >= list.count && next != 0) {
      row -= list.count;
      column = next;
    }
    if (row < list.ahead) {
      const T* const coming =
          matrix + list.rows[row].row * stride + (row < list.count ? column : 0);
      for (int64_t i = 0; i < Vectors * kLanes; i += kLine) __builtin_prefetch(coming + i);
    }
    const float weight = list.rows[k].weight;
    if (weight == 0) continue;
    const T* const from = matrix + list.rows[k].row * stride + at;
    for (int i = 0; i < Vectors; ++i) sum[i] += weight * load(from + i * kLanes);
  }
  for (int i = 0; i < Vectors; ++i) store(out + at + i * kLanes, sum[i]);
}

template <typename T>
void sum_last(const T* matrix, int64_t stride, const RowList& list, int width, T* out) {
  F32 sum{};
  for (int64_t k = 0; k < list.count; ++k) {
    const WeightedRow& row = list.rows[k];
    if (row.weight == 0) continue;
    sum += row.weight * load_some(matrix + row.row * stride, width, 0.0f);
  }
  store_some(out, sum, width);
}

// As many tiles of `Vectors` vectors as fit before `end`, from `at` on; returns where they end.
template <int Vectors, typename T>
LEPO_INLINE int64_t sum_tiles(const T* matrix, int64_t stride, const RowList& list, int64_t at,
                              int64_t end, T* out) {
  constexpr int64_t kWidth = Vectors * kLanes;
  for (; at + kWidth <= end; at += kWidth) {
    sum_tile<Vectors>(matrix, stride, list, at, at + kWidth < end ? at + kWidth : 0, out);
  }
  return at;
}

template <typename T>
void sum_rows(const void* matrix, int64_t stride, const WeightedRow* rows, int64_t count,
              int64_t ahead, int64_t begin, int64_t end, void* out) {
  const T* const from = static_cast<const T*>(matrix);
  T* const to = static_cast<T*>(out);
  const RowList list = {rows, count, ahead};
  // About a kilobyte of a row, as far as there are registers for its sums.
  constexpr int kWide = kLanes == 16 && sizeof(T) == 2 ? 18 : 16;
  int64_t at = sum_tiles<kWide>(from, stride, list, begin, end, to);
  at = sum_tiles<4>(from, stride, list, at, end, to);
  at = sum_tiles<1>(from, stride, list, at, end, to);
  if (at < end) sum_last(from + at, stride, list, static_cast<int>(end - at), to + at);
}

// --- Dot products --------------------------------------------------------------------------------

template <typename T>
LEPO_INLINE float dot(const T* a, const T* b, int64_t width) {
  F32 sum[4] = {};
  int64_t at = 0;
  for (; at + 4 * kLanes <= width; at += 4 * kLanes) {
    for (int i = 0; i < 4; ++i) sum[i] += load(a + at + i * kLanes) * load(b + at + i * kLanes);
  }
  for (; at + kLanes <= width; at += kLanes) sum[0] += load(a + at) * load(b + at);
  if (at < width) {
    const int left = static_cast<int>(width - at);
    sum[1] += load_some(a + at, left, 0.0f) * load_some(b + at, left, 0.0f);
  }
  return sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <typename T>
void dot_rows(const void* matrix, int64_t stride, const WeightedRow* rows, int64_t count,
              int64_t width, const void* vector, float* products) {
  const T* const from = static_cast<const T*>(matrix);
  for (int64_t k = 0; k < count; ++k) {
    products[k] = dot(from + rows[k].row * stride, static_cast<const T*>(vector), width);
  }
}

}  // namespace

extern const MixEmbeddingsKernels mix_embeddings_kernels;
const MixEmbeddingsKernels mix_embeddings_kernels = {
    {&read_ids<int32_t>, &read_ids<int64_t>},
    {&read_weights<float>, &read_weights<BFloat16>, &read_weights<Float16>, &read_weights<double>},
    {&write_weights<float>, &write_weights<BFloat16>, &write_weights<Float16>,
     &write_weights<double>},
    {&sum_rows<float>, &sum_rows<BFloat16>, &sum_rows<Float16>},
    {&dot_rows<float>, &dot_rows<BFloat16>, &dot_rows<Float16>},
};

}  // namespace LEPO_CAPABILITY
}  // namespace lepo
