// The CUDA kernel's driver: plans, launches, adds up, all on one stream and without waiting for it.
#pragma once

#include <functional>
#include <vector>

#include "../ssim_params.h"
#include "plan.h"
#include "runtime.h"

namespace ssim {

struct CudaContext {
  DeviceLimits limits;
  cudaStream_t stream = nullptr;
  std::function<void*(int64_t bytes)> allocate;  // device memory that outlives the launches on the stream
};

// The limits of the current device.
DeviceLimits device_limits();

// Computes the levels, like run_cpu. Value n of level l goes to element l * samples + n of `values` on the device
// (double for double inputs, else float), where samples is N for per_sample, else 1; values may be null.
void run_cuda(const Problem& problem, const std::vector<Level>& levels, bool per_sample, void* values,
              const CudaContext& context);

// A gradient, and its factor: element `factor` + n * `sample_stride` of the factors, over `divisor`.
struct ScaleCall {
  View grad;
  int64_t n, c, h, w;
  double divisor;
};

// Multiplies gradient i in place by factor[i * factor_stride + n * sample_stride] / divisor, n its sample, or nothing
// where that is 1. sample_stride is 0 where all samples share one.
void scale_cuda(const std::vector<ScaleCall>& calls, const void* factor, DType factor_dtype, int64_t factor_stride,
                int64_t sample_stride, const CudaContext& context);

}  // namespace ssim
