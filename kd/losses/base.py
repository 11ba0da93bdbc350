"""What every feature loss has in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FeatureLoss(nn.Module):
    """A distance between feature maps, one scalar per level; the distiller sums them (the paper's L_feat).

    Subclasses either define :meth:`level`, or override :meth:`forward` to treat all levels in one go.
    """

    def level(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Loss of one level, a scalar; ``student`` and ``teacher`` are [N, C, H, W] of one shape."""
        raise NotImplementedError

    def forward(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
        """Losses of all L levels, [L]; level r compares ``students[r]`` with ``teachers[r]``, [N, C_r, H_r, W_r]."""
        return torch.stack([self.level(s, t) for s, t in zip(students, teachers, strict=True)])
