#include "plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace ssim {
namespace {

// Of the estimate: a multiprocessor on which blocks of `w` warps in all march takes `w + kLatencyWarps` for a row of
// each, since few warps do not keep it busy; and a block takes rows before its first one, to clear its shared memory
// and to wait for the first loads. Estimates both: nothing here has been timed.
constexpr double kLatencyWarps = 6;
constexpr int64_t kStartRows = 8;
// Rows that a block marches behind its last one, and more before its first one where that is not the map's.
constexpr int64_t kFlushRows = 10;
// Strips also wait for loads of their neighbours' columns: an eighth more, by estimate.
constexpr double kStripFactor = 1.125;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Strips begin one segment before their own columns, which holds the 5 columns of partials to the left, and need 5
// more to the right; at the borders of the map there are none.
int64_t strips_of(int64_t w, int64_t threads) {
  if (w <= threads) return 1;
  if (w <= 2 * (threads - kSegment)) return 2;
  return ceil_div(w, threads - 2 * kSegment);
}

// The level in as few blocks as can be: whole maps, as many beside each other as fit, or strips.
CudaLevelPlan fewest_blocks(const LevelShape& level, int64_t threads, const KernelShape& kernel) {
  CudaLevelPlan plan;
  plan.strips = strips_of(level.w, threads);
  plan.strip_columns = plan.strips == 1 ? level.w : round_up(ceil_div(level.w, plan.strips), kSegment);
  plan.strips = ceil_div(level.w, plan.strip_columns);
  plan.slot = plan.strips == 1 ? round_up(level.w + kernel.gap, kSegment) : threads;
  if (plan.strips == 1)
    plan.maps = std::clamp<int64_t>((threads - level.w) / plan.slot + 1, 1, std::max<int64_t>(1, level.planes));
  plan.band_rows = level.h;
  plan.blocks = ceil_div(level.planes, plan.maps) * plan.strips;
  return plan;
}

// Makes up to `pieces` blocks of each, first of the maps that it has beside each other, then of their rows.
void divide(CudaLevelPlan& plan, const LevelShape& level, double pieces) {
  const int64_t wanted = std::max<int64_t>(1, static_cast<int64_t>(pieces * static_cast<double>(plan.blocks)));
  plan.maps = std::clamp<int64_t>(ceil_div(level.planes * plan.strips, wanted), 1, plan.maps);
  const int64_t columns = ceil_div(level.planes, plan.maps) * plan.strips;
  plan.bands =
      std::clamp<int64_t>(wanted / std::max<int64_t>(1, columns), 1, std::max<int64_t>(1, level.h / kMinBandRows));
  plan.band_rows = ceil_div(level.h, plan.bands);
  plan.bands = ceil_div(level.h, plan.band_rows);
  plan.blocks = columns * plan.bands;
}

// Blocks on their way through the device: each goes where a place for it is free first. Time is that of a
// multiprocessor with all its places taken.
class Schedule {
 public:
  Schedule(int64_t multiprocessors, int64_t resident)
      : multiprocessors_(multiprocessors), places_(multiprocessors * resident), parts_{{0, places_}} {}

  void add(int64_t blocks, double time) {
    while (blocks > 0) {
      if (blocks >= places_ && parts_[count_ - 1].until - parts_[0].until <= time) {  // every place takes some
        const int64_t turns = blocks / places_;
        for (int i = 0; i < count_; ++i) parts_[i].until += static_cast<double>(turns) * time;
        blocks -= turns * places_;
        continue;
      }
      Part first = parts_[0];
      if (blocks < first.places) {
        parts_[0].places -= blocks;
        insert({first.until + time, blocks});
        return;
      }
      // As many one behind another as are through before other places are free.
      const double gap = count_ > 1 ? parts_[1].until - first.until : 0;
      const int64_t turns = std::clamp<int64_t>(static_cast<int64_t>(gap / time), 1, blocks / first.places);
      blocks -= turns * first.places;
      first.until += static_cast<double>(turns) * time;
      std::copy(parts_ + 1, parts_ + count_--, parts_);
      insert(first);
    }
  }

  // When the last one is through, if fewer blocks on a multiprocessor are faster: `warps` is how many one has.
  double time(double resident, double warps) const {
    double result = 0, before = 0;
    int64_t active = places_;
    for (int i = 0; i < count_; ++i) {
      const double there = static_cast<double>(ceil_div(active, multiprocessors_));
      result += (parts_[i].until - before) * (there * warps + kLatencyWarps) / (resident * warps + kLatencyWarps);
      before = parts_[i].until;
      active -= parts_[i].places;
    }
    return result;
  }

 private:
  struct Part {
    double until;  // when these places are free
    int64_t places;
  };

  void insert(const Part& part) {
    int i = count_++;
    for (; i > 0 && parts_[i - 1].until > part.until; --i) parts_[i] = parts_[i - 1];
    parts_[i] = part;
  }

