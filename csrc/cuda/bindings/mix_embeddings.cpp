#include "cuda/bindings/mix_embeddings.h"

#include <torch/csrc/stable/library.h>

#include "cuda/bindings/checks.h"
#include "cuda/bindings/element_kind.h"
#include "cuda/bindings/empty.h"
#include "cuda/bindings/launch.h"
#include "cuda/mix_embeddings.h"

namespace lepo {
namespace {

cuda::MixMatrix matrix_of(const char* name, const Tensor& x, int32_t device) {
  check_device(name, x, device);
  check_rows(name, x);
  return {x.const_data_ptr(), x.stride(0)};
}

cuda::MixEntries entries_of(const Tensor& ids, int64_t vocab) {
  STD_TORCH_CHECK(ids.dim() == 2, "ids: expected a matrix");
  const bool wide = ids.scalar_type() == ScalarType::Long;
  STD_TORCH_CHECK(wide || ids.scalar_type() == ScalarType::Int, "ids: expected int32 or int64");
  check_dense("ids", ids, ids.get_device_index(), ids.scalar_type(), {ids.size(0), ids.size(1)});
  cuda::MixEntries entries{};
  entries.ids = ids.const_data_ptr();
  entries.vocab = vocab;
  entries.rows = ids.size(0);
  entries.kept = ids.size(1);
  entries.wide_ids = wide;
  return entries;
}

const float* weights_of(const Tensor& weights, const Tensor& like) {
  check_dense("weights", weights, like.get_device_index(), ScalarType::Float,
              {like.size(0), like.size(1)});
  return weights.const_data_ptr<float>();
}

Tensor mix_dweights(const Tensor& grad, const Tensor& ids, const Tensor& embedding) {
  const int32_t device = embedding.get_device_index();
  cuda::MixDweights problem{};
  problem.embedding = matrix_of("embedding", embedding, device);
  problem.grad = matrix_of("grad", grad, device);
  check_device("ids", ids, device);
  problem.entries = entries_of(ids, embedding.size(0));
  problem.width = embedding.size(1);
  problem.element = element_kind("embedding", embedding);
  STD_TORCH_CHECK(grad.size(0) == ids.size(0) && grad.size(1) == problem.width, "grad: wrong size");
  STD_TORCH_CHECK(grad.scalar_type() == embedding.scalar_type(), "grad: wrong dtype");
  Tensor out = empty_cuda({ids.size(0), ids.size(1)}, ScalarType::Float, device);
  problem.dweights = out.mutable_data_ptr<float>();
  const CudaDevice on(device);
  check_launch("mix_dweights", cuda::launch_mix_dweights(problem, on.stream()));
  return out;
}

// Keys are int32, and so is what they stand for.
void check_vocab(int64_t vocab) {
  STD_TORCH_CHECK(vocab >= 0 && vocab <= INT32_MAX, "vocab: expected a number below 2^31");
}

Tensor mix_keys(const Tensor& ids, const Tensor& weights, int64_t vocab) {
  check_vocab(vocab);
  check_device("ids", ids, ids.get_device_index());
  cuda::MixEntries entries = entries_of(ids, vocab);
  entries.weights = weights_of(weights, ids);
  Tensor out = empty_cuda({ids.numel()}, ScalarType::Int, ids.get_device_index());
  const CudaDevice on(ids.get_device_index());
  check_launch("mix_keys",
               cuda::launch_mix_keys(entries, out.mutable_data_ptr<int32_t>(), on.stream()));
  return out;
}

// `keys` are those of mix_keys, sorted stably, and `order` tells where they were.
Tensor mix_dembedding(const Tensor& grad, const Tensor& weights, const Tensor& keys,
                      const Tensor& order, int64_t vocab) {
  check_vocab(vocab);
  const int32_t device = grad.get_device_index();
  cuda::MixDembedding problem{};
  problem.grad = matrix_of("grad", grad, device);
  STD_TORCH_CHECK(weights.dim() == 2 && weights.size(0) == grad.size(0), "weights: wrong size");
  const int64_t rows = weights.size(0), kept = weights.size(1), width = grad.size(1);
  check_dense("weights", weights, device, ScalarType::Float, {rows, kept});
  check_dense("keys", keys, device, ScalarType::Int, {rows * kept});
  check_dense("order", order, device, ScalarType::Long, {rows * kept});
  Tensor out = empty_cuda({vocab, width}, grad.scalar_type(), device);
  Tensor workspace =
      empty_cuda({cuda::mix_workspace_size(rows, kept, width)}, ScalarType::Float, device);
  problem.entries.weights = weights.const_data_ptr<float>();
  problem.entries.vocab = vocab;
  problem.entries.rows = rows;
  problem.entries.kept = kept;
  problem.keys = keys.const_data_ptr<int32_t>();
  problem.order = order.const_data_ptr<int64_t>();
  problem.workspace = workspace.mutable_data_ptr<float>();
  problem.dembedding = out.mutable_data_ptr();
  problem.width = width;
  problem.element = element_kind("grad", grad);
  const CudaDevice on(device);
  check_launch("mix_dembedding", cuda::launch_mix_dembedding(problem, on.stream()));
  return out;
}

}  // namespace

Tensor mix_embeddings(const Tensor& ids, const Tensor& weights, const Tensor& embedding) {
  const int32_t device = embedding.get_device_index();
  cuda::MixEmbeddings problem{};
  problem.embedding = matrix_of("embedding", embedding, device);
  check_device("ids", ids, device);
  problem.entries = entries_of(ids, embedding.size(0));
  problem.entries.weights = weights_of(weights, ids);
  problem.width = embedding.size(1);
  problem.element = element_kind("embedding", embedding);
  Tensor out = empty_cuda({ids.size(0), problem.width}, embedding.scalar_type(), device);
  problem.mixed = out.mutable_data_ptr();
  const CudaDevice on(device);
  check_launch("mix_embeddings", cuda::launch_mix_embeddings(problem, on.stream()));
  return out;
}

}  // namespace lepo

STABLE_TORCH_LIBRARY_FRAGMENT(lepo_kernels_cuda, m) {
  m.def("mix_embeddings(Tensor ids, Tensor weights, Tensor embedding) -> Tensor");
  m.def("mix_dweights(Tensor grad, Tensor ids, Tensor embedding) -> Tensor");
  m.def("mix_keys(Tensor ids, Tensor weights, int vocab) -> Tensor");
  m.def(
      "mix_dembedding(Tensor grad, Tensor weights, Tensor keys, Tensor order, int vocab) -> "
      "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lepo_kernels_cuda, LEPO_CUDA_KEY, m) {
  m.impl("mix_embeddings", TORCH_BOX(&lepo::mix_embeddings));
  m.impl("mix_dweights", TORCH_BOX(&lepo::mix_dweights));
  m.impl("mix_keys", TORCH_BOX(&lepo::mix_keys));
  m.impl("mix_dembedding", TORCH_BOX(&lepo::mix_dembedding));
}
