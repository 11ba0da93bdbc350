#include "march.cuh"
#include "march.h"

namespace ssim {
namespace {

template <class E, bool tracks>
MarchKernel<float> kernel() {
  return {march<MarchTraits<float, E, false, 1, 8, true, tracks, kLeanThreads, kLeanRegisters>>, KernelShape(), tracks};
}

template <bool tracks>
MarchKernel<float> kernel_for(DType dtype) {
  switch (dtype) {
    case DType::kFloat16: return kernel<c10::Half, tracks>();
    case DType::kBFloat16: return kernel<c10::BFloat16, tracks>();
    default: return kernel<float, tracks>();
  }
}

}  // namespace

MarchKernel<float> lean_march(DType dtype, bool tracks) {
  return tracks ? kernel_for<true>(dtype) : kernel_for<false>(dtype);
}

}  // namespace ssim
