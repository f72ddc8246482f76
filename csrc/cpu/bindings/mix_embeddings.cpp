#include "cpu/mix_embeddings.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <tuple>
#include <vector>

#include "common/radix_sort.h"
#include "cpu/bindings/checks.h"
#include "cpu/bindings/tensors.h"
#include "cpu/bindings/workspace.h"

namespace lepo {
namespace {

// Elements of a row that one thread works on at a time, at least.
constexpr int64_t kSlice = 256;
// Products that are worth waking a thread for.
constexpr int64_t kWorthAThread = 1 << 15;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int index_kind(const Tensor& ids) {
  const bool narrow = ids.scalar_type() == ScalarType::Int;
  STD_TORCH_CHECK(narrow || ids.scalar_type() == ScalarType::Long, "ids: expected int32 or int64");
  return narrow ? 0 : 1;
}

int weight_kind(const Tensor& weights) {
  return weights.scalar_type() == ScalarType::Double ? 3 : element_index("weights", weights);
}

// The ids and weights of a call, widened, and the range of all ids.
class Entries {
 public:
  Entries(const Tensor& ids, const Tensor& weights) : rows_(ids.size(0)), width_(ids.size(1)) {
    check_dense("ids", ids, ids.scalar_type(), {rows_, width_});
    check_dense("weights", weights, weights.scalar_type(), {rows_, width_});
    const MixEmbeddingsKernels& kernels = mix_embeddings_kernels();
    const auto read_ids = kernels.read_ids[index_kind(ids)];
    const auto read_weights = kernels.read_weights[weight_kind(weights)];
    entries_.reset(new WeightedRow[rows_ * width_]);
    read_ids(ids.const_data_ptr(), rows_ * width_, entries_.get(), range_);
    read_weights(weights.const_data_ptr(), rows_ * width_, entries_.get());
  }

  const WeightedRow* row(int64_t n) const { return entries_.get() + n * width_; }
  int64_t rows() const { return rows_; }
  int64_t width() const { return width_; }
  int64_t count() const { return rows_ * width_; }
  bool inside(int64_t vocab) const {
    return count() == 0 || (range_.low >= 0 && range_.high < vocab);
  }

 private:
  int64_t rows_, width_;
  std::unique_ptr<WeightedRow[]> entries_;
  IdRange range_;
};

// A matrix whose rows are dense.
struct Rows {
  const char* data;
  int64_t stride;
  int64_t width;
  int64_t element_bytes;
  int element;

