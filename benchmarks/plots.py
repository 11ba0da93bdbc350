"""A record as pictures, on white so that they read on light and dark pages:
``python -m benchmarks.plots benchmarks/results/cpu.json`` draws them again."""

import json
import math
import sys
from pathlib import Path

from matplotlib.figure import Figure

from .cases import AXES
from .report import FUSED, Entry, Record, group, named, same_definition, shape

COLOURS = {"fused_ssim same": "#d62728", "mse_loss": "#555555", "l1_loss": "#999999"}
OTHERS = ("#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#17becf", "#bcbd22", "#e377c2", "#7f7f7f", "#ff7f0e", "#aec7e8")


def colours(record: Record) -> dict[str, str]:
    """One colour for each candidate, the same in every picture."""
    free = iter(OTHERS)
    return {name: COLOURS.get(name) or next(free) for name in curves(record)}


def curves(record: Record) -> list[str]:
    """What is drawn: not fused_ssim under other options, which would hide it."""
    return [FUSED, *named(record, "yardstick", "reference", "peer")]


def draw(record: Record, out: Path) -> list[Path]:
    """Write OUT_*.png; returns their paths."""
    pictures = {
        "ratios": ratios(record, group(record, "issue")),
        "growth": growth(record),
        "memory": memory(record, [e for e in group(record, "issue") if "peak_bytes" in e]),
    }
    written = []
    for name, figure in pictures.items():
        if figure is not None:
            path = out.with_name(f"{out.name}_{name}.png")
            figure.savefig(path, dpi=130)
            written.append(path)
    return written


def _bars(axes, entries: list[Entry], names: list[str], value, record: Record) -> None:
    """Horizontal bars, a group for each shape, ``value(entry, name)`` long; None is no bar."""
    colour, height = colours(record), 0.8 / len(names)
    for i, name in enumerate(names):
        values = [value(entry, name) for entry in entries]
        places = [row + (i - (len(names) - 1) / 2) * height for row in range(len(entries))]
        shown = [(p, v) for p, v in zip(places, values, strict=True) if v is not None]
        if not shown:
            continue
        axes.barh([p for p, _ in shown], [v for _, v in shown], height * 0.9, color=colour[name], label=name)
        for place, length in shown:
            axes.annotate(
                f"{length:.2g}" if length < 9.95 else f"{length:.0f}",
                (length, place),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
    axes.set_yticks(range(len(entries)), [shape(entry) for entry in entries])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)


def ratios(record: Record, entries: list[Entry]) -> Figure | None:
    """How many times fused_ssim's time everybody needs for the same definition."""
    names = [name for name in curves(record) if name != FUSED]
    if not entries or not names:
        return None
    figure = Figure(figsize=(8.6, 0.9 + 0.19 * len(names) * len(entries)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    _bars(axes, entries, names, lambda entry, name: same_definition(record, entry, name), record)
    axes.axvline(1, color=COLOURS[FUSED], linewidth=2)
    axes.set_xlabel("time of loss + gradient, in times of fused_ssim computing the same definition (red line)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def growth(record: Record) -> Figure | None:
    """Milliseconds against side, channels and samples."""
    present = [name for name in AXES if group(record, name)]
    if not present:
        return None
    figure = Figure(figsize=(4.2 * len(present), 4.4), layout="constrained", facecolor="white")
    colour = colours(record)
    grid = figure.subplots(1, len(present), squeeze=False)[0]
    for axes, which in zip(grid, present, strict=True):
        for name in curves(record):
            points = [
                (entry["varied"], entry["median_seconds"][name] * 1e3)
                for entry in group(record, which)
                if name in entry["median_seconds"]
            ]
            if points:
                width = 2.4 if name == FUSED else 1.2
                axes.plot(*zip(*points, strict=True), marker=".", color=colour[name], linewidth=width, label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(AXES[which])
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set_ylabel("loss + gradient (ms)")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False, fontsize=8)
    return figure


def memory(record: Record, entries: list[Entry]) -> Figure | None:
    """Peak memory in multiples of x."""
    names = [name for name in curves(record) if any(entry["peak_bytes"].get(name) for entry in entries)]
    if not names:
        return None

    def multiple(entry: Entry, name: str) -> float | None:
        peak = entry["peak_bytes"].get(name)
        return peak / (4 * math.prod(entry["shape"])) if peak else None

    figure = Figure(figsize=(8.6, 0.9 + 0.19 * len(names) * len(entries)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    _bars(axes, entries, names, multiple, record)
    axes.set_xlabel("peak memory beyond x and y, in sizes of x (x's gradient is 1)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    source = Path(sys.argv[1])
    for picture in draw(json.loads(source.read_text()), source.with_suffix("")):
        print(picture)
