// The instantiations of the main kernel; each family stands in a file of its own, so that they compile side by side.
#pragma once

#include "args.h"
#include "runtime.h"

namespace ssim {

template <class T>
struct MarchKernel {
  void (*function)(LaunchArgs<T>);
  KernelShape shape;
  bool settles = false;  // what minima and maxima receive, where it finds them itself
};

// Of the kernels that are not lean.
template <class Traits>
constexpr KernelShape general_shape() {
  return {Traits::rows,
          Traits::values,
          sizeof(typename Traits::T),
          kRadius,
          Traits::max_threads,
          Traits::registers,
          kTableBytes,
          kTaskBytes + Traits::rows * int64_t{sizeof(typename Traits::T)}};
}

// The gradient of x alone, exponents of 1, no weight: what training asks for. `dtype` has 16 or 32 bits. `tracks`: it
// also fills range_sums.
MarchKernel<float> lean_march_same(DType dtype, bool tracks);  // and "valid"
MarchKernel<float> lean_march_reflect(DType dtype);            // tracks where asked

// Everything else. sides: 0 no gradient, 2 gradients of x, y or both.
MarchKernel<float> general_march_float(bool separate, int sides);
MarchKernel<double> general_march_double(bool separate, int sides);

}  // namespace ssim