  Rows(const char* name, const Tensor& x)
      : data(static_cast<const char*>(x.const_data_ptr())),
        stride(x.stride(0)),
        width(x.size(1)),
        element_bytes(static_cast<int64_t>(x.element_size())),
        element(element_index(name, x)) {
    STD_TORCH_CHECK(x.is_cpu(), name, ": expected a CPU tensor");
    check_rows(name, x);
  }
};

// The flag is false if an id is out of range; the mixture then holds nothing.
std::tuple<Tensor, bool> mix_embeddings(const Tensor& ids, const Tensor& weights,
                                        const Tensor& embedding) {
  STD_TORCH_CHECK(ids.dim() == 2 && embedding.dim() == 2, "ids, embedding: expected matrices");
  const Rows table("embedding", embedding);
  const Entries entries(ids, weights);
  Tensor out = empty_cpu({entries.rows(), table.width}, embedding.scalar_type());
  if (!entries.inside(embedding.size(0))) return {out, false};
  const auto sum_rows = mix_embeddings_kernels().sum_rows[table.element];
  char* const mixed = static_cast<char*>(out.mutable_data_ptr());
  const int64_t slices = divide_up(table.width, kSlice);
  const int64_t work = std::max<int64_t>(1, entries.width() * kSlice);
  torch::stable::parallel_for(0, entries.rows() * slices, divide_up(kWorthAThread, work),
                              [&](int64_t begin, int64_t end) {
                                while (begin < end) {
                                  const int64_t n = begin / slices, first = begin % slices;
                                  const int64_t last = std::min(slices, first + end - begin);
                                  sum_rows(table.data, table.stride, entries.row(n),
                                           entries.width(), entries.count() - n * entries.width(),
                                           first * kSlice, std::min(last * kSlice, table.width),
                                           mixed + n * table.width * table.element_bytes);
                                  begin += last - first;
                                }
                              });
  return {out, true};
}

void write_dweights(const Rows& table, const Rows& grad, const Entries& entries, Tensor& dweights) {
  const MixEmbeddingsKernels& kernels = mix_embeddings_kernels();
  const int64_t width = entries.width();
  std::unique_ptr<float[]> products(new float[entries.count()]);
  const int64_t work = std::max<int64_t>(1, table.width);
  torch::stable::parallel_for(
      0, entries.count(), divide_up(kWorthAThread, work), [&](int64_t begin, int64_t end) {
        while (begin < end) {
          const int64_t n = begin / width, k = begin % width;
          const int64_t count = std::min(width - k, end - begin);
          kernels.dot_rows[table.element](
              table.data, table.stride, entries.row(n) + k, count, table.width,
              grad.data + n * grad.stride * grad.element_bytes, products.get() + begin);
          begin += count;
        }
      });
  kernels.write_weights[weight_kind(dweights)](products.get(), entries.count(),
                                               dweights.mutable_data_ptr());
}

// Zeros whose pages cost nothing until they are touched: most rows of the gradient of a table stay
// zero.
Tensor sparse_zeros(int64_t rows, int64_t width, ScalarType dtype, int64_t element_bytes) {
  constexpr int64_t kAlignment = 64;
  const int64_t bytes = rows * width * element_bytes;
  char* const memory = static_cast<char*>(std::calloc(bytes + kAlignment, 1));
  STD_TORCH_CHECK(memory != nullptr, "no memory for the gradient of the table");
  const auto address = reinterpret_cast<uintptr_t>(memory);
  char* const aligned = memory + (kAlignment - address % kAlignment);
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  return torch::stable::from_blob(aligned, {rows, width}, {std::max<int64_t>(1, width), 1}, cpu,
                                  dtype, [memory](void*) { std::free(memory); });
}

// The contributions to rows of the table's gradient, those of a row together and in the order of
// their entries.
struct Contributions {
  std::unique_ptr<WeightedRow[]> from;  // rows of the output's gradient
  std::vector<int64_t> first;           // where each row's contributions begin, and the end
  std::vector<int64_t> id;              // of each row
};

Contributions group_by_id(const Entries& entries) {
  const int64_t width = entries.width();
  std::unique_ptr<KeyedItem[]> items(new KeyedItem[2 * entries.count()]);
  int64_t count = 0;
  for (int64_t i = 0; i < entries.count(); ++i) {
    if (entries.row(0)[i].weight == 0) continue;
    items[count++] = {static_cast<uint32_t>(entries.row(0)[i].row), static_cast<int32_t>(i)};
  }
  const KeyedItem* sorted = radix_sort(items.get(), items.get() + count, count);
  Contributions groups;
  groups.from.reset(new WeightedRow[count]);
  for (int64_t i = 0; i < count; ++i) {
    groups.from[i] = {sorted[i].item / width, entries.row(0)[sorted[i].item].weight};
    if (i == 0 || sorted[i].key != sorted[i - 1].key) {
      groups.first.push_back(i);
      groups.id.push_back(sorted[i].key);
    }
  }
  groups.first.push_back(count);
  return groups;
}

void write_dembedding(const Rows& grad, const Entries& entries, Tensor& dembedding) {
  STD_TORCH_CHECK(entries.count() <= INT32_MAX && dembedding.size(0) <= INT32_MAX,
                  "ids: too many for one call");
  const Contributions groups = group_by_id(entries);
  const auto sum_rows = mix_embeddings_kernels().sum_rows[grad.element];
  char* const table = static_cast<char*>(dembedding.mutable_data_ptr());
  const int64_t slices = divide_up(grad.width, kSlice);
  // Rows and slices are one range, row after row: one id that all entries share is split, too.
  const int64_t work =
      std::max<int64_t>(1, entries.count() / std::max<size_t>(1, groups.id.size()));
  torch::stable::parallel_for(
      0, static_cast<int64_t>(groups.id.size()) * slices, divide_up(kWorthAThread, work * kSlice),
      [&](int64_t begin, int64_t end) {
        for (; begin < end; ++begin) {
          const int64_t i = begin / slices, slice = begin % slices;
          sum_rows(grad.data, grad.stride, groups.from.get() + groups.first[i],
                   groups.first[i + 1] - groups.first[i], groups.first.back() - groups.first[i],
                   slice * kSlice, std::min((slice + 1) * kSlice, grad.width),
                   table + groups.id[i] * grad.width * grad.element_bytes);
        }
      });
}

// Gradients of the weights and of the table; one that is not needed comes back empty. The flag is
// false if an id is out of range; the gradients then hold nothing.
std::tuple<Tensor, Tensor, bool> mix_embeddings_backward(const Tensor& grad, const Tensor& ids,
                                                         const Tensor& weights,
                                                         const Tensor& embedding,
                                                         bool need_dweights, bool need_dembedding) {
  STD_TORCH_CHECK(ids.dim() == 2 && embedding.dim() == 2 && grad.dim() == 2,
                  "grad, ids, embedding: expected matrices");
  const Rows table("embedding", embedding), de("grad", grad);
  STD_TORCH_CHECK(grad.size(0) == ids.size(0) && de.width == table.width, "grad: wrong size");
  STD_TORCH_CHECK(grad.scalar_type() == embedding.scalar_type(), "grad: wrong dtype");
  const Entries entries(ids, weights);
  const int64_t vocab = embedding.size(0);
  Tensor dweights = need_dweights
                        ? empty_cpu({entries.rows(), entries.width()}, weights.scalar_type())
                        : empty_cpu({0}, weights.scalar_type());
  Tensor dembedding = need_dembedding ? sparse_zeros(vocab, table.width, embedding.scalar_type(),
                                                     table.element_bytes)
                                      : empty_cpu({0}, embedding.scalar_type());
  if (!entries.inside(vocab)) return {dweights, dembedding, false};
  if (need_dweights) write_dweights(table, de, entries, dweights);
  if (need_dembedding) write_dembedding(de, entries, dembedding);
  return {dweights, dembedding, true};
}

}  // namespace
}  // namespace lepo

STABLE_TORCH_LIBRARY_FRAGMENT(lepo_kernels_cpu, m) {
  m.def("mix_embeddings(Tensor ids, Tensor weights, Tensor embedding) -> (Tensor, bool)");
  m.def(
      "mix_embeddings_backward(Tensor grad, Tensor ids, Tensor weights, Tensor embedding, "
      "bool need_dweights, bool need_dembedding) -> (Tensor, Tensor, bool)");
}

STABLE_TORCH_LIBRARY_IMPL(lepo_kernels_cpu, CPU, m) {
  m.impl("mix_embeddings", TORCH_BOX(&lepo::mix_embeddings));
  m.impl("mix_embeddings_backward", TORCH_BOX(&lepo::mix_embeddings_backward));
}
