// The lean kernels, for one padding: of each, a file of its own instantiates them.
#pragma once

#include "march.cuh"
#include "march.h"

namespace ssim {

template <Serves serves, class E, bool tracks>
MarchKernel<float> lean_kernel() {
  KernelShape shape;
  if (serves == Serves::kReflect) shape.table_bytes = kMirrorTableBytes;
  return {march<MarchTraits<float, E, false, 1, 8, serves, tracks, kLeanThreads, kLeanRegisters>>, shape, tracks};
}

template <Serves serves, bool tracks>
MarchKernel<float> lean_kernel_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat16: return lean_kernel<serves, c10::Half, tracks>();
    case DType::kBFloat16: return lean_kernel<serves, c10::BFloat16, tracks>();
    default: return lean_kernel<serves, float, tracks>();
  }
}

}  // namespace ssim
