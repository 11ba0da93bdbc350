// The 11-tap filter of the CPU kernel: down a ring of rows, then along a few filtered columns. Included once for each
// instruction set.
#pragma once

#include <array>

#include "simd.h"
#include "unit.h"

namespace ssim {
inline namespace SSIM_ISA {

constexpr int kRows = SSIM_VECTOR_BYTES == 64 ? 8 : 4;      // rows that are filtered down together: as registers allow
constexpr int kColumns = kRows;                             // columns that are filtered along together
constexpr int kFewColumns = 4;                              // or as many, where no more are left
constexpr int kRing = kTaps - 1 + kRows;                    // rows that their results see, and that a ring holds
constexpr int kPhases = kRing / 2;                          // where in a ring a window may begin: at every other row
constexpr int64_t kSpan = kWholeColumns + 2 * kRadius + 2;  // columns of a ring's row
constexpr int kSlots = (kTaps - 1 + 2 * kColumns - 1) / kColumns * kColumns;  // filtered columns that are kept
static_assert(kRows % 2 == 0);

// From a row of a ring to the next, in T, where a column has `count` vectors: an odd number of cache lines, so that the
// rows of one column share no set of the cache.
template <class T, int count>
constexpr int64_t kRowStride =
    ((kSpan * count * SSIM_VECTOR_BYTES + 127) / 128 * 128 + 64) / static_cast<int64_t>(sizeof(T));

// From a filtered column to the next, in T: kRows rows of `count` vectors, and a line more for the same reason.
template <class T, int count>
constexpr int64_t kSlotStride = (kRows * count * SSIM_VECTOR_BYTES + 64) / static_cast<int64_t>(sizeof(T));

// Four neighbouring results of the 11-tap filter, whose centre tap is one: out[i] = sum_k taps[k] (at(k + i) +
// at(10 - k + i)) + at(5 + i). A filter is five products and ten operations, not six and eleven; its results are the
// Gaussian's, divided by its centre tap (Gain). Half of the work is additions, for which some processors have ports of
// their own. Each of the 14 values is loaded once, and used while it is in a register (no more than 16 are alive at a
// time), but for the centre of results whose other values come first.
template <class V, class At>
SSIM_INLINE void filter(const V (&taps)[kRadius], const At& at, V (&out)[4]) {
  // Values of one parity meet only each other, the odd ones as the even ones in reverse.
  {
    const V r10 = in_register(at(10));
    out[0] = taps[0] * (at(0) + r10) + at(5);
    const V r2 = in_register(at(2));
    const V r6 = in_register(at(6));
    out[1] = taps[1] * (r2 + r10) + r6;
    const V r12 = in_register(at(12));
    out[2] = taps[0] * (r2 + r12) + at(7);
    const V r8 = in_register(at(8));
    out[0] += taps[2] * (r2 + r8);
    const V r4 = in_register(at(4));
    out[3] = taps[1] * (r4 + r12) + r8;
    out[2] += taps[2] * (r4 + r10);
    out[3] += taps[3] * (r6 + r10);
    out[1] += taps[3] * (r4 + r8);
    out[0] += taps[4] * (r4 + r6);
    out[2] += taps[4] * (r6 + r8);
  }
  {
    const V r3 = in_register(at(3));
    out[3] += taps[0] * (at(13) + r3);
    const V r11 = in_register(at(11));
    out[2] += taps[1] * (r11 + r3);
    const V r1 = in_register(at(1));
    out[1] += taps[0] * (r11 + r1);
    const V r5 = in_register(at(5));
    out[3] += taps[2] * (r11 + r5);
    const V r9 = in_register(at(9));
    out[0] += taps[1] * (r9 + r1);
    out[1] += taps[2] * (r9 + r3);
    const V r7 = in_register(at(7));
    out[0] += taps[3] * (r7 + r3);
    out[2] += taps[3] * (r9 + r5);
    out[3] += taps[4] * (r9 + r7);
    out[1] += taps[4] * (r7 + r5);
  }
}

// Eight of them, for which 32 registers are enough: nine values of one parity, eight results and the taps.
template <class V, class At>
SSIM_INLINE void filter(const V (&taps)[kRadius], const At& at, V (&out)[8]) {
#pragma GCC unroll 2
  for (int parity = 0; parity < 2; ++parity) {
    V r[9];
#pragma GCC unroll 9
    for (int m = 0; m < 9; ++m) r[m] = in_register(at(2 * m + parity));
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      if (parity == 0) out[i] = (kRadius + i) % 2 == 0 ? r[(kRadius + i) / 2] : at(kRadius + i);
#pragma GCC unroll 5
      for (int k = 0; k < kRadius; ++k)
        if ((k + i) % 2 == parity) out[i] += taps[k] * (r[(k + i) / 2] + r[(kTaps - 1 - k + i) / 2]);
    }
  }
}

// What a filter with a centre tap of one makes of images: down and along, it multiplies by `gain`.
//
// With moments gain E[.], SSIM of images gain times as bright has the means as they come, and the squares gain times as
// they come; it is the same where its constants are gain^2 times as large. Its derivatives are smaller by gain for the
// means, by gain^2 for the squares. Filtered once more, those of the means are what they should be, and those of the
// squares lack a factor gain. Where constants must stay, moments are divided by gain instead.
template <class T>
struct Gain {
  T taps[kTaps];  // of the filter
  T factor;       // of squares, or of all moments where they are divided
  double gain;