  const int64_t multiprocessors_, places_;
  Part parts_[kMaxLevels + 1];  // by time; a level divides one of them at most
  int count_ = 1;
};

// What the launch takes, in rows of one warp.
double estimate(const CudaPlan& plan, const std::vector<LevelShape>& levels, const KernelShape& kernel,
                const DeviceLimits& limits) {
  struct Blocks {
    int64_t count;
    double rows, warps;
  };
  std::vector<Blocks> all;
  all.reserve(levels.size());
  double rows = 0, warps = 0;
  for (size_t i = 0; i < levels.size(); ++i) {
    const CudaLevelPlan& level = plan.levels[i];
    const int64_t columns = level.strips > 1 ? plan.threads : (level.maps - 1) * level.slot + levels[i].w;
    const int64_t marched = level.band_rows + (level.bands > 1 ? 2 : 1) * kFlushRows;
    const double steps = static_cast<double>(round_up(marched, kernel.rows) + kStartRows);
    all.push_back(
        {level.blocks, level.strips > 1 ? kStripFactor * steps : steps, static_cast<double>(ceil_div(columns, 32))});
    rows += static_cast<double>(level.blocks) * all[i].rows;
    warps += static_cast<double>(level.blocks) * all[i].rows * all[i].warps;
  }
  std::sort(all.begin(), all.end(), [](const Blocks& a, const Blocks& b) { return a.rows > b.rows; });
  const double resident = static_cast<double>(plan.resident);
  Schedule schedule(limits.multiprocessors, plan.resident);
  for (const Blocks& blocks : all) schedule.add(blocks.count, blocks.rows * (resident * blocks.warps + kLatencyWarps));
  return schedule.time(resident, rows > 0 ? warps / rows : 1);
}

}  // namespace

int64_t KernelShape::shared_bytes(int64_t threads) const {
  const int64_t ring = ring_rows() * ring_pitch(threads) * 2 * element_bytes;
  const int64_t cells = (threads + 2 * kMargin) * (rows + 1) * values * element_bytes;
  return round_up(ring, 16) + round_up(cells, 16) + table_bytes + threads * thread_bytes;
}

int64_t KernelShape::resident(int64_t threads, const DeviceLimits& limits) const {
  // Each of a multiprocessor's four parts has registers of its own, and gives them to a whole warp 256 at a time.
  const int64_t warps = 4 * (limits.registers / 4 / round_up(32 * registers, 256));
  const int64_t most = std::min({limits.blocks, limits.threads / threads, warps * 32 / threads,
                                 limits.shared / (shared_bytes(threads) + limits.shared_reserved)});
  return std::max<int64_t>(1, most);
}

CudaPlan plan_cuda(const std::vector<LevelShape>& levels, const KernelShape& kernel, const DeviceLimits& limits) {
  if (levels.size() > kMaxLevels)
    throw std::runtime_error("fused_ssim: a launch holds " + std::to_string(kMaxLevels) + " levels, got " +
                             std::to_string(levels.size()));
  CudaPlan best;
  double least = 0;
  for (int64_t threads = 32; threads <= kernel.max_threads; threads += 32) {
    if (kernel.shared_bytes(threads) > limits.shared_per_block) break;
    CudaPlan plan{static_cast<int>(threads), kernel.shared_bytes(threads), kernel.resident(threads, limits), {}};
    double rows = 0;
    for (const LevelShape& level : levels) {
      plan.levels.push_back(fewest_blocks(level, threads, kernel));
      rows += static_cast<double>(plan.levels.back().blocks * level.h);
    }
    const std::vector<CudaLevelPlan> fewest = plan.levels;
    // As few blocks as can be, or enough for one, two and more on each multiprocessor, or for several waves of them.
    const int64_t waves = plan.resident;
    int64_t blocks_before = -1;
    for (int64_t each = 0; each <= 8 * waves; each += each < waves ? 1 : waves) {
      // Pieces of one length in all levels, so that none of them is left over at the end.
      const double length = rows / static_cast<double>(std::max<int64_t>(1, each * limits.multiprocessors));
      int64_t blocks = 0;
      for (size_t i = 0; i < levels.size(); ++i) {
        plan.levels[i] = fewest[i];
        if (each > 0) divide(plan.levels[i], levels[i], static_cast<double>(levels[i].h) / length);
        blocks += plan.levels[i].blocks;
      }
      if (blocks == blocks_before) continue;  // nothing was divided any further
      blocks_before = blocks;
      const double time = estimate(plan, levels, kernel, limits);
      if (best.levels.empty() || time < least) best = plan, least = time;
    }
  }
  if (best.levels.empty())
    throw std::runtime_error("fused_ssim: the device offers " + std::to_string(limits.shared_per_block) +
                             " bytes of shared memory to a block, too few for this kernel");
  return best;
}

}  // namespace ssim
