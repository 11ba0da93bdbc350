"""Registers the Triton kernels, without importing Triton before one of them is called.

Under ``TRITON_INTERPRET=1`` (set before Python starts) they also serve CPU tensors, slowly, for tests.
"""

import importlib
import importlib.util
import os
import shutil
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
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


def compiler_fails() -> str | None:
    """Why Triton can start no kernel on a device: it compiles C code for that when it is first asked to."""
    compiler = os.environ.get("CC", shutil.which("gcc") or shutil.which("clang") or "")
    if shutil.which(compiler) is None:
        return f"Triton needs a C compiler, and {compiler or 'gcc or clang'} is not in PATH; install one, or set CC"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton does
    header = Path(sysconfig.get_paths(scheme)["include"], "Python.h")
    if not header.exists():
        return f"Triton needs the headers of Python (such as the package python3-dev), and {header} is missing"
    return None


_fails = interpreter_fails() if interpreted else compiler_fails()  # files: not searched for in every call


def unavailable(device_type: str) -> str | None:
    """Why Triton cannot serve tensors of ``device_type``, or None where it can."""
    if not _installed:
        return "the package triton is not installed"
    if device_type == "cuda":
        return "TRITON_INTERPRET=1 is set, and its interpreter takes CPU tensors" if interpreted else _fails
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
