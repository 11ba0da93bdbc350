// Gradients times a factor that stays on the device.
#pragma once

#include "elements.cuh"

namespace ssim {

constexpr int kScaleThreads = 256;
constexpr int kMaxScaled = 2 * kMaxLevels;  // tensors of one launch

struct ScaledTensor {
  View grad;
  int64_t n, rows, c, w;  // samples; rows of a sample, over all channels; channels; pixels of a row
  double divisor;
};

struct ScaleArgs {
  ScaledTensor tensors[kMaxScaled];
  int32_t count;
  uint32_t blocks_per_tensor;
  const void* factor;  // of (tensor, sample)
  DType factor_dtype;
  int64_t factor_stride, sample_stride;
};

template <class T>
SSIM_DEVICE void scale_tensor(const ScaleArgs& args, uint32_t index, uint32_t block) {
  const ScaledTensor& tensor = args.tensors[index];
  const View factors{const_cast<void*>(args.factor), 0, 0, 0, 0, args.factor_dtype};
  const int64_t rows_per_channel = tensor.rows / tensor.c;
  for (int64_t n = 0; n < tensor.n; ++n) {
    const T factor =
        static_cast<T>(load_any<double>(factors, index * args.factor_stride + n * args.sample_stride) / tensor.divisor);
    if (factor == T(1)) continue;
    // Warps take rows, lanes pixels of a row.
    constexpr int kWarps = kScaleThreads / 32;
    for (int64_t row = static_cast<int64_t>(block) * kWarps + threadIdx.x / 32; row < tensor.rows;
         row += static_cast<int64_t>(args.blocks_per_tensor) * kWarps) {
      const int64_t begin = n * tensor.grad.stride_n + row / rows_per_channel * tensor.grad.stride_c +
                            row % rows_per_channel * tensor.grad.stride_h;
      for (int64_t i = threadIdx.x % 32; i < tensor.w; i += 32) {
        const int64_t offset = begin + i * tensor.grad.stride_w;
        store_any(tensor.grad, offset, load_any<T>(tensor.grad, offset) * factor);
      }
    }
  }
}

__global__ void __launch_bounds__(kScaleThreads) scale(const __grid_constant__ ScaleArgs args) {
  const uint32_t index = blockIdx.x / args.blocks_per_tensor, block = blockIdx.x % args.blocks_per_tensor;
  if (args.tensors[index].grad.dtype == DType::kFloat64)
    scale_tensor<double>(args, index, block);
  else
    scale_tensor<float>(args, index, block);
}

}  // namespace ssim
