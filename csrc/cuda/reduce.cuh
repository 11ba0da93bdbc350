// Sums in a fixed order: of the threads of a map, and of all units by the block that arrives last.
#pragma once

#include "elements.cuh"

namespace ssim {

template <class T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float smallest_normal = 1.17549435e-38f;
};
template <>
struct Limits<double> {
  static constexpr double smallest_normal = 2.2250738585072014e-308;
};

template <class T>
struct Add {
  SSIM_DEVICE void operator()(T& to, const T& more) const { to += more; }
};

// And how many pixels of x attain them.
template <class T>
struct CountedRange {
  RangePair<T> range;
  int lows, highs;
};

template <class T>
SSIM_DEVICE RangePair<T> empty_range() {
  return {{T(INFINITY), T(INFINITY)}, {T(-INFINITY), T(-INFINITY)}};
}

// A NaN changes nothing here: it shows in the loss.
template <class T>
SSIM_DEVICE void widen(RangePair<T>& range, int side, T value) {
  if (value < range.low[side]) range.low[side] = value;
  if (value > range.high[side]) range.high[side] = value;
}

template <class T>
struct Widen {
  SSIM_DEVICE void operator()(RangePair<T>& to, const RangePair<T>& more) const {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      if (more.low[side] < to.low[side]) to.low[side] = more.low[side];
      if (more.high[side] > to.high[side]) to.high[side] = more.high[side];
    }
  }

  SSIM_DEVICE void operator()(CountedRange<T>& to, const CountedRange<T>& more) const {
    const RangePair<T> before = to.range;
    (*this)(to.range, more.range);
    to.lows = (before.low[0] == to.range.low[0] ? to.lows : 0) + (more.range.low[0] == to.range.low[0] ? more.lows : 0);
    to.highs =
        (before.high[0] == to.range.high[0] ? to.highs : 0) + (more.range.high[0] == to.range.high[0] ? more.highs : 0);
  }
};

// What each pixel that attains minimum or maximum receives. With psi = (x - min) / (max - min), dL/dmax =
// -sum(dL/dx psi) and dL/dmin = sum(dL/dx (psi - 1)), shared evenly by those pixels. `values` sums dL/dx psi.
template <class T>
struct Gradients {
  T low, high;
};

template <class T>
SSIM_DEVICE Gradients<T> of_extremes(double grads, double values, double lows, double highs) {
  return {static_cast<T>((values - grads) / lows), static_cast<T>(-values / highs)};
}

// Joins the values of `span` neighbouring threads, of which this one is number `relative`; right in the first.
// `memory` holds one T for each thread. For all threads of the block together.
template <class T, class Join>
SSIM_DEVICE T join_span(T* memory, T value, int relative, int span, const Join& join) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  memory[thread] = value;
  int step = 1;
  while (2 * step < span) step *= 2;
  for (; step > 0; step /= 2) {
    __syncthreads();
    if (relative < step && relative + step < span && thread + step < static_cast<int>(blockDim.x))
      join(memory[thread], memory[thread + step]);
  }
  return memory[thread];
}

template <class T>
SSIM_DEVICE T sum_span(T* memory, T value, int relative, int span) {
  return join_span(memory, value, relative, span, Add<T>());
}

// The last block of the launch to come here adds up the units of every value, in a fixed order, and writes the values.
template <class T>
SSIM_DEVICE void sum_slots(const LaunchArgs<T>& launch, double* memory) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  __threadfence();  // slots are visible before the count says so
  __syncthreads();
  unsigned* last = reinterpret_cast<unsigned*>(memory + threads);
  if (thread == 0) {
    *last = atomicAdd(launch.arrived, 1u) + 1 == gridDim.x;
    __threadfence();  // what the count says is visible here; the barrier passes it on to the block
  }
  __syncthreads();
  if (!*last) return;
  // Every value has as many warps as there are, one at least, so that one waits for memory while others do.
  const int values = launch.level_count * static_cast<int>(launch.samples);
  const int span = values >= threads / 32 ? 32 : threads / 32 / values * 32, at_once = threads / span;
  const int group = thread / span, relative = thread % span;
  for (int first = 0; first < values; first += at_once) {
    const int index = first + group, l = index / static_cast<int>(launch.samples);
    const bool there = group < at_once && index < values;
    double sum = 0;
    const LevelArgs<T>& level = launch.levels[there ? l : 0];
    const uint32_t sample = static_cast<uint32_t>(index) % launch.samples;
    if (there) {
      const double* slots = level.slots + static_cast<int64_t>(sample) * level.slots_per_value;
#pragma unroll 4
      for (uint32_t i = relative; i < level.slots_per_value; i += span) sum += __ldcg(slots + i);
    }
    sum = sum_span(memory, sum, relative, span);
    if (there && relative == 0) static_cast<T*>(level.values)[sample] = static_cast<T>(sum);
  }
}

}  // namespace ssim
