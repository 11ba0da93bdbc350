// The way between rows of tensors and vectors of the CPU kernel. Included once for each instruction set.
#pragma once

#include "simd.h"
#include "unit.h"

namespace ssim {
inline namespace SSIM_ISA {

constexpr int64_t kSmallPlanes = 1 << 15;  // bytes of all lanes' planes that count as few

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

// `columns` pixels at each of the lanes' pointers, as vectors of all lanes: those of 16 bytes, or of twice as many.
template <class T, int columns>
SSIM_INLINE void gather_columns(const T* const* from, int64_t j, typename Simd<T>::V (&v)[columns]) {
  constexpr int lanes = kLanes<T>, sixteen = kSixteen<T>;
  const T* at[lanes];
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) at[i] = from[i] + j;
  if constexpr (columns == sixteen) {
#pragma GCC unroll 4
    for (int i = 0; i < columns; ++i) v[i] = join<T, columns>(at + i);
    transpose_sixteen<T, columns>(v);
  } else {
    constexpr auto all = std::make_integer_sequence<int, lanes>();
    static_assert(columns == 2 * sixteen && lanes == 4 * sixteen);
#pragma GCC unroll 8
    for (int i = 0; i < columns; ++i) {  // lanes in such an order that every_other gathers them
      const T* const* const low = at + i / sixteen * columns + i % sixteen;
      v[i] = join_halves(low[0], low[sixteen]);
    }
    transpose_sixteen<T, columns>(v);
#pragma GCC unroll 4
    for (int i = 0; i < sixteen; ++i) {
      const auto a = v[i], b = v[i + sixteen];
      v[i] = every_other<T, false>(a, b, all), v[i + sixteen] = every_other<T, true>(a, b, all);
    }
  }
}

// Turns `count` pixels at each of the lanes' pointers, of every tensor, into as many vectors, and calls put(column,
// vectors) for each column, of some twice.
template <class T, int tensors, class Put>
SSIM_INLINE void gather(const T* (*from)[kLanes<T>], int64_t count, const Put& put) {
  constexpr int lanes = kLanes<T>, few = kSixteen<T>, many = SSIM_VECTOR_BYTES == 64 ? 2 * few : few;
  const auto block = [&](auto number, int64_t j, int64_t wanted) __attribute__((always_inline)) {
    constexpr int columns = decltype(number)::value;
    typename Simd<T>::V v[tensors][columns];
#pragma GCC unroll 2
    for (int t = 0; t < tensors; ++t) gather_columns<T, columns>(from[t], j, v[t]);
#pragma GCC unroll 8
    for (int i = 0; i < columns; ++i) {
      if (i == wanted) break;
      typename Simd<T>::V column[tensors];
      for (int t = 0; t < tensors; ++t) column[t] = v[t][i];
      put(j + i, column);
    }
  };
  using Few = std::integral_constant<int, few>;
  using Many = std::integral_constant<int, many>;
  if (count < few) {
    T copy[tensors][lanes][few] = {};
    for (int t = 0; t < tensors; ++t)
      for (int i = 0; i < lanes; ++i) {
        for (int64_t j = 0; j < count; ++j) copy[t][i][j] = from[t][i][j];
        from[t][i] = copy[t][i];
      }
    return block(Few(), 0, count);
  }
  int64_t j = 0;
  for (; j + many <= count; j += many) block(Many(), j, many);
  for (; j < count; j += few) block(Few(), smaller(j, count - few), few);
}

// The way back, from `count` vectors, `stride` vectors apart.
template <class T>
void scatter(const T* from, int64_t stride, int64_t count, T* const* to) {
  constexpr int lanes = kLanes<T>;
  typename Simd<T>::V v[lanes];
  for (int64_t done = 0; done < count; done += lanes) {
    const int64_t j = larger(0, smaller(done, count - lanes));  // the last block overlaps the one before
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) v[i] = in_register(load(from + (j + i) * stride * lanes));
    transpose<T>(v);
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
      if (count >= lanes)
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
