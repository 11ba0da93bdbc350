// The operators of fused_ssim/ops.py on CPU tensors.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/ssim_cpu.h"
#include "ops_tensors.h"

namespace ssim {
namespace {

using ops::Doubles;
using ops::Tensor;
using ops::Tensors;
using torch::headeronly::ScalarType;

Parallel torch_threads() {
  Parallel parallel;
  parallel.threads = torch::stable::get_num_threads();
  parallel.run = [](int64_t count, const std::function<void(int64_t)>& task) {
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) task(i);
    });
  };
  return parallel;
}

// Large tensors are fresh memory each time, and page faults of 4096 bytes each can take longer than the kernel itself.
void ask_for_large_pages(const View& view, int64_t elements) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{1} << 21;
  const size_t size = view.dtype == DType::kFloat64 ? 8 : view.dtype == DType::kFloat32 ? 4 : 2;
  const uintptr_t data = reinterpret_cast<uintptr_t>(view.data);
  const uintptr_t begin = (data + kPage - 1) / kPage * kPage, end = (data + elements * size) / kPage * kPage;
  if (view.data && begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // or not
#endif
}

struct Cpu {
  static void run(const Problem& problem, const std::vector<Level>& levels, bool per_sample, const Tensor&,
                  Tensor* values) {
    for (const Level& level : levels)
      for (const View* output : {&level.grad_x, &level.grad_y})
        ask_for_large_pages(*output, level.n * level.c * level.h * level.w);
    Doubles sums(values ? values->numel() : 0);
    run_cpu(problem, levels, per_sample, values ? sums.data() : nullptr, torch_threads());
    for (size_t i = 0; i < sums.size(); ++i) {
      if (values->scalar_type() == ScalarType::Double)
        values->mutable_data_ptr<double>()[i] = sums[i];
      else
        values->mutable_data_ptr<float>()[i] = static_cast<float>(sums[i]);
    }
  }
};

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
  ops::check_scale(grads, factor, divisor);
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
}  // namespace ssim

STABLE_TORCH_LIBRARY_IMPL(fused_ssim, CPU, m) {
  m.impl("ssim_sums", TORCH_BOX(&ssim::ops::ssim_sums<ssim::Cpu>));
  m.impl("ssim_map", TORCH_BOX(&ssim::ops::ssim_map<ssim::Cpu>));
  m.impl("ssim_map_backward", TORCH_BOX(&ssim::ops::ssim_map_backward<ssim::Cpu>));
  m.impl("scale_", TORCH_BOX(&ssim::scale_));
}
