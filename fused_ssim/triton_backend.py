"""Registers the Triton kernels, without importing Triton before one of them is called.

Under ``TRITON_INTERPRET=1`` (set before Python starts) they also serve CPU tensors, slowly, for tests.
"""

import importlib
import importlib.util
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from .ops import NAMESPACES

OPERATORS = ("ssim_sums", "ssim_map", "ssim_map_backward", "scale_")

interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")  # as Triton reads it
"""Whether Triton's interpreter runs the kernels, on CPU tensors."""

_installed = importlib.util.find_spec("triton") is not None  # a search through folders: not in every call


def interpreter_fails() -> str | None:
    """Why the interpreter that is installed runs no kernel: older ones make a number of an array of one element."""
    if not _installed:
        return "the package triton is not installed"

    def older(package: str, than: tuple[int, int]) -> bool:
        return tuple(map(int, version(package).split(".")[:2])) < than

    try:
        if older("triton", (3, 7)) and not older("numpy", (2, 4)):
            return f"the interpreter of Triton {version('triton')} needs NumPy < 2.4, got {version('numpy')}"
    except PackageNotFoundError:  # a Triton of another name, or no NumPy: let it try
        pass
    return None


_fails = interpreter_fails() if interpreted else None


def unavailable(device_type: str) -> str | None:
    """Why Triton cannot serve tensors of ``device_type``, or None where it can."""
    if not _installed:
        return "the package triton is not installed"
    if device_type == "cuda":
        return "TRITON_INTERPRET=1 is set, and its interpreter takes CPU tensors" if interpreted else None
    if device_type == "cpu" and interpreted:
        return _fails
    return f"it serves tensors on 'cuda' (and on 'cpu' where TRITON_INTERPRET=1 is set), got {device_type!r}"


def _register() -> list[torch.library.Library]:
    library = torch.library.Library(NAMESPACES["triton"], "IMPL")
    for name in OPERATORS:

        def kernel(*arguments: Any, _name: str = name) -> Any:
            return getattr(importlib.import_module("fused_ssim.triton_launch"), _name)(*arguments)

        library.impl(name, kernel, "CPU" if interpreted else "CUDA")
    return [library]


_libraries = _register()  # registrations live as long as these
