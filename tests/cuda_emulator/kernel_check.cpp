// The real kernels without torch, for sanitizers and planted bugs: computes a few cases and prints a hash of all
// outputs of each, which must be the same in every order of threads. Usage: kernel_check lean|general ORDER SEED
// OS_THREADS
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda/elements.cuh"
#include "cuda/march.h"
#include "cuda/ssim_cuda.h"

#if defined(LEAN_ONLY)  // so that a planted bug takes one compilation, not three
namespace ssim {
MarchKernel<float> general_march_float(bool, int) { std::abort(); }
MarchKernel<double> general_march_double(bool, int) { std::abort(); }
}  // namespace ssim
#endif

namespace {

using ssim::DType;

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
  DType dtype;
  int64_t n, c, h, w;
  int multiprocessors;
  ssim::Padding padding;
  double beta;
  bool grad_y, weight, per_sample;
  ssim::Normalize normalize = ssim::Normalize::kNone;  // with the gradient of minimum and maximum
};

// Shapes that make the plan pack maps, march down whole ones, and cut large ones into strips and bands.
const Case kLean[] = {
    {"packed", DType::kFloat32, 2, 4, 7, 12, 1, ssim::Padding::kSame, 1, false, false, false},
    {"whole, odd width", DType::kFloat32, 1, 3, 21, 37, 2, ssim::Padding::kSame, 1, false, false, true},
    {"strips and bands", DType::kFloat32, 1, 1, 70, 300, 4, ssim::Padding::kSame, 1, false, false, false},
    {"half", DType::kFloat16, 1, 2, 19, 32, 1, ssim::Padding::kSame, 1, false, false, false},
    {"rescaled", DType::kFloat32, 1, 5, 13, 20, 1, ssim::Padding::kSame, 1, false, false, false,
     ssim::Normalize::kChannel},
    {"rescaled strips", DType::kFloat32, 1, 1, 70, 300, 4, ssim::Padding::kSame, 1, false, false, false,
     ssim::Normalize::kChannel},
    {"mirrored, packed", DType::kFloat32, 2, 4, 7, 12, 1, ssim::Padding::kReflect, 1, false, false, false},
    {"mirrored, odd width", DType::kFloat32, 1, 3, 21, 37, 2, ssim::Padding::kReflect, 1, false, false, true},
    {"mirrored strips and bands", DType::kFloat32, 1, 1, 70, 300, 4, ssim::Padding::kReflect, 1, false, false, false},
    {"mirrored, odd strips", DType::kFloat32, 1, 1, 9, 301, 4, ssim::Padding::kReflect, 1, false, false, false},
    {"mirrored, narrow", DType::kFloat16, 1, 4, 3, 2, 1, ssim::Padding::kReflect, 1, false, false, false},
    {"mirrored, rescaled", DType::kFloat32, 1, 5, 13, 20, 1, ssim::Padding::kReflect, 1, false, false, false,
     ssim::Normalize::kChannel},
};
const Case kGeneral[] = {
    {"reflect", DType::kFloat32, 1, 3, 13, 19, 1, ssim::Padding::kReflect, 1, true, true, true},
    {"valid", DType::kBFloat16, 1, 2, 25, 38, 4, ssim::Padding::kValid, 1, true, false, false},
    {"separate", DType::kFloat32, 1, 2, 40, 70, 4, ssim::Padding::kSame, 0.5, true, true, false},
    {"double", DType::kFloat64, 1, 1, 20, 21, 1, ssim::Padding::kSame, 1, false, false, false},
    {"rescaled", DType::kFloat32, 2, 2, 13, 19, 1, ssim::Padding::kReflect, 1, true, false, false,
     ssim::Normalize::kSample},
};

int64_t bytes_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

