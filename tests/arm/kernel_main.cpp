// The CPU kernel as a program without torch: kernel DTYPE N C H W PADDING ALPHA BETA GAMMA, the enumerators as numbers.
// Reads 11 taps (float64), then x and y; writes the sum of the map (float64), then its gradients by x and by y.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/ssim_cpu.h"

namespace {

void read(void* to, size_t bytes) {
  if (std::fread(to, 1, bytes, stdin) != bytes) std::exit(2);
}

void write(const void* from, size_t bytes) {
  if (std::fwrite(from, 1, bytes, stdout) != bytes) std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 10) return 2;
  ssim::Level level;
  const auto dtype = static_cast<ssim::DType>(std::atoi(argv[1]));
  level.n = std::atoll(argv[2]), level.c = std::atoll(argv[3]), level.h = std::atoll(argv[4]),
  level.w = std::atoll(argv[5]);
  ssim::Problem problem;
  problem.padding = static_cast<ssim::Padding>(std::atoi(argv[6]));
  problem.alpha = std::atof(argv[7]), problem.beta = std::atof(argv[8]), problem.gamma = std::atof(argv[9]);
  problem.c1 = 1e-4, problem.c2 = 9e-4;
  read(problem.taps, sizeof(problem.taps));

  const size_t size = dtype == ssim::DType::kFloat64 ? 8 : dtype == ssim::DType::kFloat32 ? 4 : 2;
  const size_t bytes = static_cast<size_t>(level.n * level.c * level.h * level.w) * size;
  std::vector<char> x(bytes), y(bytes), grad_x(bytes, -1), grad_y(bytes, -1);  // -1: all bits set, a NaN
  read(x.data(), bytes);
  read(y.data(), bytes);
  const auto view = [&](std::vector<char>& data) {
    return ssim::View{data.data(), level.c * level.h * level.w, level.h * level.w, level.w, 1, dtype};
  };
  level.x = view(x), level.y = view(y), level.grad_x = view(grad_x), level.grad_y = view(grad_y);

  double value = 0;
  ssim::Parallel parallel;
  parallel.run = [](int64_t count, const std::function<void(int64_t)>& task) {
    for (int64_t i = 0; i < count; ++i) task(i);
  };
  ssim::run_cpu(problem, {level}, false, &value, parallel);
  write(&value, sizeof(value));
  write(grad_x.data(), bytes);
  write(grad_y.data(), bytes);
}
