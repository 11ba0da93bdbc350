// fused_ssim._C: facts about the build and plans, for Python. Importing it loads the operators' kernels too.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/headeronly/version.h>

#include "cpu/ssim_cpu.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about the compiled part of fused_ssim.";
  m.def("build_info", [] {
    py::dict info;
    info["compiler"] = __VERSION__;
    info["torch_headers"] = TORCH_VERSION;
    info["cpu_instruction_sets"] = ssim::cpu_instruction_sets();
    info["cuda_archs"] = py::list();
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
}
