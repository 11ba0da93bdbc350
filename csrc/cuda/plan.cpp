#include "plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace ssim {
namespace {

constexpr int64_t kFlushRows = 10;          // rows that a block marches on after its last one
constexpr int64_t kBlocksPerProcessor = 2;  // that keep a multiprocessor busy

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Strips begin one segment before their own columns, which holds the 5 columns of partials to the left, and need 5
// more to the right; at the borders of the map there are none.
int64_t strips_of(int64_t w, int64_t threads) {
  if (w <= threads) return 1;
  if (w <= 2 * (threads - kSegment)) return 2;
  return ceil_div(w, threads - 2 * kSegment);
}

CudaLevelPlan plan_level(const LevelShape& level, int64_t wanted_blocks, int64_t threads, const KernelShape& kernel) {
  CudaLevelPlan plan;
  plan.strips = strips_of(level.w, threads);
  plan.strip_columns = plan.strips == 1 ? level.w : round_up(ceil_div(level.w, plan.strips), kSegment);
  plan.strips = ceil_div(level.w, plan.strip_columns);
  plan.slot = plan.strips == 1 ? round_up(level.w + kernel.gap, kSegment) : threads;
  if (plan.strips == 1) {
    const int64_t fit = (threads - level.w) / plan.slot + 1;
    plan.maps = std::min(fit, std::max<int64_t>(1, ceil_div(level.planes, wanted_blocks)));
  }
  const int64_t columns = ceil_div(level.planes, plan.maps) * plan.strips;
  const int64_t most_bands = std::max<int64_t>(1, level.h / kMinBandRows);
  plan.bands = std::clamp<int64_t>(ceil_div(wanted_blocks, columns), 1, most_bands);
  plan.band_rows = ceil_div(level.h, plan.bands);
  plan.bands = ceil_div(level.h, plan.band_rows);
  plan.blocks = columns * plan.bands;
  return plan;
}

}  // namespace

int64_t KernelShape::shared_bytes(int64_t threads) const {
  const int64_t ring = ring_rows() * ring_pitch(threads) * 2 * element_bytes;
  const int64_t cells = (threads + 2 * kMargin) * (rows + 1) * values * element_bytes;
  return round_up(ring, 16) + round_up(cells, 16) + table_bytes + threads * thread_bytes;
}

CudaPlan plan_cuda(const std::vector<LevelShape>& levels, const KernelShape& kernel, const DeviceLimits& limits) {
  int64_t pixels = 0;
  for (const LevelShape& level : levels) pixels += level.planes * level.h * level.w;
  CudaPlan best;
  int64_t least_cost = 0;
  for (int64_t threads = 32; threads <= kernel.max_threads; threads += 32) {
    if (kernel.shared_bytes(threads) > limits.shared_per_block) break;
    CudaPlan plan{static_cast<int>(threads), kernel.shared_bytes(threads), {}};
    int64_t cost = 0;
    for (const LevelShape& level : levels) {
      // Each level takes its share of the blocks that it takes to fill the chip.
      const int64_t share = kBlocksPerProcessor * limits.multiprocessors * level.planes * level.h * level.w;
      plan.levels.push_back(
          plan_level(level, std::max<int64_t>(1, share / std::max<int64_t>(1, pixels)), threads, kernel));
      const CudaLevelPlan& last = plan.levels.back();
      // Strips also wait for loads of their neighbours' columns: an eighth more, by estimate.
      cost += last.blocks * (last.band_rows + kFlushRows) * threads * (last.strips > 1 ? 9 : 8);
    }
    if (best.levels.empty() || cost < least_cost) best = plan, least_cost = cost;
  }
  if (best.levels.empty())
    throw std::runtime_error("fused_ssim: the device offers " + std::to_string(limits.shared_per_block) +
                             " bytes of shared memory to a block, too few for this kernel");
  return best;
}

}  // namespace ssim
