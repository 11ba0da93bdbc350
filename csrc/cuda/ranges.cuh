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

// Of all threads of the block; right in the first.
template <class V, class Join>
SSIM_DEVICE V join_block(unsigned char* memory, const V& value, const Join& join) {
  return join_span(reinterpret_cast<V*>(memory), value, static_cast<int>(threadIdx.x), kRangeThreads, join);
}

// In every thread.
SSIM_DEVICE double sum_block(unsigned char* memory, double value) {
  const double sum = join_block(memory, value, Add<double>());
  double* const result = reinterpret_cast<double*>(memory);
  __syncthreads();
  if (threadIdx.x == 0) *result = sum;
  __syncthreads();
  const double all = *result;
  __syncthreads();
  return all;
}

constexpr int64_t kRangeBytes = kRangeThreads * sizeof(RangePair<double>);  // of shared memory

// One block for each plane.
template <class T>
__global__ void __launch_bounds__(kRangeThreads, 4) plane_extremes(const __grid_constant__ RangeArgs<T> args) {
  SSIM_DYNAMIC_SHARED(memory);
  RangePair<T> range = empty_range<T>();
  for_pixels<T>(args.level.x, args.level, blockIdx.x, [&](T value, int, int) { widen(range, 0, value); });
  for_pixels<T>(args.level.y, args.level, blockIdx.x, [&](T value, int, int) { widen(range, 1, value); });
  range = join_block(memory, range, Widen<T>());
  if (threadIdx.x == 0) args.planes[blockIdx.x] = range;
}

// One block for each group of planes.
template <class T>
__global__ void __launch_bounds__(kRangeThreads) group_extremes(const __grid_constant__ RangeArgs<T> args) {
  SSIM_DYNAMIC_SHARED(memory);
  const uint32_t count = args.level.planes_per_range;
  const RangePair<T>* planes = args.planes + static_cast<int64_t>(blockIdx.x) * count;
  RangePair<T> range = empty_range<T>();
  for (uint32_t i = threadIdx.x; i < count; i += kRangeThreads) Widen<T>()(range, planes[i]);
  range = join_block(memory, range, Widen<T>());
  if (threadIdx.x == 0) args.ranges[blockIdx.x] = range;
}

// Adds what minimum and maximum receive. One block for each group of planes and side.
template <class T>
__global__ void __launch_bounds__(kRangeThreads) settle_extremes(const __grid_constant__ RangeArgs<T> args) {
  SSIM_DYNAMIC_SHARED(memory);
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
  lows = sum_block(memory, lows), highs = sum_block(memory, highs);
  grads = sum_block(memory, grads), values = sum_block(memory, values);
  const Gradients<T> of = of_extremes<T>(grads, values / static_cast<double>(args.inverse_range), lows, highs);
  for (uint32_t i = 0; i < count; ++i) {
    const int64_t begin = static_cast<int64_t>((first + i) / level.channels) * grad.stride_n +
                          static_cast<int64_t>((first + i) % level.channels) * grad.stride_c;
    for_pixels<T>(pixels, level, first + i, [&](T value, int row, int column) {
      if (value != low && value != high) return;
      const int64_t offset = begin + row * grad.stride_h + column * grad.stride_w;
      const T more = (value == low ? of.low : T(0)) + (value == high ? of.high : T(0));
      store_any(grad, offset, load_any<T>(grad, offset) + more);
    });
  }
}

}  // namespace ssim
