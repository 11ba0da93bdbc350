#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "march.h"
#include "ranges.cuh"
#include "scale.cuh"
#include "ssim_cuda.h"

namespace ssim {
namespace {

template <class T>
MarchKernel<T> choose_kernel(const Problem& p, const std::vector<Level>& levels) {
  const bool separate = p.form() == Form::kSeparate;
  bool grad_x = false, grad_y = false, plain = p.form() == Form::kPlain;
  for (const Level& level : levels) {
    grad_x = grad_x || level.grad_x.data;
    grad_y = grad_y || level.grad_y.data;
    plain = plain && !level.seed.data && !level.map.data;
  }
  const bool tracks = p.normalize != Normalize::kNone && !p.detach_range;
  if constexpr (sizeof(T) == sizeof(float)) {
    const DType dtype = levels[0].x.dtype;
    if (plain && grad_x && !grad_y)
      return p.padding == Padding::kReflect ? lean_march_reflect(dtype) : lean_march_same(dtype, tracks);
    return general_march_float(separate, grad_x || grad_y ? 2 : 0);
  } else {
    return general_march_double(separate, grad_x || grad_y ? 2 : 0);
  }
}

// Whether each aligned four pixels of a row can be accessed as one.
bool has_vectors(const View& view, int64_t w) {
  return view.stride_w == 1 && w % 4 == 0 && view.stride_h % 4 == 0 && view.stride_c % 4 == 0 &&
         view.stride_n % 4 == 0 && reinterpret_cast<uintptr_t>(view.data) % (4 * bytes_of_element(view.dtype)) == 0;
}

// Whether a sample's pixels lie behind one another, in whatever order of its axes.
bool is_dense(const ScaleCall& call) {
  std::array<std::pair<int64_t, int64_t>, 3> axes = {
      {{call.grad.stride_c, call.c}, {call.grad.stride_h, call.h}, {call.grad.stride_w, call.w}}};
  std::sort(axes.begin(), axes.end());
  int64_t next = 1;
  for (const auto& [stride, size] : axes) {
    if (size > 1 && stride != next) return false;
    next *= size;
  }
  return true;
}

template <class T>
class Run {
 public:
  Run(const Problem& problem, const std::vector<Level>& levels, bool per_sample, void* values,
      const CudaContext& context)
      : problem_(problem),
        levels_(levels),
        kernel_(choose_kernel<T>(problem, levels)),
        context_(context),
        values_(static_cast<T*>(values)),
        samples_(per_sample ? levels[0].n : 1),
        tracks_(problem.normalize != Normalize::kNone && !problem.detach_range) {
    if (problem.padding == Padding::kReflect) kernel_.shape.gap = 2 * kRadius;
  }

  // Up to kMaxLevels levels in one launch.
  void go(size_t begin, size_t end) {
    std::vector<LevelShape> shapes;
    for (size_t i = begin; i < end; ++i) shapes.push_back({levels_[i].n * levels_[i].c, levels_[i].h, levels_[i].w});
    const CudaPlan plan = plan_cuda(shapes, kernel_.shape, context_.limits);
    // The longest blocks first, so that the short ones fill the gaps at the end.
    std::vector<size_t> order(shapes.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return plan.levels[a].band_rows > plan.levels[b].band_rows; });
    LaunchArgs<T> args{};
    fill(args);
    args.level_count = static_cast<int32_t>(shapes.size());
    std::vector<RangeArgs<T>> ranges;
    int64_t blocks = 0;
    for (size_t i = 0; i < order.size(); ++i) {
      const size_t index = begin + order[i];
      LevelArgs<T>& level = args.levels[i];
      level = level_args(levels_[index], plan.levels[order[i]]);
      if (values_) level.values = values_ + index * samples_;
      blocks += plan.levels[order[i]].blocks;
      check_fits(blocks);
      level.end_block = static_cast<uint32_t>(blocks);
      if (problem_.normalize != Normalize::kNone) ranges.push_back(find_ranges(level));
    }
    if (values_) {
      args.arrived = allocate<unsigned>(1);
      check_cuda(cudaMemsetAsync(args.arrived, 0, sizeof(unsigned), context_.stream), "clearing a counter");
    }
    launch(kernel_.function, blocks, plan.threads, plan.shared_bytes, context_.stream, args,
           context_.limits.shared_per_block);
    if (!tracks_) return;
    for (const RangeArgs<T>& range : ranges) {
      if (range.level.found) continue;  // the kernel has settled it
      launch(share_extremes<T>, 2 * (range.level.planes / range.level.planes_per_range), kRangeThreads, kRangeBytes,
             context_.stream, range);
      launch(settle_extremes<T>, 2 * static_cast<int64_t>(range.level.planes) * range.parts, kRangeThreads, 0,
             context_.stream, range);
    }
  }

