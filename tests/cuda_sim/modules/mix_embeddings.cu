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
  lepo::Rows<float> rows(const char* memory) const {
    return lepo::cuda::rows_of<float>(matrix(memory));
  }
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

// --- The kernels of float32 in one block, which takes all items in turn --------------------------

namespace {

template <typename... Parameters, typename... Arguments>
void in_one_block(void (*kernel)(Parameters...), Arguments... arguments) {
  lepo_test::check(
      lepo_launch(kernel, dim3(1), dim3(lepo::kMixThreads), 0, cudaStream_t{}, arguments...));
}

}  // namespace

LEPO_ENTRY(mix_embeddings_in_one_block) {
  const Call call(arrays, numbers);
  const lepo::cuda::MixEntries& from = call.entries;
  in_one_block(lepo::mix_embeddings_kernel<float, false>, lepo::cuda::ids_of(from), from.weights,
               call.rows(arrays.get<char>(2)), from.vocab, from.rows, from.kept, call.width,
               arrays.get<float>(3));
}

LEPO_ENTRY(mix_dweights_in_one_block) {
  const Call call(arrays, numbers);
  const lepo::cuda::MixEntries& from = call.entries;
  in_one_block(lepo::mix_dweights_kernel<float, false>, call.rows(arrays.get<char>(3)),
               lepo::cuda::ids_of(from), call.rows(arrays.get<char>(2)), from.vocab, from.rows,
               from.kept, call.width, arrays.get<float>(4));
}

LEPO_ENTRY(mix_keys_in_one_block) {
  const lepo::cuda::MixEntries from = Call(arrays, numbers).entries;
  in_one_block(lepo::mix_keys_kernel, lepo::cuda::ids_of(from), from.weights, from.vocab,
               from.rows * from.kept, arrays.get<int32_t>(2));
}

// dembedding [V, D] is 0 before.
LEPO_ENTRY(mix_dembedding_in_one_block) {
  const Call call(arrays, numbers);
  const lepo::cuda::MixEntries& from = call.entries;
  const lepo::SortedEntries entries{arrays.get<int32_t>(2), arrays.get<int64_t>(3),
                                    from.rows * from.kept};
  const lepo::TableGradient<float> out{arrays.get<float>(5), arrays.get<float>(6), call.width};
  in_one_block(lepo::mix_scatter_kernel<float, false>, entries, from.weights,
               call.rows(arrays.get<char>(4)), from.vocab, from.kept, out);
  in_one_block(lepo::mix_join_kernel<float, false>, entries, from.vocab, out);
}
