"""What every feature loss has in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FeatureLoss(nn.Module):
    """A distance between feature maps, one scalar per level; the distiller sums them (the paper's L_feat).

    Subclasses either define :meth:`level`, or override :meth:`forward` to treat all levels in one go.
    """

    takes_mask = False
    """Whether :meth:`level` (or :meth:`forward`) takes the valid cells, which ``mask_padding`` needs."""

    takes_weight = False
    """Whether :meth:`forward` takes ``weight``, a factor of all losses, for which its gradient need not be multiplied
    once it is there."""

    def level(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Loss of one level, a scalar; ``student`` and ``teacher`` are [N, C, H, W] of one shape.

        With ``takes_mask`` there may be a third argument, ``valid``: [N, 1, H, W] with 1 in the cells that count and 0
        in the others.
        """
        raise NotImplementedError

    def forward(
        self, students: Sequence[Tensor], teachers: Sequence[Tensor], valid: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Losses of all L levels, [L]; level r compares ``students[r]`` with ``teachers[r]``, [N, C_r, H_r, W_r], in
        all cells or in those where ``valid[r]``, [N, 1, H_r, W_r], is 1."""
        if valid is None:
            return torch.stack([self.level(s, t) for s, t in zip(students, teachers, strict=True)])
        return torch.stack([self.level(s, t, v) for s, t, v in zip(students, teachers, valid, strict=True)])


def mean_of_valid(x: Tensor, valid: Tensor | None, dims: tuple[int, ...] = (0, 1, 2, 3)) -> Tensor:
    """Mean of ``x`` [N, C, H, W] over ``dims``, which are kept, in the cells where ``valid`` [N, 1, H, W] is 1 or
    (None) in all."""
    if valid is None:
        return x.mean(dims, keepdim=True)
    return (x * valid).sum(dims, keepdim=True) / valid.expand_as(x).sum(dims, keepdim=True)
