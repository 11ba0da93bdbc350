// The real kernels without torch, for sanitizers and planted bugs: computes a few cases, compares each with
// plain_ssim.h and prints a hash of all its outputs, which must be the same in every order of threads.
// Usage: kernel_check lean|general ORDER SEED OS_THREADS; 1 where a result is wrong
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda/elements.cuh"
#include "cuda/march.h"
#include "cuda/ssim_cuda.h"
#include "plain_ssim.h"

#if defined(LEAN_ONLY)  // so that a planted bug takes one compilation, not three
namespace ssim {
MarchKernel<float> general_march_float(bool, int) { std::abort(); }
MarchKernel<double> general_march_double(bool, int) { std::abort(); }
}  // namespace ssim
#endif

namespace {

using plain::Numbers;
using ssim::DType;
using ssim::Normalize;
using ssim::Padding;

// Memory that holds exactly what is asked for, so that AddressSanitizer sees each element too many.
struct Heap {
  std::vector<std::unique_ptr<char[]>> pieces;
  void* take(int64_t bytes) {
    pieces.emplace_back(new char[static_cast<size_t>(bytes)]);
    std::memset(pieces.back().get(), 0xFF, static_cast<size_t>(bytes));
    return pieces.back().get();
  }
};

struct Case {
  const char* name;
  std::vector<std::pair<int64_t, int64_t>> sizes;  // of each level
  int64_t n = 1, c = 1;
  int multiprocessors = 1;
  DType dtype = DType::kFloat32;
  Padding padding = Padding::kSame;
  double beta = 1;
  bool grad_y = false, weight = false, per_sample = false;
  Normalize normalize = Normalize::kNone;  // with the gradient of minimum and maximum
  bool map = false;                        // the map, and then its gradient for a weight as the upstream gradient
};

// Shapes that make the plan pack maps, march down whole ones, and cut large ones into strips and bands.
const Case kLean[] = {
    {"packed", {{7, 12}}, 2, 4},
    {.name = "whole, odd width", .sizes = {{21, 37}}, .c = 3, .multiprocessors = 2, .per_sample = true},
    {.name = "strips and bands", .sizes = {{70, 300}}, .multiprocessors = 4},
    {.name = "half", .sizes = {{19, 32}}, .c = 2, .dtype = DType::kFloat16},
    {.name = "rescaled", .sizes = {{13, 20}}, .c = 5, .normalize = Normalize::kChannel},
    {.name = "rescaled strips", .sizes = {{70, 300}}, .multiprocessors = 4, .normalize = Normalize::kChannel},
    {.name = "levels", .sizes = {{7, 10}, {45, 62}, {13, 19}}, .n = 2, .c = 3, .per_sample = true},
    {.name = "rescaled levels", .sizes = {{25, 38}, {7, 12}}, .c = 3, .normalize = Normalize::kChannel},
    {.name = "half, odd width", .sizes = {{17, 23}}, .n = 2, .dtype = DType::kFloat16},
    {.name = "bfloat16", .sizes = {{19, 32}, {9, 13}}, .c = 2, .dtype = DType::kBFloat16},
    {.name = "bfloat16 strips", .sizes = {{40, 300}}, .multiprocessors = 4, .dtype = DType::kBFloat16},
    {.name = "mirrored, packed", .sizes = {{7, 12}}, .n = 2, .c = 4, .padding = Padding::kReflect},
    {.name = "mirrored, odd width",
     .sizes = {{21, 37}},
     .c = 3,
     .multiprocessors = 2,
     .padding = Padding::kReflect,
     .per_sample = true},
    {.name = "mirrored strips and bands", .sizes = {{70, 300}}, .multiprocessors = 4, .padding = Padding::kReflect},
    {.name = "mirrored, odd strips", .sizes = {{9, 301}}, .multiprocessors = 4, .padding = Padding::kReflect},
    {.name = "mirrored, narrow", .sizes = {{3, 2}}, .c = 4, .dtype = DType::kFloat16, .padding = Padding::kReflect},
    {.name = "mirrored, rescaled",
     .sizes = {{13, 20}},
     .c = 5,
     .padding = Padding::kReflect,
     .normalize = Normalize::kChannel},
    {.name = "valid strips and bands", .sizes = {{70, 300}}, .multiprocessors = 4, .padding = Padding::kValid},
    {.name = "valid, packed",
     .sizes = {{13, 19}, {12, 11}},
     .c = 5,
     .dtype = DType::kFloat16,
     .padding = Padding::kValid,
     .normalize = Normalize::kChannel},
};
const Case kGeneral[] = {
    {.name = "reflect",
     .sizes = {{13, 19}},
     .c = 3,
     .padding = Padding::kReflect,
     .grad_y = true,
     .weight = true,
     .per_sample = true},
    {.name = "valid",
     .sizes = {{25, 38}},
     .c = 2,
     .multiprocessors = 4,
     .dtype = DType::kBFloat16,
     .padding = Padding::kValid,
     .grad_y = true},
    {.name = "separate",
     .sizes = {{40, 70}},
     .c = 2,
     .multiprocessors = 4,
     .beta = 0.5,
     .grad_y = true,
     .weight = true},
    {.name = "double", .sizes = {{20, 21}}, .dtype = DType::kFloat64},
};
const Case kMore[] = {
    // apart, because ThreadSanitizer counts the threads that a process has ever had
    {.name = "rescaled",
     .sizes = {{13, 19}},
     .n = 2,
     .c = 2,
     .padding = Padding::kReflect,
     .grad_y = true,
     .normalize = Normalize::kSample},
    {.name = "levels", .sizes = {{22, 31}, {13, 19}}, .n = 2, .padding = Padding::kValid, .weight = true},
    {.name = "map", .sizes = {{18, 27}}, .c = 2, .multiprocessors = 2, .grad_y = true, .map = true},
    {.name = "map of half",
     .sizes = {{14, 21}},
     .c = 2,
     .dtype = DType::kFloat16,
     .padding = Padding::kReflect,
     .map = true},
};

int64_t bytes_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

double element(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kFloat64: return static_cast<const double*>(data)[i];
    case DType::kFloat32: return static_cast<const float*>(data)[i];
    case DType::kFloat16: return static_cast<const c10::Half*>(data)[i];
    default: return static_cast<const c10::BFloat16*>(data)[i];
  }
}

