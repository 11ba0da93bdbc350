// SIMD vectors for the CPU kernel, by the compiler's vector extension: the same source for AVX-512, AVX2 and whatever
// the baseline has (SSE2, NEON). SSIM_VECTOR_BYTES, SSIM_ISA (a namespace, so that the linker never mixes instruction
// sets) and the target are set by the file that includes this one.
#pragma once

#include <cstdint>
#include <cstring>

#if SSIM_VECTOR_BYTES >= 32
#include <immintrin.h>
#endif

#include "../ssim_math.h"

#define SSIM_INLINE inline __attribute__((always_inline))

namespace ssim {
inline namespace SSIM_ISA {

template <class T>
struct Simd;

template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(SSIM_VECTOR_BYTES)));
  typedef int32_t Mask __attribute__((vector_size(SSIM_VECTOR_BYTES)));
  typedef float Unaligned __attribute__((vector_size(SSIM_VECTOR_BYTES), aligned(4), may_alias));
};

template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(SSIM_VECTOR_BYTES)));
  typedef int64_t Mask __attribute__((vector_size(SSIM_VECTOR_BYTES)));
  typedef double Unaligned __attribute__((vector_size(SSIM_VECTOR_BYTES), aligned(8), may_alias));
};

template <class T>
constexpr int kLanes = SSIM_VECTOR_BYTES / sizeof(T);

template <class T>
SSIM_INLINE typename Simd<T>::V load(const T* p) {  // p is aligned
  return *reinterpret_cast<const typename Simd<T>::V*>(p);
}

template <class T>
SSIM_INLINE void store(T* p, typename Simd<T>::V v) {  // p is aligned
  *reinterpret_cast<typename Simd<T>::V*>(p) = v;
}

template <class T>
SSIM_INLINE typename Simd<T>::V load_unaligned(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::Unaligned*>(p);
}

template <class T>
SSIM_INLINE void store_unaligned(T* p, typename Simd<T>::V v) {
  *reinterpret_cast<typename Simd<T>::Unaligned*>(p) = v;
}

// The first `count` elements at p, then zeros; nothing behind them is touched.
template <class T>
SSIM_INLINE typename Simd<T>::V load_first(const T* p, int count) {
#if SSIM_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4)
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
  else
    return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), p);
#else
  typename Simd<T>::V v{};
  for (int i = 0; i < kLanes<T>; ++i)
    if (i < count) v[i] = p[i];
  return v;
#endif
}

// Lanes first <= i < last of v go to p[i]; nothing else is touched.
template <class T>
SSIM_INLINE void store_lanes(T* p, typename Simd<T>::V v, int first, int last) {
#if SSIM_VECTOR_BYTES == 64
  const unsigned lanes = ((1u << last) - 1) & ~((1u << first) - 1);
  if constexpr (sizeof(T) == 4)
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>(lanes), v);
  else
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>(lanes), v);
#else
  for (int i = 0; i < kLanes<T>; ++i)
    if (i >= first && i < last) p[i] = v[i];
#endif
}

// v where first <= lane < last, else zero (also in place of a NaN).
template <class T>
SSIM_INLINE typename Simd<T>::V keep_lanes(typename Simd<T>::V v, int first, int last) {
  typename Simd<T>::Mask lane;
  for (int i = 0; i < kLanes<T>; ++i) lane[i] = i;
  return ((lane >= first) & (lane < last)) ? v : typename Simd<T>::V{};
}

// p[shift + i] for each lane i, where p is aligned and |shift| <= kRadius: registers instead of loads that split cache
// lines, where the instruction set has a cheap shuffle for it.
#if SSIM_VECTOR_BYTES == 64
template <int shift, class T>
SSIM_INLINE typename Simd<T>::V shifted(typename Simd<T>::V before, typename Simd<T>::V here, typename Simd<T>::V after,
                                        const T*) {
  if constexpr (sizeof(T) == 4) {
    const __m512i b = (__m512i)before, h = (__m512i)here, a = (__m512i)after;
    if constexpr (shift < 0) return (typename Simd<T>::V)_mm512_alignr_epi32(h, b, 16 + shift);
    if constexpr (shift > 0) return (typename Simd<T>::V)_mm512_alignr_epi32(a, h, shift);
  } else {
    const __m512i b = (__m512i)before, h = (__m512i)here, a = (__m512i)after;
    if constexpr (shift < 0) return (typename Simd<T>::V)_mm512_alignr_epi64(h, b, 8 + shift);
    if constexpr (shift > 0) return (typename Simd<T>::V)_mm512_alignr_epi64(a, h, shift);
  }
  return here;
}
#else
template <int shift, class T>
SSIM_INLINE typename Simd<T>::V shifted(typename Simd<T>::V, typename Simd<T>::V, typename Simd<T>::V, const T* p) {
  return load_unaligned(p + shift);
}
#endif

