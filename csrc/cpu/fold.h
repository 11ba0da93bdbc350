// The adjoint of mirroring folds back what the filter gives to the images of a row (or column): its taps, where they
// see the partials of those images, are added to its own. Included once for each instruction set.
#pragma once

#include "bands.h"

namespace ssim {
inline namespace SSIM_ISA {

// The taps of `position` with those of its images, from `own` of the filter; whether it has any.
template <class T>
bool fold_taps(const T* own, int64_t position, int64_t length, T* taps) {
  for (int k = 0; k < kTaps; ++k) taps[k] = own[k];
  if (position > kRadius && position < length - 1 - kRadius) return false;
  bool folded = false;
  const auto add_image = [&](int64_t image) {
    if (mirrored(image, length) != position) return;
    folded = true;
    for (int k = 0; k < kTaps; ++k) {
      const int64_t at = image + k - position;  // the tap of `position` that sees what tap k of the image sees
      if (at >= 0 && at < kTaps) taps[at] += own[k];
    }
  };
  for (int64_t d = 1; d <= kRadius; ++d) {
    add_image(-d);
    add_image(length - 1 + d);
  }
  return folded;
}

// The same for row `row` of each lane's band; whether any has images.
template <class T>
bool fold_row_taps(const T* own, const Bands<T>& bands, int64_t row, typename Simd<T>::V* taps) {
  bool folded = false;
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    T folded_taps[kTaps] = {};
    const int64_t at = bands.band[lane].row0 + row;
    if (at >= 0 && at < bands.height) folded |= fold_taps(own, at, bands.height, folded_taps);
    for (int k = 0; k < kTaps; ++k) taps[k][lane] = folded_taps[k];
  }
  return folded;
}

// The taps of the columns at either border that may have images.
template <class T>
class ColumnTaps {
 public:
  // For columns [origin, origin + width) of `length`, mirrored on the left, on the right.
  void lay_out(const T* own, bool left, bool right, int64_t origin, int64_t width, int64_t length) {
    left_ = left, right_ = right, width_ = width;
    if (!left && !right) return;
    for (int64_t d = 0; d < smaller(kFolded, width); ++d) {
      fold_taps(own, origin + d, length, left_taps_[d]);
      fold_taps(own, origin + width - 1 - d, length, right_taps_[d]);
    }
  }

  // Those of column c of them; null where the filter's own will do.
  const T* of(int64_t c) const {
    if (left_ && c < kFolded) return left_taps_[c];
    return right_ && c >= width_ - kFolded ? right_taps_[width_ - 1 - c] : nullptr;
  }

 private:
  static constexpr int kFolded = kRadius + 1;
  bool left_, right_;
  int64_t width_;
  T left_taps_[kFolded][kTaps], right_taps_[kFolded][kTaps];
};

}  // namespace SSIM_ISA
}  // namespace ssim
