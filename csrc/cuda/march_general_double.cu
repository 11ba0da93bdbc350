#include "march.cuh"
#include "march.h"

namespace ssim {
namespace {

template <bool separate, int sides>
MarchKernel<double> kernel() {
  using Traits = MarchTraits<double, void, separate, sides, 4, Serves::kAll, sides != 0, kMaxThreads, 255>;
  return {march<Traits>, general_shape<Traits>()};
}

}  // namespace

MarchKernel<double> general_march_double(bool separate, int sides) {
  if (separate) return sides ? kernel<true, 2>() : kernel<true, 0>();
  return sides ? kernel<false, 2>() : kernel<false, 0>();
}

}  // namespace ssim
