#include "cuda/mix_embeddings.cu"
#include "cuda_sim/entry.h"

namespace {

using lepo_test::Arrays;
using lepo_test::Numbers;

// numbers: element, wide ids, N, K, V, D, distance of rows in elements, bytes before the first row
struct Call {
  lepo::cuda::ElementKind element;
  lepo::cuda::MixEntries entries;
  int64_t width, stride, offset;

  Call(const Arrays& arrays, const Numbers& numbers)
      : element(static_cast<lepo::cuda::ElementKind>(numbers[0])),
        entries{arrays.get<void>(0), arrays.get<float>(1), numbers[4],
                numbers[2],          numbers[3],           numbers[1] != 0},
        width(numbers[5]),
        stride(numbers[6]),
        offset(numbers[7]) {}

  lepo::cuda::MixMatrix matrix(const char* memory) const { return {memory + offset, stride}; }
};

}  // namespace

// arrays: ids [N, K], weights [N, K], memory of the table, mixture [N, D]
LEPO_ENTRY(mix_embeddings) {
  const Call call(arrays, numbers);
  lepo_test::check(
      lepo::cuda::launch_mix_embeddings({call.entries, call.matrix(arrays.get<char>(2)),
                                         arrays.get<void>(3), call.width, call.element},
                                        cudaStream_t{}));
}

// The same of float32, in one block.
LEPO_ENTRY(mix_embeddings_in_one_block) {
  const Call call(arrays, numbers);
  lepo_test::check(
      lepo_launch(lepo::mix_embeddings_kernel<float, false>, dim3(1), dim3(lepo::kMixThreads), 0,
                  cudaStream_t{}, lepo::cuda::ids_of(call.entries), call.entries.weights,
                  lepo::cuda::rows_of<float>(call.matrix(arrays.get<char>(2))), call.entries.vocab,
                  call.entries.rows, call.entries.kept, call.width, arrays.get<float>(3)));
}

// arrays: ids [N, K], weights [N, K], memory of the table, memory of the gradient, dweights [N, K]
LEPO_ENTRY(mix_dweights) {
  const Call call(arrays, numbers);
  lepo_test::check(lepo::cuda::launch_mix_dweights(
      {call.entries, call.matrix(arrays.get<char>(2)), call.matrix(arrays.get<char>(3)),
       arrays.get<float>(4), call.width, call.element},
      cudaStream_t{}));
}

// arrays: ids [N, K], weights [N, K], keys [N * K]
LEPO_ENTRY(mix_keys) {
  const Call call(arrays, numbers);
  lepo_test::check(
      lepo::cuda::launch_mix_keys(call.entries, arrays.get<int32_t>(2), cudaStream_t{}));
}

// arrays: none, weights [N, K], keys [N * K], order [N * K], memory of the gradient, workspace,
// dembedding [V, D]
LEPO_ENTRY(mix_dembedding) {
  const Call call(arrays, numbers);
  lepo_test::check(lepo::cuda::launch_mix_dembedding(
      {call.entries, arrays.get<int32_t>(2), arrays.get<int64_t>(3),
       call.matrix(arrays.get<char>(4)), arrays.get<float>(5), arrays.get<void>(6), call.width,
       call.element},
      cudaStream_t{}));
}
