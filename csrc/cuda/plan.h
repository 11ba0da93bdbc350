// How the CUDA kernel cuts a pyramid into blocks: a pure function of shapes and device limits, without CUDA.
//
// A block marches down the rows of its piece, one thread for each column. A piece is a whole (n, c) map, several small
// maps beside each other, or, of a map too wide or with too few of them to fill the chip, a strip of columns and a band
// of rows.
#pragma once

#include <cstdint>
#include <vector>

namespace ssim {

constexpr int kMaxThreads = 256;
constexpr int kMaxLevels = 8;          // of one launch
constexpr int kMargin = 8;             // columns of shared memory on either side of a block's own
constexpr int64_t kSegment = 8;        // strips and neighbouring maps begin at multiples of this
constexpr int64_t kTableBytes = 3584;  // of shared memory, beside ring and cells: Tables in block.cuh
constexpr int64_t kLeanTableBytes = 1792;
constexpr int64_t kMirrorTableBytes = 2304;  // of a lean kernel that mirrors
constexpr int64_t kMinBandRows = 8;          // fewest rows worth a block of their own: it recomputes up to 20

constexpr int kLeanThreads = 224;  // of the lean kernel, at most
// Sixteen warps of 128 registers fit on a multiprocessor: three blocks of the five that a map of 152 columns takes. Of
// more registers only twelve do, three on each of its four parts.
constexpr int kLeanRegisters = 128;
constexpr int64_t kTaskBytes = 48;  // of shared memory for each of its threads: Task in block.cuh

struct DeviceLimits {
  int64_t multiprocessors = 1;
  int64_t shared_per_block = 48 << 10;  // bytes a block may ask for
  // Of a multiprocessor: how many blocks are there at once follows from these.
  int64_t shared = 64 << 10;          // bytes
  int64_t shared_reserved = 1 << 10;  // of them, for each block besides what it asks for
  int64_t registers = 64 << 10;
  int64_t threads = 1024;
  int64_t blocks = 16;
};

// What a kernel needs of shared memory, and how many columns lie between neighbouring maps; as it stands, the lean one.
struct KernelShape {
  int64_t rows = 8;           // that a block processes at a time
  int64_t values = 4;         // of a pixel between the vertical and the horizontal filter
  int64_t element_bytes = 4;  // float or double
  int64_t gap = 5;            // zero columns between neighbouring maps
  int64_t max_threads = kLeanThreads;
  int64_t registers = kLeanRegisters;  // of a thread, at most
  int64_t table_bytes = kLeanTableBytes;
  int64_t thread_bytes = kTaskBytes;  // besides, for each thread
  int64_t ring_rows() const { return 2 * rows + 10; }
  int64_t ring_pitch(int64_t threads) const { return threads + 2 * kMargin + 2; }
  int64_t shared_bytes(int64_t threads) const;
  // Blocks that a multiprocessor holds at once, as far as they fit at all.
  int64_t resident(int64_t threads, const DeviceLimits& limits) const;
};

struct LevelShape {
  int64_t planes, h, w;
};

struct CudaLevelPlan {
  int64_t maps = 1;  // beside each other in a block
  int64_t slot = 0;  // columns from one to the next
  int64_t strips = 1, strip_columns = 0;
  int64_t bands = 1, band_rows = 0;
  int64_t blocks = 0;
};

struct CudaPlan {
  int threads = 0;
  int64_t shared_bytes = 0;
  int64_t resident = 0;  // blocks of a multiprocessor at once
  std::vector<CudaLevelPlan> levels;
};

// Throws std::runtime_error where shared memory does not hold even the narrowest block.
CudaPlan plan_cuda(const std::vector<LevelShape>& levels, const KernelShape& kernel, const DeviceLimits& limits);

}  // namespace ssim
