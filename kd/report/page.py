"""A self-contained page about one run of the demo: it opens from disk and needs no network."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from kd.coco import CocoDetection
from kd.demo import figures
from kd.demo.runs import Result
from kd.demo.table import COLUMNS, Row

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; } td, th { padding: .3em .8em; border-bottom: 1px solid #ddd; text-align: right; }
td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left; } img { max-width: 100%; } .note { color: #555; }
"""
IMAGES_SHOWN = 6


def write_report(
    path: Path,
    *,
    table: Sequence[Row],
    notes: Sequence[str],
    results: Sequence[Result],
    data: CocoDetection,
    facts: Mapping[str, object],
) -> Path:
    """Writes the page and returns its path.

    Args:
        path: the HTML file.
        table: the rows of the table.
        notes: paragraphs below it.
        results: the runs behind it.
        data: the validation images.
        facts: what else to state, name -> value.
    """
    head = "".join(f"<th>{html.escape(column)}</th>" for column in COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row.cells()) + "</tr>" for row in table)
    parts = [f"<table><tr>{head}</tr>{body}</table>"]
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in notes]
    indices = [round(k * (len(data) - 1) / max(IMAGES_SHOWN - 1, 1)) for k in range(min(IMAGES_SHOWN, len(data)))]
    for detector in dict.fromkeys(result.detector for result in results):
        own = [result for result in results if result.detector == detector]
        parts.append(f"<h2>{html.escape(own[0].title.split(',')[0])}</h2>")
        parts.append(
            f"<p>Detections on validation images, chosen by position (score of at least {figures.SHOWN_SCORE}; "
            "of overlapping boxes the best):</p>"
        )
        parts.append(_image(figures.detections([r for r in own if r.seed == 0], data, indices), "detections"))
        parts.append(_image(figures.curves(own), "learning curves"))
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items())
    parts.append(f"<h2>Facts</h2><table>{rows}</table>")
    title = "Distilling detectors with SSIM on FPN features"
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    path.write_text(f"{page}<h1>{title}</h1>{''.join(parts)}</html>", encoding="utf-8")
    return path


def _image(png: bytes, description: str) -> str:
    return f'<img alt="{description}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
