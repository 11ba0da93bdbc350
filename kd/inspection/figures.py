"""The figures of one inspected image."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from kd.inspection.boxes import draw_detections, draw_truth
from kd.inspection.maps import Inspection, LevelMaps

#: Channels drawn beside the mean of all.
CHANNELS = 2
FEATURES, ERRORS = "viridis", "magma"
#: How much of the picture shines through a heat map.
TRANSPARENCY = 0.55


def figures_of(
    inspection: Inspection, target: Mapping[str, Tensor] | None, names: Mapping[int, str]
) -> dict[str, Figure]:
    """All figures of one image, by name: "detections", and with a teacher "features", "maps" and "heat".

    Args:
        inspection: what :func:`kd.inspection.maps.inspect_image` found.
        target: ground truth in pixels of the image, if known.
        names: label -> name.
    """
    made = {"detections": detections(inspection, target, names)}
    if inspection.levels:
        made |= {"features": features(inspection), "maps": maps(inspection), "heat": heat(inspection)}
    return made


def detections(inspection: Inspection, target: Mapping[str, Tensor] | None, names: Mapping[int, str]) -> Figure:
    """Ground truth, teacher and student side by side, as far as they are known."""
    columns: list[tuple[str, Callable[[Axes], None]]] = [
        ("ground truth" if target is not None else "image",
         lambda axes: draw_truth(axes, inspection.image, target, names)),
    ]  # fmt: skip
    for title, found in (("teacher", inspection.teacher), ("student", inspection.student)):
        if found is not None:
            columns.append(
                (title, lambda axes, found=found: draw_detections(axes, inspection.image, found, names))
            )  # fmt: skip
    figure, grid = _grid(inspection, rows=1, columns=len(columns), width=3.4)
    for axes, (title, draw) in zip(grid[0], columns, strict=True):
        draw(axes)
        axes.set_title(title, fontsize=9)
    return figure


def features(inspection: Inspection) -> Figure:
    """Per level the student's and the teacher's features as the loss sees them: the mean over channels, and the
    channels in which they differ most and least."""
    figure, grid = _grid(inspection, rows=len(inspection.levels), columns=2 + 2 * CHANNELS)
    for row, level in zip(grid, inspection.levels, strict=True):
        pairs = [("mean", level.teacher.mean(0), level.student.mean(0))]
        order = level.channel_loss.argsort(descending=True).tolist()
        for words, channel in (("differs most", order[0]), ("differs least", order[-1]))[:CHANNELS]:
            pairs.append((f"channel {channel}, {words}", level.teacher[channel], level.student[channel]))
        for k, (words, theirs, ours) in enumerate(pairs):
            low, high = float(min(theirs.min(), ours.min())), float(max(theirs.max(), ours.max()))
            for axes, who, values in ((row[2 * k], "teacher", theirs), (row[2 * k + 1], "student", ours)):
                _map(axes, inspection, values, FEATURES, low, high)
                axes.set_title(f"{who}\n{words}", fontsize=7)
        _label(row[0], level)
    return figure


def maps(inspection: Inspection) -> Figure:
    """Per level, means over channels: squared error, SSIM loss, and what is missing of luminance, contrast and
    structure. One colour scale per column."""
    columns: list[tuple[str, Callable[[LevelMaps], Tensor]]] = [
        ("L2: squared error", lambda level: level.squared_error),
        ("SSIM loss: (1 - SSIM) / 2", lambda level: level.ssim_loss),
        ("1 - luminance", lambda level: 1 - level.luminance),
        ("1 - contrast", lambda level: 1 - level.contrast),
        ("1 - structure", lambda level: 1 - level.structure),
    ]
    figure, grid = _grid(inspection, rows=len(inspection.levels), columns=len(columns))
    for column, (title, value) in enumerate(columns):
        values = [value(level) for level in inspection.levels]
        high = max(_top(v) for v in values)
        for axes, map_ in zip(grid[:, column], values, strict=True):
            shown = _map(axes, inspection, map_, ERRORS, 0.0, high)
        grid[0, column].set_title(title, fontsize=8)
        bar = figure.colorbar(shown, ax=list(grid[:, column]), location="bottom", fraction=0.04, pad=0.02)
        bar.ax.tick_params(labelsize=6)
    for axes, level in zip(grid[:, 0], inspection.levels, strict=True):
        _label(axes, level)
    return figure


def heat(inspection: Inspection) -> Figure:
    """Squared error and SSIM loss of every level over the picture, each scaled by its own largest value: where does
    either measure look?"""
    figure, grid = _grid(inspection, rows=2, columns=1 + len(inspection.levels))
    for row, name in zip(grid, ("squared error", "SSIM loss"), strict=True):
        _picture(row[0], inspection)
        row[0].set_ylabel(name, fontsize=8)
        row[0].set_title("picture", fontsize=8)
        for axes, level in zip(row[1:], inspection.levels, strict=True):
            values = level.squared_error if name == "squared error" else level.ssim_loss
            _picture(axes, inspection)
            _map(axes, inspection, values, ERRORS, 0.0, _top(values), alpha=TRANSPARENCY)
            axes.set_title(f"level {level.level}", fontsize=8)
    return figure


def png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as PNG data with a palette of 256 colours, a third as large as without."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    buffer.seek(0)
    small = io.BytesIO()
    Image.open(buffer).convert("RGB").quantize(256).save(small, format="png", optimize=True)
    return small.getvalue()


def _grid(inspection: Inspection, *, rows: int, columns: int, width: float = 1.9) -> tuple[Figure, np.ndarray]:
    height = width * inspection.image.shape[-2] / inspection.image.shape[-1]
    figure = Figure(figsize=(width * columns, (height + 0.32) * rows + 0.1), layout="constrained", facecolor="white")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _top(errors: Tensor) -> float:
    """The largest error; of maps without any, which rounding may push below 0, the smallest that is drawn as one."""
    return max(float(errors.max()), 1e-6)


def _picture(axes: Axes, inspection: Inspection) -> None:
    axes.imshow(inspection.transformed.permute(1, 2, 0).numpy())
    _crop(axes, inspection)


def _map(
    axes: Axes, inspection: Inspection, values: Tensor, colours: str, low: float, high: float, **options: Any
) -> Any:
    """``values`` [h, w] over the whole of the transformed image, whose padding is then cut off."""
    _, height, width = inspection.transformed.shape
    shown = axes.imshow(values.numpy(), cmap=colours, vmin=low, vmax=high, extent=(0, width, height, 0),
                        interpolation="nearest", **options)  # fmt: skip
    _crop(axes, inspection)
    return shown


def _crop(axes: Axes, inspection: Inspection) -> None:
    height, width = inspection.size
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _label(axes: Axes, level: LevelMaps) -> None:
    channels, height, width = level.teacher.shape
    axes.set_ylabel(f"level {level.level}\n{channels} x {height} x {width}", fontsize=8)
