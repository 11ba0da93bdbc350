// Runs CUDA kernels on the host, for tests: what the headers in include/ and the tests need from the scheduler.
//
// One fiber for each CUDA thread, one operating-system thread for each block that runs at the moment. A mistake in a
// kernel (divergent barrier, write beside shared memory, shuffle with an absent lane) ends the launch with
// cudaErrorLaunchFailure and a sentence that names block and thread. Data races on shared memory show in two ways: as a
// wrong result, since threads run in an order that the test chooses and shared memory starts as NaN, and under
// ThreadSanitizer, which sees no other ordering between fibers than barriers, fences and atomics.
//
// Not emulated: inline PTX, tensor cores, cp.async, clusters, cooperative groups, and whatever only timing or a weaker
// memory model shows. Static __shared__ variables are zero, not NaN, where a block finds them first.
#pragma once

#include <cstddef>
#include <cstdint>

#include "include/vector_types.h"

namespace emulator {

enum class Order : int { kAscending, kRandom, kDescending };

// Runs a launch in the place of the emulator; the kernel by its mangled name. Returns 0, or 1 for a failure.
using Executor = int (*)(const char* kernel, const unsigned* grid, const unsigned* block, size_t shared_bytes,
                         const void* const* parameters, const size_t* sizes, int count);

struct Options {
  Order order = Order::kRandom;  // of threads in a block; blocks run backwards for all but kAscending
  unsigned seed = 0;
  int os_threads = 1;            // blocks that run at a time
  int multiprocessors = 132;     // what the device says it has
  int resident_blocks = 2;       // at most, of each: few, so that small tensors fill the device and are packed
  size_t shared_limit = 232448;  // bytes of shared memory a block may ask for
  Executor executor = nullptr;
};
Options& options();

// How many launches, blocks and threads have run in this process, so that a test knows that the emulator did the work.
struct Totals {
  uint64_t launches, blocks, threads;
};
Totals totals();

// The mangled names of the kernels launched since the last call, a line each, as far as the linker exports them.
const char* launched_kernels();

// The last mistake of a kernel, or "".
const char* failure();

// For the running CUDA thread. Those that can fail do not return then.
[[noreturn]] void fail(const char* what);
void* shared_memory();  // this block's dynamic shared memory
size_t shared_bytes();
void block_barrier();
int block_barrier_count(bool predicate);  // how many threads of the block gave true
void warp_barrier(unsigned mask, bool orders_memory);
int lane();
void give(uint64_t value);  // to the other lanes of the warp, between two warp barriers
uint64_t take(int lane);
void fence();                           // __threadfence
void before_atomic(const void* place);  // ThreadSanitizer: what fences before and after an atomic order
void after_atomic(const void* place);

// What a kernel receives, for an executor.
struct Parameters {
  const void* const* places;
  const size_t* sizes;
  int count;
};
// Runs the grid; 0 or a cudaError_t.
int launch(dim3 grid, dim3 block, size_t shared_bytes, const void* kernel, void (*run)(void*), void* argument,
           const Parameters& parameters);
// Above 48 KiB a kernel must ask first, as on a device; here never for less than before.
int set_shared_limit(const void* kernel, size_t bytes);

}  // namespace emulator

// __thread, not thread_local: known to need no initialisation, so an access is no function call.
extern __thread uint3 threadIdx, blockIdx;
extern __thread dim3 blockDim, gridDim;
