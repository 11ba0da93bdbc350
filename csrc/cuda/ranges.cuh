// Min-max rescaling: extremes before the main kernel, and the gradient that they receive after it.
#pragma once

#include "piece.cuh"
#include "reduce.cuh"

namespace ssim {

constexpr int kRangeThreads = 256;
constexpr int64_t kRangeBlocks = 4;  // of them on a multiprocessor

// And how many pixels attain them.
template <class T>
struct Extremes {
  RangePair<T> range;
  int64_t lows[2], highs[2];
};

template <class T>
struct RangeArgs {
  LevelArgs<T> level;
  bool vectors;          // x and y allow accesses of four pixels
  uint32_t parts;        // of a plane, a block for each
  int32_t part_rows;     // of all but the last
  Extremes<T>* found;    // of each part of each plane; null where that is a whole group
  Extremes<T>* groups;   // of each group of planes
  RangePair<T>* ranges;  // the same without counts: what level.ranges points to
  Gradients<T>* shares;  // of each group, by x and by y: what one pixel receives
  T inverse_range;       // 1 / data_range
};

template <class T, class E>
SSIM_DEVICE Four<T> load_four_as(const View& view, int64_t offset) {
  const Four<E> from = *reinterpret_cast<const Four<E>*>(static_cast<const E*>(view.data) + offset);
  return {static_cast<T>(from.v[0]), static_cast<T>(from.v[1]), static_cast<T>(from.v[2]), static_cast<T>(from.v[3])};
}

template <class T>
SSIM_DEVICE Four<T> load_four(const View& view, int64_t offset) {
  switch (view.dtype) {
    case DType::kFloat16: return load_four_as<T, c10::Half>(view, offset);
    case DType::kBFloat16: return load_four_as<T, c10::BFloat16>(view, offset);
    case DType::kFloat32: return load_four_as<T, float>(view, offset);
    default: return load_four_as<T, double>(view, offset);
  }
}

// Calls use(value, row, column) for the pixels of one part of a plane that are this thread's: warps take rows, lanes
// columns, four at a time where that is allowed.
template <class T, class Use>
SSIM_DEVICE void for_pixels(const View& view, const RangeArgs<T>& args, uint32_t plane, uint32_t part, const Use& use) {
  const LevelArgs<T>& level = args.level;
  const int64_t begin = plane_offset(view, level, plane);
  const int warps = static_cast<int>(blockDim.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int first = static_cast<int>(part) * args.part_rows, end = smaller(level.h, first + args.part_rows);
  for (int row = first + static_cast<int>(threadIdx.x) / 32; row < end; row += warps) {
    const int64_t line = begin + row * view.stride_h;
    if (args.vectors) {
#pragma unroll 2
      for (int column = 4 * lane; column < level.w; column += 4 * 32) {
        const Four<T> four = load_four<T>(view, line + column);
#pragma unroll
        for (int i = 0; i < 4; ++i) use(four.v[i], row, column + i);
      }
    } else {
      for (int column = lane; column < level.w; column += 32)
        use(load_any<T>(view, line + column * view.stride_w), row, column);
    }
  }
}

// Of all threads of the block; right in the first.
template <class V, class Join>
SSIM_DEVICE V join_block(unsigned char* memory, const V& value, const Join& join) {
  return join_span(reinterpret_cast<V*>(memory), value, static_cast<int>(threadIdx.x), kRangeThreads, join);
}

constexpr int64_t kRangeBytes = kRangeThreads * sizeof(Extremes<double>);  // of shared memory

struct Together {
  template <class T>
  SSIM_DEVICE void operator()(Extremes<T>& to, const Extremes<T>& more) const {
    const RangePair<T> before = to.range;
    Widen<T>()(to.range, more.range);
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const T low = to.range.low[side], high = to.range.high[side];
      to.lows[side] =
          (before.low[side] == low ? to.lows[side] : 0) + (more.range.low[side] == low ? more.lows[side] : 0);
      to.highs[side] =
          (before.high[side] == high ? to.highs[side] : 0) + (more.range.high[side] == high ? more.highs[side] : 0);
    }
  }
};

template <class T>
SSIM_DEVICE void keep_extremes(const RangeArgs<T>& args, uint32_t group, const Extremes<T>& extremes) {
  args.groups[group] = extremes, args.ranges[group] = extremes.range;
}

// One block for each part of each plane.
template <class T>
__global__ void __launch_bounds__(kRangeThreads, 4) part_extremes(const __grid_constant__ RangeArgs<T> args) {
  SSIM_DYNAMIC_SHARED(memory);
  const uint32_t plane = blockIdx.x / args.parts, part = blockIdx.x % args.parts;
  Extremes<T> found{empty_range<T>(), {0, 0}, {0, 0}};
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    T low = found.range.low[side], high = found.range.high[side];
    int lows = 0, highs = 0;  // fewer pixels are a thread's than an int counts
    for_pixels<T>(side ? args.level.y : args.level.x, args, plane, part, [&](T value, int, int) {
      if (value < low) low = value, lows = 0;  // a NaN changes nothing here: it shows in the loss
      if (value > high) high = value, highs = 0;
      lows += value == low, highs += value == high;
    });
    found.range.low[side] = low, found.range.high[side] = high;
    found.lows[side] = lows, found.highs[side] = highs;
  }
  found = join_block(memory, found, Together());
  if (threadIdx.x != 0) return;
  if (args.found)
    args.found[blockIdx.x] = found;
  else
    keep_extremes(args, plane, found);
}

