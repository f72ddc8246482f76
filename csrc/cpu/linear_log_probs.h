// Row statistics of logits, and the gradient of the logits from those of the statistics.
#pragma once

#include <cstdint>

#include "cpu/capability.h"

namespace lepo {

enum class LogitType { kFloat32, kBFloat16, kFloat16 };

// Some consecutive logits of a row, and how they become a = cap(x + bias) * scale.
struct LogitSpan {
  const void* logits;  // [count]
  LogitType type;
  int64_t first;  // the vocabulary id of the first of them
  int64_t count;
  const float* bias;  // [count], or null
  float softcap;      // cap(x) = softcap * tanh(x / softcap); 0: none
  float scale;
};

// Sums over the entries of a row seen so far. A row starts as {-inf, 0, 0}.
struct RowState {
  double top;       // max a
  double total;     // sum exp(a - top); 0 while all a are -inf; NaN once an a is NaN or +inf
  double weighted;  // sum (a - top) exp(a - top)
};

// Upstream gradients of a row.
struct RowGradient {
  const int64_t* ids;  // [kept]
  const float* alpha;  // [kept], of the selected logits
  int64_t kept;
  float gamma;  // of the log-sum-exp
  float eta;    // of the entropy
  float lse;
  float entropy;
};

struct LinearLogProbsKernels {
  // Adds a span to its row's state, and writes selected[k] where ids[k] is inside the span.
  void (*summarise)(const LogitSpan& span, const int64_t* ids, int64_t kept, float* selected,
                    RowState* state);
  // Adds the state of later entries of the same row.
  void (*merge)(RowState* state, const RowState& later);
  // The gradient of the logits, in their type; `out` may be `span.logits`.
  void (*gradient)(const LogitSpan& span, const RowGradient& upstream, void* out);
};

LEPO_DECLARE_KERNELS(LinearLogProbsKernels, linear_log_probs_kernels)

}  // namespace lepo
