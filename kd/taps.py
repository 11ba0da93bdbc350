"""Seeing a detector's FPN features while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Features = dict[str, Tensor]


class Tap:
    """What went into and came out of a detector's backbone in one forward call."""

    def __init__(self) -> None:
        self.images: Tensor | None = None
        """[N, 3, H, W], the transformed batch: resized, normalised, padded."""
        self.features: Features = {}
        """FPN level -> [N, C, h, w]."""
        self.calls = 0
        self.sizes: list[tuple[int, int]] = []
        """(height, width) of every image in ``images``, what lies beyond is padding; of a tapped transform."""

    def _see_sizes(self, module: nn.Module, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        self.sizes = list(output[0].image_sizes)

    def _see(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | Mapping[str, Tensor]) -> None:
        self.calls += 1
        self.images, self.features = inputs[0], named_features(output)


def named_features(output: Tensor | Mapping[str, Tensor]) -> Features:
    """A backbone's output by FPN level; a single map is level "0", as in torchvision."""
    return {"0": output} if isinstance(output, Tensor) else dict(output)


@contextmanager
def tapped(backbone: nn.Module, transform: nn.Module | None = None) -> Iterator[Tap]:
    """Record the next call of ``backbone``, and of ``transform`` if given. The hooks exist inside of the context only:
    a copied, pickled or wrapped detector never carries one."""
    tap = Tap()
    handles = [backbone.register_forward_hook(tap._see)]
    if transform is not None:
        handles.append(transform.register_forward_hook(tap._see_sizes))
    try:
        yield tap
    finally:
        for handle in handles:
            handle.remove()
