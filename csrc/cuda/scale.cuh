// Gradients times a factor that stays on the device.
#pragma once

#include "elements.cuh"

namespace ssim {

constexpr int kScaleThreads = 256;
constexpr int kScaleBlocks = 3;             // of them on a multiprocessor
constexpr int kMaxScaled = 2 * kMaxLevels;  // tensors of one launch

struct ScaledTensor {
  View grad;
  int64_t n, rows, c, w;  // samples; rows of a sample, over all channels; channels; pixels of a row
  bool dense;             // a sample's pixels lie behind one another, in whatever order
  uint32_t parts;         // of a sample, a block for each: the blocks have as many samples at once as they can
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

// `count` pixels behind one another, four at a time as far as they go, and several of these on their way at once: the
// compiler cannot tell that what is stored is not what is loaded next.
template <class T, class P>
SSIM_DEVICE void scale_dense(P* pixels, int64_t count, T factor, uint32_t part, uint32_t parts) {
  constexpr int kAhead = sizeof(P) == 8 ? 2 : 4;
  const int64_t step = static_cast<int64_t>(parts) * kScaleThreads;
  const bool aligned = reinterpret_cast<uintptr_t>(pixels) % sizeof(Four<P>) == 0;
  const int64_t fours = aligned ? count / 4 : 0;
  Four<P>* const vectors = reinterpret_cast<Four<P>*>(pixels);
#pragma unroll 1
  for (int64_t i = static_cast<int64_t>(part) * kAhead * kScaleThreads + threadIdx.x; i < fours; i += kAhead * step) {
    Four<P> four[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      if (i + j * kScaleThreads < fours) four[j] = vectors[i + j * kScaleThreads];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (i + j * kScaleThreads >= fours) continue;
#pragma unroll
      for (int k = 0; k < 4; ++k) four[j].v[k] = static_cast<P>(static_cast<T>(four[j].v[k]) * factor);
      vectors[i + j * kScaleThreads] = four[j];
    }
  }
  for (int64_t i = 4 * fours + static_cast<int64_t>(part) * kScaleThreads + threadIdx.x; i < count; i += step)
    pixels[i] = static_cast<P>(static_cast<T>(pixels[i]) * factor);
}

// Warps take rows, lanes pixels of a row.
template <class T, class P>
SSIM_DEVICE void scale_rows(P* sample, const ScaledTensor& tensor, T factor, uint32_t part) {
  constexpr int kWarps = kScaleThreads / 32;
  const int64_t rows_per_channel = tensor.rows / tensor.c;
  for (int64_t row = static_cast<int64_t>(part) * kWarps + threadIdx.x / 32; row < tensor.rows;
       row += static_cast<int64_t>(tensor.parts) * kWarps) {
    P* const begin =
        sample + row / rows_per_channel * tensor.grad.stride_c + row % rows_per_channel * tensor.grad.stride_h;
    for (int64_t i = threadIdx.x % 32; i < tensor.w; i += 32) {
      P& pixel = begin[i * tensor.grad.stride_w];
      pixel = static_cast<P>(static_cast<T>(pixel) * factor);
    }
  }
}

template <class T>
SSIM_DEVICE void scale_tensor(const ScaleArgs& args, uint32_t index, uint32_t block) {
  const ScaledTensor& tensor = args.tensors[index];
  const View factors{const_cast<void*>(args.factor), 0, 0, 0, 0, args.factor_dtype};
  const uint32_t part = block % tensor.parts, at_once = args.blocks_per_tensor / tensor.parts;
  for (int64_t n = block / tensor.parts; n < tensor.n; n += at_once) {
    const T factor =
        static_cast<T>(load_any<double>(factors, index * args.factor_stride + n * args.sample_stride) / tensor.divisor);
    if (factor == T(1)) continue;
    as_pixels<T>(tensor.grad.dtype, [&](auto pixel) {
      auto* const sample = static_cast<decltype(pixel)*>(tensor.grad.data) + n * tensor.grad.stride_n;
      if (tensor.dense)
        scale_dense(sample, tensor.rows * tensor.w, factor, part, tensor.parts);
      else
        scale_rows(sample, tensor, factor, part);
    });
  }
}

__global__ void __launch_bounds__(kScaleThreads, kScaleBlocks) scale(const __grid_constant__ ScaleArgs args) {
  const uint32_t index = blockIdx.x / args.blocks_per_tensor, block = blockIdx.x % args.blocks_per_tensor;
  if (args.tensors[index].grad.dtype == DType::kFloat64)
    scale_tensor<double>(args, index, block);
  else
    scale_tensor<float>(args, index, block);
}

}  // namespace ssim
