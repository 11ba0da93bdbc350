"""Learning curves of several runs in one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from kd.run_folder import Curves

PARTS = ("luminance", "contrast", "structure")
#: Logged quantities that are no loss of the detector.
NO_DETECTION_LOSS = ("loss", "loss_distill", "AP", "AP50", "AP75", "APS", "APM", "APL")
#: Panels in a row, at most.
ROW = 3
PANEL = (3.5, 2.5)


def losses(runs: Mapping[str, Curves]) -> Figure:
    """One panel per loss: the detection losses together, each by itself, the weighted distillation loss; and AP where
    it was measured during training. ``runs``: label -> what the run logged."""
    panels: dict[str, dict[str, tuple[Sequence[int], Sequence[float]]]] = {}
    for label, curves in runs.items():
        distilled = dict(zip(*curves.get("loss_distill", ([], [])), strict=True))
        steps, total = curves.get("loss", ([], []))
        plain = [value - distilled.get(step, 0.0) for step, value in zip(steps, total, strict=True)]
        panels.setdefault("detection losses, sum", {})[label] = (steps, smoothed(plain))
        for name, (at, values) in curves.items():
            if name not in NO_DETECTION_LOSS and "/" not in name and not name.startswith("lr-"):
                panels.setdefault(name.removeprefix("loss_").replace("_", " "), {})[label] = (at, smoothed(values))
        if distilled:
            panels.setdefault("distillation loss, weighted", {})[label] = curves["loss_distill"]
        if len(curves.get("AP", ([], []))[0]) > 1:
            panels.setdefault("AP on validation images", {})[label] = curves["AP"]
    colours = {label: f"C{k % 10}" for k, label in enumerate(runs)}
    figure, grid = _grid(len(panels))
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        for label, (steps, values) in lines.items():
            axes.plot(steps, values, label=label, color=colours[label], linewidth=1.2)
        _finish(axes, title, logarithmic=not title.startswith("AP"))
    _legend(figure, grid)
    return figure


def levels(curves: Curves) -> Figure | None:
    """Unweighted distillation loss of every FPN level, and of SSIM its three components, where a run logged them."""
    panels = {"distillation loss by level": _by_level(curves, "distill")}
    panels |= {f"{part} by level (1: equal)": _by_level(curves, part) for part in PARTS}
    panels = {title: lines for title, lines in panels.items() if lines}
    if not panels:
        return None
    names = list(dict.fromkeys(level for lines in panels.values() for level in lines))
    colours = {name: f"C{k % 10}" for k, name in enumerate(names)}
    figure, grid = _grid(len(panels), row=4)
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        for level, (steps, values) in lines.items():
            axes.plot(steps, values, label=f"level {level}", color=colours[level], linewidth=1.2)
        _finish(axes, title, logarithmic=title.startswith("distillation"))
    _legend(figure, grid)
    return figure


def smoothed(values: Sequence[float], keep: float = 0.8) -> list[float]:
    """Exponential moving average that starts at the first value."""
    smooth: list[float] = []
    for value in values:
        smooth.append(keep * smooth[-1] + (1 - keep) * value if smooth else value)
    return smooth


def _by_level(curves: Curves, quantity: str) -> Curves:
    prefix = f"{quantity}/"
    return {name.removeprefix(prefix): curve for name, curve in curves.items() if name.startswith(prefix)}


def _grid(panels: int, row: int = ROW) -> tuple[Figure, list[Axes]]:
    rows = -(-panels // row)
    columns = -(-panels // rows)  # four panels are two rows of two, not three and one
    width, height = PANEL[0] * ROW / row, PANEL[1]
    figure = Figure(figsize=(width * columns, height * rows + 0.3), layout="constrained", facecolor="white")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[panels:]:
        axes.set_axis_off()
    return figure, grid[:panels]


def _finish(axes: Axes, title: str, *, logarithmic: bool) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=7, which="both")
    axes.grid(alpha=0.3)
    values = [value for line in axes.lines for value in line.get_ydata()]
    if logarithmic and values and min(values) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_PlainLog())
        axes.yaxis.set_minor_formatter(_PlainLog())


class _PlainLog(LogFormatter):
    """Labels the ticks that matplotlib would label, but with 0.4 instead of 4 x 10^-1."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _legend(figure: Figure, grid: Sequence[Axes]) -> None:
    """One for all panels: every line's label once."""
    found = {}
    for axes in grid:
        handles, labels = axes.get_legend_handles_labels()
        found.update(zip(labels, handles, strict=True))
    figure.legend(
        list(found.values()), list(found), loc="outside lower center", ncols=min(len(found), 6), fontsize=8,
        frameon=False,
    )  # fmt: skip
