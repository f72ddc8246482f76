// Row statistics of logits, and the gradient of the logits from those of the statistics.
//
// Contract: a = cap(x + bias) * scale of logits x in float32, bfloat16 or float16. One warp works
// on a unit of a row (gradient: on 1024 entries), in float32, and waits for no other.
// - summarise_kernel reads the logits once, and those of the K selected ids once more while they
//   are in the cache. It leaves 12 bytes per unit, which statistics_kernel joins in a fixed order.
// - logit_gradient_kernel reads each logit once and writes its gradient once, rounded once; the
//   output may be the logits' own memory. Rows without a coefficient are written as 0, unread.
// A row's bits depend on its numbers and on V: not on the other rows, the alignment, or on how the
// vocabulary is cut into parts (at multiples of a unit). No atomics; deterministic.
// A row that is all -inf, or holds NaN or +inf, gets NaN statistics.
#pragma once

#include <cfloat>

#include "cuda/row_rewrite.cuh"
#include "cuda/row_statistics.cuh"

namespace lepo {

constexpr int kRowWarps = 8;
constexpr int kRowThreads = kRowWarps * kWarpSize;
// The least blocks of a multiprocessor below leave registers for all entries of a lane. Each has at
// least 64 KiB of float32 logits on their way, several times what covers the latency of memory.

// A probability up to 1e-30 is 0 to any sum.
constexpr float kSpeck = 1e-30f;
constexpr float kLogSpeck = -80.0f;

// [N, C] logits of a part of the vocabulary.
template <typename T>
struct LogitRows {
  const T* logits;     // [N, C]
  int64_t stride;      // elements from row to row
  int columns;         // C
  const float* bias;   // [C], or null
  float softcap;       // 0: none
  float inv_softcap;   // its reciprocal
  const float* scale;  // [N] or [1]
  int64_t scale_stride;
};

struct SelectedIds {
  const int64_t* ids;  // [N, K]
  int64_t kept;        // K
  int64_t first;       // the id of the first column
};

struct RowGradients {
  const float* alpha;    // [N, K]
  const float* gamma;    // [N]
  const float* eta;      // [N]
  const float* lse;      // [N]
  const float* entropy;  // [N]
};

LEPO_DEVICE int unit_of_warp() {
  return static_cast<int>(blockIdx.y * (blockDim.x / kWarpSize)) + warp_of_thread();
}

template <typename T>
LEPO_DEVICE float capped(const LogitRows<T>& rows, float x) {
  return rows.softcap * tanhf(x * rows.inv_softcap);
}

// a of one entry, by the same arithmetic as that of a whole unit.
template <typename T>
LEPO_DEVICE float scaled_logit(const LogitRows<T>& rows, const T* row, int column, float scale) {
  float x = widen(row[column]);
  if (rows.bias != nullptr) x += rows.bias[column];
  if (rows.softcap != 0.0f) x = capped(rows, x);
  return tempered(x, scale);
}

// a of a lane's part of a unit; -inf behind the row's end. Without kHead there is neither bias nor
// softcap.
template <bool kHead, typename T>
LEPO_DEVICE TemperedUnit load_scaled(const LogitRows<T>& rows, const T* row, int unit,
                                     float scale) {
  const Unit<T> raw = load_unit(Row<T>(row, rows.columns), unit);
  if (!kHead) return tempered(raw, scale);
  TemperedUnit x = tempered(raw, 1.0f);
  if (rows.bias != nullptr) {
    const TemperedUnit bias = tempered(load_unit(Row<float>(rows.bias, rows.columns), unit), 1.0f);
    LEPO_UNROLL
    for (int i = 0; i < kLaneEntries; ++i) x.a[i] += bias.a[i];
  }
  if (rows.softcap != 0.0f) {
    LEPO_UNROLL
    for (int i = 0; i < kLaneEntries; ++i) {
      const int column = first_of_octet(unit, i / kOctetEntries) + i % kOctetEntries;
      x.a[i] = column < rows.columns ? capped(rows, x.a[i]) : -INFINITY;
    }
  }
  LEPO_UNROLL
  for (float& a : x.a) a = tempered(a, scale);
  return x;
}

// Grid: the rows, and blocks of as many units as a block has warps.
template <typename T, bool kHead>
__global__ void __launch_bounds__(kRowThreads, 4)
    summarise_kernel(LogitRows<T> rows, SelectedIds selection,
                     int units,                       // of the whole vocabulary: U
                     LogSumExp* __restrict__ states,  // [N, U]
                     float* __restrict__ selected) {  // [N, K]
  const int unit = unit_of_warp();
  const int begin = unit * kUnitEntries;
  if (begin >= rows.columns) return;
  const int64_t n = blockIdx.x;
  const T* row = rows.logits + n * rows.stride;
  const float scale = rows.scale[n * rows.scale_stride];
  const TemperedUnit x = load_scaled<kHead>(rows, row, unit, scale);
  const LogSumExp state = unit_statistics(x, largest_of(x));
  const int lane = lane_of_thread();
  if (lane == 0) states[n * units + selection.first / kUnitEntries + unit] = state;
  const int end = min(rows.columns, begin + kUnitEntries);
  LEPO_ROLLED
  for (int64_t k = lane; k < selection.kept; k += kWarpSize) {
    const int64_t column = selection.ids[n * selection.kept + k] - selection.first;
    if (column < begin || column >= end) continue;
    selected[n * selection.kept + k] = scaled_logit(rows, row, static_cast<int>(column), scale);
  }
}

// One block per row.
__global__ void __launch_bounds__(kMergeThreads)
    statistics_kernel(const LogSumExp* __restrict__ states,  // [N, U]
                      int units,
                      float* __restrict__ lse,        // [N]
                      float* __restrict__ entropy) {  // [N]
  LEPO_SHARED(double, scratch, kMergeThreads / kWarpSize);
  const int64_t n = blockIdx.x;
  const RowStatistics row = merge_units<kMergeThreads>(states + n * units, units, scratch);
  if (threadIdx.x != 0) return;
  lse[n] = row.lse;
  entropy[n] = row.entropy;
}

// Whether the row has a coefficient that is not 0.
LEPO_DEVICE bool has_coefficients(const RowGradients& up, int64_t n, int64_t kept, int lane) {
  if (up.gamma[n] != 0.0f || up.eta[n] != 0.0f) return true;
  bool found = false;
  for (int64_t k = lane; k < kept; k += kWarpSize) found |= up.alpha[n * kept + k] != 0.0f;
  return __any_sync(kAllLanes, found) != 0;
}

// Adds the alphas of the ids in the unit, whose first entry has the id `first`, in the order of k.
template <int kGroup>
LEPO_DEVICE void add_selected(const SelectedIds& selection,
                              const float* alpha,  // [N, K]
                              int64_t n, int64_t first, int lane, float (&da)[kSlots]) {
  for (int64_t before = 0; before < selection.kept; before += kWarpSize) {
    const int64_t k = before + lane;
    const bool exists = k < selection.kept;
    const int64_t place = exists ? selection.ids[n * selection.kept + k] - first : -1;
    const bool inside = place >= 0 && place < kPartEntries;
    const float mine = inside ? alpha[n * selection.kept + k] : 0.0f;
    for (unsigned left = __ballot_sync(kAllLanes, inside); left != 0; left &= left - 1) {
      const int source = __ffs(static_cast<int>(left)) - 1;
      const int at = __shfl_sync(kAllLanes, static_cast<int>(place), source);
      const float value = __shfl_sync(kAllLanes, mine, source);
      const int group = at / kGroup;
      if (group % kWarpSize != lane) continue;
      const int wanted = group / kWarpSize * kGroup + at % kGroup;
      LEPO_UNROLL
      for (int slot = 0; slot < kSlots; ++slot) {
        if (slot == wanted) da[slot] += value;
      }
    }
  }
}

// Grid: as summarise_kernel. Units are counted from the last aligned address before the output's
// row, so that one entry of a row has one thread and the stores are aligned.
template <typename T, typename Out, bool kCapped>
__global__ void __launch_bounds__(kRowThreads, kCapped ? 2 : 3)
    logit_gradient_kernel(LogitRows<T> rows, SelectedIds selection, RowGradients up,
                          Out* out,  // [N, C], may be the logits
                          int64_t out_stride) {
  constexpr int kGroup =
      kVectorBytes / static_cast<int>(sizeof(T) < sizeof(Out) ? sizeof(T) : sizeof(Out));
  const int lane = lane_of_thread();
  const int64_t n = blockIdx.x;
  Out* to = out + n * out_stride;
  const int begin = unit_of_warp() * kPartEntries - entries_past_aligned(to);
  if (begin >= rows.columns) return;
  float x[kSlots] = {};
  if (!has_coefficients(up, n, selection.kept, lane)) {
    // Not even read: what a row that is left out holds may be NaN.
    store_part<kGroup>(to, begin, rows.columns, lane, x);
    return;
  }
  add_part<kGroup>(rows.logits + n * rows.stride, begin, rows.columns, lane, x);
  if (rows.bias != nullptr) add_part<kGroup>(rows.bias, begin, rows.columns, lane, x);
  const float scale = rows.scale[n * rows.scale_stride];
  const float gamma = up.gamma[n];
  const float eta = up.eta[n];
  const float lse = up.lse[n];
  const float entropy = up.entropy[n];
  float slope[kCapped ? kSlots : 1];
  LEPO_UNROLL
  for (int slot = 0; slot < kSlots; ++slot) {
    if (kCapped) {
      const float t = tanhf(x[slot] * rows.inv_softcap);
      x[slot] = rows.softcap * t;
      slope[kCapped ? slot : 0] = scale * (1.0f - t * t);
    }
    float log_pi = x[slot] * scale - lse;
    log_pi = log_pi < kLogSpeck ? kLogSpeck : log_pi;
    float pi = expf(log_pi);
    pi = pi <= kSpeck ? 0.0f : pi;
    x[slot] = pi * (gamma - eta * (log_pi + entropy));
  }
  add_selected<kGroup>(selection, up.alpha, n, selection.first + begin, lane, x);
  LEPO_UNROLL
  for (int slot = 0; slot < kSlots; ++slot) x[slot] *= kCapped ? slope[kCapped ? slot : 0] : scale;
  store_part<kGroup>(to, begin, rows.columns, lane, x);
}

}  // namespace lepo
