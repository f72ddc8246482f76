#include "cpu/bfloat16_products.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cpu/bindings/checks.h"

namespace lepo {
namespace {

// Panels of the left factor that one task multiplies with a panel of the right one.
constexpr int64_t kTaskPanels = 16;
// Numbers worth waking a thread for, and products.
constexpr int64_t kNumbersOfTask = 1 << 14;
constexpr int64_t kProductsOfTask = 1 << 18;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// x: [outer, inner], rows or columns dense.
ProductFactor factor_of(const Tensor& x) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 2, "x: expected a matrix on the CPU");
  const bool is_float32 = x.scalar_type() == ScalarType::Float;
  STD_TORCH_CHECK(is_float32 || x.scalar_type() == ScalarType::BFloat16,
                  "x: expected float32 or bfloat16");
  ProductFactor factor = {x.const_data_ptr(), is_float32, x.size(0), x.size(1), x.stride(0), 1};
  if (x.size(1) > 1) factor.inner_stride = x.stride(1);
  STD_TORCH_CHECK(factor.inner_stride == 1 || factor.outer_stride == 1 || x.size(0) <= 1,
                  "x: expected dense rows or columns");
  return factor;
}

// Words of a pack: those of its panels.
void pack(const Tensor& x, bool left, Tensor packed) {
  const BFloat16ProductsKernels& kernels = bfloat16_products_kernels();
  const ProductFactor factor = factor_of(x);
  const int64_t width = left ? kLeftRows : kernels.right_columns;
  const int64_t panels = divide_up(factor.outer, width);
  const int64_t size = width * pairs_of(factor.inner);
  check_dense("packed", packed, ScalarType::Int, {panels * size});
  // Where there is nothing to pack, there is no memory either.
  if (panels * size == 0) return;
  auto* const words = reinterpret_cast<uint32_t*>(packed.mutable_data_ptr<int32_t>());
  const auto pack_panels = left ? kernels.pack_left : kernels.pack_right;
  torch::stable::parallel_for(
      0, panels, divide_up(kNumbersOfTask, size + 1),
      [&](int64_t begin, int64_t end) { pack_panels(factor, begin, end, words); });
}

int64_t packed_size(int64_t outer, int64_t inner, bool left) {
  const int64_t width = left ? kLeftRows : bfloat16_products_kernels().right_columns;
  return divide_up(outer, width) * width * pairs_of(inner);
}

// out = left * right^T, or adds it.
void multiply(const Tensor& left, const Tensor& right, int64_t inner, bool add, Tensor out) {
  const BFloat16ProductsKernels& kernels = bfloat16_products_kernels();
  STD_TORCH_CHECK(out.is_cpu(), "out: expected a CPU tensor");
  check_rows("out", out);
  const bool is_float32 = out.scalar_type() == ScalarType::Float;
  STD_TORCH_CHECK(is_float32 || (out.scalar_type() == ScalarType::BFloat16 && !add),
                  "out: expected float32, or bfloat16 that nothing is added to");
  const int64_t rows = out.size(0), columns = out.size(1), pairs = pairs_of(inner);
  check_dense("left", left, ScalarType::Int, {packed_size(rows, inner, true)});
  check_dense("right", right, ScalarType::Int, {packed_size(columns, inner, false)});
  const auto* const a = reinterpret_cast<const uint32_t*>(left.const_data_ptr<int32_t>());
  const auto* const b = reinterpret_cast<const uint32_t*>(right.const_data_ptr<int32_t>());
  const ProductResult result = {out.mutable_data_ptr(), is_float32, add, rows, columns,
                                out.stride(0)};
  const int64_t left_panels = divide_up(rows, kLeftRows);
  const int64_t right_panels = divide_up(columns, kernels.right_columns);
  const int64_t blocks = divide_up(left_panels, kTaskPanels);
  const int64_t work = kTaskPanels * kLeftRows * kernels.right_columns * (pairs + 1);
  // Neighbouring tasks share the left factor's block.
  torch::stable::parallel_for(
      0, blocks * right_panels, divide_up(kProductsOfTask, work), [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t first = task / right_panels * kTaskPanels;
          const int64_t last =
              first + kTaskPanels < left_panels ? first + kTaskPanels : left_panels;
          kernels.multiply(a, b, pairs, first, last, task % right_panels, result);
        }
      });
}

}  // namespace
}  // namespace lepo

STABLE_TORCH_LIBRARY_FRAGMENT(lepo_kernels_cpu, m) {
  m.def("bfloat16_pack(Tensor x, bool left, Tensor(a!) packed) -> ()");
  m.def("bfloat16_packed_size(int outer, int inner, bool left) -> int");
  m.def("bfloat16_multiply(Tensor left, Tensor right, int inner, bool add, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lepo_kernels_cpu, CPU, m) {
  m.impl("bfloat16_pack", TORCH_BOX(&lepo::pack));
  m.impl("bfloat16_multiply", TORCH_BOX(&lepo::multiply));
}

STABLE_TORCH_LIBRARY_IMPL(lepo_kernels_cpu, CompositeExplicitAutograd, m) {
  m.impl("bfloat16_packed_size", TORCH_BOX(&lepo::packed_size));
}
