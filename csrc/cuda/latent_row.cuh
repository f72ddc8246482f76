// What is made of a row's best entries: filtered, perturbed, weighed and written.
//
// Contract: the whole block calls, with the entries (64-bit numbers of radix_select.cuh) sorted in
// shared or global memory. Formulas are the reference's, number for number, up to rounding; sums
// are float64 in an order that depends on the number of entries and threads alone. A row without
// finite log-sum-exp or entries gets NaN, and ids that are in range. Each thread works on entries
// thread, thread + kThreads, ... and reads back from the outputs only what it wrote there itself.
#pragma once

#include <cfloat>

#include "cuda/latent_noise.cuh"
#include "cuda/radix_select.cuh"
#include "cuda/row_statistics.cuh"
#include "cuda/sample_latent.h"

namespace lepo {

// In shared memory.
template <int kThreads>
struct LatentScratch {
  double sums[kThreads / kWarpSize];
  uint64_t entries[kThreads / kWarpSize];
};

template <typename Result, typename T>
LEPO_DEVICE Result of_row(const cuda::PerRow<T>& x, int64_t row) {
  return static_cast<Result>(x.values == nullptr ? x.number : x.values[row * x.stride]);
}

LEPO_DEVICE PhiloxKey key_of(const cuda::SampleLatent& problem, int64_t row) {
  return {of_row<uint64_t>(problem.seed, row),
          static_cast<uint64_t>(problem.row_keys == nullptr ? row : problem.row_keys[row]),
          of_row<uint32_t>(problem.step, row)};
}

// 0, which puts all the weight on the token, for numbers whose reciprocal would be infinite.
LEPO_DEVICE float tau_of(const cuda::SampleLatent& problem, int64_t row) {
  const auto tau = of_row<float>(problem.tau, row);
  return tau < FLT_MIN ? 0.0f : tau;
}

template <int kThreads>
class LatentWriter {
 public:
  LEPO_DEVICE LatentWriter(const cuda::SampleLatent& problem, int64_t row,
                           const uint64_t* entries,  // [found], the largest first
                           int found, LatentScratch<kThreads>& scratch)
      : problem_(problem),
        index_(row),
        begin_(row * problem.width),
        entries_(entries),
        scratch_(scratch),
        found_(found) {}

  LEPO_DEVICE void write(const RowStatistics& statistics) {
    if (threadIdx.x == 0) {
      problem_.lse[index_] = statistics.lse;
      problem_.entropy[index_] = statistics.entropy;
    }
    if (!statistics.good() || found_ == 0) return write_nothing();
    top_ = value(0);
    const int kept = filter();
    const double mass = sum_of_masses(kept);
    if (threadIdx.x == 0) {
      problem_.kept_lse[index_] = static_cast<float>(top_ + log(mass));
      problem_.shadow[index_] = id(0);
    }
    if (problem_.noise == cuda::LatentNoise::kCategorical) return write_draws(kept);
    weigh(perturb(kept, static_cast<float>(mass)), kept);
    write_entries(kept);
  }

 private:
  static constexpr int kWarps = kThreads / kWarpSize;

  LEPO_DEVICE static int thread() { return static_cast<int>(threadIdx.x); }
  LEPO_DEVICE int last() const { return problem_.vocab - 1; }
  LEPO_DEVICE float value(int i) const { return value_of_entry(entries_[i]); }
  LEPO_DEVICE int id(int i) const { return id_of_entry(entries_[i], last()); }
  LEPO_DEVICE float mass_of(int i) const { return expf(value(i) - top_); }

  // f(i), summed over the first `count` entries.
  template <typename F>
  LEPO_DEVICE double sum_over(int count, F f) {
    double sum = 0;
    for (int i = thread(); i < count; i += kThreads) sum += f(i);
    return block_reduce<kThreads>(sum, Sum{}, scratch_.sums);
  }

  LEPO_DEVICE double sum_of_masses(int count) {
    return sum_over(count, [&](int i) { return mass_of(i); });
  }

  // How many entries stay: those whose preceding mass is below top_p, and that are not too far
  // below the first, which always stays.
  LEPO_DEVICE int filter() {
    const bool nucleus = problem_.top_p < INFINITY;
    const float scale = nucleus ? static_cast<float>(sum_of_masses(found_)) : 1.0f;
    double before = 0;
    for (int begin = 0; begin < found_; begin += kThreads) {
      const int i = begin + thread();
      bool stays = i < found_;
      if (nucleus) {
        const double share = stays ? mass_of(i) / scale : 0.0f;
        double total;
        const double preceding =
            before + block_exclusive_sum<kThreads>(share, scratch_.sums, total);
        stays = stays && static_cast<float>(preceding) < problem_.top_p;
        before += total;
      }
      stays = (stays && value(i) - top_ >= problem_.log_min_p) || i == 0;
      const int count = __syncthreads_count(stays ? 1 : 0);
      // Both conditions hold for a prefix.
      if (count < kThreads) return begin + count;
    }
    return found_;
  }

  // Root mean square of the kept entries, scaled so that no square overflows.
  LEPO_DEVICE float root_mean_square(int kept) {
    double largest = 0;
    for (int i = thread(); i < kept; i += kThreads) {
      largest = Larger{}(double{fabsf(value(i))}, largest);
    }
    const auto top = static_cast<float>(block_reduce<kThreads>(largest, Larger{}, scratch_.sums));
    if (top == 0.0f) return 0.0f;
    const double sum = sum_over(kept, [&](int i) {
      const float share = value(i) / top;
      return share * share;
    });
    return top * sqrtf(static_cast<float>(sum / kept));
  }

