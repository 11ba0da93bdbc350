#include "ssim_cpu.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <utility>

#include "ranges.h"

namespace ssim {
namespace {

constexpr int64_t kThreads = 4;         // that the plan reckons with, whatever there are
constexpr int64_t kBandRows = 4;        // fewest rows of a band
constexpr int64_t kBorderRows = 9;      // rows that a cut costs, in rows of full work: 20 are loaded, 10 filtered
constexpr int64_t kGrabPixels = 32768;  // pixels a thread takes at a time
constexpr int64_t kRoundSums = 4096;    // sums a thread, 224 KB, until they are added up: then all have to wait

std::vector<const UnitKernels*> available_kernels() {
  std::vector<const UnitKernels*> list;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    list.push_back(kernels_avx512());
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) list.push_back(kernels_avx2());
#endif
  list.push_back(kernels_baseline());
  return list;
}

const std::vector<const UnitKernels*>& all_kernels() {
  static const std::vector<const UnitKernels*> list = available_kernels();
  return list;
}

std::atomic<const UnitKernels*> chosen{nullptr};

const UnitKernels& current_kernels() {
  const UnitKernels* kernels = chosen.load();
  return kernels ? *kernels : *all_kernels().front();
}

void run(const UnitKernels& k, UnitCall<float>& call) { k.run_float(call); }
void run(const UnitKernels& k, UnitCall<double>& call) { k.run_double(call); }
Extremes widen(const UnitKernels& k, const float* row, int64_t count, Extremes e) {
  return k.widen_float(row, count, e);
}
Extremes widen(const UnitKernels& k, const double* row, int64_t count, Extremes e) {
  return k.widen_double(row, count, e);
}

void add(UnitSums& total, const UnitSums& part) {
  total.ssim += part.ssim, total.seed += part.seed, total.l1 += part.l1;
  for (int side = 0; side < 2; ++side)
    total.grad[side] += part.grad[side], total.grad_value[side] += part.grad_value[side];
}

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};

// Kept from call to call: fresh pages for each would take longer than a small map.
void* workspace_of_thread() {
  thread_local std::unique_ptr<void, FreeDeleter> memory;
  if (!memory) memory.reset(std::aligned_alloc(64, kWorkspaceBytes));
  if (!memory) throw std::bad_alloc();
  return memory.get();
}

template <class T>
class Run {
 public:
  Run(const Problem& problem, const std::vector<Level>& levels, bool per_sample, const Parallel& parallel)
      : problem_(problem),
        levels_(levels),
        per_sample_(per_sample),
        parallel_(parallel),
        kernels_(current_kernels()),
        lanes_(sizeof(T) == 4 ? kernels_.lanes_float : kernels_.lanes_double),
        settle_(problem.normalize != Normalize::kNone && !problem.detach_range),
        unit_sums_(per_sample || settle_ ? lanes_ : 1),
        round_units_(kRoundSums * parallel.threads / unit_sums_) {
    for (const Level& level : levels) {
      const int64_t planes = level.n * level.c;
      const CpuPlan plan = plan_cpu(planes, level.h, level.w, lanes_);
      plans_.push_back(plan);
      first_unit_.push_back(units_);
      first_plane_.push_back(planes_);
      units_ += (planes * plan.bands + lanes_ - 1) / lanes_ * plan.strips;
      planes_ += planes;
    }
    first_unit_.push_back(units_);
    sums_.resize(std::min(units_, round_units_) * unit_sums_);
    totals_.resize(levels.size() * samples());
    if (settle_) range_totals_.resize(planes_);
  }

  void go() {
    if (problem_.normalize != Normalize::kNone) find_extremes();
    for (int64_t first = 0; first < units_; first += round_units_) {
      const int64_t last = std::min(units_, first + round_units_);
      std::atomic<int64_t> next{first};
      parallel_.run(std::min(parallel_.threads, last - first), [&](int64_t) {
        void* const workspace = workspace_of_thread();
        for (;;) {
          int64_t begin = next.load(), end;
          do {
            if (begin >= last) return;
            end = std::min(last, begin + grab(begin));
          } while (!next.compare_exchange_weak(begin, end));
          for (int64_t u = begin; u < end; ++u) one(u, workspace, &sums_[(u - first) * unit_sums_]);
        }
      });
      for (int64_t u = first; u < last; ++u) add_up(u, &sums_[(u - first) * unit_sums_]);
    }
    if (settle_)
      for (size_t l = 0; l < levels_.size(); ++l) {
        if (levels_[l].grad_x.data) settle_extremes(l, 0, levels_[l].x, levels_[l].grad_x);
        if (levels_[l].grad_y.data) settle_extremes(l, 1, levels_[l].y, levels_[l].grad_y);
      }
  }

  void collect(double* values) const {
    for (size_t i = 0; i < totals_.size(); ++i) {
      const Level& level = levels_[i / samples()];
      values[i] = level.offset * totals_[i].seed + level.slope * totals_[i].ssim + level.l1 * totals_[i].l1;
    }
  }

