#include "cpu/gumbel_softmax_embedding.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <tuple>
#include <vector>

#include "cpu/bindings/checks.h"

namespace lepo {
namespace {

constexpr int64_t kStatistics = sizeof(GumbelSoftmaxStatistics) / sizeof(double);
constexpr int64_t kUpstream = sizeof(GumbelSoftmaxUpstream) / sizeof(float);
// Tiles and rows that are worth another thread.
constexpr int64_t kTilesPerThread = 2;
constexpr int64_t kRowsPerThread = 16;
// What the noise counter holds.
constexpr int64_t kMaxIds = int64_t{4} * kPhiloxDrawStride;

int64_t tiles_in(int64_t entries) {
  return (entries + kGumbelSoftmaxTile - 1) / kGumbelSoftmaxTile;
}

// A CPU matrix of this shape without gaps in its rows.
void check_matrix(const char* name, const Tensor& x, int64_t rows, int64_t columns) {
  STD_TORCH_CHECK(x.is_cpu(), name, ": expected a CPU tensor");
  check_rows(name, x);
  STD_TORCH_CHECK(x.size(0) == rows && x.size(1) == columns, name, ": wrong shape");
}

// The logits and all that makes weights of them.
class Rows {
 public:
  Rows(const Tensor& logits, const Tensor& tau, const Tensor& temperature, const Tensor& seed,
       const Tensor& row_keys, const Tensor& step, int64_t first_id)
      : count(logits.dim() == 2 ? logits.size(0) : 0),
        vocab(logits.dim() == 2 ? logits.size(1) : 0),
        logits_(static_cast<const char*>(logits.const_data_ptr())),
        dtype_(logits.scalar_type()) {
    check_matrix("logits", logits, count, vocab);
    check_dense("tau", tau, ScalarType::Double, {tau.numel()});
    check_dense("temperature", temperature, ScalarType::Double, {temperature.numel()});
    check_dense("seed", seed, ScalarType::Long, {});
    check_dense("row_keys", row_keys, ScalarType::Long, {count});
    check_dense("step", step, ScalarType::Long, {step.numel()});
    row_bytes_ = logits.stride(0) * entry_bytes();
    tau_ = tau.const_data_ptr<double>();
    tau_stride_ = per_row_stride("tau", tau, count);
    temperature_ = temperature.const_data_ptr<double>();
    temperature_stride_ = per_row_stride("temperature", temperature, count);
    seed_ = static_cast<uint64_t>(*seed.const_data_ptr<int64_t>());
    row_keys_ = row_keys.const_data_ptr<int64_t>();
    step_ = step.const_data_ptr<int64_t>();
    step_stride_ = per_row_stride("step", step, count);
    STD_TORCH_CHECK(
        first_id >= 0 && first_id % 4 == 0 && first_id <= kMaxIds && vocab <= kMaxIds - first_id,
        "first_id: out of range");
    first_id_ = static_cast<uint32_t>(first_id);
  }

  int64_t entry_bytes() const { return dtype_ == ScalarType::Float ? 4 : 2; }

  const GumbelSoftmaxTileKernels& kernels() const {
    const GumbelSoftmaxKernels& all = gumbel_softmax_kernels();
    switch (dtype_) {
      case ScalarType::Float:
        return all.float32;
      case ScalarType::BFloat16:
        return all.bfloat16;
      case ScalarType::Half:
        return all.float16;
      default:
        STD_TORCH_CHECK(false, "logits: wrong dtype");
    }
  }

  GumbelSoftmaxRow operator[](int64_t n) const {
    const auto tau = static_cast<float>(tau_[n * tau_stride_]);
    // float32 cannot hold the reciprocal of a subnormal number.
    const bool hard = tau < std::numeric_limits<float>::min();
    return {logits_ + n * row_bytes_,
            1.0f / static_cast<float>(temperature_[n * temperature_stride_]),
            hard ? 0.0f : 1.0f / tau,
            hard,
            {seed_, static_cast<uint64_t>(row_keys_[n]),
             static_cast<uint32_t>(step_[n * step_stride_])},
            first_id_};
  }

  const int64_t count;
  const int64_t vocab;

 private:
  const char* logits_;
  ScalarType dtype_;
  int64_t row_bytes_ = 0;
  const double* tau_ = nullptr;
  int64_t tau_stride_ = 0;
  const double* temperature_ = nullptr;
  int64_t temperature_stride_ = 0;
  uint64_t seed_ = 0;
  const int64_t* row_keys_ = nullptr;
  const int64_t* step_ = nullptr;
  int64_t step_stride_ = 0;
  uint32_t first_id_ = 0;
};

// The chosen rows' columns [first, first + width), and what is known of the rows.
struct Chunk {
  Chunk(const Rows& all, const Tensor& buffer, const Tensor& statistics, const Tensor& chosen,
        int64_t first)
      : width(buffer.size(1)), count(chosen.numel()), stride(buffer.stride(0)) {
    check_matrix("buffer", buffer, count, width);
    STD_TORCH_CHECK(buffer.scalar_type() == ScalarType::Float, "buffer: wrong dtype");
    STD_TORCH_CHECK(first >= 0 && first % 4 == 0 && width <= all.vocab - first,
                    "first: out of range");
    check_dense("statistics", statistics, ScalarType::Double, {all.count, kStatistics});
    check_dense("rows", chosen, ScalarType::Long, {count});
    known = reinterpret_cast<const GumbelSoftmaxStatistics*>(statistics.const_data_ptr<double>());
    rows = chosen.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < count; ++i) {
      STD_TORCH_CHECK(rows[i] >= 0 && rows[i] < all.count, "rows: out of range");
    }
    values = buffer.mutable_data_ptr<float>();
  }

