#include "march.cuh"
#include "march.h"

namespace ssim {
namespace {

template <class E>
MarchKernel<float> kernel() {
  using Traits = MarchTraits<float, E, false, 1, 8, true, kLeanThreads, 136>;
  return {march<Traits>, {Traits::rows, Traits::values, sizeof(float), kRadius, Traits::max_threads, kTaskBytes}};
}

}  // namespace

MarchKernel<float> lean_march(DType dtype) {
  switch (dtype) {
    case DType::kFloat16: return kernel<c10::Half>();
    case DType::kBFloat16: return kernel<c10::BFloat16>();
    default: return kernel<float>();
  }
}

}  // namespace ssim
