#include "cpu/sample_latent.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/bindings/checks.h"
#include "cpu/bindings/tensors.h"
#include "cpu/bindings/workspace.h"

namespace lepo {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct ExcludedIds {
  std::vector<uint32_t> bits;
  std::vector<int32_t> blocks;

  Excluded view() const {
    return {bits.empty() ? nullptr : bits.data(), blocks.data(),
            static_cast<int64_t>(blocks.size())};
  }
};

// Ids out of range are left out, and make the call unsound.
ExcludedIds exclude(const std::optional<Tensor>& ids, int64_t vocab, bool& sound) {
  ExcludedIds excluded;
  if (!ids.has_value() || ids->numel() == 0) return excluded;
  check_dense("exclude_ids", *ids, ScalarType::Long, {ids->numel()});
  const int64_t* id = ids->const_data_ptr<int64_t>();
  excluded.bits.assign(divide_up(vocab, 32), 0);
  std::vector<bool> touched(divide_up(vocab, kBlockEntries), false);
  for (int64_t i = 0; i < ids->numel(); ++i) {
    if (id[i] < 0 || id[i] >= vocab) {
      sound = false;
      continue;
    }
    excluded.bits[id[i] >> 5] |= 1u << (id[i] & 31);
    touched[id[i] / kBlockEntries] = true;
  }
  for (size_t block = 0; block < touched.size(); ++block) {
    if (touched[block]) excluded.blocks.push_back(static_cast<int32_t>(block));
  }
  return excluded;
}

// The per-row numbers of a call.
struct PerRow {
  const double* tau;
  const double* temperature;
  const int64_t* step;
  const int64_t* row_key = nullptr;  // null numbers the rows
  int64_t tau_stride, temperature_stride, step_stride;

  PerRow(const Tensor& tau_, const Tensor& temperature_, const Tensor& step_,
         const std::optional<Tensor>& row_keys, int64_t rows) {
    check_dense("tau", tau_, ScalarType::Double, {tau_.numel()});
    check_dense("temperature", temperature_, ScalarType::Double, {temperature_.numel()});
    check_dense("step", step_, ScalarType::Long, {step_.numel()});
    if (row_keys.has_value()) {
      check_dense("row_keys", *row_keys, ScalarType::Long, {rows});
      row_key = row_keys->const_data_ptr<int64_t>();
    }
    tau = tau_.const_data_ptr<double>();
    temperature = temperature_.const_data_ptr<double>();
    step = step_.const_data_ptr<int64_t>();
    tau_stride = per_row_stride("tau", tau_, rows);
    temperature_stride = per_row_stride("temperature", temperature_, rows);
    step_stride = per_row_stride("step", step_, rows);
  }

  // Whether all are in range, also one that no row asks for: float32 must hold a temperature and
  // its reciprocal.
  bool sound(int64_t rows, bool noisy) const {
    bool sound = true;
    for (int64_t n = 0; n < entries(tau_stride, rows); ++n) {
      sound &= tau[n] >= 0 && tau[n] <= FLT_MAX;
    }
    for (int64_t n = 0; n < entries(temperature_stride, rows); ++n) {
      sound &= temperature[n] >= FLT_MIN && temperature[n] <= FLT_MAX;
    }
    for (int64_t n = 0; noisy && n < entries(step_stride, rows); ++n) {
      sound &= step[n] >= 0 && step[n] <= UINT32_MAX;
    }
    return sound;
  }

  static int64_t entries(int64_t stride, int64_t rows) { return stride == 0 ? 1 : rows; }

  void fill(int64_t n, LatentRow& row) const {
    const float narrow_tau = static_cast<float>(tau[n * tau_stride]);
    row.tau = narrow_tau < FLT_MIN ? 0.0f : narrow_tau;
    row.inv_temperature = 1.0f / static_cast<float>(temperature[n * temperature_stride]);
    row.step = static_cast<uint32_t>(step[n * step_stride]);
    row.row_key = static_cast<uint64_t>(row_key == nullptr ? n : row_key[n]);
  }
};

// The fields of LatentSample, in its order.
struct Outputs {
  Tensor ids, weights, scores, logits, count, lse, kept_lse, entropy, shadow, token;

  Outputs(int64_t rows, int64_t width)
      : ids(empty_cpu({rows, width}, ScalarType::Long)),
        weights(empty_cpu({rows, width}, ScalarType::Float)),
        scores(empty_cpu({rows, width}, ScalarType::Float)),
        logits(empty_cpu({rows, width}, ScalarType::Float)),
        count(empty_cpu({rows}, ScalarType::Int)),
        lse(empty_cpu({rows}, ScalarType::Float)),
        kept_lse(empty_cpu({rows}, ScalarType::Float)),
        entropy(empty_cpu({rows}, ScalarType::Float)),
        shadow(empty_cpu({rows}, ScalarType::Long)),
        token(empty_cpu({rows}, ScalarType::Long)),
        first{ids.mutable_data_ptr<int64_t>(),
              weights.mutable_data_ptr<float>(),
              scores.mutable_data_ptr<float>(),
              logits.mutable_data_ptr<float>(),
              count.mutable_data_ptr<int32_t>(),
              lse.mutable_data_ptr<float>(),
              kept_lse.mutable_data_ptr<float>(),
              entropy.mutable_data_ptr<float>(),
              shadow.mutable_data_ptr<int64_t>(),
              token.mutable_data_ptr<int64_t>(),
              width} {}

