"""The paper's loss: de Rijk et al., "Structural Knowledge Distillation for Object Detection", NeurIPS 2022."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

import fused_ssim
from fused_ssim.dispatch import BACKENDS
from fused_ssim.options import make_options
from kd.losses.base import FeatureLoss
from kd.losses.rescale import Axes, check_axes, min_max


class SSIMFeatureLoss(FeatureLoss):
    """mean (1 - SSIM(psi(S), psi(T))) / 2 per level, in [0, 1], with SSIM = l^alpha * c^beta * s^gamma.

    Args:
        normalize: axes of the min-max rescaling psi: "tensor", "sample", "channel" (of every sample), or None. The
            paper leaves the axes open; "channel" keeps a few large activations from pushing the variance of all
            other channels below SSIM's constants.
        detach_range: treat the rescaling's minimum and maximum as constants in the gradient. The loss does not change
            when a channel is shifted or scaled, but the gradient then says it does, and the student's biases drift
            without end.
        window_size, sigma: Gaussian window in pixels; 11 and 1.5 in the paper.
        k1, k2: SSIM's constants; .01 and .03 in the paper.
        exponents: (alpha, beta, gamma) of luminance, contrast and structure.
        padding: "reflect" is what kornia, and so the paper's code, does; "same" pads with zeros.
        data_range: value range of the rescaled features.
        backend: forces an SSIM backend; see ``fused_ssim``.
    """

    takes_mask = takes_weight = True

    def __init__(
        self,
        *,
        normalize: Axes | None = "channel",
        detach_range: bool = False,
        window_size: int = 11,
        sigma: float = 1.5,
        k1: float = 0.01,
        k2: float = 0.03,
        exponents: Sequence[float] = (1.0, 1.0, 1.0),
        padding: str = "reflect",
        data_range: float = 1.0,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_axes(normalize)
        self.normalize, self.detach_range = normalize, detach_range
        # A number is left for make_options to refuse.
        exponents = tuple(exponents) if isinstance(exponents, Iterable) else exponents
        self.ssim_options = {
            "data_range": data_range,
            "window_size": window_size,
            "sigma": sigma,
            "k1": k1,
            "k2": k2,
            "exponents": exponents,
            "padding": padding,
            "backend": backend,
        }
        # A wrong option shows now, not in the first training step.
        make_options(data_range, window_size, sigma, k1, k2, exponents, padding)
        if backend is not None and backend not in BACKENDS:
            raise ValueError(f"backend must be None or one of {BACKENDS}, got {backend!r}")

    def forward(
        self,
        students: Sequence[Tensor],
        teachers: Sequence[Tensor],
        valid: Sequence[Tensor] | None = None,
        weight: float = 1.0,
    ) -> Tensor:
        return fused_ssim.pyramid_ssim_loss(
            list(students),
            list(teachers),
            normalize=self.normalize,
            detach_range=self.detach_range,
            level_weights=[weight] * len(students),
            reduction="level",
            weight=valid,
            **self.ssim_options,
        )

    @torch.no_grad()
    def components(
        self, students: Sequence[Tensor], teachers: Sequence[Tensor], valid: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Mean luminance, contrast and structure of every level, [L, 3], without gradient; 1 is equality."""
        options = {**self.ssim_options, "reduction": "mean"}
        rows = []
        for student, teacher, weight in zip(students, teachers, valid or [None] * len(students), strict=True):
            pair = (min_max(x, self.normalize) for x in (student, teacher))
            rows.append(torch.stack(fused_ssim.ssim_components(*pair, weight=weight, **options)))
        return torch.stack(rows)
