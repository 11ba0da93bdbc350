// The unit of work of the CPU kernel: a rectangle of one (n, c) plane, and what passes between it and its driver.
#pragma once

#include "../ssim_params.h"

namespace ssim {

// Rows [row0, row1) and columns [col0, col1) of plane (n, c): the unit alone writes and sums these pixels. It reads up
// to 2 * kRadius further on each side, so neighbours recompute each other's borders instead of waiting for them.
struct Unit {
  int64_t n, c, row0, row1, col0, col1;
};

struct UnitSums {
  double ssim = 0;  // sum of seed * SSIM
  double seed = 0;  // sum of the seeds, or the number of map pixels where there are none
  double l1 = 0;    // sum of seed * |x - y|
  // Sums of the gradient, and of gradient * x', by x and by y: what minimum and maximum receive. Only where asked for.
  double grad[2] = {0, 0}, grad_value[2] = {0, 0};
};

struct Extremes {
  double low, high;
};

// x' = (x - low) * scale before anything else, for x and for y.
struct Range {
  double low = 0, scale = 1;
};

// Scratch memory of one thread, and the shape for which its margins are zero and its edge tables made.
struct Workspace {
  void* memory = nullptr;
  int64_t left = -1, width = -1, right = -1;
  bool mirror_left = false, mirror_right = false;
};

// Row copies between a strided tensor of any dtype and a dense row; compiled once, for the baseline.
template <class T>
struct RowAccess {
  void (*load)(T* row, const View& view, int64_t offset, int64_t count);
  void (*store)(const T* row, const View& view, int64_t offset, int64_t count);
};

template <class T>
struct UnitCall {
  const Problem* problem;
  const Level* level;
  Unit unit;
  Range range_x, range_y;
  RowAccess<T> access;
  Workspace* workspace;
};

constexpr int64_t kStripColumns = 256;  // widest unit in pixels, unless the whole map is at most kWholeColumns wide
constexpr int64_t kWholeColumns = 320;
constexpr int64_t kWorkspaceBytes =
    1 << 19;  // 127 rows of doubles, kWholeColumns and their margins wide, and the edge tables need 355 KB

// Entry points of one instruction set.
struct UnitKernels {
  const char* name;
  UnitSums (*run_float)(const UnitCall<float>&);
  UnitSums (*run_double)(const UnitCall<double>&);
  Extremes (*widen_float)(const float* row, int64_t count, Extremes so_far);
  Extremes (*widen_double)(const double* row, int64_t count, Extremes so_far);
};

const UnitKernels* kernels_baseline();
#if defined(__x86_64__)
const UnitKernels* kernels_avx2();
const UnitKernels* kernels_avx512();
#endif

}  // namespace ssim
