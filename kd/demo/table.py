"""The demo's one table, with its noise, for the terminal and as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from kd.demo.noise import average_precision, draws, match
from kd.demo.runs import Result

COLUMNS = ("detector", "model", "AP", "± images", "± seeds", "AP50", "AP75", "gain [95%]", "step ms")


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
    ap_std_images: float
    """Standard deviation of AP under resampling of the validation images."""
    ap_std_seeds: float | None
    """Sample standard deviation of AP over the seeds; None for a single seed."""
    gain: float | None
    """AP minus that of the student alone, seed by seed; None for other rows."""
    gain_low: float | None
    """Lower end of the gain's 95 % interval under paired resampling of the validation images (and of the seeds)."""
    gain_high: float | None
    step_ms: float

    def cells(self) -> list[str]:
        """The row as text, in the order of ``COLUMNS``."""
        gain = "" if self.gain is None else f"{self.gain:+.1f} [{self.gain_low:+.1f}, {self.gain_high:+.1f}]"
        spread = "-" if self.ap_std_seeds is None else f"{self.ap_std_seeds:.1f}"
        figures = [f"{self.AP:.1f}", f"{self.ap_std_images:.1f}", spread, f"{self.AP50:.1f}", f"{self.AP75:.1f}"]
        return [self.detector, self.model, *figures, gain, f"{self.step_ms:.0f}"]


def rows(results: Sequence[Result], resamples: int) -> list[Row]:
    """The table of ``results``, whose folders hold the detections on the validation images."""
    made = []
    for detector in dict.fromkeys(result.detector for result in results):
        groups: dict[str, list[Result]] = {}
        for result in results:
            if result.detector == detector:
                groups.setdefault(result.method, []).append(result)
        boot = {method: _resampled(group, resamples) for method, group in groups.items()}
        made += [_row(method, groups, boot) for method in groups]
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
        if row.gain is None:
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
        "so the real noise is larger; `python -m kd.demo --seeds 3` measures it."
    )


def show(table: Sequence[Row], console: Console, title: str) -> None:
    """Prints the table."""
    # The detector heads its rows instead of taking a column, so that 80 characters are enough.
    view = Table(title=title, padding=(0, 1, 0, 0), collapse_padding=True)
    for index, column in enumerate(("", *COLUMNS[2:])):
        view.add_column(column.replace(" ", "\n"), justify="right" if index else "left", no_wrap=True)
    for detector in dict.fromkeys(row.detector for row in table):
        view.add_section()
        view.add_row(detector, style="bold")
        for row in table:
            if row.detector == detector:
                view.add_row(*row.cells()[1:])
    console.print(view)


def markdown(table: Sequence[Row]) -> str:
    """The table in Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "-|" * len(COLUMNS)]
    return "\n".join(lines + ["| " + " | ".join(row.cells()) + " |" for row in table]) + "\n"


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


def _resampled(group: Sequence[Result], resamples: int) -> np.ndarray:
    """(seeds, resamples) AP on bootstrap draws; equal draws for all models of one validation set."""
    made = []
    for result in group:
        stored = torch.load(Path(result.folder) / "detections.pt", weights_only=True)
        ids = sorted(stored["targets"])
        classes = match([stored["detections"][i] for i in ids], [stored["targets"][i] for i in ids])
        made.append(average_precision(classes, draws(len(ids), resamples)))
    return np.stack(made)


def _row(method: str, groups: dict[str, list[Result]], boot: dict[str, np.ndarray]) -> Row:
    group = groups[method]
    aps = [result.AP for result in group]
    gain = low = high = None
    if method not in ("teacher", "none") and "none" in groups:
        gain = statistics.fmean(aps) - statistics.fmean(result.AP for result in groups["none"])
        difference = boot[method] - boot["none"]
        # Seeds are drawn again along with the images, as a pair of trainings each.
        seeds = np.random.default_rng(1).integers(len(difference), size=(len(difference), difference.shape[1]))
        low, high = np.percentile(np.take_along_axis(difference, seeds, 0).mean(0), [2.5, 97.5]).tolist()
    return Row(
        detector=group[0].title.split(",")[0],
        model=group[0].title.split(", ", 1)[1],
        method=method,
        seeds=len(group),
        AP=statistics.fmean(aps),
        AP50=statistics.fmean(result.AP50 for result in group),
        AP75=statistics.fmean(result.AP75 for result in group),
        ap_std_images=float(boot[method].mean(0).std(ddof=1)),
        ap_std_seeds=statistics.stdev(aps) if len(aps) > 1 else None,
        gain=gain,
        gain_low=low,
        gain_high=high,
        step_ms=statistics.fmean(result.step_ms for result in group),
    )
