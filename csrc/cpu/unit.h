// The unit of work of the CPU kernel, and what passes between it and its driver.
//
// Every lane of a SIMD vector works on a band of rows of its own: of another plane (n, c), or of another part of the
// same one. So both filters run along sequences of vectors, none of which is ever shifted, and small maps waste no
// lanes.
#pragma once

#include "../ssim_params.h"

namespace ssim {

constexpr int kMaxLanes = 16;

// A lane's band: rows [row0, row0 + Unit::rows) of plane (n, c), as far as the plane has them.
struct Band {
  int64_t n, c, row0;
};

// The unit alone writes and sums the pixels of its bands in columns [col0, col1). It reads up to 2 * kRadius further on
// each side, so neighbours recompute each other's borders instead of waiting for them.
struct Unit {
  int count = 0;  // lanes in use; the others repeat the first, and nothing is kept of them
  Band bands[kMaxLanes];
  int64_t rows, col0, col1;
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
  Range range_x[kMaxLanes], range_y[kMaxLanes];
  RowAccess<T> access;
  void* workspace;           // kWorkspaceBytes, aligned to 64
  UnitSums sums[kMaxLanes];  // result
};

constexpr int64_t kStripColumns = 80;  // widest unit in pixels, unless the whole map is at most kWholeColumns wide
constexpr int64_t kWholeColumns = kStripColumns + 20;
constexpr int64_t kWorkspaceBytes = 1 << 20;

// Entry points of one instruction set.
struct UnitKernels {
  const char* name;
  int lanes_float, lanes_double;
  void (*run_float)(UnitCall<float>&);
  void (*run_double)(UnitCall<double>&);
  Extremes (*widen_float)(const float* row, int64_t count, Extremes so_far);
  Extremes (*widen_double)(const double* row, int64_t count, Extremes so_far);
};

const UnitKernels* kernels_baseline();
#if defined(__x86_64__)
const UnitKernels* kernels_avx2();
const UnitKernels* kernels_avx512();
#endif

}  // namespace ssim
