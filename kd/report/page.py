"""A self-contained page about finished trainings: it opens from disk and needs no network."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import yaml
from matplotlib.figure import Figure

from kd.coco import CocoDetection
from kd.compare.record import Result
from kd.compare.table import COLUMNS, Row, shown_columns
from kd.inspection import boxes, figures
from kd.inspection.command import spread
from kd.inspection.maps import inspect_image
from kd.report import curves
from kd.run_folder import RunFolder, flat

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #222;
  background: #fff; }
h1 { font-size: 1.7em; line-height: 1.2; } h2 { margin-top: 2em; border-bottom: 2px solid #ddd; }
h3 { margin: 1.6em 0 .3em; } img { max-width: 100%; display: block; } .note { color: #555; max-width: 60em; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .25em .6em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #999; } td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left; }
tr.best td { font-weight: 600; } tr.first td { border-top: 2px solid #999; }
table.settings td, table.settings th { text-align: left; vertical-align: top; white-space: normal; }
table.settings td:first-child { white-space: nowrap; } table.settings th { overflow-wrap: anywhere; min-width: 7em; }
pre { background: #f6f6f6; padding: .8em; overflow-x: auto; font-size: 12px; } summary { cursor: pointer; }
nav { margin-bottom: 1em; } nav a { margin-right: 1.2em; } h4 { margin: 1.4em 0 .2em; }
"""
IMAGES_SHOWN = 5
#: Images whose features are drawn, and students for which that is done.
IMAGES_INSPECTED = 2
STUDENTS_SHOWN = 4
CURVES_SHOWN = 10
#: Where a run writes or how it shows progress is no difference between two runs.
NOT_COMPARED = ("trainer.default_root_dir", "trainer.callbacks", "model_checkpoint", "ckpt_path")


def write_report(
    path: Path,
    *,
    title: str,
    table: Sequence[Row],
    notes: Sequence[str],
    results: Sequence[Result],
    facts: Mapping[str, object],
) -> Path:
    """Writes the page and returns its path.

    What a run has not left behind (detections, a checkpoint, its data) is left out, and the page says so.

    Args:
        path: the HTML file.
        title: heading.
        table: the rows of the table.
        notes: paragraphs below it.
        results: the runs behind it; their folders are read.
        facts: what else to state, name -> value.
    """
    detectors = list(dict.fromkeys(result.detector for result in results))
    parts = [_table(table), *(_note(note) for note in (_columns_note(table), *notes))]
    for k, detector in enumerate(detectors):
        own = [result for result in results if result.detector == detector]
        parts.append(f'<h2 id="detector{k}">{html.escape(_words(own[0])[0])}</h2>')
        parts += _detector(own)
    parts.append('<h2 id="settings">Settings</h2>')
    parts += _settings(results, facts)
    links = [(f"detector{k}", _words(next(r for r in results if r.detector == d))[0]) for k, d in enumerate(detectors)]
    links.append(("settings", "Settings"))
    nav = "".join(f'<a href="#{anchor}">{html.escape(name)}</a>' for anchor, name in links)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    body = f"<h1>{html.escape(title)}</h1><nav>{nav}</nav>{''.join(parts)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'<!doctype html><html lang="en">{head}{body}</html>', encoding="utf-8")
    return path


def _columns_note(table: Sequence[Row]) -> str:
    """The unit of the figures, and what the short headings stand for."""
    shown = {COLUMNS[k] for k in shown_columns(table)}
    said = ["COCO's AP on the validation images, in percent; the best student of each detector is bold."]
    if sizes := [f"{k} {word}" for k, word in (("S", "small"), ("M", "medium"), ("L", "large")) if k in shown]:
        said.append(f"{', '.join(sizes)} objects, by COCO's areas in pixels of the image files.")
    if "step ms" in shown:
        said.append("step ms: median time of a training step.")
    if "overhead %" in shown:
        said.append("overhead %: over a plain step with the teacher's forward pass, measured side by side.")
    return " ".join(said)


def _words(result: Result) -> tuple[str, str]:
    """Detector and model of a result, for people."""
    detector, _, model = result.title.partition(", ")
    return detector, model


