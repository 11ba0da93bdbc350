// Min-max rescaling: extremes before the main kernel, and the gradient that they receive after it.
#pragma once

#include "reduce.cuh"

namespace ssim {

constexpr int kRangeThreads = 256;

template <class T>
struct RangeArgs {
  LevelArgs<T> level;
  RangePair<T>* planes;  // of each plane
  RangePair<T>* ranges;  // of each group of planes: what level.ranges points to
  T inverse_range;       // 1 / data_range
};

// Calls use(value, row, column) for the pixels of a plane that are this thread's: warps take rows, lanes columns.
template <class T, class Use>
SSIM_DEVICE void for_pixels(const View& view, const LevelArgs<T>& level, uint32_t plane, const Use& use) {
  const int64_t begin = static_cast<int64_t>(plane / level.channels) * view.stride_n +
                        static_cast<int64_t>(plane % level.channels) * view.stride_c;
  const int warps = static_cast<int>(blockDim.x) / 32;
  for (int row = static_cast<int>(threadIdx.x) / 32; row < level.h; row += warps)
    for (int column = static_cast<int>(threadIdx.x) % 32; column < level.w; column += 32)
      use(load_any<T>(view, begin + row * view.stride_h + column * view.stride_w), row, column);
}

// The extremes over all threads, in every thread. A NaN changes nothing here: it shows in the loss.
template <class T>
SSIM_DEVICE void join_extremes(T* low, T* high) {
  __shared__ T lows[kRangeThreads], highs[kRangeThreads];
  const unsigned thread = threadIdx.x;
  __syncthreads();
  lows[thread] = *low, highs[thread] = *high;
  for (unsigned step = kRangeThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (thread >= step) continue;
    if (lows[thread + step] < lows[thread]) lows[thread] = lows[thread + step];
    if (highs[thread + step] > highs[thread]) highs[thread] = highs[thread + step];
  }
  __syncthreads();
  *low = lows[0], *high = highs[0];
}

// One block for each plane and side.
template <class T>
__global__ void __launch_bounds__(kRangeThreads) plane_extremes(const __grid_constant__ RangeArgs<T> args) {
  const uint32_t plane = blockIdx.x / 2;
  const int side = static_cast<int>(blockIdx.x % 2);
  T low = T(INFINITY), high = T(-INFINITY);
  for_pixels<T>(side ? args.level.y : args.level.x, args.level, plane, [&](T value, int, int) {
    if (value < low) low = value;
    if (value > high) high = value;
  });
  join_extremes(&low, &high);
  if (threadIdx.x == 0) args.planes[plane].low[side] = low, args.planes[plane].high[side] = high;
}

// One block for each group of planes and side.
template <class T>
__global__ void __launch_bounds__(kRangeThreads) group_extremes(const __grid_constant__ RangeArgs<T> args) {
  const uint32_t group = blockIdx.x / 2, count = args.level.planes_per_range;
  const int side = static_cast<int>(blockIdx.x % 2);
  const RangePair<T>* planes = args.planes + static_cast<int64_t>(group) * count;
  T low = T(INFINITY), high = T(-INFINITY);
  for (uint32_t i = threadIdx.x; i < count; i += kRangeThreads) {
    if (planes[i].low[side] < low) low = planes[i].low[side];
    if (planes[i].high[side] > high) high = planes[i].high[side];
  }
  join_extremes(&low, &high);
  if (threadIdx.x == 0) args.ranges[group].low[side] = low, args.ranges[group].high[side] = high;
}

SSIM_DEVICE double sum_block(double value) {
  __shared__ double memory[kRangeThreads];
  __shared__ double result;
  const double sum = sum_span(memory, value, static_cast<int>(threadIdx.x), kRangeThreads);
  if (threadIdx.x == 0) result = sum;
  __syncthreads();
  const double all = result;
  __syncthreads();
  return all;
}

// With psi = (x - min) / (max - min), dL/dmax = -sum(dL/dx psi) and dL/dmin = sum(dL/dx (psi - 1)), shared evenly by
// the pixels that attain them. One block for each group of planes and side.
template <class T>
__global__ void __launch_bounds__(kRangeThreads) settle_extremes(const __grid_constant__ RangeArgs<T> args) {
  const LevelArgs<T>& level = args.level;
  const uint32_t group = blockIdx.x / 2, count = level.planes_per_range, units = level.strips * level.bands;
  const int side = static_cast<int>(blockIdx.x % 2);
  const View& grad = side ? level.grad_y : level.grad_x;
  if (!grad.data) return;
  const View& pixels = side ? level.y : level.x;
  const T low = args.ranges[group].low[side], high = args.ranges[group].high[side];
  const uint32_t first = group * count;
  double lows = 0, highs = 0, grads = 0, values = 0;
  for (uint32_t i = 0; i < count; ++i)
    for_pixels<T>(pixels, level, first + i, [&](T value, int, int) { lows += value == low, highs += value == high; });
  for (uint32_t i = threadIdx.x; i < count * units; i += kRangeThreads) {
    const RangeSums& sums = level.range_sums[static_cast<int64_t>(first) * units + i];
    grads += sums.grad[side], values += sums.grad_value[side];
  }
  lows = sum_block(lows), highs = sum_block(highs), grads = sum_block(grads), values = sum_block(values);
  values /= static_cast<double>(args.inverse_range);
  const T at_low = static_cast<T>((values - grads) / lows), at_high = static_cast<T>(-values / highs);
  for (uint32_t i = 0; i < count; ++i) {
    const int64_t begin = static_cast<int64_t>((first + i) / level.channels) * grad.stride_n +
                          static_cast<int64_t>((first + i) % level.channels) * grad.stride_c;
    for_pixels<T>(pixels, level, first + i, [&](T value, int row, int column) {
      if (value != low && value != high) return;
      const int64_t offset = begin + row * grad.stride_h + column * grad.stride_w;
      const T more = (value == low ? at_low : T(0)) + (value == high ? at_high : T(0));
      store_any(grad, offset, load_any<T>(grad, offset) + more);
    });
  }
}

}  // namespace ssim
