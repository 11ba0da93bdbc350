"""Which backends exist here, why others do not, and which one a tensor takes."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import native, triton_backend
from .options import SSIMOptions
from .window import KERNEL_TAPS

BACKENDS = ("cuda", "triton", "cpu", "reference")
"""In the order of preference; each serves the devices of :func:`unavailable` and the reference serves all."""


def unavailable(backend: str, device: torch.device | str, window_size: int = KERNEL_TAPS) -> str | None:
    """Why ``backend``, one of BACKENDS, cannot serve tensors on ``device``, or None where it can."""
    device = torch.device(device)
    if backend == "reference":
        return None
    if window_size > KERNEL_TAPS:
        return f"its kernels hold windows up to {KERNEL_TAPS}, got window_size={window_size}"
    if backend == "cpu":
        if device.type != "cpu":
            return f"it serves tensors on 'cpu', got {device.type!r}"
        return native.error
    if backend == "cuda":
        return _cuda_unavailable(device)
    return triton_backend.unavailable(device.type)


def _cuda_unavailable(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"it serves tensors on 'cuda', got {device.type!r}"
    if native.error is not None:
        return native.error
    if not native.cuda_archs:
        return "it was built without CUDA kernels; install again where nvcc is in CUDA_HOME or PATH"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    major, minor = torch.cuda.get_device_capability(device)
    if not any(least <= 10 * major + minor <= most for least, most in native.cuda_devices):
        built = ", ".join(native.cuda_archs)
        return f"the device has compute capability {major}.{minor}, its kernels were built for {built}"
    return None


def preferred(device: torch.device | str, window_size: int = KERNEL_TAPS) -> str:
    """The first backend that serves ``device``. Interpreted Triton, which is for tests, only serves if forced."""
    for name in BACKENDS:
        interpreted = name == "triton" and torch.device(device).type == "cpu"
        if not interpreted and unavailable(name, device, window_size) is None:
            return name
    raise AssertionError("the reference serves every device")


def _is_transformed() -> bool:
    """Whether torch.func (grad, vmap, jvp, ...) or forward-mode AD is at work, which kernels have no rules for."""
    if getattr(forward_ad, "_current_level", -1) >= 0:
        return True
    active = getattr(torch._C, "_are_functorch_transforms_active", None)  # which torch.compile can answer, too
    return active is not None and bool(active())


def choose(backend: str | None, x: Tensor, options: SSIMOptions) -> str:
    """The backend that computes ``x``: the forced one (RuntimeError where it cannot), else the first that can."""
    if backend is None:
        return "reference" if _is_transformed() else preferred(x.device, options.window_size)
    if backend not in BACKENDS:
        raise ValueError(f"backend must be None or one of {BACKENDS}, got {backend!r}")
    reason = unavailable(backend, x.device, options.window_size)
    if reason is None and backend != "reference" and _is_transformed():
        reason = "kernels know no torch.func transforms and no forward-mode AD; backend=None takes the reference there"
    if reason is not None:
        raise RuntimeError(f"backend {backend!r} cannot be used: {reason}")
    return backend


def info() -> dict[str, object]:
    """What is built, for which torch, and which backend tensors of each device take and why.

    Returns a dict with "version", "torch", "native" (the build facts of the compiled part, or why it is missing) and
    "backends": for each device type seen here, and for each of several GPUs ("cuda" is the current one), the backend
    chosen and the reason why each other one is not.
    """
    from . import __version__

    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    if torch.cuda.device_count() > 1:  # which may be of different makes
        devices += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    table = {}
    for device in devices:
        reasons = {name: unavailable(name, device) for name in BACKENDS}
        table[device] = {
            "chosen": preferred(device),
            "unavailable": {n: r for n, r in reasons.items() if r is not None},
        }
    return {
        "version": __version__,
        "torch": torch.__version__,
        "native": native.error or native.build_info(),
        "backends": table,
    }
