// Which instruction set the CPU kernels use, decided once per process.
//
// A kernel file is compiled once per instruction set, in the namespace LEPO_CAPABILITY; its header
// declares the same table of functions in each of them, and `dispatch` picks one.
#pragma once

namespace lepo {

enum class Capability { kBaseline, kAvx2, kAvx512 };

// The best the machine offers.
Capability best_capability();

// That, or what LEPO_CPU_CAPABILITY asks for if the machine offers it.
Capability capability();

const char* capability_name(Capability capability);

}  // namespace lepo

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
  inline const Kernels& name() {            \
    switch (capability()) {                 \
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