 private:
  int64_t samples() const { return per_sample_ ? levels_[0].n : 1; }

  size_t level_of(int64_t unit) const {
    return std::upper_bound(first_unit_.begin(), first_unit_.end(), unit) - first_unit_.begin() - 1;
  }

  // Units that a thread takes together: enough small ones, not the share of another thread, and never of two levels.
  int64_t grab(int64_t unit) const {
    const size_t l = level_of(unit);
    const int64_t pixels = lanes_ * levels_[l].h * levels_[l].w / (plans_[l].strips * plans_[l].bands) + 1;
    const int64_t many = std::min(kGrabPixels / pixels, std::min(units_, round_units_) / parallel_.threads);
    return std::min(std::max<int64_t>(1, many), first_unit_[l + 1] - unit);
  }

  // The items, which are bands of planes, of the lanes of a unit of level l.
  std::pair<int64_t, int64_t> items_of(int64_t unit, size_t l) const {
    const int64_t first = (unit - first_unit_[l]) / plans_[l].strips * lanes_;
    return {first, std::min(first + lanes_, levels_[l].n * levels_[l].c * plans_[l].bands)};
  }

  void one(int64_t index, void* workspace, UnitSums* sums) {
    const size_t l = level_of(index);
    const Level& level = levels_[l];
    const CpuPlan& plan = plans_[l];
    const int64_t strip = (index - first_unit_[l]) % plan.strips;
    const int64_t columns = (level.w + plan.strips - 1) / plan.strips;
    UnitCall<T> call{&problem_, &level, {}, {}, {}, {load_row<T>, store_row<T>}, workspace, {}};
    Unit& unit = call.unit;
    unit.rows = (level.h + plan.bands - 1) / plan.bands;
    unit.col0 = strip * columns, unit.col1 = std::min(level.w, (strip + 1) * columns);
    const auto [first, end] = items_of(index, l);
    for (int64_t item = first; item < end; ++item) {
      const int64_t plane = item / plan.bands, i = unit.count++;
      unit.bands[i] = {plane / level.c, plane % level.c, item % plan.bands * unit.rows};
      if (problem_.normalize == Normalize::kNone) {
        call.range_x[i].scale = call.range_y[i].scale = 1.0 / problem_.data_range;
      } else {
        Extremes own[2], *extremes = extremes_.empty() ? own : &extremes_[2 * (first_plane_[l] + plane)];
        if (whole_planes()) find_plane(level, plane, extremes);
        call.range_x[i] = to_unit<T>(extremes[0], problem_.data_range);
        call.range_y[i] = to_unit<T>(extremes[1], problem_.data_range);
      }
    }
    run(kernels_, call);
    if (unit_sums_ == 1)
      for (int i = 1; i < unit.count; ++i) add(call.sums[0], call.sums[i]);
    std::copy_n(call.sums, std::min<int64_t>(unit.count, unit_sums_), sums);
  }

  void add_up(int64_t index, const UnitSums* sums) {
    const size_t l = level_of(index);
    const auto [first, end] = items_of(index, l);
    for (int64_t item = first; item < std::min(end, first + unit_sums_); ++item) {
      const int64_t plane = item / plans_[l].bands;
      add(totals_[l * samples() + (per_sample_ ? plane / levels_[l].c : 0)], sums[item - first]);
      if (settle_) add(range_totals_[first_plane_[l] + plane / group_of(l)], sums[item - first]);
    }
  }

  // Whether each unit holds all pixels of its ranges, and so finds them itself while they are in its cache.
  bool whole_planes() const {
    return problem_.normalize == Normalize::kChannel &&
           std::all_of(plans_.begin(), plans_.end(), [](CpuPlan p) { return p.strips * p.bands == 1; });
  }

  // Planes that share a range.
  int64_t group_of(size_t l) const {
    if (problem_.normalize == Normalize::kTensor) return levels_[l].n * levels_[l].c;
    return problem_.normalize == Normalize::kSample ? levels_[l].c : 1;
  }

  void find_plane(const Level& level, int64_t plane, Extremes* extremes) const {
    for (int side = 0; side < 2; ++side) {
      extremes[side] = kNothing;
      for_pieces<T>(level, side ? level.y : level.x, plane / level.c, plane % level.c,
                    [&](const T* pixels, int64_t count, int64_t) {
                      extremes[side] = widen(kernels_, pixels, count, extremes[side]);
                    });
    }
  }

