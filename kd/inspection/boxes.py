"""Detections and ground truth drawn on pictures."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision.ops import nms

#: Detections below this score are not drawn.
SHOWN_SCORE = 0.3
#: Of boxes that overlap more than this (IoU) only the best is drawn: labels on top of each other can't be read.
SHOWN_OVERLAP = 0.5
#: About a label's height, as a share of the picture's.
LABEL = 0.07
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000", "#808000", "#000075")


def draw_truth(axes: Axes, image: Tensor, target: Mapping[str, Tensor] | None, names: Mapping[int, str]) -> None:
    """``image`` [3, H, W] in [0, 1] with the boxes of ``target``, crowds dashed; None draws no boxes."""
    _show(axes, image)
    if target is None:
        return
    crowd = target.get("iscrowd", torch.zeros_like(target["labels"]))
    for box, label, is_crowd in zip(target["boxes"], target["labels"], crowd, strict=True):
        _box(axes, box, int(label), names.get(int(label), str(int(label))), dashed=bool(is_crowd))


def draw_detections(axes: Axes, image: Tensor, found: Mapping[str, Tensor], names: Mapping[int, str]) -> None:
    """``image`` with the detections ``found`` of a score of at least :data:`SHOWN_SCORE`, whatever their class; of
    overlapping ones that of the best score."""
    _show(axes, image)
    best = nms(found["boxes"], found["scores"], SHOWN_OVERLAP)
    for k in best[found["scores"][best] >= SHOWN_SCORE].tolist():
        label = int(found["labels"][k])
        _box(axes, found["boxes"][k], label, f"{names.get(label, str(label))} {100 * float(found['scores'][k]):.0f}")


def _show(axes: Axes, image: Tensor) -> None:
    axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_axis_off()


def _box(axes: Axes, box: Tensor, label: int, text: str, dashed: bool = False) -> None:
    x1, y1, x2, y2 = box.tolist()
    colour = COLOURS[label % len(COLOURS)]
    style = "--" if dashed else "-"
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.3, linestyle=style))
    width, height = axes.get_xlim()[1], axes.get_ylim()[0]
    # Above the box from its left corner, but never beyond the picture, which would cut the label off.
    at_top, at_right = y1 < LABEL * height, x1 > (1 - 3 * LABEL) * width
    axes.text(min(x2, width) if at_right else max(x1, 0), max(y1, 0) if at_top else y1, text, fontsize=6, color="white",
              va="top" if at_top else "bottom", ha="right" if at_right else "left", clip_on=True,
              parse_math=False,  # a category's name may hold "$"
              bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6})  # fmt: skip