  // Writes the scores; returns the largest of them as an entry: of tied ones, the smallest id's.
  LEPO_DEVICE uint64_t perturb(int kept, float mass) {
    float sigma = 0.0f;
    if (problem_.noise == cuda::LatentNoise::kGaussian) {
      // Here and below, no inf * 0 and no inf - inf.
      sigma = fminf(problem_.noise_scale * root_mean_square(kept), FLT_MAX);
    }
    const PhiloxKey key = key_of(problem_, index_);
    uint64_t best = 0;
    for (int i = thread(); i < kept; i += kThreads) {
      const float score = perturbed(key, i, sigma, mass);
      problem_.scores[begin_ + i] = score;
      best = Larger{}(entry_of(score, id(i), last()), best);
    }
    return block_reduce<kThreads>(best, Larger{}, scratch_.entries);
  }

  LEPO_DEVICE float perturbed(const PhiloxKey& key, int i, float sigma, float mass) const {
    switch (problem_.noise) {
      case cuda::LatentNoise::kGumbel: {
        const float noise = fmaxf(gumbel_number(key, id(i), 0), problem_.clamp_low);
        return value(i) + fminf(noise, problem_.clamp_high);
      }
      case cuda::LatentNoise::kGaussian: {
        const float score = value(i) + sigma * normal_number(key, id(i), 0);
        return fmaxf(fminf(score, FLT_MAX), -FLT_MAX);
      }
      case cuda::LatentNoise::kDirichlet: {
        constexpr float kFloor = 1e-6f;
        const float alpha = problem_.noise_scale * (mass_of(i) / mass) + kFloor;
        return log_gamma_number(key, id(i), alpha);
      }
      default:
        return value(i);
    }
  }

  // softmax(scores / tau); at tau = 0 all the weight is on the best entry.
  LEPO_DEVICE void weigh(uint64_t best, int kept) {
    const int token = id_of_entry(best, last());
    if (threadIdx.x == 0) problem_.token[index_] = token;
    const float tau = tau_of(problem_, index_);
    if (tau == 0.0f) {
      for (int i = thread(); i < kept; i += kThreads) {
        problem_.weights[begin_ + i] = id(i) == token ? 1.0f : 0.0f;
      }
      return;
    }
    const float top = value_of_entry(best);
    const auto total = static_cast<float>(sum_over(kept, [&](int i) {
      const float weight = expf((problem_.scores[begin_ + i] - top) / tau);
      problem_.weights[begin_ + i] = weight;
      return weight;
    }));
    for (int i = thread(); i < kept; i += kThreads) problem_.weights[begin_ + i] /= total;
  }

  LEPO_DEVICE void write_entries(int kept) {
    for (int i = thread(); i < problem_.top_k; i += kThreads) {
      const bool real = i < kept;
      problem_.ids[begin_ + i] = id(real ? i : 0);
      problem_.logits_at[begin_ + i] = real ? value(i) : -INFINITY;
      if (real) continue;
      problem_.scores[begin_ + i] = -INFINITY;
      problem_.weights[begin_ + i] = 0.0f;
    }
    if (threadIdx.x == 0) problem_.count[index_] = kept;
  }

  // The place of the entry that a Gumbel-max draw picks; the whole warp calls.
  LEPO_DEVICE int pick(const PhiloxKey& key, uint32_t draw, int kept) const {
    uint64_t best = 0;
    for (int i = lane_of_thread(); i < kept; i += kWarpSize) {
      const float score = value(i) + gumbel_number(key, id(i), draw);
      best = Larger{}(entry_of(score, i, kept - 1), best);
    }
    return id_of_entry(warp_reduce(best, Larger{}), kept - 1);
  }

  LEPO_DEVICE void write_draws(int kept) {
    const PhiloxKey key = key_of(problem_, index_);
    const float weight = 1.0f / static_cast<float>(problem_.width);
    for (int draw = warp_of_thread(); draw < problem_.width; draw += kWarps) {
      const int picked = pick(key, static_cast<uint32_t>(draw), kept);
      if (lane_of_thread() != 0) continue;
      problem_.ids[begin_ + draw] = id(picked);
      problem_.weights[begin_ + draw] = weight;
      problem_.scores[begin_ + draw] = problem_.logits_at[begin_ + draw] = value(picked);
      if (draw == 0) problem_.token[index_] = id(picked);
    }
    if (threadIdx.x == 0) problem_.count[index_] = problem_.width;
  }

  LEPO_DEVICE void write_nothing() {
    for (int i = thread(); i < problem_.width; i += kThreads) {
      problem_.ids[begin_ + i] = 0;
      problem_.weights[begin_ + i] = problem_.scores[begin_ + i] = problem_.logits_at[begin_ + i] =
          NAN;
    }
    if (threadIdx.x != 0) return;
    problem_.count[index_] = 0;
    problem_.kept_lse[index_] = NAN;
    problem_.shadow[index_] = problem_.token[index_] = 0;
  }

  const cuda::SampleLatent& problem_;
  const int64_t index_;
  const int64_t begin_;  // of the row's part of [rows, width]
  const uint64_t* entries_;
  LatentScratch<kThreads>& scratch_;
  const int found_;
  float top_ = 0.0f;
};

}  // namespace lepo