  void find_extremes() {
    if (whole_planes() && problem_.detach_range) return;  // nobody asks for them afterwards
    extremes_.resize(2 * planes_);
    if (whole_planes()) return;
    parallel_.run(planes_, [&](int64_t i) {
      const size_t l = std::upper_bound(first_plane_.begin(), first_plane_.end(), i) - first_plane_.begin() - 1;
      find_plane(levels_[l], i - first_plane_[l], &extremes_[2 * i]);
    });
    for (size_t l = 0; l < levels_.size(); ++l) {
      const int64_t group = group_of(l), end = first_plane_[l] + levels_[l].n * levels_[l].c;
      for (int64_t begin = first_plane_[l]; begin < end; begin += group)
        for (int side = 0; side < 2; ++side) {
          Extremes all = kNothing;
          for (int64_t i = begin; i < begin + group; ++i) all = joined(all, extremes_[2 * i + side]);
          for (int64_t i = begin; i < begin + group; ++i) extremes_[2 * i + side] = all;
        }
    }
  }

  // With psi = (x - min) / (max - min), dL/dmax = -sum(dL/dx psi) and dL/dmin = sum(dL/dx (psi - 1)), shared evenly by
  // the pixels that attain them.
  void settle_extremes(size_t l, int side, const View& view, const View& grad) {
    const Level& level = levels_[l];
    const int64_t planes = level.n * level.c, group = group_of(l);
    std::vector<ExtremeCounts> counts(planes);
    parallel_.run(planes, [&](int64_t i) {
      counts[i] = count_extremes<T>(level, view, i / level.c, i % level.c, extremes_[2 * (first_plane_[l] + i) + side]);
    });
    std::vector<double> at_low(planes / group), at_high(planes / group);
    for (int64_t g = 0; g < planes / group; ++g) {
      ExtremeCounts all;
      for (int64_t i = g * group; i < (g + 1) * group; ++i) all.low += counts[i].low, all.high += counts[i].high;
      const UnitSums& sums = range_totals_[first_plane_[l] + g];
      const double grads = sums.grad[side], values = sums.grad_value[side] * problem_.data_range;
      at_low[g] = (values - grads) / all.low;
      at_high[g] = -values / all.high;
    }
    parallel_.run(planes, [&](int64_t i) {
      add_at_extremes<T>(level, view, grad, i / level.c, i % level.c, extremes_[2 * (first_plane_[l] + i) + side],
                         at_low[i / group], at_high[i / group]);
    });
  }

  const Problem& problem_;
  const std::vector<Level>& levels_;
  const bool per_sample_;
  const Parallel& parallel_;
  const UnitKernels& kernels_;
  const int64_t lanes_;
  const bool settle_;        // whether extremes receive gradients
  const int64_t unit_sums_;  // of each lane where they go to several places, else one
  const int64_t round_units_;
  std::vector<CpuPlan> plans_;
  std::vector<int64_t> first_unit_, first_plane_;
  int64_t units_ = 0, planes_ = 0;
  std::vector<UnitSums> sums_;          // of the units of a round
  std::vector<UnitSums> totals_;        // of each level, or each of its samples
  std::vector<UnitSums> range_totals_;  // from first_plane_ on, of planes that share a range: what its extremes receive
  std::vector<Extremes> extremes_;      // of x and y of each plane: those of its range
};

template <class T>
void run_as(const Problem& problem, const std::vector<Level>& levels, bool per_sample, double* values,
            const Parallel& parallel) {
  Run<T> run(problem, levels, per_sample, parallel);
  run.go();
  if (values) run.collect(values);
}

}  // namespace

CpuPlan plan_cpu(int64_t planes, int64_t h, int64_t w, int64_t lanes) {
  const int64_t strips = w <= kWholeColumns ? 1 : (w + kStripColumns - 1) / kStripColumns;
  CpuPlan best{strips, 1};
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int64_t bands = 1; bands == 1 || (bands <= kThreads * lanes && bands * kBandRows <= h); ++bands) {
    const int64_t units = (planes * bands + lanes - 1) / lanes * strips;
    const int64_t rows = (h + bands - 1) / bands + (bands > 1 ? kBorderRows : 0);
    const int64_t time = (units + kThreads - 1) / kThreads * rows;
    if (time < least) best.bands = bands, least = time;
    if (planes >= 16 * kThreads * lanes) break;  // more would not help
  }
  return best;
}

void run_cpu(const Problem& problem, const std::vector<Level>& levels, bool per_sample, double* values,
             const Parallel& parallel) {
  if (levels[0].x.dtype == DType::kFloat64)
    run_as<double>(problem, levels, per_sample, values, parallel);
  else
    run_as<float>(problem, levels, per_sample, values, parallel);
}

int64_t cpu_lanes() { return current_kernels().lanes_float; }

std::vector<std::string> cpu_instruction_sets() {
  std::vector<std::string> names;
  for (const UnitKernels* kernels : all_kernels()) names.emplace_back(kernels->name);
  return names;
}

bool set_cpu_instruction_set(const std::string& name) {
  if (name.empty()) {
    chosen = nullptr;
    return true;
  }
  for (const UnitKernels* kernels : all_kernels())
    if (name == kernels->name) {
      chosen = kernels;
      return true;
    }
  return false;
}

}  // namespace ssim
