// SSIM in double, written as plainly as it can be: judges what kernel_check computes. A gradient is judged by its
// products with random directions, which are differences of values, so no derivative is written down here.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "ssim_params.h"

namespace plain {

using Numbers = std::vector<double>;

// Where pixel i of a row or column of `length` comes from; -1: from nowhere, a zero.
inline int64_t source(int64_t i, int64_t length, ssim::Padding padding) {
  if (padding == ssim::Padding::kReflect)
    while (i < 0 || i >= length) i = i < 0 ? -i : 2 * (length - 1) - i;
  return i < 0 || i >= length ? -1 : i;
}

// The local means of a map of h x w. "valid" computes the others too, which nobody reads.
inline Numbers filtered(const Numbers& in, int64_t h, int64_t w, const ssim::Problem& p) {
  Numbers rows(in.size()), out(in.size());
  for (int64_t i = 0; i < h; ++i)
    for (int64_t j = 0; j < w; ++j)
      for (int k = 0; k < ssim::kTaps; ++k)
        if (const int64_t s = source(j + k - ssim::kRadius, w, p.padding); s >= 0)
          rows[i * w + j] += p.taps[k] * in[i * w + s];
  for (int64_t i = 0; i < h; ++i)
    for (int k = 0; k < ssim::kTaps; ++k)
      if (const int64_t s = source(i + k - ssim::kRadius, h, p.padding); s >= 0)
        for (int64_t j = 0; j < w; ++j) out[i * w + j] += p.taps[k] * rows[s * w + j];
  return out;
}

inline Numbers product(const Numbers& a, const Numbers& b) {
  Numbers result(a);
  for (size_t i = 0; i < a.size(); ++i) result[i] *= b[i];
  return result;
}

// The SSIM map of one plane; alpha and gamma are 1.
inline Numbers map_of(const Numbers& x, const Numbers& y, int64_t h, int64_t w, const ssim::Problem& p) {
  const Numbers mx = filtered(x, h, w, p), my = filtered(y, h, w, p), xx = filtered(product(x, x), h, w, p),
                yy = filtered(product(y, y), h, w, p), xy = filtered(product(x, y), h, w, p);
  Numbers map(x.size());
  for (size_t i = 0; i < map.size(); ++i) {
    const double luminance = (2 * mx[i] * my[i] + p.c1) / (mx[i] * mx[i] + my[i] * my[i] + p.c1);
    double vx = xx[i] - mx[i] * mx[i], vy = yy[i] - my[i] * my[i], cov = xy[i] - mx[i] * my[i];
    if (p.beta == 1) {
      map[i] = luminance * (2 * cov + p.c2) / (vx + vy + p.c2);
      continue;
    }
    vx += ssim::kVarianceEpsilon, vy += ssim::kVarianceEpsilon, cov += ssim::kVarianceEpsilon;
    const double deviations = std::sqrt(vx * vy);
    const double contrast = (2 * deviations + p.c2) / (vx + vy + p.c2);
    map[i] = luminance * std::pow(contrast, p.beta) * (cov + p.c2 / 2) / (deviations + p.c2 / 2);
  }
  return map;
}

// Minimum and maximum of each group of planes become 0 and 1.
inline void rescale(Numbers& x, const ssim::Level& l, ssim::Normalize normalize) {
  if (normalize == ssim::Normalize::kNone) return;
  const int64_t groups = normalize == ssim::Normalize::kTensor   ? 1
                         : normalize == ssim::Normalize::kSample ? l.n
                                                                 : l.n * l.c;
  const int64_t size = static_cast<int64_t>(x.size()) / groups;
  for (int64_t g = 0; g < groups; ++g) {
    const auto begin = x.begin() + g * size;
    const auto [low, high] = std::minmax_element(begin, begin + size);
    const double least = *low, extent = *high - *low;
    std::for_each(begin, begin + size, [&](double& v) { v = (v - least) / extent; });
  }
}

// The value of each sample of a level, contiguous (N, C, H, W); the map as well where one is given room for it.
inline Numbers values(const ssim::Problem& p, const ssim::Level& l, Numbers x, Numbers y, const Numbers& seed,
                      Numbers* map = nullptr) {
  rescale(x, l, p.normalize), rescale(y, l, p.normalize);
  const int64_t plane = l.h * l.w, margin = p.padding == ssim::Padding::kValid ? ssim::kRadius : 0;
  Numbers result(l.n);
  if (map) map->clear();
  size_t pixel = 0;
  for (int64_t q = 0; q < l.n * l.c; ++q) {
    const Numbers a(x.begin() + q * plane, x.begin() + (q + 1) * plane);
    const Numbers b(y.begin() + q * plane, y.begin() + (q + 1) * plane);
    const Numbers of_plane = map_of(a, b, l.h, l.w, p);
    for (int64_t i = 0; i < l.h; ++i)
      for (int64_t j = 0; j < l.w; ++j) {
        const bool inside = i >= margin && i < l.h - margin && j >= margin && j < l.w - margin;
        const double weight = seed.empty() || !inside ? 1 : seed[pixel++];  // l1 is 0 where some are not inside
        if (inside && map) map->push_back(of_plane[i * l.w + j]);
        if (inside) result[q / l.c] += weight * (l.offset + l.slope * of_plane[i * l.w + j]);
        result[q / l.c] += weight * l.l1 * std::abs(a[i * l.w + j] - b[i * l.w + j]);
      }
  }
  return result;
}

}  // namespace plain