  // Calls work(i, offset, width) for each tile of each chosen row i.
  template <typename Work>
  void for_each_tile(const Work& work) const {
    const int64_t tiles = tiles_in(width);
    torch::stable::parallel_for(0, count * tiles, kTilesPerThread, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t offset = t % tiles * kGumbelSoftmaxTile;
        const int64_t left = width - offset;
        work(t / tiles, offset,
             static_cast<int>(left < kGumbelSoftmaxTile ? left : kGumbelSoftmaxTile));
      }
    });
  }

  int64_t width;
  int64_t count;
  int64_t stride;
  const int64_t* rows;
  const GumbelSoftmaxStatistics* known;
  float* values;
};

std::tuple<Tensor, Tensor> statistics(const Tensor& logits, const Tensor& tau,
                                      const Tensor& temperature, const Tensor& seed,
                                      const Tensor& row_keys, const Tensor& step,
                                      int64_t first_id) {
  const Rows rows(logits, tau, temperature, seed, row_keys, step, first_id);
  const int64_t tiles = tiles_in(rows.vocab);
  Tensor known = torch::stable::new_empty(logits, {rows.count, kStatistics}, ScalarType::Double);
  Tensor log_prob = torch::stable::new_empty(logits, {rows.count}, ScalarType::Float);
  std::vector<GumbelSoftmaxSums> sums(rows.count * tiles);
  const GumbelSoftmaxTileKernels& kernels = rows.kernels();
  torch::stable::parallel_for(
      0, rows.count * tiles, kTilesPerThread, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          const int64_t first = t % tiles * kGumbelSoftmaxTile;
          const int64_t left = rows.vocab - first;
          sums[t] =
              kernels.sums(rows[t / tiles], first,
                           static_cast<int>(left < kGumbelSoftmaxTile ? left : kGumbelSoftmaxTile));
        }
      });
  auto* out = reinterpret_cast<GumbelSoftmaxStatistics*>(known.mutable_data_ptr<double>());
  float* log_probs = log_prob.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, rows.count, kRowsPerThread, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      log_probs[n] =
          gumbel_softmax_kernels().join(rows[n], sums.data() + n * tiles, tiles, out + n);
    }
  });
  return {log_prob, known};
}

void weights_beside_peak(const Tensor& z, const Tensor& logits, const Tensor& tau,
                         const Tensor& temperature, const Tensor& seed, const Tensor& row_keys,
                         const Tensor& step, int64_t first_id, const Tensor& statistics,
                         const Tensor& chosen, int64_t first) {
  const Rows rows(logits, tau, temperature, seed, row_keys, step, first_id);
  const Chunk chunk(rows, z, statistics, chosen, first);
  const GumbelSoftmaxTileKernels& kernels = rows.kernels();
  chunk.for_each_tile([&](int64_t i, int64_t offset, int width) {
    const int64_t n = chunk.rows[i];
    kernels.weights_beside_peak(rows[n], chunk.known[n], first + offset, width,
                                chunk.values + i * chunk.stride + offset);
  });
}

void gradients(const Tensor& pull, const Tensor& dlogits, const Tensor& logits, const Tensor& tau,
               const Tensor& temperature, const Tensor& seed, const Tensor& row_keys,
               const Tensor& step, int64_t first_id, const Tensor& statistics, const Tensor& chosen,
               int64_t first, const Tensor& upstream) {
  const Rows rows(logits, tau, temperature, seed, row_keys, step, first_id);
  const Chunk chunk(rows, pull, statistics, chosen, first);
  check_dense("upstream", upstream, ScalarType::Float, {chunk.count, kUpstream});
  const auto* gradients =
      reinterpret_cast<const GumbelSoftmaxUpstream*>(upstream.const_data_ptr<float>());
  char* out = nullptr;
  if (dlogits.numel() > 0) {
    check_dense("dlogits", dlogits, logits.scalar_type(), {rows.count, rows.vocab});
    out = static_cast<char*>(dlogits.mutable_data_ptr());
  }
  const GumbelSoftmaxTileKernels& kernels = rows.kernels();
  const int64_t row_bytes = rows.vocab * rows.entry_bytes();
  chunk.for_each_tile([&](int64_t i, int64_t offset, int width) {
    const int64_t n = chunk.rows[i];
    kernels.gradients(rows[n], chunk.known[n], gradients[i], first + offset, width,
                      chunk.values + i * chunk.stride + offset,
                      out == nullptr ? nullptr : out + n * row_bytes);
  });
}

}  // namespace
}  // namespace lepo

STABLE_TORCH_LIBRARY_FRAGMENT(lepo_kernels_cpu, m) {
  m.def(
      "gumbel_softmax_statistics(Tensor logits, Tensor tau, Tensor temperature, Tensor seed, "
      "Tensor row_keys, Tensor step, int first_id) -> (Tensor, Tensor)");
  m.def(
      "gumbel_softmax_weights_beside_peak(Tensor(a!) z, Tensor logits, Tensor tau, "
      "Tensor temperature, Tensor seed, Tensor row_keys, Tensor step, int first_id, "
      "Tensor statistics, Tensor rows, int first) -> ()");
  m.def(
      "gumbel_softmax_gradients(Tensor(a!) pull, Tensor(b!) dlogits, Tensor logits, Tensor tau, "
      "Tensor temperature, Tensor seed, Tensor row_keys, Tensor step, int first_id, "
      "Tensor statistics, Tensor rows, int first, Tensor upstream) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lepo_kernels_cpu, CPU, m) {
  m.impl("gumbel_softmax_statistics", TORCH_BOX(&lepo::statistics));
  m.impl("gumbel_softmax_weights_beside_peak", TORCH_BOX(&lepo::weights_beside_peak));
  m.impl("gumbel_softmax_gradients", TORCH_BOX(&lepo::gradients));
}
