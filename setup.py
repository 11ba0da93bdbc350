"""Builds fused_ssim._C. Metadata stands in pyproject.toml; torch is imported only to build.

The CUDA kernels are built in where nvcc is found (CUDA_HOME or PATH), with no GPU needed. Environment:
FUSED_SSIM_CUDA=0 leaves them out; TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX") chooses architectures; MAX_JOBS limits nvcc.
"""

import os
import re
import shutil
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup

SOURCES = [
    "csrc/bindings.cpp",
    "csrc/ops_cpu.cpp",
    "csrc/cpu/ssim_cpu.cpp",
    "csrc/cpu/kernels_avx512.cpp",
    "csrc/cpu/kernels_avx2.cpp",
    "csrc/cpu/kernels_baseline.cpp",
    "csrc/cuda/plan.cpp",
]
CUDA_HOST_SOURCES = ["csrc/ops_cuda.cpp"]
CUDA_SOURCES = [  # those that take nvcc longest first
    "csrc/cuda/march_lean_same.cu",
    "csrc/cuda/march_general_float.cu",
    "csrc/cuda/march_lean_reflect.cu",
    "csrc/cuda/march_general_double.cu",
    "csrc/cuda/ssim_cuda.cu",
]
CUDA_ARCHS = ("75", "80", "86", "89", "90", "100", "120")
# Their code serves devices of the same major version. PTX of the last one serves those that come after it, that of 100
# those of 11.x, which lie between.
CUDA_PTX = ("100", "120")
# The stable ABI of torch 2.11: one binary serves that version and every later one.
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"


def cuda_home() -> Path | None:
    """Where the CUDA toolkit is, or None; says why not."""
    if os.environ.get("FUSED_SSIM_CUDA") == "0":
        print("fused_ssim: FUSED_SSIM_CUDA=0: building the CPU kernels only")
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = Path(home, "bin", "nvcc") if home else Path(shutil.which("nvcc") or "nvcc-missing")
    if not nvcc.exists():
        print("fused_ssim: no nvcc in CUDA_HOME or PATH: building the CPU kernels only")
        return None
    # nvcc itself says where it lives: what stands in PATH may be a script that calls another.
    dry_run = subprocess.run([nvcc, "--dryrun", "-c", "nothing.cu"], capture_output=True, text=True).stderr
    here = re.search(r"_HERE_=(.+)", dry_run)
    return (Path(here[1].strip()) if here else nvcc.resolve().parent).parent


def gencodes(nvcc: Path) -> tuple[list[str], list[str]]:
    """nvcc's options for the architectures, and their names."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if listed:
        wanted = [entry.replace(".", "") for entry in re.split(r"[\s;,]+", listed) if entry]
        unknown = [entry for entry in wanted if not re.fullmatch(r"\d+[af]?(\+PTX)?", entry)]
        if unknown:
            raise ValueError(f"TORCH_CUDA_ARCH_LIST must hold entries such as 8.0 or 9.0+PTX, got {listed!r}")
    else:
        known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
        there = [arch for arch in CUDA_ARCHS if f"sm_{arch}\n" in known + "\n"]
        wanted = [arch + "+PTX" if arch in (*CUDA_PTX, there[-1]) else arch for arch in there]
    options, names = [], []
    for entry in wanted:
        arch = entry.removesuffix("+PTX")
        options.append(f"-gencode=arch=compute_{arch},code=sm_{arch}")
        names.append(f"sm_{arch}")
        if entry.endswith("+PTX"):
            options.append(f"-gencode=arch=compute_{arch},code=compute_{arch}")
            names.append(f"compute_{arch}")
    return options, names


def compile_cuda(home: Path, include_dirs: list[str], folder: Path) -> tuple[list[str], list[str]]:
    """Objects of the .cu files and the architectures in them, from an earlier build where nothing has changed."""
    nvcc = home / "bin" / "nvcc"
    options, names = gencodes(nvcc)
    folder.mkdir(parents=True, exist_ok=True)
    headers = [path for path in Path("csrc").rglob("*") if path.suffix in (".h", ".cuh")]
    newest_header = max(path.stat().st_mtime for path in headers)
    flags = ["-std=c++20", "-O3", "--threads=1", "-Xcompiler=-fPIC,-fvisibility=hidden", *options]
    flags += [f"-I{path}" for path in include_dirs]

    def build(source: Path) -> str:
        built = folder / f"{source.stem}.{hash_of([*flags, STABLE_ABI]):x}.o"
        if not built.exists() or built.stat().st_mtime < max(newest_header, source.stat().st_mtime):
            command = [str(nvcc), *flags, STABLE_ABI, "-c", str(source), "-o", str(built)]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                built.unlink(missing_ok=True)
                raise RuntimeError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
        return str(built)

    jobs = int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        return list(pool.map(build, map(Path, CUDA_SOURCES))), names


def hash_of(texts: list[str]) -> int:
    """The same for the same texts in every process."""
    return zlib.crc32("\0".join(texts).encode())


def build_extension_command() -> type:
    """torch's build_ext, which knows its headers, ninja and MAX_JOBS; nvcc is called here, whatever torch it has."""
    from torch.utils.cpp_extension import BuildExtension

    class BuildWithCuda(BuildExtension):
        def build_extensions(self) -> None:
            home = cuda_home()
            (extension,) = self.extensions
            if home is not None:
                try:
                    objects, archs = compile_cuda(home, extension.include_dirs, Path(self.build_temp, "cuda"))
                except (RuntimeError, subprocess.CalledProcessError) as error:
                    print(f"fused_ssim: nvcc failed: building the CPU kernels only\n{error}", file=sys.stderr)
                else:
                    add_cuda(extension, home, objects, archs)
            super().build_extensions()

    return BuildWithCuda


def add_cuda(extension: Extension, home: Path, objects: list[str], archs: list[str]) -> None:
    extension.sources += CUDA_HOST_SOURCES
    extension.extra_objects += objects
    extension.include_dirs.append(str(home / "include"))
    extension.extra_compile_args["cxx"].append(f'-DSSIM_CUDA_ARCHS="{",".join(archs)}"')
    # The static runtime: a torch without CUDA must be able to load this file too.
    extension.extra_link_args += [
        f"-L{home / 'lib64'}",
        f"-L{home / 'lib'}",
        "-lcudart_static",
        "-lrt",
        "-lpthread",
        "-ldl",
    ]


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
        STABLE_ABI,
    ]
    flags += os.environ.get("FUSED_SSIM_CXXFLAGS", "").split()
    return Extension(
        "fused_ssim._C",
        list(SOURCES),
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
