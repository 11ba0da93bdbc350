"""Seeing a detector's FPN features while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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

    def _see(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | Mapping[str, Tensor]) -> None:
        self.calls += 1
        self.images, self.features = inputs[0], named_features(output)


def named_features(output: Tensor | Mapping[str, Tensor]) -> Features:
    """A backbone's output by FPN level; a single map is level "0", as in torchvision."""
    return {"0": output} if isinstance(output, Tensor) else dict(output)


@contextmanager
def tapped(backbone: nn.Module) -> Iterator[Tap]:
    """Record ``backbone``'s next call. The hook exists inside of the context only: a copied, pickled or wrapped
    detector never carries one."""
    tap = Tap()
    handle = backbone.register_forward_hook(tap._see)
    try:
        yield tap
    finally:
        handle.remove()
