"""The one table of a comparison, with its noise, for the terminal and as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from kd.compare.noise import average_precision, draws, match
from kd.compare.record import FIGURES, Result

COLUMNS = (
    "detector", "model", "AP", "± images", "± seeds", "AP50", "AP75", "S", "M", "L", "gain [95%]",
    "step ms", "overhead %", "peak MiB",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line: a teacher, or a student's method averaged over its seeds. AP and its deviations in percent points."""

    detector: str
    model: str
    method: str
    seeds: int
    AP: float
    AP50: float
    AP75: float
    APS: float
    APM: float
    APL: float
    ap_std_images: float | None
    """Standard deviation of AP under resampling of the validation images; None where no detections are stored."""
    ap_std_seeds: float | None
    """Sample standard deviation of AP over the seeds; None for a single seed."""
    gain: float | None
    """AP minus that of the student alone, over the seeds that both have; None for other rows."""
    gain_low: float | None
    """Lower end of the gain's 95 % interval under paired resampling of the validation images (and of the seeds)."""
    gain_high: float | None
    step_ms: float | None
    """Median training step in milliseconds, of each training by itself."""
    overhead_percent: float | None
    """Time of a training step over that of plain training with the teacher's forward pass, measured side by side."""
    peak_memory_mb: float | None
    """Largest over the seeds, see :class:`kd.compare.record.Result`."""

    def cells(self) -> list[str]:
        """The row as text, in the order of ``COLUMNS``."""
        gain = "" if self.gain is None else f"{self.gain:+.1f}"
        if self.gain_low is not None:
            gain += f" [{self.gain_low:+.1f}, {self.gain_high:+.1f}]"
        figures = [_text(value, ".1f") for value in (self.AP, self.ap_std_images, self.ap_std_seeds)]
        figures += [
            "-" if value < 0 else f"{value:.1f}" for value in (self.AP50, self.AP75, self.APS, self.APM, self.APL)
        ]
        costs = [_text(self.step_ms, ".0f"), _text(self.overhead_percent, "+.1f"), _text(self.peak_memory_mb, ".0f")]
        return [self.detector, self.model, *figures, gain, *costs]


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def shown_columns(table: Sequence[Row]) -> list[int]:
    """Positions in ``COLUMNS`` of the columns in which any row says something."""
    cells = [row.cells() for row in table]
    return [k for k in range(len(COLUMNS)) if any(row[k] not in ("", "-") for row in cells)]


def rows(results: Sequence[Result], resamples: int, overheads: Mapping[str, float] | None = None) -> list[Row]:
    """The table of ``results``, whose folders hold the detections on the validation images.

    Args:
        results: trainings of one or more detectors; the students of one detector share its validation images.
        resamples: bootstrap draws behind the noise figures.
        overheads: method -> overhead of its training step in percent, where that was measured.
    """
    made = []
    for detector in dict.fromkeys(result.detector for result in results):
        groups: dict[str, list[Result]] = {}
        for result in results:
            if result.detector == detector:
                groups.setdefault(result.method, []).append(result)
        boot = {method: _resampled(group, resamples) for method, group in groups.items()}
        made += [_row(method, groups, boot, overheads or {}) for method in groups]
    return made


def verdicts(table: Sequence[Row]) -> list[str]:
    """One sentence for every distilled student, on whether its gain is more than noise, and for every poor teacher."""
    sentences = []
    alone = {row.detector: row for row in table if row.method == "none"}
    for row in table:
        if row.method == "teacher" and row.detector in alone and row.AP <= alone[row.detector].AP:
            sentences.append(
                f"{row.detector}: the teacher (AP {row.AP:.1f}) is no better than the student alone "
                f"({alone[row.detector].AP:.1f}), so its rows say nothing about distillation."
            )
    for row in table:
        if row.gain is None or row.gain_low is None:
            continue
        clear = row.gain_low > 0 or row.gain_high < 0
        word = "is outside the noise" if clear else "can't be told from noise"
        sentences.append(
            f"{row.detector}, {row.model}: {row.gain:+.1f} AP over the student alone "
            f"(95 % interval {row.gain_low:+.1f} to {row.gain_high:+.1f}) {word} of the validation images"
            + (f" and of {row.seeds} seeds." if row.seeds > 1 else ".")
        )
    return sentences


def noise_note(table: Sequence[Row], images: int, resamples: int) -> str:
    """What the noise columns mean and what they leave out."""
    seeds = max(row.seeds for row in table)
    note = (
        f"± images: standard deviation of AP over {resamples} bootstrap draws of the {images} validation images. "
        "The gain is AP minus that of the student alone; "
        "its 95 % interval compares the two on the same draws. "
    )
    if seeds > 1:
        return note + (
            f"± seeds: standard deviation over {seeds} seeds (other initial weights and data order); the gain's "
            "interval draws seeds again too, and with so few seeds it is rough. The teacher was trained once."
        )
    return note + (
        "One seed: how much a second training with other initial weights and data order would differ was not measured, "
        "so the real noise is larger; `--seeds 3` measures it."
    )


