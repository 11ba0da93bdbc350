"""What is measured on a GPU, the most telling cases first, for time may run out."""

import math
from typing import NamedTuple

Shape = tuple[int, int, int, int]
FPN = ((100, 152), (50, 76), (25, 38), (13, 19), (7, 10))
"""Levels of a feature pyramid of 800 x 1216 pixels."""
CHANNELS = 256
SAMPLES = (8, 1, 2, 16)
GRAPH_PIXELS = 1 << 26
"""Cases of no more pixels are timed as graph replays too: launching small ones takes as long as computing them."""


class Case(NamedTuple):
    """Levels in one call; ``rescaled``: with kd's default options (mirrored borders, min-max by channel)."""

    name: str
    shapes: tuple[Shape, ...]
    rescaled: bool = False

    @property
    def pixels(self) -> int:
        return sum(map(math.prod, self.shapes))

    def facts(self) -> dict[str, object]:
        return {
            "shapes": self.shapes,
            "pixels": self.pixels,
            "channels": self.shapes[0][1],
            "rescaled": self.rescaled,
        }


def pyramid(n: int, rescaled: bool, channels: int = CHANNELS, levels: tuple[tuple[int, int], ...] = FPN) -> Case:
    name = f"FPN, N={n}, {'kd' if rescaled else 'same'}"
    return Case(name, tuple((n, channels, h, w) for h, w in levels), rescaled)


def one_level(shape: Shape) -> Case:
    return Case("x".join(map(str, shape)), (shape,))


CASES = [
    pyramid(8, False),
    pyramid(8, True),
    one_level((5, 5, 1080, 1920)),
    *(pyramid(n, rescaled) for n in SAMPLES[1:] for rescaled in (False, True)),
    *(one_level((n, CHANNELS, h, w)) for h, w in FPN for n in SAMPLES),
]
DRY_CASES = [
    pyramid(1, False, 3, ((25, 38), (13, 19))),
    pyramid(1, True, 3, ((25, 38), (13, 19))),
    one_level((2, 3, 25, 38)),
]
