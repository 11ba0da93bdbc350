// fused_ssim._C: facts about the build and plans, for Python. Importing it loads the operators' kernels too.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/headeronly/version.h>

#include <sstream>

#include "cpu/ssim_cpu.h"
#include "cuda/plan.h"

#if !defined(SSIM_CUDA_ARCHS)
#define SSIM_CUDA_ARCHS ""
#endif

namespace py = pybind11;

namespace {

// What nvcc built for, such as "sm_90" (code) and "compute_90" (PTX); empty without CUDA kernels.
std::vector<std::string> cuda_archs() {
  std::vector<std::string> archs;
  std::istringstream list(SSIM_CUDA_ARCHS);
  for (std::string arch; std::getline(list, arch, ',');) archs.push_back(arch);
  return archs;
}

py::dict plan_cuda(const std::vector<std::tuple<int64_t, int64_t, int64_t>>& levels, int64_t rows, int64_t values,
                   int64_t element_bytes, int64_t gap, int64_t max_threads, int64_t registers, int64_t table_bytes,
                   int64_t thread_bytes, int64_t multiprocessors, int64_t shared_per_block,
                   int64_t shared_per_multiprocessor, int64_t shared_reserved, int64_t registers_per_multiprocessor,
                   int64_t threads_per_multiprocessor, int64_t blocks_per_multiprocessor) {
  std::vector<ssim::LevelShape> shapes;
  for (const auto& [planes, h, w] : levels) shapes.push_back({planes, h, w});
  const ssim::KernelShape kernel{rows, values, element_bytes, gap, max_threads, registers, table_bytes, thread_bytes};
  const ssim::DeviceLimits limits{multiprocessors,
                                  shared_per_block,
                                  shared_per_multiprocessor,
                                  shared_reserved,
                                  registers_per_multiprocessor,
                                  threads_per_multiprocessor,
                                  blocks_per_multiprocessor};
  const ssim::CudaPlan plan = ssim::plan_cuda(shapes, kernel, limits);
  py::list parts;
  for (const ssim::CudaLevelPlan& level : plan.levels)
    parts.append(py::dict(py::arg("maps") = level.maps, py::arg("slot") = level.slot, py::arg("strips") = level.strips,
                          py::arg("strip_columns") = level.strip_columns, py::arg("bands") = level.bands,
                          py::arg("band_rows") = level.band_rows, py::arg("blocks") = level.blocks));
  return py::dict(py::arg("threads") = plan.threads, py::arg("shared_bytes") = plan.shared_bytes,
                  py::arg("resident") = plan.resident, py::arg("levels") = parts);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about the compiled part of fused_ssim.";
  m.def("build_info", [] {
    py::dict info;
    info["compiler"] = __VERSION__;
    info["torch_headers"] = TORCH_VERSION;
    info["cpu_instruction_sets"] = ssim::cpu_instruction_sets();
    info["cuda_archs"] = cuda_archs();
    return info;
  });
  m.def(
      "set_cpu_instruction_set", &ssim::set_cpu_instruction_set, py::arg("name"),
      "Use only this one of cpu_instruction_sets from now on; '' goes back to the first. False where it is not there.");
  m.def(
      "plan_cpu",
      [](int64_t planes, int64_t h, int64_t w) {
        const ssim::CpuPlan plan = ssim::plan_cpu(planes, h, w, ssim::cpu_lanes());
        return py::dict(py::arg("strips") = plan.strips, py::arg("bands") = plan.bands);
      },
      py::arg("planes"), py::arg("h"), py::arg("w"),
      "How the CPU kernel cuts each of `planes` float32 maps of (h, w).");
  m.def(
      "plan_cuda", &plan_cuda, py::arg("levels"), py::arg("rows") = 8, py::arg("values") = 4,
      py::arg("element_bytes") = 4, py::arg("gap") = 5, py::arg("max_threads") = int64_t{ssim::kLeanThreads},
      py::arg("registers") = int64_t{ssim::kLeanRegisters}, py::arg("table_bytes") = ssim::kLeanTableBytes,
      py::arg("thread_bytes") = ssim::kTaskBytes, py::arg("multiprocessors") = 132,
      py::arg("shared_per_block") = 232448, py::arg("shared_per_multiprocessor") = 233472,
      py::arg("shared_reserved") = 1024, py::arg("registers_per_multiprocessor") = 65536,
      py::arg("threads_per_multiprocessor") = 2048, py::arg("blocks_per_multiprocessor") = 32,
      "How the CUDA kernel cuts levels, each (planes, h, w), into blocks; the defaults are those of an H100 and of the "
      "kernel that serves training.");
}
