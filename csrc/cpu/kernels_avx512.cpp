// The CPU kernel for AVX-512.
#if defined(__x86_64__)
#define SSIM_ISA avx512
#define SSIM_VECTOR_BYTES 64
#include "target_begin.h"
SSIM_TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#include "unit_kernel.h"
SSIM_DEFINE_KERNELS(kernels_avx512, "AVX-512")
SSIM_TARGET_END
#endif
