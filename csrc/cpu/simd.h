// SIMD vectors for the CPU kernel, by the compiler's vector extension: the same source for AVX-512, AVX2 and whatever
// the baseline has (SSE2, NEON). SSIM_VECTOR_BYTES, SSIM_ISA (a namespace, so that the linker never mixes instruction
// sets) and the target are set by the file that includes this one.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

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

// The first `count` lanes of v go to p; nothing behind them is touched.
template <class T>
SSIM_INLINE void store_first(T* p, typename Simd<T>::V v, int count) {
#if SSIM_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4)
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), v);
  else
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << count) - 1), v);
#else
  for (int i = 0; i < kLanes<T>; ++i)
    if (i < count) p[i] = v[i];
#endif
}

// v where the mask is set, else zero (also in place of a NaN).
template <class T>
SSIM_INLINE typename Simd<T>::V keep(typename Simd<T>::V v, typename Simd<T>::Mask mask) {
  return (typename Simd<T>::V)((typename Simd<T>::Mask)v & mask);
}

// Lane i of a takes lane i - step of b where i has the bit `step`; lane i of b takes lane i + step of a where it has
// not.
template <int step, class V, int... i>
SSIM_INLINE void exchange(V& a, V& b, std::integer_sequence<int, i...>) {
  constexpr int lanes = sizeof...(i);
  const V first = __builtin_shufflevector(a, b, ((i & step) ? lanes + i - step : i)...);
  b = __builtin_shufflevector(a, b, ((i & step) ? lanes + i : i + step)...);
  a = first;
}

// Transposes the square of lanes: afterwards lane i of v[j] is what lane j of v[i] was.
template <class T, int step = 1>
SSIM_INLINE void transpose(typename Simd<T>::V* v) {
  if constexpr (step < kLanes<T>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i)
      if (!(i & step)) exchange<step>(v[i], v[i + step], std::make_integer_sequence<int, kLanes<T>>());
    transpose<T, 2 * step>(v);
  }
}

// Holds a value in a register: a compiler that sees it loaded may load it again where it is used once more, and these
// filters are bound by their loads.
template <class V>
SSIM_INLINE V in_register(V v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// Four neighbouring results of the 11-tap filter: out[i] = sum_k taps[k] at(k + i), with the taps' symmetry. Each of
// the 14 values is loaded once, and used while it is in a register (no more than 16 are alive at a time); half of the
// work is additions, for which some processors have ports of their own.
template <class V, class At>
SSIM_INLINE void filter_four(const V (&taps)[kRadius + 1], const At& at, V (&out)[4]) {
  // Values of one parity meet only each other, the odd ones as the even ones in reverse.
  {
    const V r10 = in_register(at(10));
    out[0] = taps[0] * (at(0) + r10);
    const V r2 = in_register(at(2));
    out[1] = taps[1] * (r2 + r10);
    const V r12 = in_register(at(12));
    out[2] = taps[0] * (r2 + r12);
    const V r8 = in_register(at(8));
    out[0] += taps[2] * (r2 + r8);
    const V r4 = in_register(at(4));
    out[3] = taps[1] * (r4 + r12);
    out[2] += taps[2] * (r4 + r10);
    const V r6 = in_register(at(6));
    out[3] += taps[3] * (r6 + r10);
    out[1] += taps[3] * (r4 + r8);
    out[0] += taps[4] * (r4 + r6);
    out[2] += taps[4] * (r6 + r8);
    out[1] += taps[5] * r6;
    out[3] += taps[5] * r8;
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
    out[2] += taps[5] * r7;
    out[0] += taps[5] * r5;
  }
}

// ---- functions of ssim_math.h for vectors ----

template <class T, class V>
struct VectorMath {
  static SSIM_INLINE V maximum(V a, V b) {  // a NaN in a stays: the instruction's rule for its second operand
#if SSIM_VECTOR_BYTES == 64
    if constexpr (sizeof(T) == 4)
      return _mm512_max_ps(b, a);
    else
      return _mm512_max_pd(b, a);
#elif SSIM_VECTOR_BYTES == 32
    if constexpr (sizeof(T) == 4)
      return _mm256_max_ps(b, a);
    else
      return _mm256_max_pd(b, a);
#else
    return a < b ? b : a;
#endif
  }

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