void set_element(void* data, DType dtype, int64_t i, double value) {
  switch (dtype) {
    case DType::kFloat64: static_cast<double*>(data)[i] = value; break;
    case DType::kFloat32: static_cast<float*>(data)[i] = static_cast<float>(value); break;
    case DType::kFloat16: static_cast<c10::Half*>(data)[i] = static_cast<float>(value); break;
    default: static_cast<c10::BFloat16*>(data)[i] = static_cast<float>(value); break;
  }
}

Numbers elements(const void* data, DType dtype, int64_t count) {
  Numbers result(data ? count : 0);
  for (size_t i = 0; i < result.size(); ++i) result[i] = element(data, dtype, static_cast<int64_t>(i));
  return result;
}

ssim::View tensor(Heap& heap, const Case& c, int64_t h, int64_t w, std::mt19937* random) {
  const int64_t count = c.n * c.c * h * w;
  void* data = heap.take(count * bytes_of(c.dtype));
  std::uniform_real_distribution<double> uniform(0, 1);
  for (int64_t i = 0; random && i < count; ++i) set_element(data, c.dtype, i, uniform(*random));
  return {data, c.c * h * w, h * w, w, 1, c.dtype};
}

// What a case came to: a hash of its outputs, and the largest relative errors against plain_ssim.h.
struct Outcome {
  uint64_t hash = 1469598103934665603u;
  double value_error = 0, gradient_error = 0;

  void add(const void* data, int64_t bytes) {
    for (int64_t i = 0; i < bytes; ++i) hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 1099511628211u;
  }
  // Written so that a NaN stays.
  static void raise(double& most, double error) { most = error <= most ? most : error; }
  void compare(double& most, const Numbers& got, const Numbers& want) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      difference += (got[i] - want[i]) * (got[i] - want[i]);
      size += want[i] * want[i];
    }
    raise(most, std::sqrt(difference / size));
  }
};

double dot(const Numbers& a, const Numbers& b) { return std::inner_product(a.begin(), a.end(), b.begin(), 0.0); }