  void fill(int64_t n, LatentRow& row) const {
    row.ids = first.ids + n * first.width;
    row.weights = first.weights + n * first.width;
    row.scores = first.scores + n * first.width;
    row.kept_logits = first.logits + n * first.width;
    row.count = first.count + n;
    row.lse = first.lse + n;
    row.kept_lse = first.kept_lse + n;
    row.entropy = first.entropy + n;
    row.shadow = first.shadow + n;
    row.token = first.token + n;
  }

 private:
  struct {
    int64_t* ids;
    float *weights, *scores, *logits;
    int32_t* count;
    float *lse, *kept_lse, *entropy;
    int64_t *shadow, *token;
    int64_t width;
  } first;
};

// One call: which rows and chunks there are, and where their workspaces lie.
class Call {
 public:
  Call(const Tensor& logits, const LatentOptions& options, const PerRow& per_row,
       const Outputs& outputs)
      : options_(options),
        per_row_(per_row),
        outputs_(outputs),
        element_(element_index("logits", logits)),
        logits_(static_cast<const char*>(logits.const_data_ptr())),
        row_bytes_(logits.stride(0) * static_cast<int64_t>(logits.element_size())),
        element_bytes_(static_cast<int64_t>(logits.element_size())),
        rows_(logits.size(0)),
        chunks_(divide_up(options.vocab, kChunkEntries)),
        cells_per_chunk_(kChunkEntries / kBlockEntries * kernels_.lanes),
        threads_(torch::stable::get_num_threads()),
        tasks_(std::max<int64_t>(1, std::min(threads_, rows_))),
        states_(rows_, RowState::kGood) {
    const int64_t slots = row_by_row() ? tasks_ : rows_;
    const int64_t capacity = candidate_capacity(options.vocab, options.top_k);
    cells_ = workspace_.reserve<float>(chunks_ * cells_per_chunk_, slots);
    sums_ = workspace_.reserve<ChunkSums>(chunks_, slots);
    key_ = workspace_.reserve<int32_t>(capacity + kPadding, tasks_);
    id_ = workspace_.reserve<int32_t>(capacity + kPadding, tasks_);
    pairs_ = workspace_.reserve<KeyedItem>(2 * options.top_k, tasks_);
    kept_ = workspace_.reserve<float>(3 * (options.top_k + kPadding), tasks_);
    workspace_.allocate();
  }

  void run() {
    if (rows_ == 0) return;
    if (row_by_row()) {
      // Too little work is not worth waking a thread.
      const int64_t grain = rows_ * options_.vocab < kWorthAThread ? tasks_ : 1;
      over_tasks(grain, [&](int64_t task, int64_t n) {
        for (int64_t chunk = 0; chunk < chunks_; ++chunk) summarise(n, chunk, task);
        draw(n, task, task);
      });
      return;
    }
    torch::stable::parallel_for(0, rows_ * chunks_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) summarise(i / chunks_, i % chunks_, i / chunks_);
    });
    over_tasks(1, [&](int64_t task, int64_t n) { draw(n, n, task); });
  }

  bool sound() const {
    return std::all_of(states_.begin(), states_.end(),
                       [](RowState state) { return state == RowState::kGood; });
  }

 private:
  static constexpr int64_t kWorthAThread = 1 << 14;

  // Rows are handed out whole if that keeps all threads busy: one pass, and one wait.
  bool row_by_row() const { return chunks_ == 1 || rows_ % threads_ == 0 || rows_ >= 8 * threads_; }

  // Calls work(task, n) for every row n, each task on one thread.
  template <typename F>
  void over_tasks(int64_t grain, const F& work) {
    torch::stable::parallel_for(0, tasks_, grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t last = (task + 1) * rows_ / tasks_;
        for (int64_t n = task * rows_ / tasks_; n < last; ++n) work(task, n);
      }
    });
  }

  float* cells(int64_t slot) const {
    return workspace_.at<float>(cells_, chunks_ * cells_per_chunk_, slot);
  }

  ChunkSums* sums(int64_t slot) const { return workspace_.at<ChunkSums>(sums_, chunks_, slot); }

  LatentRow row(int64_t n, int64_t slot) const {
    LatentRow row{};
    row.logits = logits_ + n * row_bytes_;
    row.cells = cells(slot);
    row.sums = sums(slot);
    per_row_.fill(n, row);
    outputs_.fill(n, row);
    return row;
  }

  void summarise(int64_t n, int64_t chunk, int64_t slot) const {
    const LatentRow r = row(n, slot);
    const int64_t begin = chunk * kChunkEntries;
    const int64_t count = std::min(kChunkEntries, options_.vocab - begin);
    sums(slot)[chunk] =
        kernels_.summarise[element_](static_cast<const char*>(r.logits) + begin * element_bytes_,
                                     r.inv_temperature, count, r.cells + chunk * cells_per_chunk_);
  }

  void draw(int64_t n, int64_t slot, int64_t task) {
    const int64_t capacity = candidate_capacity(options_.vocab, options_.top_k);
    const int64_t width = options_.top_k + kPadding;
    float* const kept = workspace_.at<float>(kept_, 3 * width, task);
    const LatentScratch scratch{capacity,
                                workspace_.at<int32_t>(key_, capacity + kPadding, task),
                                workspace_.at<int32_t>(id_, capacity + kPadding, task),
                                workspace_.at<KeyedItem>(pairs_, 2 * options_.top_k, task),
                                kept,
                                kept + width,
                                kept + 2 * width};
    states_[n] = kernels_.draw[element_](options_, row(n, slot), scratch);
  }

  const SampleLatentKernels& kernels_ = sample_latent_kernels();
  const LatentOptions& options_;
  const PerRow& per_row_;
  const Outputs& outputs_;
  const int element_;
  const char* const logits_;
  const int64_t row_bytes_, element_bytes_, rows_, chunks_, cells_per_chunk_, threads_, tasks_;
  std::vector<RowState> states_;
  Workspace workspace_;
  size_t cells_, sums_, key_, id_, pairs_, kept_;
};

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                           Tensor, bool>;

