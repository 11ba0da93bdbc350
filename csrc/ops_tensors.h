// From torch's tensors and the operators' arguments (fused_ssim/ops.py) to plain pointers, for every device.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "ssim_params.h"

namespace ssim::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using Doubles = std::vector<double>;

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Half: return DType::kFloat16;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Double: return DType::kFloat64;
    default: STD_TORCH_CHECK(false, "fused_ssim: unsupported dtype"); return DType::kFloat32;
  }
}

inline View view_of(const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 4, "fused_ssim: want (N, C, H, W), got ", t.dim(), " axes");
  return {const_cast<void*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3), dtype_of(t)};
}

inline Problem make_problem(const Doubles& taps, const Doubles& exponents, double c1, double c2, double data_range,
                            const std::string& padding, int64_t window_size, const std::string& normalize) {
  STD_TORCH_CHECK(taps.size() == kTaps && exponents.size() == 3, "fused_ssim: want 11 taps and 3 exponents");
  STD_TORCH_CHECK(window_size >= 1 && window_size <= kTaps && window_size % 2 == 1,
                  "fused_ssim: the kernels hold odd windows up to 11, got ", window_size);
  Problem p;
  for (int i = 0; i < kTaps; ++i) p.taps[i] = taps[i];
  p.alpha = exponents[0], p.beta = exponents[1], p.gamma = exponents[2];
  p.c1 = c1, p.c2 = c2, p.data_range = data_range;
  p.window_radius = static_cast<int>(window_size / 2);
  p.padding = padding == "reflect" ? Padding::kReflect : padding == "valid" ? Padding::kValid : Padding::kSame;
  p.normalize = normalize == "tensor"    ? Normalize::kTensor
                : normalize == "sample"  ? Normalize::kSample
                : normalize == "channel" ? Normalize::kChannel
                                         : Normalize::kNone;
  return p;
}

inline Level make_level(const Tensor& x, const Tensor& y, const Problem& p) {
  STD_TORCH_CHECK(x.dim() == 4 && y.dim() == 4, "fused_ssim: want (N, C, H, W), got ", x.dim(), " and ", y.dim(),
                  " axes");
  Level level;
  level.n = x.size(0), level.c = x.size(1), level.h = x.size(2), level.w = x.size(3);
  for (int i = 0; i < 4; ++i)
    STD_TORCH_CHECK(x.size(i) == y.size(i) && x.size(i) > 0, "fused_ssim: x and y must have one shape, without zeros");
  STD_TORCH_CHECK(x.scalar_type() == y.scalar_type(), "fused_ssim: x and y must have one dtype");
  const int64_t margin = p.padding == Padding::kValid ? 2 * p.window_radius : 0;
  STD_TORCH_CHECK(level.h > margin && level.w > margin,
                  "fused_ssim: padding='valid' needs H and W of at least the window");
  level.x = view_of(x), level.y = view_of(y);
  return level;
}

// Where gradients go, null where none is wanted. Kernels know a gradient of x, or of both: for that of y alone x and y
// change places, as all that a level computes is symmetric.
inline void set_gradients(Level& level, const Tensor* grad_x, const Tensor* grad_y) {
  if (grad_x) level.grad_x = view_of(*grad_x);
  if (grad_y) level.grad_y = view_of(*grad_y);
  if (grad_x || !grad_y) return;
  std::swap(level.x, level.y);
  std::swap(level.grad_x, level.grad_y);
}

inline void check_map(const Tensor& t, const Level& level, const Problem& p, const char* name) {
  const int64_t margin = p.padding == Padding::kValid ? 2 * p.window_radius : 0;
  STD_TORCH_CHECK(t.dim() == 4 && t.size(0) == level.n && t.size(1) == level.c && t.size(2) == level.h - margin &&
                      t.size(3) == level.w - margin,
                  "fused_ssim: ", name, " must have the shape of the map");
}

// A Device computes levels with
//   static void run(const Problem&, const std::vector<Level>&, bool per_sample, const Tensor& x, Tensor* values);
// x is a tensor of the call, for its device; values, null where none are wanted, is (L) or (L, N), float or double.

