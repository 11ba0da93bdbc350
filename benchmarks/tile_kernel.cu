// SSIM and its gradient in the straightforward way, for contrast (benchmarks/static_cost.py): tiles of 16 x 16 pixels
// with a halo of 5, separable filters in shared memory, three maps saved by the forward kernel for the backward one.
#include <cuda_runtime.h>

constexpr int kTile = 16, kRadius = 5, kWide = kTile + 2 * kRadius;
__constant__ float taps[2 * kRadius + 1];

__device__ float at(const float* map, int h, int w, int row, int column) {
  return row >= 0 && row < h && column >= 0 && column < w ? map[static_cast<long>(row) * w + column] : 0.0f;
}

// Filters `count` maps of a tile with halo along rows, then columns.
template <int count>
__device__ void filter(const float (*tile)[kWide][kWide], float (*rows)[kWide][kTile], float (&result)[count]) {
  for (int i = threadIdx.y; i < kWide; i += kTile)
    for (int n = 0; n < count; ++n) {
      float sum = 0;
      for (int k = 0; k <= 2 * kRadius; ++k) sum += taps[k] * tile[n][i][threadIdx.x + k];
      rows[n][i][threadIdx.x] = sum;
    }
  __syncthreads();
  for (int n = 0; n < count; ++n) {
    result[n] = 0;
    for (int k = 0; k <= 2 * kRadius; ++k) result[n] += taps[k] * rows[n][threadIdx.y + k][threadIdx.x];
  }
}

extern "C" __global__ void __launch_bounds__(kTile* kTile)
    tile_forward(const float* x, const float* y, float* values, float* by_mean, float* by_square, float* by_product,
                 int h, int w) {
  __shared__ float tile[5][kWide][kWide], rows[5][kWide][kTile];
  const long plane = static_cast<long>(blockIdx.z) * h * w;
  for (int i = threadIdx.y; i < kWide; i += kTile)
    for (int j = threadIdx.x; j < kWide; j += kTile) {
      const int row = static_cast<int>(blockIdx.y) * kTile + i - kRadius;
      const int column = static_cast<int>(blockIdx.x) * kTile + j - kRadius;
      const float a = at(x + plane, h, w, row, column), b = at(y + plane, h, w, row, column);
      tile[0][i][j] = a, tile[1][i][j] = b;
      tile[2][i][j] = a * a, tile[3][i][j] = b * b, tile[4][i][j] = a * b;
    }
  __syncthreads();
  float m[5];
  filter<5>(tile, rows, m);
  const int row = blockIdx.y * kTile + threadIdx.y, column = blockIdx.x * kTile + threadIdx.x;
  if (row >= h || column >= w) return;
  const float c1 = 1e-4f, c2 = 9e-4f;
  const float a1 = 2 * m[0] * m[1] + c1, b1 = m[0] * m[0] + m[1] * m[1] + c1;
  const float a2 = 2 * (m[4] - m[0] * m[1]) + c2, b2 = m[2] - m[0] * m[0] + m[3] - m[1] * m[1] + c2;
  const float value = a1 * a2 / (b1 * b2);
  const long i = plane + static_cast<long>(row) * w + column;
  values[i] = value;
  by_mean[i] = 2 * m[1] * (a2 - a1) / (b1 * b2) - 2 * m[0] * value * (1 / b1 - 1 / b2);
  by_square[i] = -value / b2;
  by_product[i] = 2 * a1 / (b1 * b2);
}

extern "C" __global__ void __launch_bounds__(kTile* kTile)
    tile_backward(const float* x, const float* y, const float* upstream, const float* by_mean, const float* by_square,
                  const float* by_product, float* gradient, int h, int w) {
  __shared__ float tile[3][kWide][kWide], rows[3][kWide][kTile];
  const long plane = static_cast<long>(blockIdx.z) * h * w;
  for (int i = threadIdx.y; i < kWide; i += kTile)
    for (int j = threadIdx.x; j < kWide; j += kTile) {
      const int row = static_cast<int>(blockIdx.y) * kTile + i - kRadius;
      const int column = static_cast<int>(blockIdx.x) * kTile + j - kRadius;
      const float seed = at(upstream + plane, h, w, row, column);
      tile[0][i][j] = seed * at(by_mean + plane, h, w, row, column);
      tile[1][i][j] = seed * at(by_square + plane, h, w, row, column);
      tile[2][i][j] = seed * at(by_product + plane, h, w, row, column);
    }
  __syncthreads();
  float m[3];
  filter<3>(tile, rows, m);
  const int row = blockIdx.y * kTile + threadIdx.y, column = blockIdx.x * kTile + threadIdx.x;
  if (row >= h || column >= w) return;
  const long i = plane + static_cast<long>(row) * w + column;
  gradient[i] = m[0] + 2 * x[i] * m[1] + y[i] * m[2];
}
