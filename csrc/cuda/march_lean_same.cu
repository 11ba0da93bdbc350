#include "march_lean.cuh"

namespace ssim {

MarchKernel<float> lean_march_same(DType dtype, bool tracks) {
  return tracks ? lean_kernel_of<Serves::kSame, true>(dtype) : lean_kernel_of<Serves::kSame, false>(dtype);
}

}  // namespace ssim
