"""What is measured: shapes as data."""

import math
from typing import NamedTuple

Shape = tuple[int, int, int, int]


class Case(NamedTuple):
    """One shape (N, C, H, W) of x and y, as a member of a group."""

    group: str
    shape: Shape
    varied: int
    """What a growth curve has on its axis; 0 in the group "issue"."""


ISSUE: tuple[Shape, ...] = (
    (1, 256, 100, 152),
    (2, 256, 50, 76),
    (8, 256, 13, 19),
    (16, 3, 270, 480),
    (1, 3, 1080, 1920),
)
"""Three FPN levels of 800 x 1216 pixels, a batch of small images, one large image."""

SIDES = (64, 128, 256, 512, 1024, 2048, 4096)
CHANNELS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SAMPLES = (1, 2, 4, 8, 16, 32)

AXES = {"size": "side of the image (pixels)", "channels": "C, of (1, C, 50, 76)", "samples": "N, of (N, 3, 135, 240)"}
"""Growth curves, and what their axes say."""

GROUPS = ("issue", *AXES)
QUICK_ELEMENTS = 2**21
"""No point of a growth curve in a quick run has more elements than this."""


def cases(groups: tuple[str, ...], quick: bool, largest: int | None = None) -> list[Case]:
    """The cases of these groups, of at most ``largest`` elements; ``quick``: every second point of a growth curve."""
    found = [Case("issue", shape, 0) for shape in ISSUE]
    found += [Case("size", (1, 1, side, side), side) for side in SIDES]
    found += [Case("channels", (1, count, 50, 76), count) for count in CHANNELS]
    found += [Case("samples", (count, 3, 135, 240), count) for count in SAMPLES]
    found = [case for case in found if case.group in groups and (largest is None or elements(case) <= largest)]
    if not quick:
        return found
    kept = {case for group in AXES for case in [c for c in found if c.group == group][::2]}
    return [c for c in found if c.group == "issue" or (c in kept and elements(c) <= QUICK_ELEMENTS)]


def elements(case: Case) -> int:
    """Elements of x."""
    return math.prod(case.shape)
