// What the CPU kernel does to whole rows: filters down a ring of them, and the way between tensors and vectors.
// Included once for each instruction set.
#pragma once

#include "simd.h"
#include "unit.h"

namespace ssim {
inline namespace SSIM_ISA {

constexpr int kStep = 4;                          // rows, and columns, that go together
constexpr int kRing = kTaps - 1 + kStep;          // rows that their results see, and that a ring holds
constexpr int kMaps = 5;                          // most maps of a column
constexpr int kBlock = 1024 / SSIM_VECTOR_BYTES;  // columns filtered down, then along, while in the nearest cache
constexpr int kFiltered = kBlock + 2 * kRadius;   // columns of a filtered block, with what its results see beside them
constexpr int64_t kSmallPlanes = 1 << 15;         // bytes of all lanes' planes that count as few
constexpr int64_t kSpan = kWholeColumns + 2 * kRadius + 2;  // columns of a ring's row

inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline int64_t mirrored(int64_t position, int64_t length) {  // reflect_index of fused_ssim/window.py
  if (position >= 0 && position < length) return position;
  const int64_t once = position < 0 ? -position : 2 * (length - 1) - position;
  if (once >= 0 && once < length) return once;  // nearly always, and without a division
  if (length == 1) return 0;
  const int64_t period = 2 * (length - 1);
  position %= period;
  if (position < 0) position += period;
  return position < length ? position : period - position;
}

// From a row of a ring to the next, in T: an odd number of cache lines, so that the rows of one column share no set.
template <class T>
constexpr int64_t kRowStride =
    ((kSpan * kMaps * SSIM_VECTOR_BYTES + 127) / 128 * 128 + 64) / static_cast<int64_t>(sizeof(T));

// From a row of a filtered block to the next, in T.
template <class T>
constexpr int64_t kFilteredStride = kFiltered * kMaps * SSIM_VECTOR_BYTES / static_cast<int64_t>(sizeof(T));

// Filters vectors [begin, end) of a ring's 14 rows, of which the first is `phase` pairs from the ring's: four filtered
// rows go to `out`.
template <class T, int phase>
void filter_rows_at(const T* ring, T* out, int64_t begin, int64_t end, const typename Simd<T>::V* taps_of_window) {
  using V = typename Simd<T>::V;
  const V taps[kRadius + 1] = {taps_of_window[0], taps_of_window[1], taps_of_window[2],
                               taps_of_window[3], taps_of_window[4], taps_of_window[5]};
  for (int64_t j = begin * kLanes<T>; j < end * kLanes<T>; j += kLanes<T>, out += kLanes<T>) {
    V results[kStep];
    filter_four(
        taps,
        [&](int k) __attribute__((always_inline)) { return load(ring + (2 * phase + k) % kRing * kRowStride<T> + j); },
        results);
    for (int i = 0; i < kStep; ++i) store(out + i * kFilteredStride<T>, results[i]);
  }
}

template <class T>
void filter_rows(int phase, const T* ring, T* out, int64_t begin, int64_t end, const typename Simd<T>::V* taps) {
  switch (phase) {
    case 0: return filter_rows_at<T, 0>(ring, out, begin, end, taps);
    case 1: return filter_rows_at<T, 1>(ring, out, begin, end, taps);
    case 2: return filter_rows_at<T, 2>(ring, out, begin, end, taps);
    case 3: return filter_rows_at<T, 3>(ring, out, begin, end, taps);
    case 4: return filter_rows_at<T, 4>(ring, out, begin, end, taps);
    case 5: return filter_rows_at<T, 5>(ring, out, begin, end, taps);
    default: return filter_rows_at<T, 6>(ring, out, begin, end, taps);
  }
}

// Turns `count` pixels at each of the lanes' pointers into as many vectors, `stride` vectors apart; fetches those
// `ahead`.
template <class T>
void gather(const T* const* from, int64_t count, int64_t ahead, T* to, int64_t stride) {
  constexpr int lanes = kLanes<T>;
  typename Simd<T>::V v[lanes];
  int64_t j = 0;
  for (; j + lanes <= count; j += lanes) {
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
      __builtin_prefetch(from[i] + j + ahead);  // a prefetch of nothing does no harm
      v[i] = load_unaligned(from[i] + j);
    }
    transpose<T>(v);
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) store(to + (j + i) * stride * lanes, v[i]);
  }
  if (j == count) return;
  const int64_t last = larger(0, count - lanes);  // a block that overlaps the one before, where there is one
  for (int i = 0; i < lanes; ++i)
    v[i] = count < lanes ? load_first(from[i], static_cast<int>(count)) : load_unaligned(from[i] + last);
  transpose<T>(v);
  for (; j < count; ++j) store(to + j * stride * lanes, v[j - last]);
}

// The way back, from `count` dense vectors. Where they are no multiple of the lanes, the last block overlaps the one
// before: `before` says that as many vectors as lanes lie in front of `from`, to be written once more.
template <class T>
void scatter(const T* from, int64_t count, bool before, T* const* to) {
  constexpr int lanes = kLanes<T>;
  typename Simd<T>::V v[lanes];
  for (int64_t done = 0; done < count; done += lanes) {
    const bool whole = before || count >= lanes;
    const int64_t j = whole ? smaller(done, count - lanes) : 0;
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) v[i] = load(from + (j + i) * lanes);
    transpose<T>(v);
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
      if (whole)
        store_unaligned(to[i] + j, v[i]);
      else
        store_first(to[i], v[i], static_cast<int>(count));
    }
  }
}

// Widens the extremes to the pixels of a row. A NaN changes nothing here: it shows in the loss.
template <class T>
Extremes widen(const T* row, int64_t count, Extremes so_far) {
  T low = static_cast<T>(so_far.low), high = static_cast<T>(so_far.high);
  typename Simd<T>::V lows{}, highs{};
  lows += low;
  highs += high;
  int64_t j = 0;
  for (; j + kLanes<T> <= count; j += kLanes<T>) {
    const auto v = load_unaligned(row + j);
    lows = v < lows ? v : lows;
    highs = v > highs ? v : highs;
  }
  for (int i = 0; i < kLanes<T>; ++i) {
    if (lows[i] < low) low = lows[i];
    if (highs[i] > high) high = highs[i];
  }
  for (; j < count; ++j) {
    if (row[j] < low) low = row[j];
    if (row[j] > high) high = row[j];
  }
  return {static_cast<double>(low), static_cast<double>(high)};
}

}  // namespace SSIM_ISA
}  // namespace ssim
