// Runs one entry of a module in a process of its own, for the builds with sanitizers.
//
//   driver MODULE.so ENTRY ORDER SEED RESIDENT_BLOCKS MATH_MODE POISON < input > output
//
// Input: the number of numbers and of arrays (int64 each), the numbers (double), the sizes of the
// arrays in bytes (int64), the arrays. Output: the arrays. Each is a heap block of exactly its
// size, so that AddressSanitizer sees the first byte beyond it.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "engine.h"

namespace {

constexpr int kSimulationFailed = 3;

void read_exactly(void* to, size_t bytes) {
  if (bytes != 0 && fread(to, 1, bytes, stdin) != bytes) {
    fprintf(stderr, "driver: the input is too short\n");
    exit(1);
  }
}

void* symbol(void* module, const char* name) {
  void* found = dlsym(module, name);
  if (found == nullptr) {
    fprintf(stderr, "driver: %s\n", dlerror());
    exit(1);
  }
  return found;
}

}  // namespace

int main(int count, char** words) {
  if (count != 8) return 1;
  void* module = dlopen(words[1], RTLD_NOW | RTLD_GLOBAL);
  if (module == nullptr) {
    fprintf(stderr, "driver: %s\n", dlerror());
    return 1;
  }
  int64_t counts[2];
  read_exactly(counts, sizeof(counts));
  std::vector<double> numbers(counts[0]);
  std::vector<int64_t> sizes(counts[1]);
  read_exactly(numbers.data(), numbers.size() * sizeof(double));
  read_exactly(sizes.data(), sizes.size() * sizeof(int64_t));
  std::vector<void*> arrays;
  for (int64_t bytes : sizes) {
    arrays.push_back(malloc(bytes));
    read_exactly(arrays.back(), bytes);
  }
  lepo_sim::Options options;
  options.order = static_cast<lepo_sim::Order>(atoi(words[3]));
  options.seed = static_cast<uint32_t>(strtoul(words[4], nullptr, 10));
  options.resident_blocks = atoi(words[5]);
  options.math_mode = atoi(words[6]);
  options.poison = static_cast<uint8_t>(atoi(words[7]));
  const auto run = reinterpret_cast<decltype(&lepo_sim_run)>(symbol(module, "lepo_sim_run"));
  const auto entry = reinterpret_cast<lepo_sim::Entry>(symbol(module, words[2]));
  if (const char* error = run(entry, arrays.data(), numbers.data(), &options)) {
    fprintf(stderr, "%s\n", error);
    return kSimulationFailed;
  }
  for (size_t i = 0; i < arrays.size(); ++i) {
    fwrite(arrays[i], 1, static_cast<size_t>(sizes[i]), stdout);
    free(arrays[i]);
  }
  return fflush(stdout) == 0 ? 0 : 1;
}
