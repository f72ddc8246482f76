// Row statistics of logits, and the gradient of the logits from those of the statistics.
//
// Contract: one read of the logits from memory each way, one write of their gradient, in pieces
// that stay in the first-level cache. Arithmetic is in float32, the sums over pieces in float64. A
// row's sums are formed per piece, pieces in ascending order, so that spans cut at multiples of
// kPiece give the same bits however many there are. Deterministic; nothing is read or written past
// the end of a span.
#include "cpu/linear_log_probs.h"

#include "cpu/element.h"
#include "cpu/tanh.h"
#include "cpu/vector_math.h"

namespace lepo {
namespace LEPO_CAPABILITY {
namespace {

// Two buffers of it fit the first-level cache beside the logits.
constexpr int kPiece = 1024;
// An exponent below any that gives weight, and whose product with weight 0 is 0.
constexpr float kNoWeight = -100.0f;
// A probability up to 1e-30 is 0 to any sum. Below 1e-38 float32 is subnormal, which slows a
// matrix product down many times.
constexpr float kSpeck = 1e-30f;
constexpr float kLogSpeck = -80.0f;

struct Logit {
  F32 a;      // the scaled logit
  F32 slope;  // its derivative by the raw one
};

LEPO_INLINE Logit read(F32 raw, F32 bias, float softcap, float scale) {
  F32 x = raw + bias;
  F32 slope = broadcast(scale);
  if (softcap != 0.0f) {
    const F32 t = tanh(x / softcap);
    x = t * softcap;
    slope = slope * (1.0f - t * t);
  }
  return {x * scale, slope};
}

// Calls use(i, logit, width) for every vector of a piece; the lanes from `width` on hold `fill`.
template <typename T, typename Use>
LEPO_INLINE void for_each_vector(const T* logits, const float* bias, int count,
                                 const LogitSpan& span, float fill, const Use& use) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const F32 b = bias == nullptr ? F32{} : load(bias + i);
    use(i, read(load(logits + i), b, span.softcap, span.scale));
  }
  if (i < count) {
    const int width = count - i;
    const F32 b = bias == nullptr ? F32{} : load_some(bias + i, width, 0.0f);
    Logit last = read(load_some(logits + i, width, 0.0f), b, span.softcap, span.scale);
    last.a = lane_numbers() < width ? last.a : broadcast(fill);
    use(i, last);
  }
}

LEPO_INLINE int vectors_up(int count) { return (count + kLanes - 1) / kLanes * kLanes; }

LEPO_INLINE bool is_inside(int64_t id, int64_t first, int64_t count) {
  return static_cast<uint64_t>(id - first) < static_cast<uint64_t>(count);
}

// Most pieces hold no id of a row: one pass without branches says so.
LEPO_INLINE bool any_inside(const int64_t* ids, int64_t kept, int64_t first, int64_t count) {
  int hits = 0;
  for (int64_t k = 0; k < kept; ++k) hits |= is_inside(ids[k], first, count);
  return hits != 0;
}

void merge(RowState* state, const RowState& later) {
  if (later.total == 0.0) return;
  if (state->total == 0.0) {
    *state = later;
    return;
  }
  const double top = state->top > later.top ? state->top : later.top;
  const double down = state->top - top;
  const double later_down = later.top - top;
  const double keep = __builtin_exp(down);
  const double take = __builtin_exp(later_down);
  state->weighted = keep * (state->weighted + down * state->total) +
                    take * (later.weighted + later_down * later.total);
  state->total = keep * state->total + take * later.total;
  state->top = top;
}

// The state of scaled logits in the cache; `count` is a multiple of kLanes. Meanwhile the next
// piece is fetched: the hardware would begin anew with each.
template <typename T>
LEPO_INLINE RowState piece_state(const float* a, int count, float top, const T* next) {
  // A piece of -inf only has no weight, but may hold a NaN, which must show.
  const float shift = top == -__builtin_inff() ? 0.0f : top;
  F32 total{};
  F32 weighted{};
  for (int i = 0; i < count; i += kLanes) {
    if (next != nullptr) __builtin_prefetch(next + i);
    F32 down = load(a + i) - shift;
    down = down < kNoWeight ? broadcast(kNoWeight) : down;
    const F32 weight = exp_or_zero(down);
    total += weight;
    weighted += weight * down;
  }
  return {top, sum_lanes(total), sum_lanes(weighted)};
}

template <typename T>
void summarise_typed(const LogitSpan& span, const int64_t* ids, int64_t kept, float* selected,
                     RowState* state) {
  alignas(64) float a[kPiece];
  const T* logits = static_cast<const T*>(span.logits);
  for (int64_t begin = 0; begin < span.count; begin += kPiece) {
    const int count = span.count - begin < kPiece ? static_cast<int>(span.count - begin) : kPiece;
    const float* bias = span.bias == nullptr ? nullptr : span.bias + begin;
    F32 tops = broadcast(-__builtin_inff());
    for_each_vector(logits + begin, bias, count, span, -__builtin_inff(),
                    [&](int i, const Logit& logit) __attribute__((always_inline)) {
                      store(a + i, logit.a);
                      tops = max(logit.a, tops);
                    });
    const int64_t first = span.first + begin;
    if (any_inside(ids, kept, first, count)) {
      for (int64_t k = 0; k < kept; ++k) {
        if (is_inside(ids[k], first, count)) selected[k] = a[ids[k] - first];
      }
    }
    const bool more = span.count - begin >= 2 * kPiece;
    merge(state, piece_state(a, vectors_up(count), max_lanes(tops),
                             more ? logits + begin + kPiece : nullptr));
  }
}

template <typename T>
void gradient_typed(const LogitSpan& span, const RowGradient& up, void* out) {
  alignas(64) float da[kPiece];
  alignas(64) float slope[kPiece];
  const T* logits = static_cast<const T*>(span.logits);
  T* to = static_cast<T*>(out);
  for (int64_t begin = 0; begin < span.count; begin += kPiece) {
    const int count = span.count - begin < kPiece ? static_cast<int>(span.count - begin) : kPiece;
    const float* bias = span.bias == nullptr ? nullptr : span.bias + begin;
    const bool more = span.count - begin >= 2 * kPiece;
    for_each_vector(logits + begin, bias, count, span, 0.0f,
                    [&](int i, const Logit& logit) __attribute__((always_inline)) {
                      if (more) __builtin_prefetch(logits + begin + kPiece + i);
                      F32 log_pi = logit.a - up.lse;
                      log_pi = log_pi < kLogSpeck ? broadcast(kLogSpeck) : log_pi;
                      F32 pi = exp(log_pi);
                      pi = pi <= kSpeck ? F32{} : pi;
                      store(da + i, pi * (up.gamma - up.eta * (log_pi + up.entropy)));
                      store(slope + i, logit.slope);
                    });
    const int64_t first = span.first + begin;
    if (any_inside(up.ids, up.kept, first, count)) {
      for (int64_t k = 0; k < up.kept; ++k) {
        if (is_inside(up.ids[k], first, count)) da[up.ids[k] - first] += up.alpha[k];
      }
    }
    int i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      store(to + begin + i, load(da + i) * load(slope + i));
    }
    if (i < count) store_some(to + begin + i, load(da + i) * load(slope + i), count - i);
  }
}

void summarise(const LogitSpan& span, const int64_t* ids, int64_t kept, float* selected,
               RowState* state) {
  switch (span.type) {
    case LogitType::kFloat32:
      return summarise_typed<float>(span, ids, kept, selected, state);
    case LogitType::kBFloat16:
      return summarise_typed<BFloat16>(span, ids, kept, selected, state);
    case LogitType::kFloat16:
      return summarise_typed<Float16>(span, ids, kept, selected, state);
  }
}

void gradient(const LogitSpan& span, const RowGradient& upstream, void* out) {
  switch (span.type) {
    case LogitType::kFloat32:
      return gradient_typed<float>(span, upstream, out);
    case LogitType::kBFloat16:
      return gradient_typed<BFloat16>(span, upstream, out);
    case LogitType::kFloat16:
      return gradient_typed<Float16>(span, upstream, out);
  }
}

}  // namespace

extern const LinearLogProbsKernels linear_log_probs_kernels;
const LinearLogProbsKernels linear_log_probs_kernels = {&summarise, &merge, &gradient};

}  // namespace LEPO_CAPABILITY
}  // namespace lepo
