// The adjoint of mirrored borders: what the filter gives to the images of a pixel comes back to it.
//
// No tap changes for that. The partials of a line of length L > 1 are mirrored like its pixels, those at its two ends
// are doubled, all are filtered as anywhere, and the results at the ends are halved. Eq. (16) of docs/math.md says why.
// Included once for each instruction set.
#pragma once

#include "bands.h"

namespace ssim {
inline namespace SSIM_ISA {

inline bool at_end(int64_t position, int64_t length) { return length > 1 && (position == 0 || position == length - 1); }

// `factor` for lanes whose row `row` is at an end of their plane, 1 for the others; whether there are any.
template <class T>
bool end_factors(const Bands<T>& bands, int64_t row, T factor, typename Simd<T>::V& factors) {
  bool any = false;
  for (int i = 0; i < kLanes<T>; ++i) {
    const bool end = at_end(bands.band[i].row0 + row, bands.height);
    factors[i] = end ? factor : T(1);
    any |= end;
  }
  return any;
}

// Gives those lanes of row `row` that lie outside of their planes, as far as filters reach, what the rows have that
// they mirror. Rows are `count` vectors from address_of(row) on.
template <class T, class AddressOf>
void mirror_row(const Bands<T>& bands, int64_t row, int64_t count, const AddressOf& address_of) {
  using V = typename Simd<T>::V;
  using Mask = typename Simd<T>::Mask;
  constexpr int lanes = kLanes<T>;
  bool done[lanes];
  int64_t source[lanes];
  for (int i = 0; i < lanes; ++i) {
    const int64_t row0 = bands.band[i].row0, at = row0 + row;
    done[i] = (at >= 0 && at < bands.height) || at < -kRadius || at >= bands.height + kRadius;
    if (!done[i]) source[i] = mirrored(at, bands.height) - row0;
  }
  for (int first = 0; first < lanes; ++first) {
    if (done[first]) continue;
    Mask mask{};
    for (int i = first; i < lanes; ++i)
      if (!done[i] && source[i] == source[first]) mask[i] = -1, done[i] = true;
    const T* const from = address_of(source[first]);
    T* const to = address_of(row);
    for (int64_t j = 0; j < count; ++j) {
      const V value = load(from + j * lanes);
      store(to + j * lanes, mask ? value : load(to + j * lanes));
    }
  }
}

}  // namespace SSIM_ISA
}  // namespace ssim
