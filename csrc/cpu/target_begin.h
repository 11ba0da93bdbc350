// Compiles what stands between SSIM_TARGET_BEGIN and SSIM_TARGET_END for another instruction set than the rest.
// Standard headers come before, so that none of their functions is compiled for it and shared by the linker.
#pragma once

#include <immintrin.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define SSIM_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define SSIM_TARGET_BEGIN(features) \
  SSIM_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define SSIM_TARGET_END _Pragma("clang attribute pop")
#else
#define SSIM_TARGET_BEGIN(features) _Pragma("GCC push_options") SSIM_PRAGMA(GCC target(features))
#define SSIM_TARGET_END _Pragma("GCC pop_options")
#endif
