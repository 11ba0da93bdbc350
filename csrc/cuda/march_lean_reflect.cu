#include "march_lean.cuh"

namespace ssim {

// Distillation mirrors, and asks for what minimum and maximum receive. Others pay half a percent, and one kernel less
// for each dtype has to be compiled.
MarchKernel<float> lean_march_reflect(DType dtype) { return lean_kernel_of<Serves::kReflect, true>(dtype); }

}  // namespace ssim
