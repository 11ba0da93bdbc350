"""Which cells of the feature maps see an image, and which only the padding of its batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def valid_cells(sizes: Sequence[tuple[int, int]], features: Sequence[Tensor], strides: Sequence[int]) -> list[Tensor]:
    """Per level [N, 1, h, w] of the features' dtype: 1 where any pixel of the cell belongs to the image, else 0.

    Cell (i, j) of a level of stride s covers the pixels [i s, (i + 1) s) x [j s, (j + 1) s). Images lie in the upper
    left corner of their batch, so a cell is valid where i s < height and j s < width; every image has one at least.

    Args:
        sizes: (height, width) in pixels of every image in the batch.
        features: one map [N, C, h, w] per level.
        strides: stride in pixels of every level.
    """
    made = []
    for feature, stride in zip(features, strides, strict=True):
        extent = torch.tensor(sizes, device=feature.device)
        rows, columns = (stride * torch.arange(n, device=feature.device) for n in feature.shape[-2:])
        valid = (rows[:, None] < extent[:, 0, None, None]) & (columns < extent[:, 1, None, None])
        made.append(valid[:, None].to(feature.dtype))
    return made
