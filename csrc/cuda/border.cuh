// Mirrored borders: where an image of a pixel lies, and the adjoint of the mirrored filter.
#pragma once

#include "elements.cuh"

namespace ssim {

// reflect_index of fused_ssim/window.py.
SSIM_DEVICE int mirrored(int position, int length) {
  if (position >= 0 && position < length) return position;
  if (length == 1) return 0;
  const int period = 2 * (length - 1);
  position %= period;
  if (position < 0) position += period;
  return position < length ? position : period - position;
}

// The weight with which the adjoint filter of a mirrored line takes the pixel at `from` to the pixel at `to`: what
// falls on images of `to` is folded back to it.
template <class T>
SSIM_DEVICE T folded_tap(const T* taps, int to, int from, int length) {
  T sum = T(0);
  if (from < 0 || from >= length) return sum;
  for (int k = -kRadius; k <= kRadius; ++k)
    if (mirrored(from + k, length) == to) sum += taps[k + kRadius];
  return sum;
}

// Folded taps of the pixels near both ends of a line; in between they are those of the window.
template <class T>
struct BorderTaps {
  static constexpr int kNear = kRadius + 1;  // pixels from an end that differ
  T taps[2 * kNear][kTaps];

  SSIM_DEVICE static bool near(int position, int length) { return position < kNear || position >= length - kNear; }

  SSIM_DEVICE const T* of(int position, int length) const {
    return taps[position < kNear ? position : position - length + 2 * kNear];
  }

  // gather: taps[k] weighs pixel p + k - kRadius in the result at p; else, what p gives to the result there.
  SSIM_DEVICE void fill(const T* window, int length, bool gather) {
    for (unsigned i = threadIdx.x; i < 2 * kNear * kTaps; i += blockDim.x) {
      const int entry = static_cast<int>(i / kTaps), k = static_cast<int>(i % kTaps);
      const int position = entry < kNear ? entry : length - 2 * kNear + entry;
      const int other = position + k - kRadius;
      const bool there = position >= 0 && position < length;
      taps[entry][k] = !there   ? T(0)
                       : gather ? folded_tap(window, position, other, length)
                                : folded_tap(window, other, position, length);
    }
  }
};

}  // namespace ssim
