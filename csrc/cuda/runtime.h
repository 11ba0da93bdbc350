// The CUDA runtime as the kernels use it. Everything they need from it goes through this header, so that an emulator
// can put its own in place: SSIM_CUDA_RUNTIME names the header to include instead.
#pragma once

#if defined(SSIM_CUDA_RUNTIME)
#include SSIM_CUDA_RUNTIME
#else
#include <cuda_runtime.h>
#define SSIM_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

#include <stdexcept>
#include <string>

namespace ssim {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("fused_ssim: ") + what + ": " + cudaGetErrorString(error));
}

constexpr int64_t kSharedUnasked = 48 << 10;  // bytes of shared memory that a block has without asking

// Starts kernel(argument) on `stream`; errors of the launch itself are thrown. `shared_limit`: bytes of shared memory
// that a block of the device may ask for.
template <class Argument>
void launch(void (*kernel)(Argument), int64_t blocks, int threads, int64_t shared_bytes, cudaStream_t stream,
            const Argument& argument, int64_t shared_limit = kSharedUnasked) {
  static_assert(sizeof(Argument) <= 4096, "a launch takes more only with drivers from CUDA 12.1 on");
  // The kernel keeps what was asked for last. So every launch asks for as much: with its own bytes, one would take them
  // from another thread that is about to launch the same kernel with more.
  if (shared_bytes > kSharedUnasked)
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_limit)),
               "reserving shared memory");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  check_cuda(cudaLaunchKernelEx(&config, kernel, argument), "launching a kernel");
}

}  // namespace ssim