ssim::View tensor(Heap& heap, const Case& c, int64_t h, int64_t w, std::mt19937* random) {
  const int64_t count = c.n * c.c * h * w;
  void* data = heap.take(count * bytes_of(c.dtype));
  std::uniform_real_distribution<double> uniform(0, 1);
  for (int64_t i = 0; random && i < count; ++i) {
    const double value = uniform(*random);
    switch (c.dtype) {
      case DType::kFloat64: static_cast<double*>(data)[i] = value; break;
      case DType::kFloat32: static_cast<float*>(data)[i] = static_cast<float>(value); break;
      case DType::kFloat16: static_cast<c10::Half*>(data)[i] = static_cast<float>(value); break;
      default: static_cast<c10::BFloat16*>(data)[i] = static_cast<float>(value); break;
    }
  }
  return {data, c.c * h * w, h * w, w, 1, c.dtype};
}

struct Hash {
  uint64_t value = 1469598103934665603u;
  void add(const void* data, int64_t bytes) {
    for (int64_t i = 0; i < bytes; ++i) value = (value ^ static_cast<const unsigned char*>(data)[i]) * 1099511628211u;
  }
};

void run(const Case& c) {
  emulator::options().multiprocessors = c.multiprocessors;
  std::mt19937 random(1);
  Heap heap;
  ssim::Problem problem;
  const double taps[] = {0.001, 0.008, 0.036, 0.109, 0.213, 0.266, 0.213, 0.109, 0.036, 0.008, 0.001};
  std::copy(std::begin(taps), std::end(taps), problem.taps);
  problem.c1 = 1e-4, problem.c2 = 9e-4;
  problem.beta = c.beta;
  problem.padding = c.padding;
  problem.normalize = c.normalize, problem.detach_range = false;
  const int64_t margin = c.padding == ssim::Padding::kValid ? 2 * ssim::kRadius : 0;
  ssim::Level level;
  level.n = c.n, level.c = c.c, level.h = c.h, level.w = c.w;
  level.x = tensor(heap, c, c.h, c.w, &random);
  level.y = tensor(heap, c, c.h, c.w, &random);
  level.grad_x = tensor(heap, c, c.h, c.w, nullptr);
  if (c.grad_y) level.grad_y = tensor(heap, c, c.h, c.w, nullptr);
  if (c.weight) level.seed = tensor(heap, c, c.h - margin, c.w - margin, &random);
  level.slope = -0.5, level.offset = 0.5, level.l1 = 0.25;
  const int64_t samples = c.per_sample ? c.n : 1, value_bytes = c.dtype == DType::kFloat64 ? 8 : 4;
  void* values = heap.take(samples * value_bytes);
  ssim::CudaContext context;
  context.limits = ssim::device_limits();
  context.allocate = [&](int64_t bytes) { return heap.take(bytes); };
  const uint64_t before = emulator::totals().blocks;
  ssim::run_cuda(problem, {level}, c.per_sample, values, context);
  Hash hash;
  hash.add(values, samples * value_bytes);
  const int64_t bytes = c.n * c.c * c.h * c.w * bytes_of(c.dtype);
  hash.add(level.grad_x.data, bytes);
  if (c.grad_y) hash.add(level.grad_y.data, bytes);
  const double value = value_bytes == 8 ? *static_cast<double*>(values) : *static_cast<float*>(values);
  std::printf("%s: %llu blocks, value %.6g, outputs %016llx\n", c.name,
              static_cast<unsigned long long>(emulator::totals().blocks - before), value,
              static_cast<unsigned long long>(hash.value));
}

}  // namespace

int main(int count, char** arguments) try {
  if (count != 5) return std::fprintf(stderr, "usage: kernel_check lean|general ORDER SEED OS_THREADS\n"), 2;
  emulator::options().order = static_cast<emulator::Order>(std::atoi(arguments[2]));
  emulator::options().seed = static_cast<unsigned>(std::atoi(arguments[3]));
  emulator::options().os_threads = std::atoi(arguments[4]);
  if (std::string(arguments[1]) == "lean")
    for (const Case& c : kLean) run(c);
  else
    for (const Case& c : kGeneral) run(c);
  return 0;
} catch (const std::exception& error) {
  std::printf("error %s\n", error.what());
  return 1;
}
