"""Loads the compiled part, ``fused_ssim._C``, and keeps the reason where that fails."""

import importlib
import re
import warnings

error: str | None = None
"""Why the compiled kernels are missing, or None where they are loaded."""

try:
    # Importing the module registers its kernels with torch's dispatcher.
    _C = importlib.import_module("fused_ssim._C")
except ImportError as failure:
    _C = None  # type: ignore[assignment]
    error = f"the compiled part is missing ({failure}); install with a C++ compiler present: pip install ."
    warnings.warn(f"fused_ssim: {error}. The slower plain-PyTorch reference serves instead.", stacklevel=3)


def build_info() -> dict[str, object]:
    """Facts of the build: compiler, torch headers, CUDA architectures, instruction sets that this processor has too."""
    return {} if _C is None else dict(_C.build_info())


def devices_of(arch: str) -> tuple[int, int]:
    """The least and the most compute capability (10 * major + minor) of devices that run "sm_90", "compute_120" etc.

    Machine code runs on devices of its major version, from its minor version on; PTX on every later device. With "a"
    either is for that device alone, with "f" for its major version.
    """
    match = re.fullmatch(r"(sm|compute)_(\d+)([af]?)", arch)
    if match is None:
        raise ValueError(f"arch must be such as 'sm_90' or 'compute_120', got {arch!r}")
    kind, least, special = match[1], int(match[2]), match[3]
    if special == "a":
        return least, least
    return least, 10**6 if kind == "compute" and not special else least // 10 * 10 + 9


# Asked for in every call, and by a compiler that cannot trace into the extension: found once.
cuda_archs: tuple[str, ...] = () if _C is None else tuple(_C.build_info()["cuda_archs"])
"""What the CUDA kernels were built for, such as "sm_90" and "compute_90"; empty where they were not."""

cuda_devices = tuple(devices_of(arch) for arch in cuda_archs)
"""Of each of them: the devices that it runs on, see :func:`devices_of`."""
