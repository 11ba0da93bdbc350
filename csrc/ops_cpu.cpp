// The operators of fused_ssim/ops.py on CPU tensors: from torch's tensors to plain pointers and back.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <string>
#include <tuple>
#include <vector>

#include "cpu/ssim_cpu.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using Doubles = std::vector<double>;

ssim::DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Half: return ssim::DType::kFloat16;
    case ScalarType::BFloat16: return ssim::DType::kBFloat16;
    case ScalarType::Float: return ssim::DType::kFloat32;
    case ScalarType::Double: return ssim::DType::kFloat64;
    default: STD_TORCH_CHECK(false, "fused_ssim: unsupported dtype"); return ssim::DType::kFloat32;
  }
}

ssim::View view_of(const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 4, "fused_ssim: want (N, C, H, W), got ", t.dim(), " axes");
  return {const_cast<void*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3), dtype_of(t)};
}

ssim::Problem make_problem(const Doubles& taps, const Doubles& exponents, double c1, double c2, double data_range,
                           const std::string& padding, int64_t window_size, const std::string& normalize) {
  STD_TORCH_CHECK(taps.size() == ssim::kTaps && exponents.size() == 3, "fused_ssim: want 11 taps and 3 exponents");
  STD_TORCH_CHECK(window_size >= 1 && window_size <= ssim::kTaps && window_size % 2 == 1,
                  "fused_ssim: the kernels hold odd windows up to 11, got ", window_size);
  ssim::Problem p;
  for (int i = 0; i < ssim::kTaps; ++i) p.taps[i] = taps[i];
  p.alpha = exponents[0], p.beta = exponents[1], p.gamma = exponents[2];
  p.c1 = c1, p.c2 = c2, p.data_range = data_range;
  p.window_radius = static_cast<int>(window_size / 2);
  p.padding = padding == "reflect" ? ssim::Padding::kReflect
              : padding == "valid" ? ssim::Padding::kValid
                                   : ssim::Padding::kSame;
  p.normalize = normalize == "tensor"    ? ssim::Normalize::kTensor
                : normalize == "sample"  ? ssim::Normalize::kSample
                : normalize == "channel" ? ssim::Normalize::kChannel
                                         : ssim::Normalize::kNone;
  return p;
}

ssim::Level make_level(const Tensor& x, const Tensor& y, const ssim::Problem& p) {
  STD_TORCH_CHECK(x.dim() == 4 && y.dim() == 4, "fused_ssim: want (N, C, H, W), got ", x.dim(), " and ", y.dim(),
                  " axes");
  ssim::Level level;
  level.n = x.size(0), level.c = x.size(1), level.h = x.size(2), level.w = x.size(3);
  for (int i = 0; i < 4; ++i)
    STD_TORCH_CHECK(x.size(i) == y.size(i) && x.size(i) > 0, "fused_ssim: x and y must have one shape, without zeros");
  STD_TORCH_CHECK(x.scalar_type() == y.scalar_type(), "fused_ssim: x and y must have one dtype");
  const int64_t margin = p.padding == ssim::Padding::kValid ? 2 * p.window_radius : 0;
  STD_TORCH_CHECK(level.h > margin && level.w > margin,
                  "fused_ssim: padding='valid' needs H and W of at least the window");
  level.x = view_of(x), level.y = view_of(y);
  return level;
}

void check_map(const Tensor& t, const ssim::Level& level, const ssim::Problem& p, const char* name) {
  const int64_t margin = p.padding == ssim::Padding::kValid ? 2 * p.window_radius : 0;
  STD_TORCH_CHECK(t.dim() == 4 && t.size(0) == level.n && t.size(1) == level.c && t.size(2) == level.h - margin &&
                      t.size(3) == level.w - margin,
                  "fused_ssim: ", name, " must have the shape of the map");
}

ssim::Parallel torch_threads() {
  ssim::Parallel parallel;
  parallel.threads = torch::stable::get_num_threads();
  parallel.run = [](int64_t count, const std::function<void(int64_t)>& task) {
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) task(i);
    });
  };
  return parallel;
}

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
  ssim::Problem p = make_problem(taps, exponents, c1, c2, data_range, padding, window_size, normalize);
  p.detach_range = detach_range;
  std::vector<ssim::Level> levels;
  Tensors grads_x, grads_y;
  for (size_t i = 0; i < count; ++i) {
    ssim::Level level = make_level(x[i], y[i], p);
    STD_TORCH_CHECK(x[i].scalar_type() == x[0].scalar_type(), "fused_ssim: the levels must share one dtype");
    STD_TORCH_CHECK(!per_sample || level.n == x[0].size(0), "fused_ssim: the levels must have equally many samples");
    level.offset = offset[i], level.slope = slope[i], level.l1 = l1[i], level.grad_scale = grad_scale[i];
    if (!weight.empty()) {
      check_map(weight[i], level, p, "weight");
      level.seed = view_of(weight[i]);
    }
    if (grad_x) grads_x.push_back(torch::stable::empty_like(x[i])), level.grad_x = view_of(grads_x.back());
    if (grad_y) grads_y.push_back(torch::stable::empty_like(y[i])), level.grad_y = view_of(grads_y.back());
    levels.push_back(level);
  }
  const int64_t samples = per_sample ? x[0].size(0) : 1;
  Doubles values(count * samples);
  ssim::run_cpu(p, levels, per_sample, values.data(), torch_threads());

  const bool wide = x[0].scalar_type() == ScalarType::Double;
  std::vector<int64_t> shape = {static_cast<int64_t>(count)};
  if (per_sample) shape.push_back(samples);
  Tensor result = torch::stable::new_empty(x[0], shape, wide ? ScalarType::Double : ScalarType::Float);
  for (size_t i = 0; i < values.size(); ++i) {
    if (wide)
      result.mutable_data_ptr<double>()[i] = values[i];
    else
      result.mutable_data_ptr<float>()[i] = static_cast<float>(values[i]);
  }
  return {result, grads_x, grads_y};
}

