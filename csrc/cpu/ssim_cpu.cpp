#include "ssim_cpu.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <limits>
#include <memory>

#include "rows.h"

namespace ssim {
namespace {

constexpr int64_t kEnoughUnits = 64;    // units that keep many threads busy
constexpr int64_t kBandRows = 128;      // fewest rows worth a unit of their own: it recomputes up to 20
constexpr int64_t kGrabPixels = 16384;  // pixels a thread takes at a time

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

UnitSums run(const UnitKernels& k, const UnitCall<float>& call) { return k.run_float(call); }
UnitSums run(const UnitKernels& k, const UnitCall<double>& call) { return k.run_double(call); }
Range widen(const UnitKernels& k, const float* row, int64_t count, Range r) { return k.range_float(row, count, r); }
Range widen(const UnitKernels& k, const double* row, int64_t count, Range r) { return k.range_double(row, count, r); }

constexpr Range kNothing = {std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()};

// Minimum and maximum of plane (n, c), as low and scale.
template <class T>
Range plane_extremes(const UnitKernels& kernels, const Level& level, const View& view, int64_t n, int64_t c, T* copy) {
  const DType native = sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat64;
  Range r = kNothing;
  for (int64_t h = 0; h < level.h; ++h) {
    const int64_t offset = n * view.stride_n + c * view.stride_c + h * view.stride_h;
    const T* row = static_cast<const T*>(view.data) + offset;
    for (int64_t begin = 0; begin < level.w; begin += kWholeColumns) {
      const int64_t count = std::min(kWholeColumns, level.w - begin);
      if (view.dtype == native && view.stride_w == 1) {
        r = widen(kernels, row + begin, count, r);
      } else {
        load_row(copy, view, offset + begin * view.stride_w, count);
        r = widen(kernels, copy, count, r);
      }
    }
  }
  return r;
}

Range joined(Range a, Range b) { return {std::min(a.low, b.low), std::max(a.scale, b.scale)}; }

// Turns extremes into the map to [0, 1] (a constant becomes 0), divided by data_range.
template <class T>
Range to_unit(Range extremes, double data_range) {
  const T extent = static_cast<T>(extremes.scale) - static_cast<T>(extremes.low);
  const bool constant = extent < std::numeric_limits<T>::min();
  return {extremes.low, constant ? 0.0 : 1.0 / (static_cast<double>(extent) * data_range)};
}

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};

template <class T>
class Run {
 public:
  Run(const Problem& problem, const std::vector<Level>& levels, const Parallel& parallel)
      : problem_(problem), levels_(levels), parallel_(parallel), kernels_(current_kernels()) {
    for (const Level& level : levels) {
      plans_.push_back(plan_cpu(level.n * level.c, level.h, level.w));
      first_unit_.push_back(units_);
      first_plane_.push_back(planes_);
      units_ += level.n * level.c * plans_.back().strips * plans_.back().bands;
      planes_ += level.n * level.c;
    }
    first_unit_.push_back(units_);
    sums_.resize(units_);
  }

  void go() {
    if (problem_.normalize != Normalize::kNone) find_ranges();
    std::atomic<int64_t> next{0};
    parallel_.run(std::min(parallel_.threads, units_), [&](int64_t) {
      std::unique_ptr<void, FreeDeleter> memory(std::aligned_alloc(64, kWorkspaceBytes));
      if (!memory) throw std::bad_alloc();
      Workspace workspace{memory.get()};
      for (;;) {
        int64_t begin = next.load(), end;
        do {
          if (begin >= units_) return;
          end = std::min(units_, begin + grab(begin));
        } while (!next.compare_exchange_weak(begin, end));
        for (int64_t u = begin; u < end; ++u) sums_[u] = one(u, workspace);
      }
    });
  }

  void collect(bool per_sample, double* values) const {
    const int64_t samples = per_sample ? levels_[0].n : 1;
    for (size_t l = 0; l < levels_.size(); ++l) {
      const Level& level = levels_[l];
      const int64_t count = first_unit_[l + 1] - first_unit_[l], per_value = count / samples;
      for (int64_t s = 0; s < samples; ++s) {
        UnitSums total;
        for (int64_t u = 0; u < per_value; ++u) {
          const UnitSums& part = sums_[first_unit_[l] + s * per_value + u];
          total.ssim += part.ssim, total.seed += part.seed, total.l1 += part.l1;
        }
        values[l * samples + s] = level.offset * total.seed + level.slope * total.ssim + level.l1 * total.l1;
      }
    }
  }

 private:
  size_t level_of(int64_t unit) const {
    return std::upper_bound(first_unit_.begin(), first_unit_.end(), unit) - first_unit_.begin() - 1;
  }

  // Units that a thread takes together: enough small ones, never of two levels.
  int64_t grab(int64_t unit) const {
    const size_t l = level_of(unit);
    const int64_t pixels = levels_[l].h * levels_[l].w / (plans_[l].strips * plans_[l].bands) + 1;
    return std::min(std::max<int64_t>(1, kGrabPixels / pixels), first_unit_[l + 1] - unit);
  }