// Joins what part_extremes has found. One block for each group of planes.
template <class T>
__global__ void __launch_bounds__(kRangeThreads) group_extremes(const __grid_constant__ RangeArgs<T> args) {
  SSIM_DYNAMIC_SHARED(memory);
  const uint32_t count = args.level.planes_per_range * args.parts;
  const Extremes<T>* found = args.found + static_cast<int64_t>(blockIdx.x) * count;
  Extremes<T> all{empty_range<T>(), {0, 0}, {0, 0}};
  for (uint32_t i = threadIdx.x; i < count; i += kRangeThreads) Together()(all, found[i]);
  all = join_block(memory, all, Together());
  if (threadIdx.x == 0) keep_extremes(args, blockIdx.x, all);
}

// What a pixel that attains minimum or maximum receives. One block for each group of planes and side.
template <class T>
__global__ void __launch_bounds__(kRangeThreads) share_extremes(const __grid_constant__ RangeArgs<T> args) {
  SSIM_DYNAMIC_SHARED(memory);
  const LevelArgs<T>& level = args.level;
  const uint32_t group = blockIdx.x / 2, side = blockIdx.x % 2;
  const int64_t count = static_cast<int64_t>(level.planes_per_range) * level.strips * level.bands;
  const RangeSums* sums = level.range_sums + group * count;
  double grads = 0, values = 0;
  for (int64_t i = threadIdx.x; i < count; i += kRangeThreads)
    grads += sums[i].grad[side], values += sums[i].grad_value[side];
  grads = join_block(memory, grads, Add<double>());
  values = join_block(memory, values, Add<double>());
  if (threadIdx.x != 0) return;
  const Extremes<T>& extremes = args.groups[group];
  args.shares[blockIdx.x] =
      of_extremes<T>(grads, values / static_cast<double>(args.inverse_range), static_cast<double>(extremes.lows[side]),
                     static_cast<double>(extremes.highs[side]));
}

// Adds it. One block for each part of each plane and side.
template <class T>
__global__ void __launch_bounds__(kRangeThreads, 4) settle_extremes(const __grid_constant__ RangeArgs<T> args) {
  const LevelArgs<T>& level = args.level;
  const uint32_t side = blockIdx.x % 2, part = blockIdx.x / 2 % args.parts, plane = blockIdx.x / 2 / args.parts;
  const View& grad = side ? level.grad_y : level.grad_x;
  if (!grad.data) return;
  const uint32_t group = plane / level.planes_per_range;
  const T low = args.ranges[group].low[side], high = args.ranges[group].high[side];
  const Gradients<T> share = args.shares[2 * group + side];
  const int64_t begin = plane_offset(grad, level, plane);
  for_pixels<T>(side ? level.y : level.x, args, plane, part, [&](T value, int row, int column) {
    if (value != low && value != high) return;
    const int64_t offset = begin + row * grad.stride_h + column * grad.stride_w;
    const T more = (value == low ? share.low : T(0)) + (value == high ? share.high : T(0));
    store_any(grad, offset, load_any<T>(grad, offset) + more);
  });
}

}  // namespace ssim
