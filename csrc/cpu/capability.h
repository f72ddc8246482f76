// Which instruction set the CPU kernels use, decided once per process.
//
// A kernel file is compiled once per instruction set, in the namespace LEPO_CAPABILITY; its header
// declares the same table of functions in each of them, and `dispatch` picks one.
#pragma once

namespace lepo {

// In ascending order. kAvx512Bf16 is kAvx512 with products of bfloat16 pairs.
enum class Capability { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };

// The best for this machine: not always the last it offers, see `choose`.
Capability best_capability();

// That, or what LEPO_CPU_CAPABILITY asks for if the machine offers it.
Capability capability();

const char* capability_name(Capability capability);

}  // namespace lepo

// Compilers that do not know the instructions leave that set out (CMakeLists.txt).
#if defined(LEPO_AVX512_BF16)
#define LEPO_DECLARE_AVX512_BF16(Kernels, name) \
  namespace avx512_bf16 {                       \
  extern const Kernels name;                    \
  }
#define LEPO_CASE_AVX512_BF16(name) \
  case Capability::kAvx512Bf16:     \
    return avx512_bf16::name;
#else
#define LEPO_DECLARE_AVX512_BF16(Kernels, name)
#define LEPO_CASE_AVX512_BF16(name)
#endif

// Declares `const Kernels name` in the namespace of each instruction set, and `name()`, the one in
// use. `Kernels` is a struct of function pointers.
#if defined(__x86_64__)
#define LEPO_DECLARE_KERNELS(Kernels, name) \
  namespace baseline {                      \
  extern const Kernels name;                \
  }                                         \
  namespace avx2 {                          \
  extern const Kernels name;                \
  }                                         \
  namespace avx512 {                        \
  extern const Kernels name;                \
  }                                         \
  LEPO_DECLARE_AVX512_BF16(Kernels, name)   \
  inline const Kernels& name() {            \
    switch (capability()) {                 \
      LEPO_CASE_AVX512_BF16(name)           \
      case Capability::kAvx512:             \
        return avx512::name;                \
      case Capability::kAvx2:               \
        return avx2::name;                  \
      default:                              \
        return baseline::name;              \
    }                                       \
  }
#else
#define LEPO_DECLARE_KERNELS(Kernels, name) \
  namespace baseline {                      \
  extern const Kernels name;                \
  }                                         \
  inline const Kernels& name() { return baseline::name; }
#endif
