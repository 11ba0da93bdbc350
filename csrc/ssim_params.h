// What a call computes, in plain pointers: sizes, strides, constants. No logic.
#pragma once

#include <cstdint>

#include "ssim_math.h"

namespace ssim {

enum class DType : int { kFloat16, kBFloat16, kFloat32, kFloat64 };
enum class Padding : int { kSame, kReflect, kValid };
enum class Normalize : int { kNone, kTensor, kSample, kChannel };

// A strided (N, C, H, W) tensor; data == nullptr where there is none.
struct View {
  void* data = nullptr;
  int64_t stride_n = 0, stride_c = 0, stride_h = 0, stride_w = 0;  // in elements; 0 repeats
  DType dtype = DType::kFloat32;
};

// One pair of tensors, and what to make of it.
struct Level {
  int64_t n = 0, c = 0, h = 0, w = 0;  // of x and y
  View x, y;
  View seed;            // weight of each map pixel, or the upstream gradient of a map; of the map's shape
  View map;             // output: the SSIM map
  View grad_x, grad_y;  // outputs: gradients of value * grad_scale; of y only beside that of x
  double offset = 0, slope = 1, l1 = 0;  // value = sum of seed * (offset + slope * SSIM) + l1 * |x - y|
  double grad_scale = 1;
};

struct Problem {
  double taps[kTaps] = {};  // symmetric, sum 1
  double alpha = 1, beta = 1, gamma = 1;
  double c1 = 0, c2 = 0;  // k1^2, k2^2
  double data_range = 1;
  int window_radius = kRadius;  // "valid" leaves out this many pixels on each side
  Padding padding = Padding::kSame;
  Normalize normalize = Normalize::kNone;
  bool detach_range = true;  // minimum and maximum are constants to the gradient

  template <class T>
  Constants<T> constants() const {
    return {static_cast<T>(2 * c1), static_cast<T>(2 * c2), static_cast<T>(alpha), static_cast<T>(beta),
            static_cast<T>(gamma)};
  }

  Form form() const {
    if (beta != gamma) return Form::kSeparate;
    return alpha == 1 && beta == 1 ? Form::kPlain : Form::kPaired;
  }
};

}  // namespace ssim
