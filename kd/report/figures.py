"""Pictures of the demo's report, as PNG data: detections beside ground truth, and learning curves."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torchvision.ops import nms

from kd.coco import CocoDetection
from kd.demo.runs import Result, learning_curve

#: Detections below this score are not drawn.
SHOWN_SCORE = 0.3
#: Of boxes that overlap more than this (IoU) only the best is drawn: labels on top of each other can't be read.
SHOWN_OVERLAP = 0.5
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000", "#808000", "#000075")


def detections(results: Sequence[Result], data: CocoDetection, indices: Sequence[int]) -> bytes:
    """One row per image: ground truth, then what every model found, see :func:`_shown`.

    Args:
        results: one per column, of one detector.
        data: the validation images.
        indices: which of them.
    """
    titles = ["ground truth", *(result.title.split(", ", 1)[1] for result in results)]
    stored = [torch.load(Path(result.folder) / "detections.pt", weights_only=True)["detections"] for result in results]
    figure = Figure(figsize=(2.6 * len(titles), 2.6 * len(indices) + 0.3), layout="constrained")
    grid = figure.subplots(len(indices), len(titles), squeeze=False)
    for row, index in zip(grid, indices, strict=True):
        image, target = data[index]
        picture = image.permute(1, 2, 0).numpy()
        _draw(row[0], picture, target["boxes"], target["labels"], data.label_names)
        for axes, found in zip(row[1:], stored, strict=True):
            found = found[int(target["image_id"])]
            keep = _shown(found)
            _draw(axes, picture, found["boxes"][keep], found["labels"][keep], data.label_names, found["scores"][keep])
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    return _png(figure)


def curves(results: Sequence[Result]) -> bytes:
    """The detection losses and the distillation loss of every training of one detector, over its steps."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for result in results:
        curve = learning_curve(result.folder)
        steps, total = curve.get("loss", ([], []))
        distilled = dict(zip(*curve.get("loss_distill", ([], [])), strict=True))
        label = result.title.split(", ", 1)[1] + (f", seed {result.seed}" if result.seed else "")
        plain = [value - distilled.get(step, 0.0) for step, value in zip(steps, total, strict=True)]
        left.plot(steps, _smoothed(plain), label=label, linewidth=1.2)
        if distilled:
            right.plot(list(distilled), list(distilled.values()), label=label, linewidth=1.2)
    left.set(title="detection losses (smoothed)", xlabel="step", yscale="log")
    right.set(title="weighted distillation loss", xlabel="step", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7)
    return _png(figure)


def _shown(found: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Indices of the detections to draw: of overlapping ones, whatever their class, that of the best score."""
    best = nms(found["boxes"], found["scores"], SHOWN_OVERLAP)
    return best[found["scores"][best] >= SHOWN_SCORE]


def _draw(
    axes: Axes,
    picture,
    boxes: torch.Tensor,
    labels: torch.Tensor,
    names: Mapping[int, str],
    scores: torch.Tensor | None = None,
) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_axis_off()
    for k, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        label = int(labels[k])
        colour = COLOURS[label % len(COLOURS)]
        axes.add_patch(_rectangle(x1, y1, x2, y2, colour))
        text = names.get(label, str(label)) + ("" if scores is None else f" {100 * float(scores[k]):.0f}")
        axes.text(x1, y1, text, fontsize=6, color="white", va="bottom", clip_on=True,
                  bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6})  # fmt: skip


def _rectangle(x1: float, y1: float, x2: float, y2: float, colour: str):
    from matplotlib.patches import Rectangle

    return Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.3)


def _smoothed(values: Sequence[float], keep: float = 0.8) -> list[float]:
    """Exponential moving average that starts at the first value."""
    smooth: list[float] = []
    for value in values:
        smooth.append(keep * smooth[-1] + (1 - keep) * value if smooth else value)
    return smooth


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    buffer.seek(0)
    # A palette makes the page a third as large, and nobody sees it.
    small = io.BytesIO()
    Image.open(buffer).convert("RGB").quantize(256).save(small, format="png", optimize=True)
    return small.getvalue()
