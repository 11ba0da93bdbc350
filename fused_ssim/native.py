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


# Asked for in every call, and by a compiler that cannot trace into the extension: found once.
cuda_archs: tuple[str, ...] = () if _C is None else tuple(_C.build_info()["cuda_archs"])
"""What the CUDA kernels were built for, such as "sm_90" and "compute_90"; empty where they were not."""

least_cuda_capability = min((int(re.sub(r"\D", "", arch)) for arch in cuda_archs), default=0)
"""10 * major + minor of the least device that they run on."""
