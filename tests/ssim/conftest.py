"""The backend fixture, and outputs that are NaN until a kernel writes them."""

import importlib.util
from collections.abc import Iterator
from typing import NamedTuple

import emulated
import pytest
import torch

import fused_ssim
from fused_ssim import dispatch, native, triton_backend

INSTRUCTION_SETS = ("AVX-512", "AVX2", "baseline")
KERNELS = [f"cpu-{name}" for name in INSTRUCTION_SETS] + ["cuda", "cuda-emulated", "triton", "triton-compiled"]

COMPILED = {
    "test_sum_and_its_gradients": [
        "7x10-(1.0, 0.3, 1.2)-same",
        "7x10-(0.5, 0.7, 0.7)-reflect",
        "13x19-(1.0, 1.0, 1.0)-valid",
    ],
    "test_map_under_any_upstream_gradient": ["7x10-(2.0, 1.0, 1.0)-reflect"],
    "test_planes_cut_into_strips_and_bands": ["sum-1x1x259x17-same"],
    "test_value_alone_where_nothing_needs_a_gradient": ["sum", "none"],
    "test_errors_of_pixels_cancel": ["5", "11"],
    "test_other_constants_and_dtypes": ["torch.float32"],
    "test_as_float32": ["True-sum-l1_ssim_loss-torch.bfloat16", "False-mean-ssim-torch.float16"],
    "test_float16_features_of_large_range": [""],
    "test_values_and_gradients": ["channel-False-level"],
    "test_extremes_that_several_pixels_attain": ["sample-12-False"],
}
"""What of the common suite Triton's compiled kernels run under "triton-compiled", a part of each id: a kernel takes
seconds to compile, and these have few between them. No float64, whose matrix products the PTX interpreter lacks."""


class Backend(NamedTuple):
    """What a test passes on: ``backend=backend.name`` and tensors on ``backend.device``."""

    name: str
    device: str


def _select(identity: str) -> Iterator[Backend]:
    if identity == "cuda-emulated":
        with emulated.backend() as name:
            yield Backend(name, "cpu")
        return
    if identity == "triton-compiled":
        if importlib.util.find_spec("triton") is None:
            pytest.skip("triton is not installed")
        if triton_backend.interpreted:
            pytest.skip("TRITON_INTERPRET=1 is set, and this needs Triton's compiler")
        from ptx import triton_backend as compiled

        with compiled.backend() as name:
            yield Backend(name, "cpu")
        return
    name, _, instruction_set = identity.partition("-")
    device = "cuda" if name in ("cuda", "triton") else "cpu"
    if name == "triton" and triton_backend.interpreted:
        import interpreter

        interpreter.patch_once()
        device = "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"{name}: this machine has no CUDA device")
    reason = dispatch.unavailable(name, device)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    if instruction_set:
        if not native._C.set_cpu_instruction_set(instruction_set):
            pytest.skip(f"this processor (or build) has no {instruction_set}")
        # The name must be one that is compiled in; a typing error here would silently test another set.
        assert instruction_set in fused_ssim.info()["native"]["cpu_instruction_sets"]
    try:
        yield Backend(name, device)
    finally:
        if instruction_set:
            native._C.set_cpu_instruction_set("")


@pytest.fixture(params=["reference", *KERNELS])
def backend(request) -> Iterator[Backend]:
    """Every backend, the CPU kernel once for each instruction set."""
    yield from _select(request.param)


@pytest.fixture(params=KERNELS)
def kernel(request) -> Iterator[Backend]:
    """Every backend but the reference: for what only compiled kernels promise."""
    yield from _select(request.param)


@pytest.fixture(params=["cpu", "cuda", "cuda-emulated", "triton"])
def kernel_once(request) -> Iterator[Backend]:
    """Like ``kernel`` with the preferred instruction set only: for what does not depend on it."""
    yield from _select(request.param)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads and lose much on a busy machine; tests that want more say so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def poisoned_outputs() -> Iterator[None]:
    """Uninitialised memory is filled with NaN, so that a pixel that no kernel wrote is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def unpoisoned(poisoned_outputs) -> Iterator[None]:
    """For tests that reserve much memory and touch little of it."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    yield
    torch.utils.deterministic.fill_uninitialized_memory = True


def pytest_collection_modifyitems(items) -> None:
    """The emulator is slower than a kernel: of its tests the fast core holds those of values and gradients alone.

    Compiled Triton is slower still, and runs what COMPILED names.
    """
    fast = ("test_values.py", "test_reductions.py", "test_l1.py")
    for item in items.copy():
        identity = getattr(getattr(item, "callspec", None), "id", "")
        if "triton-compiled" in identity and not any(part in identity for part in COMPILED.get(item.originalname, ())):
            items.remove(item)
        elif "triton-compiled" in identity or ("cuda-emulated" in identity and item.path.name not in fast):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