// The gradient times random directions against what the value does on a step in each, relative to the gradient's norm.
void judge_gradient(Outcome& outcome, const ssim::Problem& p, const ssim::Level& l, const Numbers (&xy)[2],
                    const Numbers& seed, int side, const Numbers& gradient, std::mt19937& random) {
  constexpr double kStep = 1e-6;
  std::normal_distribution<double> normal;
  for (int trial = 0; trial < 2; ++trial) {
    Numbers direction(gradient.size());
    for (double& v : direction) v = normal(random);
    double ends[2];
    for (int end = 0; end < 2; ++end) {
      Numbers moved[2] = {xy[0], xy[1]};
      for (size_t i = 0; i < direction.size(); ++i) moved[side][i] += (end ? kStep : -kStep) * direction[i];
      const Numbers values = plain::values(p, l, moved[0], moved[1], seed);
      ends[end] = std::accumulate(values.begin(), values.end(), 0.0);
    }
    const double slope = l.grad_scale * (ends[1] - ends[0]) / (2 * kStep);
    Outcome::raise(outcome.gradient_error,
                   std::abs(slope - dot(gradient, direction)) / std::sqrt(dot(gradient, gradient)));
  }
}

ssim::Problem problem_of(const Case& c) {
  ssim::Problem problem;
  const double taps[] = {0.001, 0.008, 0.036, 0.109, 0.213, 0.266, 0.213, 0.109, 0.036, 0.008, 0.001};
  std::copy(std::begin(taps), std::end(taps), problem.taps);
  problem.c1 = 1e-4, problem.c2 = 9e-4;
  problem.beta = c.beta;
  problem.padding = c.padding;
  problem.normalize = c.normalize, problem.detach_range = false;
  return problem;
}