// The last result is false if an argument or a row of logits is out of range: NaN stands in such a
// row, and the caller finds out what was wrong.
Results sample_latent(const Tensor& logits, const Tensor& tau, const Tensor& temperature,
                      int64_t top_k, double top_p, double min_p, int64_t noise, double noise_scale,
                      double clamp_low, double clamp_high, int64_t num_draws,
                      const std::optional<Tensor>& exclude_ids, const Tensor& seed,
                      const std::optional<Tensor>& row_keys, const Tensor& step) {
  STD_TORCH_CHECK(logits.is_cpu(), "logits: expected a CPU tensor");
  check_rows("logits", logits);
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  STD_TORCH_CHECK(vocab >= 1 && vocab <= 1 << 26, "logits: wrong number of columns");
  STD_TORCH_CHECK(top_k >= 1 && top_k <= vocab && num_draws >= 1, "top_k or num_draws: too small");
  STD_TORCH_CHECK(noise >= 0 && noise <= static_cast<int64_t>(Noise::kCategorical), "noise");
  check_dense("seed", seed, ScalarType::Long, {});
  const PerRow per_row(tau, temperature, step, row_keys, rows);
  bool sound = per_row.sound(rows, noise != static_cast<int64_t>(Noise::kNone));
  const ExcludedIds excluded = exclude(exclude_ids, vocab, sound);

  LatentOptions options{};
  options.vocab = vocab;
  options.top_k = top_k;
  options.noise = static_cast<Noise>(noise);
  options.width = options.noise == Noise::kCategorical ? num_draws : top_k;
  options.top_p = top_p < 1 ? static_cast<float>(top_p) : std::numeric_limits<float>::infinity();
  options.log_min_p =
      min_p > 0 ? static_cast<float>(std::log(min_p)) : -std::numeric_limits<float>::infinity();
  options.noise_scale = static_cast<float>(noise_scale);
  options.clamp_low = static_cast<float>(clamp_low);
  options.clamp_high = static_cast<float>(clamp_high);
  options.seed = static_cast<uint64_t>(*seed.const_data_ptr<int64_t>());
  options.excluded = excluded.view();

  Outputs out(rows, options.width);
  Call call(logits, options, per_row, out);
  call.run();
  return {out.ids,    out.weights, out.scores,           out.logits,
          out.count,  out.lse,     out.kept_lse,         out.entropy,
          out.shadow, out.token,   sound && call.sound()};
}

}  // namespace
}  // namespace lepo

STABLE_TORCH_LIBRARY_FRAGMENT(lepo_kernels_cpu, m) {
  m.def(
      "sample_latent(Tensor logits, Tensor tau, Tensor temperature, int top_k, float top_p, "
      "float min_p, int noise, float noise_scale, float clamp_low, float clamp_high, "
      "int num_draws, Tensor? exclude_ids, Tensor seed, Tensor? row_keys, Tensor step) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool)");
}

STABLE_TORCH_LIBRARY_IMPL(lepo_kernels_cpu, CPU, m) {
  m.impl("sample_latent", TORCH_BOX(&lepo::sample_latent));
}