 private:
  static void check_fits(int64_t count) {
    if (count > std::numeric_limits<int32_t>::max())
      throw std::runtime_error("fused_ssim: more maps than a launch can hold, " + std::to_string(count));
  }

  template <class Item>
  Item* allocate(int64_t count) const {
    return static_cast<Item*>(context_.allocate(count * static_cast<int64_t>(sizeof(Item))));
  }

  void fill(LaunchArgs<T>& args) const {
    const Problem& p = problem_;
    args.samples = static_cast<uint32_t>(samples_);
    for (int i = 0; i < kTaps; ++i) args.taps[i] = static_cast<T>(p.taps[i]);
    args.constants = p.constants<T>();
    args.inverse_range = static_cast<T>(1.0 / p.data_range);
    args.data_range = p.data_range;
    args.form = p.form();
    args.padding = p.padding;
    args.margin = p.padding == Padding::kValid ? p.window_radius : 0;
  }

  LevelArgs<T> level_args(const Level& level, const CudaLevelPlan& plan) const {
    check_fits(level.n * level.c);
    check_fits(level.h + 2 * kMargin);
    check_fits(level.w + 2 * kMargin);
    LevelArgs<T> args{};
    args.x = level.x, args.y = level.y, args.seed = level.seed, args.map = level.map;
    args.grad_x = level.grad_x, args.grad_y = level.grad_y;
    args.h = static_cast<int32_t>(level.h), args.w = static_cast<int32_t>(level.w);
    args.planes = static_cast<uint32_t>(level.n * level.c), args.channels = static_cast<uint32_t>(level.c);
    args.maps = static_cast<uint32_t>(plan.maps), args.slot = static_cast<int32_t>(plan.slot);
    args.strips = static_cast<uint32_t>(plan.strips), args.bands = static_cast<uint32_t>(plan.bands);
    args.strip_columns = static_cast<int32_t>(plan.strip_columns);
    args.band_rows = static_cast<int32_t>(plan.band_rows);
    args.vectors = has_vectors(level.x, level.w) && has_vectors(level.y, level.w) && level.grad_x.data &&
                   has_vectors(level.grad_x, level.w);
    args.slope = static_cast<T>(level.slope * level.grad_scale * kGradientFactor),
    args.l1 = static_cast<T>(level.l1 * level.grad_scale);
    args.value_offset = level.offset, args.value_slope = level.slope, args.value_l1 = level.l1;
    const int64_t units = level.n * level.c * plan.strips * plan.bands;
    args.slots_per_value = static_cast<uint32_t>(units / samples_);
    if (values_) args.slots = allocate<double>(units);
    if (tracks_) args.range_sums = allocate<RangeSums>(units);
    return args;
  }