def show(table: Sequence[Row], console: Console, title: str) -> None:
    """Prints the table."""
    # The detector heads its rows instead of taking a column, and small terminals do without sizes and memory.
    columns = [k for k in shown_columns(table) if k > 0]
    if console.width < 110:
        columns = [k for k in columns if COLUMNS[k] not in ("S", "M", "L", "peak MiB")]
    view = Table(title=title, padding=(0, 1, 0, 0), collapse_padding=True)
    for k in columns:
        heading = "" if COLUMNS[k] == "model" else COLUMNS[k].replace(" ", "\n")
        view.add_column(heading, justify="right" if k > 1 else "left", no_wrap=True)
    for detector in dict.fromkeys(row.detector for row in table):
        view.add_section()
        view.add_row(detector, style="bold")
        for row in table:
            if row.detector == detector:
                cells = row.cells()
                view.add_row(*(cells[k] for k in columns))
    console.print(view)


def markdown(table: Sequence[Row]) -> str:
    """The table in Markdown."""
    columns = shown_columns(table)
    lines = ["| " + " | ".join(COLUMNS[k] for k in columns) + " |", "|" + "-|" * len(columns)]
    for row in table:
        cells = row.cells()
        lines.append("| " + " | ".join(cells[k] for k in columns) + " |")
    return "\n".join(lines) + "\n"


def write(table: Sequence[Row], notes: Sequence[str], facts: dict, folder: Path) -> list[Path]:
    """Writes results.md, results.csv and results.json; returns their paths."""
    paths = [folder / f"results.{kind}" for kind in ("md", "csv", "json")]
    paths[0].write_text(markdown(table) + "\n" + "\n\n".join(notes) + "\n", encoding="utf-8")
    with paths[1].open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(table[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in table)
    content = {"rows": [asdict(row) for row in table], "notes": list(notes), **facts}
    paths[2].write_text(json.dumps(content, indent=1), encoding="utf-8")
    return paths


def _resampled(group: Sequence[Result], resamples: int) -> np.ndarray | None:
    """(seeds, resamples) AP on bootstrap draws; equal draws for all models of one validation set. None where a training
    has left no detections."""
    made = []
    for result in group:
        file = Path(result.folder) / "detections.pt"
        if not file.is_file():
            return None
        stored = torch.load(file, weights_only=True)
        ids = sorted(stored["targets"])
        classes = match([stored["detections"][i] for i in ids], [stored["targets"][i] for i in ids])
        made.append(average_precision(classes, draws(len(ids), resamples)))
    return np.stack(made)


def _row(
    method: str, groups: dict[str, list[Result]], boot: dict[str, np.ndarray | None], overheads: Mapping[str, float]
) -> Row:
    group = groups[method]
    aps = [result.AP for result in group]
    gain = low = high = None
    alone = {result.seed: index for index, result in enumerate(groups.get("none", []))}
    paired = [k for k, result in enumerate(group) if result.seed in alone]
    if method not in ("teacher", "none") and paired:
        partners = [alone[group[k].seed] for k in paired]
        gain = statistics.fmean(aps[k] for k in paired) - statistics.fmean(groups["none"][k].AP for k in partners)
        ours, theirs = boot[method], boot["none"]
        if ours is not None and theirs is not None:
            difference = ours[paired] - theirs[partners]
            # Seeds are drawn again along with the images, as a pair of trainings each.
            seeds = np.random.default_rng(1).integers(len(difference), size=(len(difference), difference.shape[1]))
            low, high = np.percentile(np.take_along_axis(difference, seeds, 0).mean(0), [2.5, 97.5]).tolist()
    return Row(
        detector=group[0].title.split(",")[0],
        model=group[0].title.split(", ", 1)[1],
        method=method,
        seeds=len(group),
        **{name: statistics.fmean(getattr(result, name) for result in group) for name in FIGURES},
        ap_std_images=None if (drawn := boot[method]) is None else float(drawn.mean(0).std(ddof=1)),
        ap_std_seeds=statistics.stdev(aps) if len(aps) > 1 else None,
        gain=gain,
        gain_low=low,
        gain_high=high,
        step_ms=_mean(result.step_ms for result in group),
        overhead_percent=overheads.get(method),
        peak_memory_mb=max((r.peak_memory_mb for r in group if r.peak_memory_mb is not None), default=None),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
