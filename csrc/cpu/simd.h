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

// Holds a value in a register: a compiler that sees it loaded may load it again where it is used once more, and much of
// this is bound by its loads.
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

// Within each 16 bytes, runs of `run` lanes of a and b alternate: those of their lower halves, or of their upper ones.
template <class T, int run, bool upper, class V, int... i>
SSIM_INLINE V unpack(V a, V b, std::integer_sequence<int, i...>) {
  constexpr int lanes = kLanes<T>, sixteen = 16 / sizeof(T);
  return __builtin_shufflevector(a, b,
                                 (i / sixteen * sixteen + (upper ? sixteen / 2 : 0) + i % sixteen / (2 * run) * run +
                                  i % run + (i / run % 2 ? lanes : 0))...);
}

// The even 16 bytes of a and then those of b, or the odd ones.
template <class T, bool odd, class V, int... i>
SSIM_INLINE V every_other(V a, V b, std::integer_sequence<int, i...>) {
  constexpr int lanes = kLanes<T>, sixteen = 16 / sizeof(T);
  return __builtin_shufflevector(
      a, b,
      (i % (lanes / 2) / sixteen * 2 * sixteen + (odd ? sixteen : 0) + i % sixteen + (i >= lanes / 2 ? lanes : 0))...);
}

// A vector of 16 bytes from each of the pointers, `stride` pointers apart. Where a load can leave the other lanes as
// they are, this takes no shuffle.
template <class T, int stride>
SSIM_INLINE typename Simd<T>::V join(const T* const* p) {
#if SSIM_VECTOR_BYTES == 64
  const auto at = [&](int i) __attribute__((always_inline)) {
    return _mm_loadu_ps(reinterpret_cast<const float*>(p[i * stride]));
  };
  __m512 v = _mm512_castps128_ps512(at(0));
  v = _mm512_mask_broadcast_f32x4(v, 0x00f0, at(1));
  v = _mm512_mask_broadcast_f32x4(v, 0x0f00, at(2));
  return (typename Simd<T>::V)_mm512_mask_broadcast_f32x4(v, 0xf000, at(3));
#elif SSIM_VECTOR_BYTES == 32
  const __m256 low = _mm256_castps128_ps256(_mm_loadu_ps(reinterpret_cast<const float*>(p[0])));
  return (typename Simd<T>::V)_mm256_insertf128_ps(low, _mm_loadu_ps(reinterpret_cast<const float*>(p[stride])), 1);
#else
  return load_unaligned(p[0]);
#endif
}

#if SSIM_VECTOR_BYTES == 64
// A vector of 32 bytes from each of two pointers.
SSIM_INLINE Simd<float>::V join_halves(const float* low, const float* high) {
  return (Simd<float>::V)_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(low)), _mm256_loadu_ps(high), 1);
}
SSIM_INLINE Simd<double>::V join_halves(const double* low, const double* high) {
  return (Simd<double>::V)_mm512_insertf64x4(_mm512_castpd256_pd512(_mm256_loadu_pd(low)), _mm256_loadu_pd(high), 1);
}
#endif

// Lanes in 16 bytes.
template <class T>
constexpr int kSixteen = 16 / sizeof(T);

// Transposes, within each 16 bytes of `count` vectors, the square of their lanes.
template <class T, int count>
SSIM_INLINE void transpose_sixteen(typename Simd<T>::V* v) {
  using V = typename Simd<T>::V;
  constexpr auto all = std::make_integer_sequence<int, kLanes<T>>();
#pragma GCC unroll 8
  for (int i = 0; i < count; i += 2) {
    const V low = unpack<T, 1, false>(v[i], v[i + 1], all), high = unpack<T, 1, true>(v[i], v[i + 1], all);
    v[i] = low, v[i + 1] = high;
  }
  if constexpr (kSixteen<T> == 4) {
#pragma GCC unroll 4
    for (int i = 0; i < count; i += 4) {
      const V a = v[i], b = v[i + 1], c = v[i + 2], d = v[i + 3];
      v[i] = unpack<T, 2, false>(a, c, all), v[i + 1] = unpack<T, 2, true>(a, c, all);
      v[i + 2] = unpack<T, 2, false>(b, d, all), v[i + 3] = unpack<T, 2, true>(b, d, all);
    }
  }
}

// Transposes the square of lanes: afterwards lane i of v[j] is what lane j of v[i] was. First the squares within 16
// bytes, then the square of these: each step is one cheap instruction a vector.
template <class T>
SSIM_INLINE void transpose(typename Simd<T>::V* v) {
  using V = typename Simd<T>::V;
  constexpr int lanes = kLanes<T>, sixteen = kSixteen<T>, blocks = lanes / sixteen;
  constexpr auto all = std::make_integer_sequence<int, lanes>();
  transpose_sixteen<T, lanes>(v);
  if constexpr (blocks > 1) {
#pragma GCC unroll 4
    for (int e = 0; e < sixteen; ++e) {
      if constexpr (blocks == 2) {
        const V a = v[e], b = v[e + sixteen];
        v[e] = every_other<T, false>(a, b, all), v[e + sixteen] = every_other<T, true>(a, b, all);
      } else {
        const V a = v[e], b = v[e + sixteen], c = v[e + 2 * sixteen], d = v[e + 3 * sixteen];
        const V even = every_other<T, false>(a, b, all), odd = every_other<T, true>(a, b, all);
        const V even_too = every_other<T, false>(c, d, all), odd_too = every_other<T, true>(c, d, all);
        v[e] = every_other<T, false>(even, even_too, all);
        v[e + sixteen] = every_other<T, false>(odd, odd_too, all);
        v[e + 2 * sixteen] = every_other<T, true>(even, even_too, all);
        v[e + 3 * sixteen] = every_other<T, true>(odd, odd_too, all);
      }
    }
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
