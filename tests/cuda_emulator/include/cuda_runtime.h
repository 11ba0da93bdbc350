// The part of CUDA's language and runtime that a kernel may use to run under ../emulator.h as well.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "../emulator.h"

#define CUDA_EMULATOR 1
#define CUDART_VERSION 13000

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)
#define __shared__ static thread_local

constexpr int warpSize = 32;

// ---- Barriers and warps ----

inline void __syncthreads() { emulator::block_barrier(); }
inline int __syncthreads_count(int p) { return emulator::block_barrier_count(p != 0); }
inline void __syncwarp(unsigned mask = ~0u) { emulator::warp_barrier(mask, true); }
inline void __threadfence() { emulator::fence(); }

template <class T>
T __ldcg(const T* place) {
  return *place;
}

namespace emulator {

template <class T>
uint64_t bits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t result = 0;
  std::memcpy(&result, &value, sizeof value);
  return result;
}

// Every lane of the mask gives a value and takes that of lane `source`; a negative one stands for its own.
template <class T>
T shuffle(unsigned mask, T value, int source) {
  if (!(mask >> lane() & 1)) fail("shuffle: the calling lane is not in the mask");
  give(bits(value));
  warp_barrier(mask, false);
  if (source >= 0 && source != lane()) {
    if (!(mask >> source & 1)) fail("shuffle: takes from a lane that is not in the mask");
    const uint64_t taken = take(source);
    std::memcpy(&value, &taken, sizeof value);
  }
  warp_barrier(mask, false);
  return value;
}

// Folds the values of all lanes of the mask, in lane order.
template <class T, class F>
T fold(unsigned mask, T value, F&& join) {
  if (!(mask >> lane() & 1)) fail("warp vote or reduction: the calling lane is not in the mask");
  give(bits(value));
  warp_barrier(mask, false);
  bool first = true;
  T result{};
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1) {
      const uint64_t taken = take(i);
      T one;
      std::memcpy(&one, &taken, sizeof one);
      result = first ? one : join(result, one);
      first = false;
    }
  warp_barrier(mask, false);
  return result;
}

}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return emulator::shuffle(mask, value, (emulator::lane() & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32) {
  const int me = emulator::lane(), source = me ^ flip;
  return emulator::shuffle(mask, value, (source & ~(width - 1)) > (me & ~(width - 1)) ? -1 : source);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int me = emulator::lane(), step = static_cast<int>(by);
  return emulator::shuffle(mask, value, (me & (width - 1)) + step >= width ? -1 : me + step);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return emulator::fold(mask, predicate ? 1u << emulator::lane() : 0u, [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
template <class T>
T __reduce_add_sync(unsigned mask, T value) {
  return emulator::fold(mask, value, [](T a, T b) { return static_cast<T>(a + b); });
}
template <class T>
T __reduce_max_sync(unsigned mask, T value) {
  return emulator::fold(mask, value, [](T a, T b) { return std::max(a, b); });
}

// ---- Atomics: relaxed, as on a device; only __threadfence orders them ----

namespace emulator {

template <class T, class F>
T atomic(T* place, F&& change) {
  before_atomic(place);
  T before, after;
  __atomic_load(place, &before, __ATOMIC_RELAXED);
  do {
    after = change(before);
  } while (!__atomic_compare_exchange(place, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  after_atomic(place);
  return before;
}

}  // namespace emulator

template <class T, class U>
T atomicAdd(T* place, U value) {
  return emulator::atomic(place, [=](T old) { return static_cast<T>(old + static_cast<T>(value)); });
}

// ---- Arithmetic with a name of its own ----

template <class T, class U, class = std::enable_if_t<std::is_arithmetic_v<T> && std::is_arithmetic_v<U>>>
constexpr std::common_type_t<T, U> max(T a, U b) {
  using V = std::common_type_t<T, U>;
  if constexpr (std::is_floating_point_v<V>) return a != a || V(a) < V(b) ? V(b) : V(a);
  return V(a) < V(b) ? V(b) : V(a);
}
template <class T, class U, class = std::enable_if_t<std::is_arithmetic_v<T> && std::is_arithmetic_v<U>>>
constexpr std::common_type_t<T, U> min(T a, U b) {
  using V = std::common_type_t<T, U>;
  if constexpr (std::is_floating_point_v<V>) return a != a || V(b) < V(a) ? V(b) : V(a);
  return V(b) < V(a) ? V(b) : V(a);
}

// ---- Runtime: one device, whose work is done when a call returns ----

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};
enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxRegistersPerMultiprocessor = 82,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrMaxBlocksPerMultiprocessor = 106,
  cudaDevAttrReservedSharedMemoryPerBlock = 111,
};
using cudaStream_t = struct CUstream_st*;
struct cudaLaunchAttribute {};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    default: return *emulator::failure() ? emulator::failure() : "unspecified launch failure";
  }
}
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMaxSharedMemoryPerBlock: return *value = 48 << 10, cudaSuccess;
    case cudaDevAttrMultiProcessorCount: return *value = emulator::options().multiprocessors, cudaSuccess;
    case cudaDevAttrMaxBlocksPerMultiprocessor: return *value = emulator::options().resident_blocks, cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return *value = 2048, cudaSuccess;
    case cudaDevAttrMaxRegistersPerMultiprocessor: return *value = 64 << 10, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return *value = static_cast<int>(emulator::options().shared_limit) + (1 << 10), cudaSuccess;
    case cudaDevAttrReservedSharedMemoryPerBlock: return *value = 1 << 10, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: return *value = 9, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: return *value = 0, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = static_cast<int>(emulator::options().shared_limit), cudaSuccess;
  }
  return cudaErrorInvalidValue;
}
inline cudaError_t cudaMemset(void* place, int value, size_t bytes) {
  return std::memset(place, value, bytes), cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* place, int value, size_t bytes, cudaStream_t = nullptr) {
  return cudaMemset(place, value, bytes);
}
template <class... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  return static_cast<cudaError_t>(
      emulator::set_shared_limit(reinterpret_cast<const void*>(kernel), static_cast<size_t>(value)));
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  return static_cast<cudaError_t>(emulator::set_shared_limit(kernel, static_cast<size_t>(value)));
}
template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... arguments) {
  // Copied once, as a device copies parameters at the launch; every thread then gets its own.
  struct Call {
    void (*kernel)(P...);
    std::tuple<std::decay_t<P>...> arguments;
  } call{kernel, {std::forward<A>(arguments)...}};
  const auto launch = [&](auto&... argument) {
    const void* const places[] = {&argument...};
    const size_t sizes[] = {sizeof(argument)...};
    return emulator::launch(config->gridDim, config->blockDim, config->dynamicSmemBytes,
                            reinterpret_cast<const void*>(kernel),
                            [](void* place) {
                              const Call& c = *static_cast<const Call*>(place);
                              std::apply(c.kernel, c.arguments);
                            },
                            &call, {places, sizes, sizeof...(argument)});
  };
  const int error = std::apply(launch, call.arguments);
  return static_cast<cudaError_t>(error);
}
