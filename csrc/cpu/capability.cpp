#include "cpu/capability.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace lepo {
namespace {

bool offered(Capability capability) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  switch (capability) {
    case Capability::kAvx512Bf16:
#if defined(LEPO_AVX512_BF16)
      return offered(Capability::kAvx512) && __builtin_cpu_supports("avx512bf16");
#else
      return false;
#endif
    case Capability::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Capability::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    default:
      return true;
  }
#else
  return capability == Capability::kBaseline;
#endif
}

// Whether it is worth its while. AMD's cores multiply pairs of bfloat16 numbers at twice the rate
// of float32 ones; Intel's at the same rate at best, since there AMX is what is fast, so that
// products in float32, which need no packing, are the better ones.
bool recommended(Capability capability) {
#if defined(__x86_64__)
  return capability != Capability::kAvx512Bf16 || __builtin_cpu_is("amd");
#else
  return capability == Capability::kBaseline;
#endif
}

Capability choose(const char* wanted) {
  const bool any = wanted == nullptr || *wanted == '\0';
  for (const Capability capability :
       {Capability::kAvx512Bf16, Capability::kAvx512, Capability::kAvx2}) {
    const bool welcome =
        any ? recommended(capability) : !std::strcmp(wanted, capability_name(capability));
    if (welcome && offered(capability)) return capability;
  }
  return Capability::kBaseline;
}

}  // namespace

Capability best_capability() { return choose(nullptr); }

Capability capability() {
  static const Capability chosen = choose(std::getenv("LEPO_CPU_CAPABILITY"));
  return chosen;
}

const char* capability_name(Capability capability) {
  switch (capability) {
    case Capability::kAvx512Bf16:
      return "avx512_bf16";
    case Capability::kAvx512:
      return "avx512";
    case Capability::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace lepo