  // Extremes of x and y of a level, and where the kernel finds them.
  RangeArgs<T> find_ranges(LevelArgs<T>& level) const {
    level.planes_per_range = problem_.normalize == Normalize::kTensor   ? level.planes
                             : problem_.normalize == Normalize::kSample ? level.channels
                                                                        : 1;
    const int64_t groups = level.planes / level.planes_per_range;
    RangeArgs<T> args{};
    args.ranges = allocate<RangePair<T>>(groups);
    level.ranges = args.ranges;
    const bool whole = level.planes_per_range == 1 && level.strips == 1 && level.bands == 1;
    if (whole && (kernel_.settles || !tracks_)) {  // each block has all that it needs
      level.found = args.ranges;
      args.level = level;
      return args;
    }
    args.level = level;
    args.vectors = has_vectors(level.x, level.w) && has_vectors(level.y, level.w);
    args.inverse_range = static_cast<T>(1.0 / problem_.data_range);
    // Enough blocks for the device; of a plane each takes a row for each of its warps at least.
    const int64_t wanted = (kRangeBlocks * context_.limits.multiprocessors + level.planes - 1) / level.planes;
    args.part_rows = static_cast<int32_t>(std::max<int64_t>(kRangeThreads / 32, (level.h + wanted - 1) / wanted));
    args.parts = static_cast<uint32_t>((level.h + args.part_rows - 1) / args.part_rows);
    const int64_t blocks = static_cast<int64_t>(level.planes) * args.parts;
    check_fits(2 * blocks);
    args.groups = allocate<Extremes<T>>(groups);
    if (tracks_) args.shares = allocate<Gradients<T>>(2 * groups);
    if (blocks > groups) args.found = allocate<Extremes<T>>(blocks);
    launch(part_extremes<T>, blocks, kRangeThreads, kRangeBytes, context_.stream, args);
    if (args.found) launch(group_extremes<T>, groups, kRangeThreads, kRangeBytes, context_.stream, args);
    return args;
  }

  const Problem& problem_;
  const std::vector<Level>& levels_;
  MarchKernel<T> kernel_;
  const CudaContext& context_;
  T* values_;
  const int64_t samples_;
  const bool tracks_;
};

template <class T>
void run_as(const Problem& problem, const std::vector<Level>& levels, bool per_sample, void* values,
            const CudaContext& context) {
  Run<T> run(problem, levels, per_sample, values, context);
  for (size_t begin = 0; begin < levels.size(); begin += kMaxLevels)
    run.go(begin, std::min(levels.size(), begin + kMaxLevels));
}

}  // namespace

DeviceLimits device_limits() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "asking for the device");
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, which, device), "asking for the device's limits");
    return static_cast<int64_t>(value);
  };
  return {attribute(cudaDevAttrMultiProcessorCount),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
          attribute(cudaDevAttrReservedSharedMemoryPerBlock),
          attribute(cudaDevAttrMaxRegistersPerMultiprocessor),
          attribute(cudaDevAttrMaxThreadsPerMultiProcessor),
          attribute(cudaDevAttrMaxBlocksPerMultiprocessor)};
}

void run_cuda(const Problem& problem, const std::vector<Level>& levels, bool per_sample, void* values,
              const CudaContext& context) {
  if (levels[0].x.dtype == DType::kFloat64)
    run_as<double>(problem, levels, per_sample, values, context);
  else
    run_as<float>(problem, levels, per_sample, values, context);
}

void scale_cuda(const std::vector<ScaleCall>& calls, const void* factor, DType factor_dtype, int64_t factor_stride,
                int64_t sample_stride, const CudaContext& context) {
  constexpr int64_t kRow = 1024;  // pixels
  for (size_t begin = 0; begin < calls.size(); begin += kMaxScaled) {
    ScaleArgs args{};
    args.count = static_cast<int32_t>(std::min<size_t>(kMaxScaled, calls.size() - begin));
    args.factor = static_cast<const char*>(factor) + begin * factor_stride * bytes_of_element(factor_dtype);
    args.factor_dtype = factor_dtype;
    args.factor_stride = factor_stride, args.sample_stride = sample_stride;
    int64_t most_rows = 0;
    for (int32_t i = 0; i < args.count; ++i) {
      const ScaleCall& call = calls[begin + i];
      args.tensors[i] = {call.grad, call.n, call.c * call.h, call.c, call.w, is_dense(call), 1, call.divisor};
      most_rows = std::max(most_rows, call.n * call.c * call.h * std::max<int64_t>(1, call.w / kRow));
    }
    const int64_t blocks =
        std::clamp<int64_t>(most_rows * 32 / kScaleThreads, 1, 2 * kScaleBlocks * context.limits.multiprocessors);
    args.blocks_per_tensor = static_cast<uint32_t>(blocks);
    for (int32_t i = 0; i < args.count; ++i)  // (no sample is left over: there are n places for n, or one part of each)
      args.tensors[i].parts = static_cast<uint32_t>(std::max<int64_t>(1, blocks / args.tensors[i].n));
    launch(scale, blocks * args.count, kScaleThreads, 0, context.stream, args);
  }
}

}  // namespace ssim
