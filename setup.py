"""Builds fused_ssim._C. Metadata stands in pyproject.toml; torch is imported only to build."""

import os
import sys

from setuptools import Extension, setup

CPU_SOURCES = [
    "csrc/bindings.cpp",
    "csrc/ops_cpu.cpp",
    "csrc/cpu/ssim_cpu.cpp",
    "csrc/cpu/kernels_avx512.cpp",
    "csrc/cpu/kernels_avx2.cpp",
    "csrc/cpu/kernels_baseline.cpp",
]


def build_extension_command() -> type:
    """torch's build_ext, which knows its headers, ninja and MAX_JOBS."""
    from torch.utils.cpp_extension import BuildExtension

    return BuildExtension


def extension() -> Extension:
    import pybind11
    from torch.utils.cpp_extension import include_paths, library_paths

    flags = [
        "-O3",
        "-std=c++20",
        "-fno-math-errno",
        "-fno-trapping-math",
        # It would carry the values of sliding windows from one iteration to the next by way of the stack.
        "-fno-predictive-commoning",
        # The kernels are vectors already, and GCC 12 crashes when it looks for more of them in the AVX-512 one.
        "-fno-tree-slp-vectorize",
        "-fvisibility=hidden",
        "-Wall",
        "-Wno-maybe-uninitialized",
    ]
    # The stable ABI of torch 2.11: one binary serves that version and every later one.
    flags.append("-DTORCH_TARGET_VERSION=0x020b000000000000")
    flags += os.environ.get("FUSED_SSIM_CXXFLAGS", "").split()
    return Extension(
        "fused_ssim._C",
        CPU_SOURCES,
        include_dirs=[pybind11.get_include(), *include_paths()],
        library_dirs=library_paths(),
        libraries=["torch", "torch_cpu", "c10"],
        extra_compile_args={"cxx": flags},
        extra_link_args=os.environ.get("FUSED_SSIM_LDFLAGS", "").split(),
        language="c++",
    )


# Reading metadata or making an sdist must work where torch is not installed.
building = any(
    command in sys.argv for command in ("build_ext", "build", "bdist_wheel", "install", "develop", "editable_wheel")
)
setup(
    ext_modules=[extension()] if building else [],
    cmdclass={"build_ext": build_extension_command()} if building else {},
)
