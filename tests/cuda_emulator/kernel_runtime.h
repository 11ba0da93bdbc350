// The emulator's runtime in the place of CUDA's, for csrc/cuda/runtime.h (SSIM_CUDA_RUNTIME).
#pragma once

#include <cuda_runtime.h>

#define SSIM_DYNAMIC_SHARED(name) unsigned char* const name = static_cast<unsigned char*>(emulator::shared_memory())