def _table(table: Sequence[Row]) -> str:
    columns = shown_columns(table)
    head = "".join(f"<th>{html.escape(COLUMNS[k])}</th>" for k in columns)
    lines = []
    for number, row in enumerate(table):
        students = [other for other in table if other.detector == row.detector and other.method != "teacher"]
        best = row.method != "teacher" and len(students) > 1 and max(other.AP for other in students) == row.AP
        first = number > 0 and table[number - 1].detector != row.detector
        cells = row.cells()
        kind = " ".join(name for name, holds in (("best", best), ("first", first)) if holds)
        lines.append(f'<tr class="{kind}">' + "".join(f"<td>{html.escape(cells[k])}</td>" for k in columns) + "</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _detector(results: Sequence[Result]) -> list[str]:
    runs = {id(r): RunFolder(r.folder) for r in results if (Path(r.folder) / "config.yaml").is_file()}
    parts = []
    shown = _shown(results)
    parts += _detections(shown, runs)
    logged = [r for r in results if id(r) in runs and r.method != "teacher"]
    several = len({r.seed for r in logged}) > 1
    lines = {_words(r)[1] + (f", seed {r.seed}" if several else ""): runs[id(r)].curves() for r in logged}
    lines = {label: made for label, made in lines.items() if made}
    if lines:
        parts.append("<h3>Learning curves</h3>")
        if len(lines) > CURVES_SHOWN:
            parts.append(_note(f"The first {CURVES_SHOWN} of {len(lines)} trainings."))
        parts.append(
            _note("Losses on a logarithmic axis; the detector's are smoothed (moving average), all else is as logged.")
        )
        parts.append(_image(curves.losses(dict(list(lines.items())[:CURVES_SHOWN])), "learning curves"))
    distilled = [r for r in shown if id(r) in runs and runs[id(r)].model["loss"] != "none" and r.method != "teacher"]
    for result in distilled:
        by_level = curves.levels(runs[id(result)].curves())
        if by_level is not None:
            parts.append(f"<h3>{html.escape(_words(result)[1])}: level by level</h3>")
            parts.append(_note("Levels of the FPN, the first the finest; the loss without its weight."))
            parts.append(_image(by_level, "curves by level"))
    for result in distilled:
        parts += _inspected(result, runs[id(result)])
    return parts


def _shown(results: Sequence[Result]) -> list[Result]:
    """The teacher, the student alone, and the students of highest AP, of the first seed and in their order."""
    first = min((r.seed for r in results if r.method != "teacher"), default=0)
    students = [r for r in results if r.method not in ("teacher", "none") and r.seed == first]
    best = sorted(students, key=lambda r: -r.AP)[:STUDENTS_SHOWN]
    keep = [*best, *(r for r in results if r.method == "teacher" or (r.method == "none" and r.seed == first))]
    return [r for r in results if any(r is other for other in keep)]


def _detections(results: Sequence[Result], runs: Mapping[int, RunFolder]) -> list[str]:
    """Every model's detections on some validation images, beside the ground truth."""
    stored = [r for r in results if (Path(r.folder) / "detections.pt").is_file()]
    run = next((runs[id(r)] for r in results if id(r) in runs), None)
    if not stored or run is None:
        return []
    try:
        data = run.validation_images()
    except ValueError as error:
        return [_left_out("detections", error)]
    found = [torch.load(Path(r.folder) / "detections.pt", weights_only=True)["detections"] for r in stored]
    positions = _spread_with_objects(data, IMAGES_SHOWN)
    columns = len(stored) + 1
    figure = Figure(figsize=(2.3 * columns, 2.0 * len(positions) + 0.3), layout="constrained", facecolor="white")
    grid = figure.subplots(len(positions), columns, squeeze=False)
    for row, position in zip(grid, positions, strict=True):
        image, target = data[position]
        boxes.draw_truth(row[0], image, target, data.label_names)
        for axes, by_image in zip(row[1:], found, strict=True):
            boxes.draw_detections(axes, image, by_image[int(target["image_id"])], data.label_names)
    for axes, name in zip(grid[0], ("ground truth", *(_words(r)[1] for r in stored)), strict=True):
        axes.set_title(name, fontsize=9)
    return [
        "<h3>Detections</h3>",
        _note(
            "On validation images with objects, chosen by position; with a score of at least "
            f"{boxes.SHOWN_SCORE} (written in percent), of overlapping boxes the best. Crowds are dashed."
        ),
        _image(figure, "detections"),
    ]


def _inspected(result: Result, run: RunFolder) -> list[str]:
    """Features and error maps of one distilled student."""
    try:
        distiller, data = run.distiller(), run.validation_images()
    except (ValueError, FileNotFoundError) as error:
        return [_left_out(f"features of {_words(result)[1]}", error)]
    parts = [f"<h3>{html.escape(_words(result)[1])}: features beside the teacher's</h3>"]
    for position in _spread_with_objects(data, IMAGES_INSPECTED + 2)[1:-1]:
        inspection = inspect_image(distiller, data[position][0], teacher_detects=False)
        parts.append(f"<h4>{html.escape(data.records[position].file_name)}</h4>")
        for kind, words in (
            (
                "heat",
                "Where the features differ, over the picture: dark least, bright most, each map by its largest value.",
            ),
            ("maps", "The same in figures, means over channels; one scale per column."),
            (
                "features",
                "The features behind the adapter, rescaled to [0, 1]; teacher and student of a pair share one scale.",
            ),
        ):
            parts.append(_note(words) + _image(getattr(figures, kind)(inspection), kind))
    return parts


def _spread_with_objects(data: CocoDetection, wanted: int) -> list[int]:
    """Positions spread over the images that have ground truth, or over all where none has."""
    usable = [k for k, record in enumerate(data.records) if len(record.annotations)] or list(range(len(data)))
    return [usable[k] for k in spread(len(usable), wanted)]


def _settings(results: Sequence[Result], facts: Mapping[str, object]) -> list[str]:
    """Facts, what differs between the runs, and every run's whole configuration."""
    parts = [_pairs({name: str(value) for name, value in facts.items()})] if facts else []
    configured = [(r, RunFolder(r.folder)) for r in results if (Path(r.folder) / "config.yaml").is_file()]
    # Detector by detector: two detectors differ in so much that nobody would find what their students differ in.
    for detector in dict.fromkeys(result.detector for result, _ in configured):
        parts += _differences([(result, run) for result, run in configured if result.detector == detector])
    parts.append("<h3>Whole configurations</h3>")
    for result, run in configured:
        text = html.escape(yaml.safe_dump(run.config, sort_keys=False))
        name = html.escape(f"{result.title}, seed {result.seed}: {result.folder}")
        parts.append(f"<details><summary>{name}</summary><pre>{text}</pre></details>")
    return parts


def _differences(configured: Sequence[tuple[Result, RunFolder]]) -> list[str]:
    """The options that differ between the runs and the runs, of which the more go down the table."""
    options = [flat(run.config) for _, run in configured]
    keys = [key for key in dict.fromkeys(k for f in options for k in f) if not key.startswith(NOT_COMPARED)]
    # Where a whole section is null (the student alone has no teacher), that says it: not again by each of its options.
    having = {key: [f for f in options if not any(parent in f for parent in _parents(key))] for key in keys}
    differing = [key for key in keys if len({_value(f, key) for f in having[key]}) > 1]
    if len(configured) < 2 or not differing:
        return []
    several = len({result.seed for result, _ in configured}) > 1
    names = [_words(result)[1] + (f", seed {result.seed}" if several else "") for result, _ in configured]
    cells = [["", *names], *([key, *(_value(values, key) for values in options)] for key in differing)]
    if len(names) > len(differing):
        cells = [list(line) for line in zip(*cells, strict=True)]
    title = html.escape(_words(configured[0][0])[0])
    return [
        f"<h3>What differs between the runs of {title}</h3>",
        f'<div class="wide"><table class="settings">{_line("th", cells[0])}'
        + "".join(_line("td", line) for line in cells[1:])
        + "</table></div>",
    ]


def _parents(key: str) -> list[str]:
    """Of a dotted name those of the sections it is in."""
    parts = key.split(".")
    return [".".join(parts[:k]) for k in range(1, len(parts))]


def _value(options: Mapping[str, object], key: str) -> str:
    if key in options:
        return str(options[key])
    return "given" if any(other.startswith(f"{key}.") for other in options) else "-"


def _line(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _pairs(values: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in values.items())
    return f'<table class="settings">{rows}</table>'


def _left_out(what: str, error: Exception) -> str:
    return _note(f"Left out: {what} ({error}).")


def _note(text: str) -> str:
    """A paragraph of plain text, in which `this` is code."""
    with_code = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
    return f'<p class="note">{with_code}</p>'


def _image(figure: Figure, description: str) -> str:
    data = base64.b64encode(figures.png(figure, dpi=130)).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'
