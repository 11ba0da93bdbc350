// Min-max rescaling: extremes of planes, and the gradient that they receive where they are no constants.
#pragma once

#include <algorithm>
#include <limits>

#include "rows.h"

namespace ssim {

constexpr Extremes kNothing = {std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()};

inline Extremes joined(Extremes a, Extremes b) { return {std::min(a.low, b.low), std::max(a.high, b.high)}; }

// Calls use(pixels, count, first) for pieces of plane (n, c), as T; `first` is the number of their first pixel, row by
// row. A plane that lies dense is one piece: pieces as short as a row of a small map would cost more than their pixels.
template <class T, class Use>
void for_pieces(const Level& level, const View& view, int64_t n, int64_t c, const Use& use) {
  const bool dense = view.stride_w == 1 && view.dtype == (sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat64);
  const int64_t plane = n * view.stride_n + c * view.stride_c;
  if (dense && view.stride_h == level.w) {
    use(static_cast<const T*>(view.data) + plane, level.h * level.w, int64_t{0});
    return;
  }
  T copy[kWholeColumns];
  for (int64_t h = 0; h < level.h; ++h)
    for (int64_t begin = 0; begin < level.w; begin += kWholeColumns) {
      const int64_t count = std::min(kWholeColumns, level.w - begin);
      const int64_t offset = plane + h * view.stride_h + begin * view.stride_w;
      if (!dense) load_row(copy, view, offset, count);
      use(dense ? static_cast<const T*>(view.data) + offset : copy, count, h * level.w + begin);
    }
}

// The map of these extremes to [0, 1], divided by data_range; a constant becomes 0.
template <class T>
Range to_unit(Extremes extremes, double data_range) {
  const T extent = static_cast<T>(extremes.high) - static_cast<T>(extremes.low);
  const bool constant = extent < std::numeric_limits<T>::min();
  return {extremes.low, constant ? 0.0 : 1.0 / (static_cast<double>(extent) * data_range)};
}

struct ExtremeCounts {
  int64_t low = 0, high = 0;
};

template <class T>
ExtremeCounts count_extremes(const Level& level, const View& view, int64_t n, int64_t c, Extremes extremes) {
  const T low = static_cast<T>(extremes.low), high = static_cast<T>(extremes.high);
  ExtremeCounts counts;
  for_pieces<T>(level, view, n, c, [&](const T* pixels, int64_t count, int64_t) {
    for (int64_t j = 0; j < count; ++j) counts.low += pixels[j] == low, counts.high += pixels[j] == high;
  });
  return counts;
}

// Adds to the gradient of every pixel that attains an extreme.
template <class T>
void add_at_extremes(const Level& level, const View& view, const View& grad, int64_t n, int64_t c, Extremes extremes,
                     double at_low, double at_high) {
  const T low = static_cast<T>(extremes.low), high = static_cast<T>(extremes.high);
  for_pieces<T>(level, view, n, c, [&](const T* pixels, int64_t count, int64_t first) {
    for (int64_t j = 0; j < count; ++j) {
      if (pixels[j] != low && pixels[j] != high) continue;
      const int64_t h = (first + j) / level.w, w = (first + j) % level.w;
      const int64_t offset = n * grad.stride_n + c * grad.stride_c + h * grad.stride_h + w * grad.stride_w;
      T value;
      load_row(&value, grad, offset, 1);
      value += static_cast<T>((pixels[j] == low ? at_low : 0.0) + (pixels[j] == high ? at_high : 0.0));
      store_row(&value, grad, offset, 1);
    }
  });
}

}  // namespace ssim
