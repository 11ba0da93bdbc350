// How many fused multiply-adds a second the device issues: independent chains in registers and nothing else.
// nvcc -O3 -arch=native -shared -Xcompiler -fPIC fma_ceiling.cu -o libfma_ceiling.so
#include <cuda_runtime.h>

namespace {

constexpr int kChains = 8, kSteps = 1 << 14, kThreads = 256, kRuns = 10;

__global__ void __launch_bounds__(kThreads) chains(float* out, float a, float b) {
  float v[kChains];
#pragma unroll
  for (int i = 0; i < kChains; ++i) v[i] = static_cast<float>(threadIdx.x + i);
#pragma unroll 16
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) v[i] = fmaf(v[i], a, b);
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kChains; ++i) sum += v[i];
  if (sum == 1.0f) *out = sum;  // never, which the compiler cannot know
}

}  // namespace

// Of single threads, not warps; the best of a few launches. Negative: the CUDA error.
extern "C" double fma_per_second() {
  int device = 0, multiprocessors = 0;
  float* out = nullptr;
  cudaEvent_t begin, end;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaMalloc(&out, sizeof(float));
  cudaEventCreate(&begin), cudaEventCreate(&end);
  const int blocks = 8 * multiprocessors;
  double best = 0;
  for (int run = 0; run < kRuns; ++run) {
    cudaEventRecord(begin);
    chains<<<blocks, kThreads>>>(out, 0.999f, 0.001f);
    cudaEventRecord(end);
    cudaEventSynchronize(end);
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, begin, end);
    const double rate = 1e3 * blocks * kThreads * static_cast<double>(kChains) * kSteps / milliseconds;
    if (rate > best) best = rate;
  }
  cudaEventDestroy(begin), cudaEventDestroy(end), cudaFree(out);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? best : -static_cast<double>(error);
}
