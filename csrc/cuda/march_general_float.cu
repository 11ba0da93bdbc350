#include "march.cuh"
#include "march.h"

namespace ssim {
namespace {

template <bool separate, int sides>
MarchKernel<float> kernel() {
  using Traits = MarchTraits<float, void, separate, sides, 4, Serves::kAll, sides != 0, kMaxThreads, 255>;
  return {march<Traits>, {Traits::rows, Traits::values, sizeof(float), kRadius, Traits::max_threads, kTableBytes, 0}};
}

}  // namespace

MarchKernel<float> general_march_float(bool separate, int sides) {
  if (separate) return sides ? kernel<true, 2>() : kernel<true, 0>();
  return sides ? kernel<false, 2>() : kernel<false, 0>();
}

}  // namespace ssim
