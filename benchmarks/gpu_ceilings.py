"""What the device can do at most: bytes a second of a large copy, instructions a second of chains of multiply-adds."""

import ctypes
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from statistics import median

import torch

HERE = Path(__file__).parent
STATIC = HERE / "results" / "static_cost.json"
COPY_BYTES = 1 << 30


def ceilings(device: str) -> dict[str, object]:
    """Measured on a GPU; on a CPU, for the dry run, what needs no measurement."""
    capability = torch.cuda.get_device_capability() if device == "cuda" else (9, 0)
    found: dict[str, object] = {"slots_per_pixel": slots_per_pixel(json.loads(STATIC.read_text()), capability)}
    if device != "cuda":
        return found
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    # 64 lanes multiply and add on a multiprocessor of capability 7.5 or 8.0, 128 on the others here.
    lanes = 64 if capability in ((7, 5), (8, 0)) else 128
    fma, said = fma_per_second(), "chains of fused multiply-adds"
    if fma is None:
        fma, said = (
            multiprocessors * lanes * maximum_clock(),
            "the largest clock that nvidia-smi names; nothing measured",
        )
    found["copy_bytes_per_s"] = copy_bytes_per_second()
    found["fma_per_s"], found["fma_from"] = fma, said
    # Four warps of 32 threads a cycle, at the clock that those chains ran at.
    found["slots_per_s"] = fma * 128 / lanes
    return found


def slots_per_pixel(table: list[dict], capability: tuple[int, int]) -> dict[str, float]:
    """Issue slots of a thread for each pixel, from the static cost of the nearest older architecture."""
    archs = {row["arch"]: 10 * capability[0] + capability[1] - int(row["arch"].removeprefix("sm_")) for row in table}
    older = {arch: distance for arch, distance in archs.items() if distance >= 0} or archs
    nearest = min(older, key=lambda arch: abs(older[arch]))
    rows = {row["kernel"]: row["slots/px (est.)"] for row in table if row["arch"] == nearest}
    return {"plain": rows["fused, float32"], "rescaled": rows["fused, float32, mirrored, min-max by channel"]}


def copy_bytes_per_second() -> float:
    """Read and written, of a copy on the device."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(20):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return 2e3 * COPY_BYTES / median(times)


def build_fma(folder: Path, arch: str) -> Path | None:
    """fma_ceiling.cu as a library, or None where there is no nvcc or it fails."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")
    if nvcc is None:
        return None
    library = folder / "libfma_ceiling.so"
    flags = ["-O3", f"-arch={arch}", "-shared", "-Xcompiler", "-fPIC"]
    command = [nvcc, *flags, str(HERE / "fma_ceiling.cu"), "-o", str(library)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        print(f"fma_ceiling.cu: {result.stderr[-2000:]}")
        return None
    return library


def fma_per_second() -> float | None:
    """Of single threads; None where it cannot be measured."""
    with tempfile.TemporaryDirectory() as folder:
        library = build_fma(Path(folder), "sm_{}{}".format(*torch.cuda.get_device_capability()))
        if library is None:
            return None
        try:
            function = ctypes.CDLL(str(library)).fma_per_second
        except OSError as error:
            print(error)
            return None
        function.restype = ctypes.c_double
        rate = function()
    return rate if rate > 0 else None


def maximum_clock() -> float:
    """Hertz of the multiprocessors, or 0."""
    command = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits", "--id=0"]
    try:
        return 1e6 * float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return 0.0
