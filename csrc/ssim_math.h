// The SSIM formula and its derivatives, once, for every kernel. Equations are those of docs/math.md.
//
// V is float, double, or a SIMD vector of them; S is its scalar; Math<V> holds the few functions that have no operator.
// Everything is in units of data_range, and in the
// sum/difference form: u = x + y, v = x - y. No tensors, no threads.
#pragma once

#if defined(__CUDACC__)
#define SSIM_HD __host__ __device__ __forceinline__
#else
#define SSIM_HD inline __attribute__((always_inline))
#endif

#include <cmath>
#include <type_traits>

namespace ssim {

template <class V>
struct Math {
  static SSIM_HD V maximum(V a, V b) {  // a NaN in a stays
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    if constexpr (std::is_same_v<V, float>) {
      asm("max.NaN.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
      return a;
    }
#endif
    return a < b ? b : a;
  }
  static SSIM_HD V square_root(V a) { return sqrt(a); }
  static SSIM_HD V power(V a, V e) { return pow(a, e); }  // a > 0
};

template <class V, class S>
SSIM_HD V splat(S s) {
  return V() + s;
}

// 1 / v. A GPU's own approximation is within one unit in the last place, without the branches of an exact division.
template <class S, class V>
SSIM_HD V reciprocal(V v) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<V, float>) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
  }
#endif
  return S(1) / v;
}

constexpr int kTaps = 11;                  // taps of the Gaussian window; smaller windows are padded with zeros
constexpr int kRadius = kTaps / 2;         // pixels from the centre of the window to its edge
constexpr double kVarianceEpsilon = 1e-8;  // see VARIANCE_EPSILON in fused_ssim/options.py
constexpr double kPowerFloor = 1e-4;       // see POWER_FLOOR in fused_ssim/options.py

// Which closed form an exponent triple allows.
enum class Form {
  kPlain,     // (1, 1, 1)
  kPaired,    // beta == gamma: contrast * structure needs no square root
  kSeparate,  // any
};

template <class S>
struct Constants {
  S c1, c2;              // 2 k1^2 and 2 k2^2: a and b of Eq. (7) are doubled
  S alpha, beta, gamma;  // exponents of luminance, contrast, structure
};

// SSIM of one pixel, and its derivatives with respect to the moments E[u], E[v], E[u^2], E[v^2], E[uv], so scaled that
// the gradient by u is kGradientFactor * (G*d_u + u G*d_uu + v G*d_uv): Eq. (11)-(13).
template <class V>
struct Pixel {
  V value;
  V d_u, d_v, d_uu, d_vv, d_uv;
};

constexpr double kGradientFactor = 4;

// b^e and its derivative, by the rule of fused_ssim.reference.power.
template <class V, class S>
SSIM_HD void power(V b, S e, V& value, V& derivative) {
  if (e == S(1)) {
    value = b;
    derivative = splat<V>(S(1));
  } else if (e == S(0)) {
    value = splat<V>(S(1));
    derivative = splat<V>(S(0));
  } else {
    const V floor = splat<V>(S(kPowerFloor));
    const V base = Math<V>::maximum(b, floor);
    value = Math<V>::power(base, splat<V>(e));
    derivative = b < floor ? splat<V>(S(0)) : value * e / base;
  }
}

