// What a launch receives, by value.
#pragma once

#include "../ssim_params.h"
#include "plan.h"

namespace ssim {

// Minimum and maximum of x (side 0) and y (side 1), in the kernel's T.
template <class T>
struct RangePair {
  T low[2], high[2];
};

// What minimum and maximum receive: sums of the gradient, and of gradient * x', by x and by y.
struct RangeSums {
  double grad[2], grad_value[2];
};

template <class T>
struct LevelArgs {
  View x, y, seed, map, grad_x, grad_y;
  int32_t h, w;
  uint32_t planes, channels;
  uint32_t maps;  // of a block, see CudaLevelPlan
  int32_t slot;
  uint32_t strips, bands;
  int32_t strip_columns, band_rows;
  uint32_t end_block;  // of the launch: the first one behind this level
  bool vectors;        // x, y and grad_x allow accesses of four pixels
  T slope, l1;         // times grad_scale: of the gradient
  double value_offset, value_slope, value_l1;
  double* slots;               // a value for each unit: (planes, bands, strips)
  RangeSums* range_sums;       // likewise; null where nobody asks
  const RangePair<T>* ranges;  // of each group of planes; null without rescaling
  RangePair<T>* found;         // the same, where the blocks have to find them first; else null
  uint32_t planes_per_range;
  uint32_t slots_per_value;
  void* values;  // `samples` of them: double for double inputs, else float
};

template <class T>
struct LaunchArgs {
  LevelArgs<T> levels[kMaxLevels];
  int32_t level_count;
  uint32_t samples;  // values of a level
  T taps[kTaps];
  Constants<T> constants;
  T inverse_range;  // 1 / data_range
  double data_range;
  Form form;
  Padding padding;
  int32_t margin;     // pixels that "valid" leaves out on each side
  unsigned* arrived;  // blocks that are through, 0 at first; null where no values are wanted
};

}  // namespace ssim