Tensor ssim_map(Tensor x, Tensor y, Doubles taps, Doubles exponents, double c1, double c2, double data_range,
                std::string padding, int64_t window_size) {
  const ssim::Problem p = make_problem(taps, exponents, c1, c2, data_range, padding, window_size, "");
  ssim::Level level = make_level(x, y, p);
  const int64_t margin = p.padding == ssim::Padding::kValid ? 2 * p.window_radius : 0;
  const std::vector<int64_t> shape = {level.n, level.c, level.h - margin, level.w - margin};
  Tensor map = torch::stable::new_empty(x, shape);
  level.map = view_of(map);
  ssim::run_cpu(p, {level}, false, nullptr, torch_threads());
  return map;
}

std::tuple<Tensor, Tensor> ssim_map_backward(Tensor grad, Tensor x, Tensor y, Doubles taps, Doubles exponents,
                                             double c1, double c2, double data_range, std::string padding,
                                             int64_t window_size, bool grad_x, bool grad_y) {
  const ssim::Problem p = make_problem(taps, exponents, c1, c2, data_range, padding, window_size, "");
  ssim::Level level = make_level(x, y, p);
  check_map(grad, level, p, "grad");
  level.seed = view_of(grad);
  const std::vector<int64_t> none = {0};
  Tensor to_x = grad_x ? torch::stable::empty_like(x) : torch::stable::new_empty(x, none);
  Tensor to_y = grad_y ? torch::stable::empty_like(y) : torch::stable::new_empty(y, none);
  if (grad_x) level.grad_x = view_of(to_x);
  if (grad_y) level.grad_y = view_of(to_y);
  if (grad_x || grad_y) ssim::run_cpu(p, {level}, false, nullptr, torch_threads());
  return {to_x, to_y};
}

template <class E, class S>
void scale_samples(Tensor& grad, const std::vector<double>& factors) {
  E* data = static_cast<E*>(grad.mutable_data_ptr());
  const int64_t n = grad.size(0), c = grad.size(1), h = grad.size(2), w = grad.size(3);
  torch::stable::parallel_for(0, n * c * h, 16384 / w + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t sample = i / (c * h);
      const S factor = static_cast<S>(factors[factors.size() == 1 ? 0 : sample]);
      E* row = data + sample * grad.stride(0) + i / h % c * grad.stride(1) + i % h * grad.stride(2);
      const int64_t step = grad.stride(3);
      for (int64_t j = 0; j < w; ++j) row[j * step] = static_cast<E>(static_cast<S>(row[j * step]) * factor);
    }
  });
}

// grads[i] *= factor[i % levels] / divisor[i], where factor is (levels,) or (levels, N).
void scale_(Tensors grads, Tensor factor, Doubles divisor) {
  STD_TORCH_CHECK(factor.dim() >= 1 && factor.dim() <= 2 && factor.size(0) == static_cast<int64_t>(grads.size()) &&
                      divisor.size() == grads.size(),
                  "fused_ssim: factor and divisor must have one entry for each gradient");
  const bool wide = factor.scalar_type() == ScalarType::Double;
  const int64_t samples = factor.dim() == 2 ? factor.size(1) : 1;
  for (size_t i = 0; i < grads.size(); ++i) {
    Doubles factors(samples);
    bool one = true;
    for (int64_t s = 0; s < samples; ++s) {
      const int64_t at = i * factor.stride(0) + (factor.dim() == 2 ? s * factor.stride(1) : 0);
      factors[s] = (wide ? factor.const_data_ptr<double>()[at] : factor.const_data_ptr<float>()[at]) / divisor[i];
      one = one && factors[s] == 1;
    }
    if (one) continue;
    switch (grads[i].scalar_type()) {
      case ScalarType::Half: scale_samples<c10::Half, float>(grads[i], factors); break;
      case ScalarType::BFloat16: scale_samples<c10::BFloat16, float>(grads[i], factors); break;
      case ScalarType::Float: scale_samples<float, float>(grads[i], factors); break;
      default: scale_samples<double, double>(grads[i], factors); break;
    }
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_ssim, CPU, m) {
  m.impl("ssim_sums", TORCH_BOX(&ssim_sums));
  m.impl("ssim_map", TORCH_BOX(&ssim_map));
  m.impl("ssim_map_backward", TORCH_BOX(&ssim_map_backward));
  m.impl("scale_", TORCH_BOX(&scale_));
}
