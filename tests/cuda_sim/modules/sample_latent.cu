#include "cuda/sample_latent.cu"
#include "cuda_sim/entry.h"

namespace latent {

// Its place among `numbers` is where the field is named here.
lepo::cuda::SampleLatent problem_of(const lepo_test::Arrays& arrays,
                                    const lepo_test::Numbers& numbers) {
  lepo::cuda::SampleLatent problem{};
  problem.rows = numbers[0];
  problem.vocab = static_cast<int>(numbers[1]);
  problem.row_stride = numbers[2];
  problem.element = static_cast<lepo::cuda::ElementKind>(numbers[4]);
  const int64_t bytes = problem.element == lepo::cuda::ElementKind::kFloat32 ? 4 : 2;
  problem.logits = arrays.get<char>(0) + numbers[3] * bytes;
  problem.top_k = static_cast<int>(numbers[5]);
  problem.width = static_cast<int>(numbers[6]);
  problem.splits = static_cast<int>(numbers[7]);
  problem.exclude_count = static_cast<int>(numbers[8]);
  problem.noise = static_cast<lepo::cuda::LatentNoise>(numbers[9]);
  problem.top_p = numbers.real(13);
  problem.log_min_p = numbers.real(14);
  problem.noise_scale = numbers.real(15);
  problem.clamp_low = numbers.real(16);
  problem.clamp_high = numbers.real(17);
  problem.tau = {arrays.get<double>(1), numbers[10], 0.0};
  problem.temperature = {arrays.get<double>(2), numbers[11], 0.0};
  problem.seed = {arrays.get<int64_t>(3), 0, 0};
  problem.row_keys = arrays.get<int64_t>(4);
  problem.step = {arrays.get<int64_t>(5), numbers[12], 0};
  problem.exclude_ids = arrays.get<int64_t>(6);
  problem.ids = arrays.get<int64_t>(7);
  problem.weights = arrays.get<float>(8);
  problem.scores = arrays.get<float>(9);
  problem.logits_at = arrays.get<float>(10);
  problem.count = arrays.get<int32_t>(11);
  problem.lse = arrays.get<float>(12);
  problem.kept_lse = arrays.get<float>(13);
  problem.entropy = arrays.get<float>(14);
  problem.shadow = arrays.get<int64_t>(15);
  problem.token = arrays.get<int64_t>(16);
  problem.workspace = arrays.get<char>(17);
  return problem;
}

}  // namespace latent

// arrays: logits, then tau, temperature, seed, row_keys, step and exclude_ids, the outputs in the
// order of SampleLatent, and the workspace
// numbers: N, V, row_stride, offset of the first row, element, top_k, width, splits, exclude_count,
// noise, three strides, top_p, log_min_p, noise_scale, clamp_low, clamp_high
LEPO_ENTRY(sample_latent) {
  lepo_test::check(
      lepo::cuda::launch_sample_latent(latent::problem_of(arrays, numbers), cudaStream_t{}));
}

// The same; arrays: bytes [1], written with the workspace's size
LEPO_ENTRY(workspace_bytes) {
  lepo::cuda::SampleLatent problem{};
  problem.rows = numbers[0];
  problem.vocab = static_cast<int>(numbers[1]);
  problem.top_k = static_cast<int>(numbers[2]);
  problem.splits = static_cast<int>(numbers[3]);
  *arrays.get<int64_t>(0) = static_cast<int64_t>(lepo::cuda::sample_latent_workspace(problem));
}
