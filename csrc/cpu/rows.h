// Rows of any dtype and stride, to and from the kernel's float or double.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstring>
#include <type_traits>

#include "unit.h"

namespace ssim {

template <class T, class From>
void load_as(T* row, const void* data, int64_t offset, int64_t stride, int64_t count) {
  const From* from = static_cast<const From*>(data) + offset;
  if (std::is_same_v<T, From> && stride == 1) {
    std::memcpy(row, from, count * sizeof(T));
    return;
  }
  for (int64_t i = 0; i < count; ++i) row[i] = static_cast<T>(from[i * stride]);
}

template <class T, class To>
void store_as(const T* row, void* data, int64_t offset, int64_t stride, int64_t count) {
  To* to = static_cast<To*>(data) + offset;
  if (std::is_same_v<T, To> && stride == 1) {
    std::memcpy(to, row, count * sizeof(T));
    return;
  }
  for (int64_t i = 0; i < count; ++i) to[i * stride] = static_cast<To>(row[i]);
}

template <class T>
void load_row(T* row, const View& view, int64_t offset, int64_t count) {
  switch (view.dtype) {
    case DType::kFloat16: return load_as<T, c10::Half>(row, view.data, offset, view.stride_w, count);
    case DType::kBFloat16: return load_as<T, c10::BFloat16>(row, view.data, offset, view.stride_w, count);
    case DType::kFloat32: return load_as<T, float>(row, view.data, offset, view.stride_w, count);
    case DType::kFloat64: return load_as<T, double>(row, view.data, offset, view.stride_w, count);
  }
}

template <class T>
void store_row(const T* row, const View& view, int64_t offset, int64_t count) {
  switch (view.dtype) {
    case DType::kFloat16: return store_as<T, c10::Half>(row, view.data, offset, view.stride_w, count);
    case DType::kBFloat16: return store_as<T, c10::BFloat16>(row, view.data, offset, view.stride_w, count);
    case DType::kFloat32: return store_as<T, float>(row, view.data, offset, view.stride_w, count);
    case DType::kFloat64: return store_as<T, double>(row, view.data, offset, view.stride_w, count);
  }
}

}  // namespace ssim
