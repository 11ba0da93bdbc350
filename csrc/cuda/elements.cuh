// Pixels in and out of the kernel's float or double, whatever the dtype of the tensor.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "args.h"
#include "runtime.h"

#define SSIM_DEVICE __device__ __forceinline__

namespace ssim {

template <class E>
struct alignas(4 * sizeof(E)) Four {
  E v[4];
};

// Calls use(P()) with the type P of `dtype`, so that what is done to many elements asks for it once.
template <class Use>
SSIM_DEVICE void as_type(DType dtype, const Use& use) {
  switch (dtype) {
    case DType::kFloat16: use(c10::Half()); break;
    case DType::kBFloat16: use(c10::BFloat16()); break;
    case DType::kFloat32: use(float()); break;
    default: use(double()); break;
  }
}

// The same for pixels of x, y and gradients: T is double where they are, and else they are not.
template <class T, class Use>
SSIM_DEVICE void as_pixels(DType dtype, const Use& use) {
  if constexpr (std::is_same_v<T, double>)
    use(double());
  else if (dtype == DType::kFloat32)
    use(float());
  else if (dtype == DType::kFloat16)
    use(c10::Half());
  else
    use(c10::BFloat16());
}

// Elements as they came, in words of a register or two: whoever converts them waits for them. Above 16 bits stand
// zeros, as a load leaves them.
template <class T>
using Word = std::conditional_t<std::is_same_v<T, double>, uint64_t, uint32_t>;
template <class P>
using BitsOf = std::conditional_t<sizeof(P) == 2, uint16_t, Word<P>>;

template <class P>
SSIM_DEVICE BitsOf<P> bits_of(P element) {
  BitsOf<P> bits;
  memcpy(&bits, &element, sizeof(P));
  return bits;
}

template <class P>
SSIM_DEVICE P element_of(uint64_t word) {
  const BitsOf<P> bits = static_cast<BitsOf<P>>(word);
  P element;
  memcpy(&element, &bits, sizeof(P));
  return element;
}

SSIM_HD int64_t bytes_of_element(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

template <class T>
SSIM_DEVICE T load_any(const View& view, int64_t offset) {
  switch (view.dtype) {
    case DType::kFloat16: return static_cast<T>(static_cast<float>(static_cast<const c10::Half*>(view.data)[offset]));
    case DType::kBFloat16:
      return static_cast<T>(static_cast<float>(static_cast<const c10::BFloat16*>(view.data)[offset]));
    case DType::kFloat32: return static_cast<T>(static_cast<const float*>(view.data)[offset]);
    default: return static_cast<T>(static_cast<const double*>(view.data)[offset]);
  }
}

template <class T>
SSIM_DEVICE void store_any(const View& view, int64_t offset, T value) {
  switch (view.dtype) {
    case DType::kFloat16: static_cast<c10::Half*>(view.data)[offset] = static_cast<float>(value); break;
    case DType::kBFloat16: static_cast<c10::BFloat16*>(view.data)[offset] = static_cast<float>(value); break;
    case DType::kFloat32: static_cast<float*>(view.data)[offset] = static_cast<float>(value); break;
    default: static_cast<double*>(view.data)[offset] = static_cast<double>(value); break;
  }
}

}  // namespace ssim
