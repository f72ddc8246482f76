// CUDA's names for g++, as far as kernels may use them. What is not here is not simulated.
#pragma once

#include "cuda_sim/half.h"
#include "cuda_sim/keywords.h"
#include "cuda_sim/launch.h"
#include "cuda_sim/math.h"
#include "cuda_sim/memory.h"
#include "cuda_sim/sync.h"
#include "cuda_sim/types.h"
#include "cuda_sim/warp.h"