  UnitSums one(int64_t index, Workspace& workspace) const {
    const size_t l = level_of(index);
    const Level& level = levels_[l];
    const CpuPlan& plan = plans_[l];
    const int64_t part = (index - first_unit_[l]) % (plan.strips * plan.bands);
    const int64_t plane = (index - first_unit_[l]) / (plan.strips * plan.bands);
    const int64_t strip = part % plan.strips, band = part / plan.strips;
    const int64_t columns = (level.w + plan.strips - 1) / plan.strips, rows = (level.h + plan.bands - 1) / plan.bands;
    UnitCall<T> call{&problem_, &level, {}, {}, {}, {load_row<T>, store_row<T>}, &workspace};
    call.unit = {plane / level.c, plane % level.c,
                 band * rows,     std::min(level.h, (band + 1) * rows),
                 strip * columns, std::min(level.w, (strip + 1) * columns)};
    if (problem_.normalize == Normalize::kNone) {
      call.range_x.scale = call.range_y.scale = 1.0 / problem_.data_range;
    } else if (ranges_.empty()) {
      T* copy = static_cast<T*>(workspace.memory);
      workspace.width = -1;  // the copy spoils its zero margins
      call.range_x = plane_range(level, level.x, call.unit, copy);
      call.range_y = plane_range(level, level.y, call.unit, copy);
    } else {
      call.range_x = ranges_[2 * (first_plane_[l] + plane)];
      call.range_y = ranges_[2 * (first_plane_[l] + plane) + 1];
    }
    return run(kernels_, call);
  }

  Range plane_range(const Level& level, const View& view, const Unit& unit, T* copy) const {
    return to_unit<T>(plane_extremes(kernels_, level, view, unit.n, unit.c, copy), problem_.data_range);
  }

  // The range of every plane, ahead of the units; not needed where a unit holds the whole region of one.
  void find_ranges() {
    const bool whole = std::all_of(plans_.begin(), plans_.end(), [](CpuPlan p) { return p.strips * p.bands == 1; });
    if (problem_.normalize == Normalize::kChannel && whole) return;
    ranges_.resize(2 * planes_);
    parallel_.run(planes_, [&](int64_t i) {
      const size_t l = std::upper_bound(first_plane_.begin(), first_plane_.end(), i) - first_plane_.begin() - 1;
      const Level& level = levels_[l];
      const int64_t plane = i - first_plane_[l];
      T copy[kWholeColumns];
      ranges_[2 * i] = plane_extremes(kernels_, level, level.x, plane / level.c, plane % level.c, copy);
      ranges_[2 * i + 1] = plane_extremes(kernels_, level, level.y, plane / level.c, plane % level.c, copy);
    });
    for (size_t l = 0; l < levels_.size(); ++l) {
      const int64_t planes = levels_[l].n * levels_[l].c;
      const int64_t group = problem_.normalize == Normalize::kTensor   ? planes
                            : problem_.normalize == Normalize::kSample ? levels_[l].c
                                                                       : 1;
      for (int64_t begin = first_plane_[l]; begin < first_plane_[l] + planes; begin += group)
        for (int side = 0; side < 2; ++side) {
          Range r = kNothing;
          for (int64_t i = begin; i < begin + group; ++i) r = joined(r, ranges_[2 * i + side]);
          r = to_unit<T>(r, problem_.data_range);
          for (int64_t i = begin; i < begin + group; ++i) ranges_[2 * i + side] = r;
        }
    }
  }

  const Problem& problem_;
  const std::vector<Level>& levels_;
  const Parallel& parallel_;
  const UnitKernels& kernels_;
  std::vector<CpuPlan> plans_;
  std::vector<int64_t> first_unit_, first_plane_;
  int64_t units_ = 0, planes_ = 0;
  std::vector<UnitSums> sums_;
  std::vector<Range> ranges_;
};

template <class T>
void run_as(const Problem& problem, const std::vector<Level>& levels, bool per_sample, double* values,
            const Parallel& parallel) {
  Run<T> run(problem, levels, parallel);
  run.go();
  if (values) run.collect(per_sample, values);
}

}  // namespace

CpuPlan plan_cpu(int64_t planes, int64_t h, int64_t w) {
  const int64_t strips = w <= kWholeColumns ? 1 : (w + kStripColumns - 1) / kStripColumns;
  const int64_t wanted = (kEnoughUnits + planes * strips - 1) / (planes * strips);
  return {strips, std::max<int64_t>(1, std::min(wanted, h / kBandRows))};
}

void run_cpu(const Problem& problem, std::vector<Level> levels, bool per_sample, double* values,
             const Parallel& parallel) {
  for (Level& level : levels)
    if (level.grad_y.data && !level.grad_x.data) {  // SSIM is symmetric: the kernel knows a gradient of x, or of both
      std::swap(level.x, level.y);
      std::swap(level.grad_x, level.grad_y);
    }
  if (levels[0].x.dtype == DType::kFloat64)
    run_as<double>(problem, levels, per_sample, values, parallel);
  else
    run_as<float>(problem, levels, per_sample, values, parallel);
}

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
