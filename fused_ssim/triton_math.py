"""The SSIM formula and its derivatives for Triton: csrc/ssim_math.h line by line, same names, same order.

Equations are those of docs/math.md. Everything is in units of data_range and in the sum/difference form u = x + y,
v = x - y. Blocks of float32 or float64; no loads, no stores. A change here is a change there (tests/ssim/test_twins.py
compares the signatures, the common suite the results).
"""

import triton
import triton.language as tl

VARIANCE_EPSILON = tl.constexpr(1e-8)  # see VARIANCE_EPSILON in fused_ssim/options.py
POWER_FLOOR = tl.constexpr(1e-4)  # see POWER_FLOOR in fused_ssim/options.py
GRADIENT_FACTOR = tl.constexpr(4.0)  # the gradient by u is that times (G*d_u + u G*d_uu + v G*d_uv)

# Which closed form an exponent triple allows.
PLAIN = tl.constexpr(0)  # (1, 1, 1)
PAIRED = tl.constexpr(1)  # beta == gamma: contrast * structure needs no square root
SEPARATE = tl.constexpr(2)  # any


@triton.jit
def math_maximum(a, b):
    return tl.where(a < b, b, a)  # a NaN in a stays


@triton.jit
def math_square_root(a):
    return tl.sqrt(a)


@triton.jit
def math_power(a, e):
    return tl.exp2(e * tl.log2(a))  # a > 0


@triton.jit
def splat(s, like):
    return tl.full(like.shape, s, like.dtype)


@triton.jit
def reciprocal(v):
    return 1.0 / v


@triton.jit
def power(b, e: tl.constexpr):
    """b^e and its derivative, by the rule of fused_ssim.reference.power."""
    if e == 1.0:
        value = b
        derivative = splat(1.0, b)
    elif e == 0.0:
        value = splat(1.0, b)
        derivative = splat(0.0, b)
    else:
        floor = splat(POWER_FLOOR, b)
        base = math_maximum(b, floor)
        value = math_power(base, splat(e, b))
        derivative = tl.where(b < floor, 0.0, value * e / base)
    return value, derivative


@triton.jit
def paired_pixel(
    mu_u, mu_v, e_uu, e_vv, c1, c2, alpha: tl.constexpr, beta: tl.constexpr, gamma: tl.constexpr, form: tl.constexpr
):
    """Eq. (5)-(8), (11), (12): the form without square roots; value, d_u, d_v, d_uu, d_vv."""
    p, q = mu_u * mu_u, mu_v * mu_v
    zero = splat(0.0, p)
    var_u, var_v = math_maximum(e_uu - p, zero), math_maximum(e_vv - q, zero)
    p1, p2 = p + c1, var_u + c2
    a1, b1 = p1 - q, p1 + q  # luminance = a1 / b1
    a2, b2 = p2 - var_v, p2 + var_v  # contrast * structure = a2 / b2
    inverse = reciprocal(b1 * b2)
    inverse_b1, inverse_b2 = inverse * b2, inverse * b1
    if form == PLAIN:
        s_a2 = a1 * inverse
        s_a1 = a2 * inverse
        value = s_a2 * a2
    else:
        l_pow, l_slope = power(a1 * inverse_b1, alpha)
        cs_pow, cs_slope = power(a2 * inverse_b2, beta)
        value = l_pow * cs_pow
        s_a1 = l_slope * cs_pow * inverse_b1
        s_a2 = l_pow * cs_slope * inverse_b2
    d_uu = s_a2 * (var_v * inverse_b2)
    d_vv = d_uu - s_a2
    by_u = s_a1 * (q * inverse_b1) - d_uu
    d_u = mu_u * by_u
    d_v = mu_v * (by_u + (s_a2 - s_a1))
    return value, d_u, d_v, d_uu, d_vv


@triton.jit
def separate_pixel(mu_u, mu_v, e_uu, e_vv, e_uv, c1, c2, alpha: tl.constexpr, beta: tl.constexpr, gamma: tl.constexpr):
    """Eq. (9)-(12): contrast and structure apart, for beta != gamma; value, d_u, d_v, d_uu, d_vv, d_uv."""
    epsilon, single_c2, c3 = VARIANCE_EPSILON, c2 * 0.5, c2 * 0.25
    p, q = mu_u * mu_u, mu_v * mu_v
    zero = splat(0.0, p)
    var_u, var_v, cov_uv = e_uu - p, e_vv - q, e_uv - mu_u * mu_v
    half = (var_u + var_v) * 0.25
    var_x = math_maximum(half + cov_uv * 0.5, zero) + epsilon
    var_y = math_maximum(half - cov_uv * 0.5, zero) + epsilon
    cov_xy = (var_u - var_v) * 0.25 + epsilon
    deviations = math_square_root(var_x * var_y)
    p1 = p + c1
    a1, inverse_b1 = p1 - q, 1.0 / (p1 + q)
    inverse_b2, inverse_b3 = 1.0 / (var_x + var_y + single_c2), 1.0 / (deviations + c3)
    l, c, s = a1 * inverse_b1, (deviations * 2.0 + single_c2) * inverse_b2, (cov_xy + c3) * inverse_b3  # noqa: E741
    l_pow, l_slope = power(l, alpha)
    c_pow, c_slope = power(c, beta)
    s_pow, s_slope = power(s, gamma)
    value = l_pow * c_pow * s_pow
    s_a1 = l_slope * c_pow * s_pow * inverse_b1
    gap1 = s_a1 * (q * inverse_b1)
    s_c = l_pow * c_slope * s_pow * inverse_b2
    s_s = l_pow * c_pow * s_slope * inverse_b3
    d_deviations = s_c * 2.0 - s_s * s  # by sqrt(var_x var_y)
    shared = d_deviations * 0.5 / deviations
    d_x, d_y = shared * var_y - s_c * c, shared * var_x - s_c * c  # by var_x, var_y
    total = d_x + d_y
    d_uu = (total + s_s) * 0.125
    d_vv = (total - s_s) * 0.125
    d_uv = (d_x - d_y) * 0.125
    d_u = mu_u * (gap1 - d_uu) - mu_v * d_uv
    d_v = mu_v * ((gap1 - s_a1) - d_vv) - mu_u * d_uv
    return value, d_u, d_v, d_uu, d_vv, d_uv


@triton.jit
def adjoint_x(d_u, d_v, d_uu, d_vv, d_uv, separate: tl.constexpr):
    """Eq. (15): the gradient by x is GRADIENT_FACTOR * (G*a + u G*b + v G*c)."""
    if separate:
        return d_u + d_v, d_uu + d_uv, d_vv + d_uv
    else:
        return d_u + d_v, d_uu, d_vv
