// Mirrored borders: where an image of a pixel lies, and the adjoint of the mirrored filter.
#pragma once

#include "elements.cuh"

namespace ssim {

// reflect_index of fused_ssim/window.py.
SSIM_DEVICE int mirrored(int position, int length) {
  const int last = length - 1;
  do {  // once, but where a side is shorter than the window
    position = position < 0 ? -position : position;
    position = position < 2 * last - position ? position : 2 * last - position;
  } while (position < 0 && last > 0);
  return position < 0 ? 0 : position;
}

// The weight with which the adjoint filter of a mirrored line takes the pixel at `from` to the pixel at `to`: what
// falls on images of `to` is folded back to it.
template <class T>
SSIM_DEVICE T folded_tap(const T* taps, int to, int from, int length) {
  const int last = length - 1;
  const auto tap = [&](int image) {
    const int k = image - from + kRadius;
    return k >= 0 && k < kTaps ? taps[k] : T(0);
  };
  if (last > kRadius) return tap(to) + (to > 0 ? tap(-to) : T(0)) + (to < last ? tap(2 * last - to) : T(0));
  T sum = T(0);
  for (int position = from - kRadius; position <= from + kRadius; ++position)
    if (mirrored(position, length) == to) sum += tap(position);
  return sum;
}

// The taps with which each row of a map goes into the vertical filter of the partials: folded near both ends if it is
// mirrored. Else they are those of the launch, here too: a pointer to either would be to no memory by name.
template <class T>
class FoldedTaps {
 public:
  // taps[k] weighs `row` in the result at row + k - kRadius.
  SSIM_DEVICE const T* of(int row, int length) const {
    return taps_[row < kRadius ? row : row < length - kRadius ? 2 * kRadius : row - length + 2 * kRadius];
  }

  SSIM_DEVICE void fill(const T* window, int length, bool mirror) {
    for (unsigned i = threadIdx.x; i < (2 * kRadius + 1) * kTaps; i += blockDim.x) {
      const int entry = static_cast<int>(i / kTaps), k = static_cast<int>(i % kTaps);
      const int row = entry < kRadius ? entry : length - 2 * kRadius + entry;
      taps_[entry][k] =
          entry == 2 * kRadius || !mirror ? window[k] : folded_tap(window, row + k - kRadius, row, length);
    }
  }

 private:
  alignas(16) T taps_[2 * kRadius + 1][kTaps + 1];  // of the first rows, of the last ones, of those in between
};

}  // namespace ssim
