// Memory of large outputs.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/bindings/checks.h"

namespace lepo {
namespace {

constexpr uintptr_t kHugePage = uintptr_t{2} << 20;

// Asks for huge pages behind a tensor that nothing has been written to yet: a fresh page costs a
// fault, and a huge one stands for 512. Only advice: where the system does not take it, nothing is
// lost. What the pages hold stays as it is.
void advise_huge_pages(const Tensor& x) {
  STD_TORCH_CHECK(x.is_cpu() && x.is_contiguous(), "x: expected a contiguous CPU tensor");
#if defined(__linux__)
  const auto begin = reinterpret_cast<uintptr_t>(x.mutable_data_ptr());
  const uintptr_t end = begin + x.numel() * x.element_size();
  const uintptr_t first = (begin + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t last = end & ~(kHugePage - 1);
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace
}  // namespace lepo

STABLE_TORCH_LIBRARY_FRAGMENT(lepo_kernels_cpu, m) {
  m.def("advise_huge_pages(Tensor(a!) x) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lepo_kernels_cpu, CPU, m) {
  m.impl("advise_huge_pages", TORCH_BOX(&lepo::advise_huge_pages));
}
