#include "cuda/linear_log_probs.cu"
#include "cuda_sim/entry.h"

namespace log_probs {

// A test's first arrays: logits, bias [C] or [0], scale [N] or [1], ids [N, K].
// Its first numbers: N, C, K, the first id, the type of the logits, what they begin at in their
// array, the elements from row to row, softcap, whether there is a bias, whether each row has its
// own scale.
template <typename T>
const void* begin_of(const lepo_test::Arrays& arrays, int array, int64_t offset) {
  return arrays.get<T>(array) + offset;
}

const void* begin_of(const lepo_test::Arrays& arrays, int array, int64_t offset,
                     lepo::cuda::ElementKind element) {
  return element == lepo::cuda::ElementKind::kFloat32 ? begin_of<float>(arrays, array, offset)
                                                      : begin_of<uint16_t>(arrays, array, offset);
}

lepo::cuda::Logits logits_of(const lepo_test::Arrays& arrays, const lepo_test::Numbers& numbers) {
  lepo::cuda::Logits x{};
  x.element = static_cast<lepo::cuda::ElementKind>(numbers[4]);
  x.logits = begin_of(arrays, 0, numbers[5], x.element);
  x.rows = numbers[0];
  x.columns = numbers[1];
  x.stride = numbers[6];
  x.bias = numbers[8] != 0 ? arrays.get<float>(1) : nullptr;
  x.softcap = numbers.real(7);
  x.scale = arrays.get<float>(2);
  x.scale_stride = numbers[9];
  x.ids = arrays.get<int64_t>(3);
  x.kept = numbers[2];
  x.first = numbers[3];
  return x;
}

}  // namespace log_probs

// further arrays: states [N, U, 3], selected [N, K]; further numbers: U
LEPO_ENTRY(summarise_logits) {
  lepo_test::check(lepo::cuda::launch_summarise_logits(log_probs::logits_of(arrays, numbers),
                                                       arrays.get<float>(4), numbers[10],
                                                       arrays.get<float>(5), cudaStream_t{}));
}

// arrays: states [N, U, 3], lse [N], entropy [N]; numbers: N, U
LEPO_ENTRY(statistics_of) {
  lepo_test::check(lepo::cuda::launch_statistics_of(arrays.get<float>(0), numbers[0], numbers[1],
                                                    arrays.get<float>(1), arrays.get<float>(2),
                                                    cudaStream_t{}));
}

// further arrays: alpha [N, K], gamma [N], eta [N], lse [N], entropy [N], out
// further numbers: the type of the output, what it begins at in its array, the elements from row to
// row, whether it is the logits instead
LEPO_ENTRY(logit_gradient) {
  const auto element = static_cast<lepo::cuda::ElementKind>(numbers[10]);
  const bool in_place = numbers[13] != 0;
  const void* out = log_probs::begin_of(arrays, in_place ? 0 : 9, numbers[11], element);
  lepo_test::check(lepo::cuda::launch_logit_gradient(
      log_probs::logits_of(arrays, numbers),
      {arrays.get<float>(4), arrays.get<float>(5), arrays.get<float>(6), arrays.get<float>(7),
       arrays.get<float>(8)},
      const_cast<void*>(out), element, numbers[12], cudaStream_t{}));
}
