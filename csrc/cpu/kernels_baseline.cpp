// The CPU kernel for whatever the compiler takes as given: SSE2 on x86-64, NEON on ARM.
#define SSIM_ISA baseline
#define SSIM_VECTOR_BYTES 16
#include "unit_kernel.h"
SSIM_DEFINE_KERNELS(kernels_baseline, "baseline")