bool run(const Case& c) {
  emulator::options().multiprocessors = c.multiprocessors;
  std::mt19937 random(1);
  Heap heap;
  const ssim::Problem problem = problem_of(c);
  const int64_t margin = c.padding == Padding::kValid ? 2 * ssim::kRadius : 0;
  std::vector<ssim::Level> levels;
  for (const auto& [h, w] : c.sizes) {
    ssim::Level level;
    level.n = c.n, level.c = c.c, level.h = h, level.w = w;
    level.x = tensor(heap, c, h, w, &random);
    level.y = tensor(heap, c, h, w, &random);
    level.grad_x = tensor(heap, c, h, w, nullptr);
    if (c.grad_y) level.grad_y = tensor(heap, c, h, w, nullptr);
    if (c.weight || c.map) level.seed = tensor(heap, c, h - margin, w - margin, &random);
    const double part = 1 + static_cast<double>(levels.size());  // each level its own factors
    if (!c.map) level.slope = -0.5 / part, level.offset = 0.5, level.grad_scale = 2;
    // The L1 term has no meaning beside a rescaling, nor a weight where the map is smaller.
    if (!c.map && c.normalize == Normalize::kNone && !(c.weight && margin > 0)) level.l1 = 0.25 * part;
    levels.push_back(level);
  }
  const int64_t samples = c.per_sample ? c.n : 1, count = static_cast<int64_t>(levels.size());
  const DType value_type = c.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  const int64_t value_bytes = bytes_of(value_type);
  void* values = c.map ? nullptr : heap.take(count * samples * value_bytes);
  ssim::CudaContext context;
  context.limits = ssim::device_limits();
  context.allocate = [&](int64_t bytes) { return heap.take(bytes); };
  const uint64_t before = emulator::totals().blocks;
  Outcome outcome;

  if (c.map) {
    ssim::Level forward = levels[0];
    forward.seed = forward.grad_x = forward.grad_y = {};
    forward.map = tensor(heap, c, forward.h - margin, forward.w - margin, nullptr);
    ssim::run_cuda(problem, {forward}, false, nullptr, context);
    const int64_t pixels = c.n * c.c * (forward.h - margin) * (forward.w - margin),
                  all = c.n * c.c * forward.h * forward.w;
    Numbers want;
    plain::values(problem, forward, elements(forward.x.data, c.dtype, all), elements(forward.y.data, c.dtype, all), {},
                  &want);
    outcome.compare(outcome.value_error, elements(forward.map.data, c.dtype, pixels), want);
    outcome.add(forward.map.data, pixels * bytes_of(c.dtype));
  }
  ssim::run_cuda(problem, levels, c.per_sample, values, context);

  std::vector<Numbers> gradients;
  std::vector<ssim::ScaleCall> calls;
  Numbers want_values;
  for (int side = 0; side < 1 + c.grad_y; ++side) {
    for (const ssim::Level& l : levels) {
      const int64_t all = c.n * c.c * l.h * l.w;
      const ssim::View& view = side ? l.grad_y : l.grad_x;
      const Numbers xy[2] = {elements(l.x.data, c.dtype, all), elements(l.y.data, c.dtype, all)};
      const Numbers seed = elements(l.seed.data, c.dtype, c.n * c.c * (l.h - margin) * (l.w - margin));
      gradients.push_back(elements(view.data, c.dtype, all));
      calls.push_back({view, c.n, c.c, l.h, l.w, 2.0});
      judge_gradient(outcome, problem, l, xy, seed, side, gradients.back(), random);
      if (side) continue;
      const Numbers of_level = plain::values(problem, l, xy[0], xy[1], seed);
      for (int64_t n = 0; n < samples; ++n)
        want_values.push_back(c.per_sample ? of_level[n] : std::accumulate(of_level.begin(), of_level.end(), 0.0));
    }
  }
  if (values) {
    outcome.compare(outcome.value_error, elements(values, value_type, count * samples), want_values);
    outcome.add(values, count * samples * value_bytes);
  }

  // The upstream gradient, of each value; 2, the divisor, leaves its gradient as it is.
  const int64_t factors = static_cast<int64_t>(calls.size()) * samples;
  void* factor = heap.take(factors * value_bytes);
  for (int64_t i = 0; i < factors; ++i) set_element(factor, value_type, i, i == 1 ? 2.0 : 0.75 + 0.5 * i);
  ssim::scale_cuda(calls, factor, value_type, samples, c.per_sample ? 1 : 0, context);
  for (size_t i = 0; i < calls.size(); ++i) {
    Numbers want = gradients[i];
    const int64_t of_sample = static_cast<int64_t>(want.size()) / c.n;
    for (size_t j = 0; j < want.size(); ++j) {
      const int64_t sample = c.per_sample ? static_cast<int64_t>(j) / of_sample : 0;
      want[j] *= element(factor, value_type, static_cast<int64_t>(i) * samples + sample) / 2;
    }
    const int64_t all = static_cast<int64_t>(want.size());
    outcome.compare(outcome.gradient_error, elements(calls[i].grad.data, c.dtype, all), want);
    outcome.add(calls[i].grad.data, all * bytes_of(c.dtype));
  }

  // Rounding of the outputs, and in 32 bits of the moments.
  const double limit = c.dtype == DType::kFloat64    ? 1e-7
                       : c.dtype == DType::kFloat16  ? 1e-3
                       : c.dtype == DType::kBFloat16 ? 8e-3
                                                     : 1e-5;
  const bool right = outcome.value_error <= (c.map ? limit : 1e-6) && outcome.gradient_error <= limit;
  std::printf("%s: %llu blocks, outputs %016llx, errors %.1e %.1e%s\n", c.name,
              static_cast<unsigned long long>(emulator::totals().blocks - before),
              static_cast<unsigned long long>(outcome.hash), outcome.value_error, outcome.gradient_error,
              right ? "" : ": WRONG");
  return right;
}

}  // namespace

int main(int count, char** arguments) try {
  if (count != 5) return std::fprintf(stderr, "usage: kernel_check lean|general|more ORDER SEED OS_THREADS\n"), 2;
  emulator::options().order = static_cast<emulator::Order>(std::atoi(arguments[2]));
  emulator::options().seed = static_cast<unsigned>(std::atoi(arguments[3]));
  emulator::options().os_threads = std::atoi(arguments[4]);
  const std::string name = arguments[1];
  bool right = true;
  const auto run_all = [&](const auto& cases) {
    for (const Case& c : cases) right = run(c) && right;
  };
  if (name == "lean") run_all(kLean);
  if (name == "general") run_all(kGeneral);
  if (name == "more") run_all(kMore);
  return right ? 0 : 1;
} catch (const std::exception& error) {
  std::printf("error %s\n", error.what());
  return 1;
}