  Gain(const double* window, bool divide) {
    double sum = 0;
    for (int k = 0; k < kTaps; ++k) {
      taps[k] = static_cast<T>(window[k] / window[kRadius]);
      sum += taps[k];
    }
    factor = static_cast<T>(divide ? 1 / (sum * sum) : sum * sum);
    gain = divide ? 1 / static_cast<double>(factor) : static_cast<double>(factor);
    // A variance is a small difference of two terms, one with the factor and one with the taps' sum: the taps make up
    // for the factor's rounding.
    const double missing = std::sqrt(gain) - sum;
    int last = 0;
    while (last < kRadius && taps[last] == T(0)) ++last;
    if (last < kRadius) taps[last] += static_cast<T>(missing / 2), taps[kTaps - 1 - last] = taps[last];
  }
};

// What a column of a ring holds, and is filtered.
enum class Column {
  kPixel,     // u and v, of which u, v, u^2, v^2 (and uv) are filtered
  kPartials,  // vectors that are filtered as they are
};

template <Column column, int count>
constexpr int kVectors = column == Column::kPixel ? 2 : count;

template <class T, Column column, int count, int phase>
void filter_down_at(const T* ring, int64_t begin, int64_t end, T* filtered, int64_t slot,
                    const typename Simd<T>::V* taps_of_window) {
  using V = typename Simd<T>::V;
  constexpr int lanes = kLanes<T>;
  constexpr int64_t stride = kRowStride<T, kVectors<column, count>>, width = kVectors<column, count> * lanes;
  const V taps[kRadius] = {taps_of_window[0], taps_of_window[1], taps_of_window[2], taps_of_window[3],
                           taps_of_window[4]};
  slot %= kSlots;
  for (int64_t c = begin; c < end; ++c) {
    const T* const from = ring + c * width;
    T* const to = filtered + slot * kSlotStride<T, count>;
    if (++slot == kSlots) slot = 0;
#pragma GCC unroll 5
    for (int m = 0; m < count; ++m) {
      V results[kRows];
      filter(
          taps,
          [&](int k) __attribute__((always_inline)) {
            const T* at = from + (2 * phase + k) % kRing * stride;
            if (column == Column::kPartials || m < 2) return load(at + m * lanes);
            if (m == 4) return load(at) * load(at + lanes);
            const V value = load(at + (m - 2) * lanes);
            return value * value;
          },
          results);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) store(to + (i * count + m) * lanes, results[i]);
    }
  }
}

// Filters columns [begin, end) of a ring's rows, of which the first is `phase` pairs from the ring's, into as many
// filtered columns from `slot` on.
template <class T, Column column, int count>
void filter_down(int phase, const T* ring, int64_t begin, int64_t end, T* filtered, int64_t slot,
                 const typename Simd<T>::V* taps) {
  using Filter = void(const T*, int64_t, int64_t, T*, int64_t, const typename Simd<T>::V*);
  static constexpr auto filters = []<int... phases>(std::integer_sequence<int, phases...>) {
    return std::array<Filter*, kPhases>{filter_down_at<T, column, count, phases>...};
  }(std::make_integer_sequence<int, kPhases>());
  filters[phase](ring, begin, end, filtered, slot, taps);
}

// A few columns along a row of filtered columns, whose window begins at `slot`: results[map][column].
template <class T, int slot, int count, int columns>
SSIM_INLINE void filter_along(const T* row, const typename Simd<T>::V* taps_of_window,
                              typename Simd<T>::V (&results)[count][columns]) {
  const typename Simd<T>::V taps[kRadius] = {taps_of_window[0], taps_of_window[1], taps_of_window[2], taps_of_window[3],
                                             taps_of_window[4]};
#pragma GCC unroll 5
  for (int m = 0; m < count; ++m)
    filter(
        taps,
        [&](int k) __attribute__((always_inline)) {
          return load(row + (slot + k) % kSlots * kSlotStride<T, count> + m * kLanes<T>);
        },
        results[m]);
}

}  // namespace SSIM_ISA
}  // namespace ssim