// Eq. (5)-(8), (11), (12): the form without square roots. d_uv is not touched.
template <Form form, class V, class S>
SSIM_HD Pixel<V> paired_pixel(V mu_u, V mu_v, V e_uu, V e_vv, const Constants<S>& k) {
  const V p = mu_u * mu_u, q = mu_v * mu_v;
  const V var_u = Math<V>::maximum(e_uu - p, V()), var_v = Math<V>::maximum(e_vv - q, V());
  const V p1 = p + k.c1, p2 = var_u + k.c2;
  const V a1 = p1 - q, b1 = p1 + q;          // luminance = a1 / b1
  const V a2 = p2 - var_v, b2 = p2 + var_v;  // contrast * structure = a2 / b2
  const V inverse = reciprocal<S>(b1 * b2);
  const V inverse_b1 = inverse * b2, inverse_b2 = inverse * b1;
  Pixel<V> r;
  V s_a1, s_a2;  // derivatives of SSIM by a1 and a2
  if constexpr (form == Form::kPlain) {
    s_a2 = a1 * inverse;
    s_a1 = a2 * inverse;
    r.value = s_a2 * a2;
  } else {
    V l_pow, l_slope, cs_pow, cs_slope;
    power(a1 * inverse_b1, k.alpha, l_pow, l_slope);
    power(a2 * inverse_b2, k.beta, cs_pow, cs_slope);
    r.value = l_pow * cs_pow;
    s_a1 = l_slope * cs_pow * inverse_b1;
    s_a2 = l_pow * cs_slope * inverse_b2;
  }
  r.d_uu = s_a2 * (var_v * inverse_b2);
  r.d_vv = r.d_uu - s_a2;
  const V by_u = s_a1 * (q * inverse_b1) - r.d_uu;
  r.d_u = mu_u * by_u;
  r.d_v = mu_v * (by_u + (s_a2 - s_a1));
  return r;
}

// Eq. (9)-(12): contrast and structure apart, for beta != gamma.
template <class V, class S>
SSIM_HD Pixel<V> separate_pixel(V mu_u, V mu_v, V e_uu, V e_vv, V e_uv, const Constants<S>& k) {
  const S epsilon = S(kVarianceEpsilon), c2 = k.c2 * S(0.5), c3 = k.c2 * S(0.25);
  const V p = mu_u * mu_u, q = mu_v * mu_v;
  const V var_u = e_uu - p, var_v = e_vv - q, cov_uv = e_uv - mu_u * mu_v;
  const V half = (var_u + var_v) * S(0.25);
  const V var_x = Math<V>::maximum(half + cov_uv * S(0.5), V()) + epsilon;
  const V var_y = Math<V>::maximum(half - cov_uv * S(0.5), V()) + epsilon;
  const V cov_xy = (var_u - var_v) * S(0.25) + epsilon;
  const V deviations = Math<V>::square_root(var_x * var_y);
  const V p1 = p + k.c1, a1 = p1 - q, inverse_b1 = S(1) / (p1 + q);
  const V inverse_b2 = S(1) / (var_x + var_y + c2), inverse_b3 = S(1) / (deviations + c3);
  const V l = a1 * inverse_b1, c = (deviations * S(2) + c2) * inverse_b2, s = (cov_xy + c3) * inverse_b3;
  V l_pow, l_slope, c_pow, c_slope, s_pow, s_slope;
  power(l, k.alpha, l_pow, l_slope);
  power(c, k.beta, c_pow, c_slope);
  power(s, k.gamma, s_pow, s_slope);
  Pixel<V> r;
  r.value = l_pow * c_pow * s_pow;
  const V s_a1 = l_slope * c_pow * s_pow * inverse_b1, gap1 = s_a1 * (q * inverse_b1);
  const V s_c = l_pow * c_slope * s_pow * inverse_b2;
  const V s_s = l_pow * c_pow * s_slope * inverse_b3;
  const V d_deviations = s_c * S(2) - s_s * s;  // by sqrt(var_x var_y)
  const V shared = d_deviations * S(0.5) / deviations;
  const V d_x = shared * var_y - s_c * c, d_y = shared * var_x - s_c * c;  // by var_x, var_y
  const V sum = d_x + d_y;
  r.d_uu = (sum + s_s) * S(0.125);
  r.d_vv = (sum - s_s) * S(0.125);
  r.d_uv = (d_x - d_y) * S(0.125);
  r.d_u = mu_u * (gap1 - r.d_uu) - mu_v * r.d_uv;
  r.d_v = mu_v * ((gap1 - s_a1) - r.d_vv) - mu_u * r.d_uv;
  return r;
}

// Eq. (15): the gradient by x is kGradientFactor * (G*a + u G*b + v G*c).
template <class V>
struct Adjoint {
  V a, b, c;
};

template <bool separate, class V>
SSIM_HD Adjoint<V> adjoint_x(const Pixel<V>& d) {
  if constexpr (separate) return {d.d_u + d.d_v, d.d_uu + d.d_uv, d.d_vv + d.d_uv};
  return {d.d_u + d.d_v, d.d_uu, d.d_vv};
}

}  // namespace ssim