template <class Device>
std::tuple<Tensor, Tensors, Tensors> ssim_sums(Tensors x, Tensors y, Tensors weight, Doubles offset, Doubles slope,
                                               Doubles l1, Doubles grad_scale, Doubles taps, Doubles exponents,
                                               double c1, double c2, double data_range, std::string padding,
                                               int64_t window_size, std::string normalize, bool detach_range,
                                               bool per_sample, bool grad_x, bool grad_y) {
  const size_t count = x.size();
  STD_TORCH_CHECK(count > 0 && y.size() == count && (weight.empty() || weight.size() == count) &&
                      offset.size() == count && slope.size() == count && l1.size() == count &&
                      grad_scale.size() == count,
                  "fused_ssim: every list must have one entry for each level");
  Problem p = make_problem(taps, exponents, c1, c2, data_range, padding, window_size, normalize);
  p.detach_range = detach_range;
  std::vector<Level> levels;
  Tensors grads_x, grads_y;
  for (size_t i = 0; i < count; ++i) {
    Level level = make_level(x[i], y[i], p);
    STD_TORCH_CHECK(x[i].scalar_type() == x[0].scalar_type(), "fused_ssim: the levels must share one dtype");
    STD_TORCH_CHECK(!per_sample || level.n == x[0].size(0), "fused_ssim: the levels must have equally many samples");
    level.offset = offset[i], level.slope = slope[i], level.l1 = l1[i], level.grad_scale = grad_scale[i];
    if (!weight.empty()) {
      check_map(weight[i], level, p, "weight");
      level.seed = view_of(weight[i]);
    }
    if (grad_x) grads_x.push_back(torch::stable::empty_like(x[i]));
    if (grad_y) grads_y.push_back(torch::stable::empty_like(y[i]));
    set_gradients(level, grad_x ? &grads_x.back() : nullptr, grad_y ? &grads_y.back() : nullptr);
    levels.push_back(level);
  }
  std::vector<int64_t> shape = {static_cast<int64_t>(count)};
  if (per_sample) shape.push_back(x[0].size(0));
  const bool wide = x[0].scalar_type() == ScalarType::Double;
  Tensor values = torch::stable::new_empty(x[0], shape, wide ? ScalarType::Double : ScalarType::Float);
  Device::run(p, levels, per_sample, x[0], &values);
  return {values, grads_x, grads_y};
}

template <class Device>
Tensor ssim_map(Tensor x, Tensor y, Doubles taps, Doubles exponents, double c1, double c2, double data_range,
                std::string padding, int64_t window_size) {
  const Problem p = make_problem(taps, exponents, c1, c2, data_range, padding, window_size, "");
  Level level = make_level(x, y, p);
  const int64_t margin = p.padding == Padding::kValid ? 2 * p.window_radius : 0;
  const std::vector<int64_t> shape = {level.n, level.c, level.h - margin, level.w - margin};
  Tensor map = torch::stable::new_empty(x, shape);
  level.map = view_of(map);
  Device::run(p, {level}, false, x, nullptr);
  return map;
}

template <class Device>
std::tuple<Tensor, Tensor> ssim_map_backward(Tensor grad, Tensor x, Tensor y, Doubles taps, Doubles exponents,
                                             double c1, double c2, double data_range, std::string padding,
                                             int64_t window_size, bool grad_x, bool grad_y) {
  const Problem p = make_problem(taps, exponents, c1, c2, data_range, padding, window_size, "");
  Level level = make_level(x, y, p);
  check_map(grad, level, p, "grad");
  level.seed = view_of(grad);
  const std::vector<int64_t> none = {0};
  Tensor to_x = grad_x ? torch::stable::empty_like(x) : torch::stable::new_empty(x, none);
  Tensor to_y = grad_y ? torch::stable::empty_like(y) : torch::stable::new_empty(y, none);
  set_gradients(level, grad_x ? &to_x : nullptr, grad_y ? &to_y : nullptr);
  if (grad_x || grad_y) Device::run(p, {level}, false, x, nullptr);
  return {to_x, to_y};
}

inline void check_scale(const Tensors& grads, const Tensor& factor, const Doubles& divisor) {
  STD_TORCH_CHECK(factor.dim() >= 1 && factor.dim() <= 2 && factor.size(0) == static_cast<int64_t>(grads.size()) &&
                      divisor.size() == grads.size(),
                  "fused_ssim: factor and divisor must have one entry for each gradient");
  for (const Tensor& grad : grads) {
    view_of(grad);  // of four axes and a known dtype
    STD_TORCH_CHECK(grad.numel() > 0 && (factor.dim() == 1 || factor.size(1) == grad.size(0)),
                    "fused_ssim: gradients must not be empty, and factor have one column for each sample");
  }
}

}  // namespace ssim::ops
