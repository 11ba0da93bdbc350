// What a thread of the main kernel keeps outside its registers, which the column filters fill.
#pragma once

#include "elements.cuh"

namespace ssim {

// What a thread of a lean kernel asks for once in a chunk, behind the tables and for the same reason. It takes R pixels
// of a row in the horizontal filters; in chunk 0 it loads and writes there, or, where pixels do not go four at a time,
// in its column.
template <class E>
struct alignas(16) Task {
  const E *x, *y;  // where it has no pixels, somewhere else that can be read
  E* grad_x;
  int32_t chunks;                  // that have the row
  uint8_t map, end;                // of the block's maps; how many of the R pixels it has
  float ssim_sum;                  // of the thread's column
  float l1_sum;                    // of |v| over its pixels that are the block's own
  float grad_sum, grad_value_sum;  // of its pixels: what RangeSums adds up for x
};

// Of the general kernel, which learns while it runs what types of tensors there are: where its column begins in them.
template <>
struct alignas(16) Task<void> {
  const void *x, *y, *seed;
  void *map, *grad_x, *grad_y;
};

// The same a number of chunks further on; `step` is in bytes. No integer in between: of a pointer made from one the
// compiler forgets what memory it is to.
template <class Item>
SSIM_DEVICE Item* further(Item* pointer, int chunks, int64_t step) {
  using Byte = std::conditional_t<std::is_const_v<Item>, const char, char>;
  const uint64_t bytes = static_cast<unsigned>(chunks) * static_cast<uint64_t>(step);
  return reinterpret_cast<Item*>(reinterpret_cast<Byte*>(pointer) + bytes);
}

// Tells the compiler what it cannot see of a pointer that comes from shared memory.
template <class Item>
SSIM_DEVICE Item* in_global_memory(Item* pointer) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

// What a thread does, and what its block was asked for; bits of one register.
enum Role : unsigned {
  kFiltersRow = 1,   // its R pixels of a row are needed
  kOwnsRow = 2,      // they are the block's own
  kHasPartials = 4,  // the partials of its column are needed
  kOwnsColumn = 8,   // its column is the block's own
  kLoadsHalo = 16,   // columns beyond the block's first and last one are loaded
  kRescales = 32,    // by minima and maxima
  kSumsL1 = 64,
  kLoadsColumn = 128,  // its column has pixels
  // Of padding "reflect":
  kMirrorsRow = 256,     // its R pixels lie at a border beyond which u, v are needed
  kMirrorsColumn = 512,  // the partials of its column have images
  kHalves = 1024,        // among its R pixels is one at a border, which counts half
  // Of the general kernel:
  kWeighs = 2048,
  kWritesMap = 4096,
};

class Roles {
 public:
  SSIM_DEVICE bool operator()(Role role) const { return (bits_ & role) != 0; }
  SSIM_DEVICE void set(Role role, bool value) { bits_ |= value ? role : 0u; }

  // Keeps the compiler from taking the bits apart again, to a register each.
  SSIM_DEVICE void seal() {
#if defined(__CUDA_ARCH__)
    asm volatile("" : "+r"(bits_));
#endif
  }

 private:
  unsigned bits_ = 0;
};

// The thread's number, read anew: what follows from it is computed where it is used, rather than once before the loop
// over chunks to fill registers there.
SSIM_DEVICE int fresh_thread() {
#if defined(__CUDA_ARCH__)
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
#else
  return static_cast<int>(threadIdx.x);
#endif
}

}  // namespace ssim
