// Small kernels, each with a mistake that can be switched on, to try the emulator itself.
// Usage: toys KERNEL PLANTED(0/1) ORDER SEED OS_THREADS; prints "value V", "error TEXT" or dies under a sanitizer.
#include <cuda_runtime.h>

#include <string>
#include <vector>

namespace {

constexpr int kThreads = 96;

float* shared() { return static_cast<float*>(emulator::shared_memory()); }

// Each thread adds what its left neighbour wrote. Ascending order hides a missing barrier.
__global__ void neighbours(float* out, bool planted) {
  float* s = shared();
  s[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (!planted) __syncthreads();
  out[threadIdx.x] = s[threadIdx.x] + (threadIdx.x ? s[threadIdx.x - 1] : 0.0f);
}

// A buffer that is used again before everybody has read it.
__global__ void reused_buffer(float* out, bool planted) {
  float* s = shared();
  float sum = 0;
  for (int round = 1; round < 4; ++round) {
    s[threadIdx.x] = static_cast<float>(threadIdx.x) * static_cast<float>(round);
    __syncthreads();
    sum += s[kThreads - 1 - threadIdx.x];
    if (!planted) __syncthreads();
  }
  out[threadIdx.x] = sum;
}

// Lanes of one warp exchange through shared memory.
__global__ void warp_exchange(float* out, bool planted) {
  float* s = shared();
  s[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (!planted) __syncwarp();
  out[threadIdx.x] = s[threadIdx.x ^ 1] * static_cast<float>(1 + threadIdx.x);
}

__global__ void past_shared(float* out, bool planted) {
  float* s = shared();
  s[threadIdx.x + (planted ? 1 : 0)] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
}

__global__ void past_global(float* out, bool planted) {
  out[threadIdx.x + (planted ? 1 : 0)] = 1.0f;
  if (planted && threadIdx.x == 0) out[0] = 1.0f;
}

__global__ void divergent_barrier(float* out, bool planted) {
  if (planted && threadIdx.x >= 64) return;
  __syncthreads();
  out[threadIdx.x] = 1.0f;
}

__global__ void absent_lane(float* out, bool planted) {
  const unsigned mask = planted && threadIdx.x % 32 == 31 ? 0x7FFFFFFFu : ~0u;
  out[threadIdx.x] = static_cast<float>(__shfl_sync(mask, threadIdx.x % 32, 31));
}

// Every block writes its own slot; planted, all write the first.
__global__ void slots(float* out, bool planted) {
  if (threadIdx.x == 0) out[planted ? 0 : blockIdx.x] = 1.0f;
  if (planted && threadIdx.x == 0 && blockIdx.x == 0)
    for (unsigned i = 1; i < gridDim.x; ++i) out[i] = 1.0f;
}

__device__ unsigned arrived = 0;

// The last block adds up what all wrote; without the fences nothing says that it sees it.
__global__ void last_block_sums(float* out, bool planted) {
  bool* last = reinterpret_cast<bool*>(shared());
  if (threadIdx.x == 0) {
    out[blockIdx.x] = static_cast<float>(blockIdx.x + 1);
    if (!planted) __threadfence();
    *last = atomicAdd(&arrived, 1u) == gridDim.x - 1;
    if (!planted) __threadfence();
  }
  __syncthreads();
  if (!*last || threadIdx.x) return;
  float sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += out[i];
  out[gridDim.x] = sum;
  arrived = 0;
}

// Shuffles, votes, reductions and counting barriers.
__global__ void warps(float* out, bool) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  float sum = static_cast<float>(lane);
  for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);  // 496
  const float down = __shfl_down_sync(~0u, static_cast<float>(lane), 1);        // lane + 1, last keeps 31
  const float segment = __shfl_sync(~0u, static_cast<float>(lane), 2, 8);       // lane / 8 * 8 + 2
  const unsigned odd = __ballot_sync(~0u, lane & 1);
  const int most = __reduce_max_sync(~0u, lane), all = __reduce_add_sync(~0u, 1);
  const int voters = __syncthreads_count(threadIdx.x < 40);
  const bool right = sum == 496.0f && down == static_cast<float>(std::min(lane + 1, 31)) &&
                     segment == static_cast<float>(lane / 8 * 8 + 2) && odd == 0xAAAAAAAAu && most == 31 && all == 32 &&
                     voters == 40 && __any_sync(~0u, lane == 3) && !__all_sync(~0u, lane == 3);
  out[threadIdx.x] = right ? 1.0f : 0.0f;
}

struct Toy {
  const char* name;
  void (*kernel)(float*, bool);
  unsigned blocks;
  double expected;
};
const Toy kToys[] = {
    {"neighbours", neighbours, 1, 96 * 95 / 2 + 95 * 94 / 2},
    {"reused_buffer", reused_buffer, 1, 6 * 96 * 95 / 2},
    {"warp_exchange", warp_exchange, 1, 294832},
    {"past_shared", past_shared, 1, 96},
    {"past_global", past_global, 1, 96},
    {"divergent_barrier", divergent_barrier, 1, 96},
    {"absent_lane", absent_lane, 1, 96 * 31},
    {"slots", slots, 4, 4},
    {"last_block_sums", last_block_sums, 4, 20},
    {"warps", warps, 1, 96},
};

}  // namespace

int main(int count, char** arguments) {
  if (count != 6) return std::fprintf(stderr, "usage: toys KERNEL PLANTED ORDER SEED OS_THREADS\n"), 2;
  const std::string name = arguments[1];
  emulator::options().order = static_cast<emulator::Order>(std::atoi(arguments[3]));
  emulator::options().seed = static_cast<unsigned>(std::atoi(arguments[4]));
  emulator::options().os_threads = std::atoi(arguments[5]);
  for (const Toy& toy : kToys) {
    if (name != toy.name) continue;
    std::vector<float> out(kThreads, 0.0f);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(toy.blocks);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = kThreads * sizeof(float);
    const cudaError_t error = cudaLaunchKernelEx(&config, toy.kernel, out.data(), arguments[2][0] == '1');
    if (error != cudaSuccess) return std::printf("error %s\n", cudaGetErrorString(error)), 0;
    double sum = 0;
    for (float v : out) sum += v;
    return std::printf(sum == toy.expected ? "right\n" : "wrong: %g instead of %g\n", sum, toy.expected), 0;
  }
  return std::fprintf(stderr, "no kernel %s\n", name.c_str()), 2;
}
