// The CPU kernel for AVX2 with FMA.
#if defined(__x86_64__)
#define SSIM_ISA avx2
#define SSIM_VECTOR_BYTES 32
#include "target_begin.h"
SSIM_TARGET_BEGIN("avx2,fma")
#include "unit_kernel.h"
SSIM_DEFINE_KERNELS(kernels_avx2, "AVX2")
SSIM_TARGET_END
#endif
