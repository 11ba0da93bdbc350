#include "march.cuh"
#include "march.h"

namespace ssim {
namespace {

template <bool separate, int sides>
MarchKernel<float> kernel() {
  // What each takes without spills; the plan counts how many blocks fit by it.
  constexpr int registers = sides == 0 ? (separate ? 168 : 128) : separate ? 255 : 168;
  using Traits = MarchTraits<float, void, separate, sides, 8, Serves::kAll, sides != 0, kMaxThreads, registers>;
  return {march<Traits>, general_shape<Traits>()};
}

}  // namespace

MarchKernel<float> general_march_float(bool separate, int sides) {
  if (separate) return sides ? kernel<true, 2>() : kernel<true, 0>();
  return sides ? kernel<false, 2>() : kernel<false, 0>();
}

}  // namespace ssim
