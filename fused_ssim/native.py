"""Loads the compiled part, ``fused_ssim._C``, and keeps the reason where that fails."""

import importlib
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
    """Facts of the build: compiler, instruction sets compiled and chosen, torch headers, CUDA architectures."""
    return {} if _C is None else dict(_C.build_info())