// The 11-tap filter along a row: lane i gets sum_k taps[k] p[i + k - 5]. p is aligned, a vector on either side
// readable.
template <class T>
SSIM_INLINE typename Simd<T>::V filter_row(const T* p, const T* taps) {
  const auto before = load(p - kLanes<T>), here = load(p), after = load(p + kLanes<T>);
#define SSIM_PAIR(k) (shifted<-k>(before, here, after, p) + shifted<k>(before, here, after, p))
  auto even = taps[5] * here, odd = taps[4] * SSIM_PAIR(1);
  even += taps[3] * SSIM_PAIR(2);
  odd += taps[2] * SSIM_PAIR(3);
  even += taps[1] * SSIM_PAIR(4);
  odd += taps[0] * SSIM_PAIR(5);
#undef SSIM_PAIR
  return even + odd;
}

// ---- functions of ssim_math.h for vectors ----

template <class T, class V>
struct VectorMath {
  static SSIM_INLINE V maximum(V a, V b) { return a < b ? b : a; }

  static SSIM_INLINE V square_root(V a) {
#if SSIM_VECTOR_BYTES == 64
    if constexpr (sizeof(T) == 4)
      return _mm512_sqrt_ps(a);
    else
      return _mm512_sqrt_pd(a);
#elif SSIM_VECTOR_BYTES == 32
    if constexpr (sizeof(T) == 4)
      return _mm256_sqrt_ps(a);
    else
      return _mm256_sqrt_pd(a);
#else
    V r{};
    for (int i = 0; i < kLanes<T>; ++i) r[i] = __builtin_sqrt(a[i]);
    return r;
#endif
  }

  // a > 0. In float by 2^(e log2 a) with polynomials, within 2e-7 of e log2 a; in double lane by lane.
  static SSIM_INLINE V power(V a, V e) {
    if constexpr (sizeof(T) == 8) {
      V r{};
      for (int i = 0; i < kLanes<T>; ++i) r[i] = __builtin_pow(a[i], e[i]);
      return r;
    } else {
      const V r = exp2(log2(a) * e);
      return a == a ? r : a;  // a NaN's bits are no number to log2
    }
  }

 private:
  using Mask = typename Simd<T>::Mask;

  // Splits a = 2^n m with m in [sqrt(1/2), sqrt(2)); log2(m) = 2/ln2 atanh(t), t = (m - 1) / (m + 1), |t| < 0.172.
  static SSIM_INLINE V log2(V a) {
    const Mask bits = (Mask)a;
    Mask exponent = (bits - 0x3f3504f3) >> 23;  // 0x3f3504f3 is sqrt(1/2)
    const Mask mantissa = bits - (exponent << 23);
    const V m = (V)mantissa;
    const V t = (m - 1.0f) / (m + 1.0f), t2 = t * t;
    const V series = 2.885390082f + t2 * (0.961796694f + t2 * (0.577078016f + t2 * (0.412198583f + t2 * 0.320598898f)));
    return __builtin_convertvector(exponent, V) + t * series;
  }

  // 2^x = 2^round(x) 2^f, |f| <= 1/2, by the Taylor series of exp(f ln2).
  static SSIM_INLINE V exp2(V x) {
    x = x < -126.0f ? V{} - 126.0f : x;
    x = x > 127.0f ? V{} + 127.0f : x;
    const V shifted = x + 12582912.0f;  // 1.5 * 2^23 rounds to an integer
    const V whole = shifted - 12582912.0f;
    const V f = x - whole;
    const V series =
        1.0f + f * (0.693147181f +
                    f * (0.240226507f +
                         f * (0.0555041087f + f * (0.00961812911f + f * (0.00133335581f + f * 0.000154035304f)))));
    const Mask scale = (__builtin_convertvector(whole, Mask) + 127) << 23;
    return series * (V)scale;
  }
};

}  // namespace SSIM_ISA

template <>
struct Math<Simd<float>::V> : VectorMath<float, Simd<float>::V> {};
template <>
struct Math<Simd<double>::V> : VectorMath<double, Simd<double>::V> {};

}  // namespace ssim
