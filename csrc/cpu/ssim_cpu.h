// The CPU kernel's driver: cuts levels into units, hands them to threads, adds up in a fixed order.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "../ssim_params.h"

namespace ssim {

// How a level of (planes, h, w) is cut into columns (strips) and rows (bands) of each plane, for vectors of `lanes`,
// each of which takes a band: a pure function, so that results never depend on the number of threads.
struct CpuPlan {
  int64_t strips, bands;
};
CpuPlan plan_cpu(int64_t planes, int64_t h, int64_t w, int64_t lanes);

// Threads to share work with.
struct Parallel {
  int64_t threads = 1;
  // Runs task(0) ... task(count - 1), each once.
  std::function<void(int64_t count, const std::function<void(int64_t)>& task)> run;
};

// Computes the levels. The sum of level l (sample n) goes to values[l * samples + n], where samples is N for
// per_sample, else 1; values may be null. Every x and y of the call has one dtype.
void run_cpu(const Problem& problem, const std::vector<Level>& levels, bool per_sample, double* values,
             const Parallel& parallel);

// Floats in a vector of the instruction set in use.
int64_t cpu_lanes();

// Instruction sets that are compiled in and that this processor has, the preferred one first.
std::vector<std::string> cpu_instruction_sets();

// Uses only this instruction set from now on (for tests); an empty name goes back to the preferred one. False where the
// processor lacks it.
bool set_cpu_instruction_set(const std::string& name);

}  // namespace ssim
