#include <algorithm>
#include <initializer_list>

#include "cuda/mix_embeddings.cuh"
#include "cuda/mix_embeddings.h"

namespace lepo {
namespace cuda {
namespace {

// What is beyond the largest grid, the kernels loop over.
constexpr int64_t kMaxBlocks = 0x7FFFFFFF;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

dim3 blocks_for(int64_t items, int64_t items_of_block) {
  return dim3(static_cast<unsigned>(std::min(divide_up(items, items_of_block), kMaxBlocks)));
}

// What a kernel is compiled for.
template <typename T, bool aligned>
struct Case {
  using Element = T;
  static constexpr bool kAligned = aligned;
};

// Whether the rows begin at multiples of 16 bytes and are made of whole vectors.
template <typename T>
bool is_aligned(std::initializer_list<MixMatrix> matrices, int64_t width) {
  constexpr int kSize = Vector<T>::kSize;
  return width % kSize == 0 &&
         std::all_of(matrices.begin(), matrices.end(), [](const MixMatrix& matrix) {
           return reinterpret_cast<uintptr_t>(matrix.data) % kVectorBytes == 0 &&
                  matrix.stride % kSize == 0;
         });
}

template <typename T, typename Launch>
cudaError_t by_alignment(std::initializer_list<MixMatrix> matrices, int64_t width, Launch launch) {
  return is_aligned<T>(matrices, width) ? launch(Case<T, true>()) : launch(Case<T, false>());
}

// Calls launch(Case) with the case of these matrices.
template <typename Launch>
cudaError_t by_case(ElementKind element, std::initializer_list<MixMatrix> matrices, int64_t width,
                    Launch launch) {
  switch (element) {
    case ElementKind::kFloat32:
      return by_alignment<float>(matrices, width, launch);
    case ElementKind::kBFloat16:
      return by_alignment<BFloat16>(matrices, width, launch);
    default:
      return by_alignment<Float16>(matrices, width, launch);
  }
}

Ids ids_of(const MixEntries& entries) { return {entries.ids, entries.wide_ids}; }

template <typename T>
Rows<T> rows_of(const MixMatrix& matrix) {
  return {static_cast<const T*>(matrix.data), matrix.stride};
}

int64_t element_bytes(ElementKind element) { return element == ElementKind::kFloat32 ? 4 : 2; }

template <typename T, bool kAligned>
cudaError_t scatter_and_join(const MixDembedding& problem, cudaStream_t stream) {
  const MixEntries& from = problem.entries;
  const SortedEntries entries{problem.keys, problem.order, from.rows * from.kept};
  const TableGradient<T> out{problem.workspace, static_cast<T*>(problem.dembedding), problem.width};
  const int64_t tiles = divide_up(problem.width, Columns<T, kAligned>::kTile);
  const int64_t pieces = divide_up(entries.count, kPieceEntries);
  const cudaError_t scattered = lepo_launch(
      mix_scatter_kernel<T, kAligned>, blocks_for(pieces * tiles, kMixWarps), dim3(kMixThreads), 0,
      stream, entries, from.weights, rows_of<T>(problem.grad), from.vocab, from.kept, out);
  if (scattered != cudaSuccess || pieces == 1) return scattered;
  return lepo_launch(mix_join_kernel<T, kAligned>, blocks_for((pieces - 1) * tiles, kMixWarps),
                     dim3(kMixThreads), 0, stream, entries, from.vocab, out);
}

}  // namespace

cudaError_t launch_mix_embeddings(const MixEmbeddings& problem, cudaStream_t stream) {
  const MixEntries& from = problem.entries;
  const int64_t width = problem.width;
  if (from.rows * width == 0) return cudaSuccess;
  return by_case(
      problem.element, {problem.embedding, {problem.mixed, width}}, width, [&](auto chosen) {
        using C = decltype(chosen);
        using T = typename C::Element;
        const int64_t tiles = divide_up(width, Columns<T, C::kAligned>::kTile);
        return lepo_launch(mix_embeddings_kernel<T, C::kAligned>,
                           blocks_for(from.rows * tiles, kMixWarps), dim3(kMixThreads), 0, stream,
                           ids_of(from), from.weights, rows_of<T>(problem.embedding), from.vocab,
                           from.rows, from.kept, width, static_cast<T*>(problem.mixed));
      });
}

cudaError_t launch_mix_dweights(const MixDweights& problem, cudaStream_t stream) {
  const MixEntries& from = problem.entries;
  const int64_t count = from.rows * from.kept;
  if (count == 0) return cudaSuccess;
  return by_case(
      problem.element, {problem.embedding, problem.grad}, problem.width, [&](auto chosen) {
        using C = decltype(chosen);
        using T = typename C::Element;
        return lepo_launch(mix_dweights_kernel<T, C::kAligned>, blocks_for(count, kMixWarps),
                           dim3(kMixThreads), 0, stream, rows_of<T>(problem.grad), ids_of(from),
                           rows_of<T>(problem.embedding), from.vocab, from.rows, from.kept,
                           problem.width, problem.dweights);
      });
}

cudaError_t launch_mix_keys(const MixEntries& entries, int32_t* keys, cudaStream_t stream) {
  const int64_t count = entries.rows * entries.kept;
  if (count == 0) return cudaSuccess;
  return lepo_launch(mix_keys_kernel, blocks_for(count, kMixThreads), dim3(kMixThreads), 0, stream,
                     ids_of(entries), entries.weights, entries.vocab, count, keys);
}

int64_t mix_workspace_size(int64_t rows, int64_t kept, int64_t width) {
  return 2 * divide_up(rows * kept, kPieceEntries) * width;
}

cudaError_t launch_mix_dembedding(const MixDembedding& problem, cudaStream_t stream) {
  const MixEntries& from = problem.entries;
  const int64_t size = from.vocab * problem.width;
  if (size == 0) return cudaSuccess;
  const auto bytes = static_cast<size_t>(size * element_bytes(problem.element));
  const cudaError_t cleared = cudaMemsetAsync(problem.dembedding, 0, bytes, stream);
  if (cleared != cudaSuccess || from.rows * from.kept == 0) return cleared;
  return by_case(problem.element, {problem.grad, {problem.dembedding, problem.width}},
                 problem.width, [&](auto chosen) {
                   using C = decltype(chosen);
                   return scatter_and_join<typename C::Element, C::kAligned>(problem, stream);
                 });
}

}  // namespace cuda
}  // namespace lepo
