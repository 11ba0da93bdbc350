"""Who is measured: fused_ssim, the packages that people use instead, and what everybody knows (mse, l1).

An adapter turns a package's function into ``loss(x, y) = scale * (1 - SSIM)`` for data in [0, 1], called as its users
call it. ``padding`` names the definition that it computes, so that its result can be checked and its time be compared
with fused_ssim computing the same.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import fused_ssim
from fused_ssim.dispatch import BACKENDS

Loss = Callable[[Tensor, Tensor], Tensor]
Exponents = tuple[float, float, float]

PLAIN: Exponents = (1.0, 1.0, 1.0)
OTHER_EXPONENTS: tuple[Exponents, ...] = ((0.5, 0.5, 0.5), (1.0, 0.5, 0.25))
"""Contrast and structure together, and apart (docs/math.md, Eq. 8 and Eq. 10)."""

RAHUL_GOEL = "RAHUL_GOEL_FUSED_SSIM"
"""Environment variable: folder into which rahul-goel/fused-ssim was installed (``pip install --target``). That package
is imported under the name of this project's, so it can't be installed beside it."""


@dataclass(frozen=True)
class Candidate:
    """Something that is measured."""

    name: str
    kind: str
    """"fused", "peer", "reference" or "yardstick" (not SSIM)."""
    build: Callable[[], Loss]
    """Gives the loss; ImportError or RuntimeError says why it cannot run here."""
    padding: str = "same"
    scale: float = 1.0
    exponents: Exponents = PLAIN
    devices: tuple[str, ...] = ("cpu", "cuda")

    @property
    def twin(self) -> str:
        """The name of fused_ssim computing the same definition."""
        return fused_name(self.padding)


def fused_name(padding: str) -> str:
    return f"fused_ssim {padding}"


def _fused(backend: str | None, padding: str, exponents: Exponents = PLAIN) -> Callable[[], Loss]:
    return lambda: lambda x, y: fused_ssim.ssim_loss(x, y, padding=padding, exponents=exponents, backend=backend)


def _compiled_reference() -> Loss:
    torch.compiler.reset()  # each shape is compiled by itself, as a program with one shape would
    return torch.compile(_fused("reference", "same")(), dynamic=False)


def _pytorch_msssim() -> Loss:
    import pytorch_msssim

    return lambda x, y: 1 - pytorch_msssim.ssim(x, y, data_range=1.0)


def _piq() -> Loss:
    import piq

    return lambda x, y: 1 - piq.ssim(x, y, data_range=1.0, downsample=False)


def _kornia() -> Loss:
    import kornia

    return lambda x, y: kornia.losses.ssim_loss(x, y, 11)


def _torchmetrics() -> Loss:
    from torchmetrics.functional.image import structural_similarity_index_measure

    return lambda x, y: 1 - structural_similarity_index_measure(x, y, data_range=1.0)


def _rahul_goel() -> Loss:
    if RAHUL_GOEL not in os.environ:
        raise ImportError(f"${RAHUL_GOEL} does not say where it is installed")
    folder = Path(os.environ[RAHUL_GOEL])
    name = "rahul_goel_fused_ssim"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, folder / "fused_ssim" / "__init__.py")
        if spec is None or spec.loader is None or not (folder / "fused_ssim").is_dir():
            raise ImportError(f"no package fused_ssim in {folder}")
        module = importlib.util.module_from_spec(spec)
        sys.path.append(str(folder))  # its compiled part is a module of its own there
        spec.loader.exec_module(module)
        sys.modules[name] = module
    theirs = sys.modules[name].fused_ssim
    return lambda x, y: 1 - theirs(x, y)


def _fussim() -> Loss:
    theirs = importlib.import_module("fussim").fused_ssim
    return lambda x, y: 1 - theirs(x, y)


def by_planes(loss: Loss) -> Loss:
    """(N, C, H, W) as (N C, 1, H, W): the same mean, and the layout that suits kernels which loop over channels."""
    return lambda x, y: loss(x.reshape(-1, 1, *x.shape[2:]), y.reshape(-1, 1, *y.shape[2:]))


PEERS = (
    Candidate("pytorch-msssim", "peer", _pytorch_msssim, padding="valid"),
    Candidate("piq", "peer", _piq, padding="valid"),
    Candidate("kornia", "peer", _kornia, padding="reflect", scale=0.5),
    Candidate("torchmetrics", "peer", _torchmetrics, padding="reflect"),
    Candidate("rahul-goel/fused-ssim", "peer", _rahul_goel, devices=("cuda",)),
    Candidate("rahul-goel/fused-ssim, planes", "peer", lambda: by_planes(_rahul_goel()), devices=("cuda",)),
    Candidate("fussim", "peer", _fussim, devices=("cuda",)),
    Candidate("fussim, planes", "peer", lambda: by_planes(_fussim()), devices=("cuda",)),
)
PACKAGES = ("torch", "pytorch-msssim", "piq", "kornia", "torchmetrics", "fussim")

YARDSTICKS = (
    Candidate("mse_loss", "yardstick", lambda: F.mse_loss),
    Candidate("l1_loss", "yardstick", lambda: F.l1_loss),
)


def fused(device: str) -> list[Candidate]:
    """fused_ssim on this device: the preferred backend with every padding, the other ones with "same"."""
    backends = fused_ssim.info()["backends"][device]  # type: ignore[index]
    if backends["chosen"] == "reference":
        return []
    found = [
        Candidate(fused_name(padding), "fused", _fused(backends["chosen"], padding), padding=padding, scale=0.5)
        for padding in ("same", "valid", "reflect")
    ]
    found += [
        Candidate(
            f"fused_ssim {exponents}", "fused", _fused(backends["chosen"], "same", exponents), "same", 0.5, exponents
        )
        for exponents in OTHER_EXPONENTS
    ]
    for backend in BACKENDS:
        if backend not in (backends["chosen"], "reference") and backend not in backends["unavailable"]:
            found.append(Candidate(f"fused_ssim same, {backend}", "fused", _fused(backend, "same"), scale=0.5))
    return found


def candidates(device: str, compiled: bool) -> list[Candidate]:
    """Everything that is measured on this device, installed or not; ``compiled``: the compiled reference too."""
    references = [Candidate("reference", "reference", _fused("reference", "same"), scale=0.5)]
    if compiled:
        references.append(Candidate("reference, torch.compile", "reference", _compiled_reference, scale=0.5))
    return [c for c in (*fused(device), *YARDSTICKS, *references, *PEERS) if device in c.devices]
