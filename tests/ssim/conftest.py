"""The backend fixture, and outputs that are NaN until a kernel writes them."""

from collections.abc import Iterator
from typing import NamedTuple

import emulated
import pytest
import torch

import fused_ssim
from fused_ssim import dispatch, native, triton_backend

INSTRUCTION_SETS = ("AVX-512", "AVX2", "baseline")
KERNELS = [f"cpu-{name}" for name in INSTRUCTION_SETS] + ["cuda", "cuda-emulated", "triton"]


class Backend(NamedTuple):
    """What a test passes on: ``backend=backend.name`` and tensors on ``backend.device``."""

    name: str
    device: str


def _select(identity: str) -> Iterator[Backend]:
    if identity == "cuda-emulated":
        with emulated.backend() as name:
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
    """The emulator is slower than a kernel: of its tests the fast core holds those of values and gradients alone."""
    for item in items:
        emulated_one = "cuda-emulated" in getattr(getattr(item, "callspec", None), "id", "")
        if emulated_one and item.path.name not in ("test_values.py", "test_reductions.py", "test_l1.py"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
