"""``kd report``: a page that opens from disk, with what the runs left behind."""

import html.parser
import json
import shutil

import pytest
from training_runs import write_config

from kd import cli
from kd.report import curves
from kd.report.command import main
from kd.report.page import write_report


class Page(html.parser.HTMLParser):
    """Tags, links and text of a page; fails on tags that are not closed."""

    EMPTY = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_of_a_comparison(compared, tmp_path, capsys):
    out, _ = compared
    file = tmp_path / "page.html"
    assert main([str(out), "--out", str(file), "--title", "A < B"]) == 0
    assert str(file) in capsys.readouterr().out
    page = Page(file.read_text())
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    # Detections, learning curves, one student's curves by level, and three pictures of each of two images.
    assert page.tags.count("img") == 2 + 1 + 3 * 2
    rows = json.loads((out / "results.json").read_text())["rows"]
    for row in rows:
        assert row["model"] in page.text and f"{row['AP']:.1f}" in page.text
    assert "A < B" in page.text and "overhead %" in page.text and f"{rows[2]['overhead_percent']:+.1f}" in page.text
    assert page.tags.count("details") == 4 and "weight_decay" in page.text
    assert "in percent" in page.text and "step ms: median" in page.text
    # Below the table of figures that of the differences, whose first line or column names every run.
    assert page.tags.count("table") == 2
    differences = page.text.split("What differs between the runs of RetinaNet")[1].split("Whole configurations")[0]
    assert all(row["model"] in differences for row in rows) and "model.loss" in differences
    assert "optimizer.name" not in differences
    # That the student alone has no teacher is one line, not one for each of the teacher's options.
    assert "model.teacherNone" in differences.replace("given", "") and "model.teacher.name" not in differences


def test_code_in_notes(tmp_path):
    notes = ["`--seeds 3` measures it, 1 < 2"]
    page = Page(
        write_report(tmp_path / "page.html", title="t", table=[], notes=notes, results=[], facts={}).read_text()
    )
    assert page.tags.count("code") == 1 and "--seeds 3 measures it, 1 < 2" in page.text


def test_what_is_gone_is_left_out_and_said(compared, tmp_path):
    out, _ = compared
    moved = tmp_path / "moved"
    shutil.copytree(out, moved)
    for file in [*moved.glob("students/*/checkpoints/*.ckpt"), *moved.glob("**/detections.pt")]:
        file.unlink()
    assert main([str(moved)]) == 0
    page = Page((moved / "report.html").read_text())
    assert page.tags.count("img") == 2 and "Left out: features of student + SSIM" in page.text
    assert "± images" not in page.text


def test_page_of_a_plain_run(coco_root, tmp_path, capsys):
    run = tmp_path / "runs/mine"
    assert main([str(tmp_path)]) == 1
    assert "no run in it or below it" in capsys.readouterr().err
    cli.main(["fit", "--config", write_config("retinanet", coco_root, run, trainer__max_epochs=1)])
    assert main([str(run)]) == 0
    page = Page((run / "report.html").read_text())
    assert "mine (SSIM 4)" in page.text and page.tags.count("img") >= 2
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_two_runs_of_one_kind_are_not_taken_for_seeds(compared, tmp_path, capsys):
    out, _ = compared
    shutil.copytree(out, tmp_path / "copy")
    assert main([str(out), str(tmp_path / "copy")]) == 1
    assert "several runs of this detector, method and seed" in capsys.readouterr().err


def test_curves_show_every_loss_once():
    runs = {
        "alone": {"loss": ([0, 1], [2.0, 1.0]), "classification": ([0, 1], [1.0, 0.5]), "lr-SGD": ([0], [0.1])},
        "ssim": {
            "loss": ([0, 1], [4.0, 2.5]), "classification": ([0, 1], [1.0, 0.4]),
            "loss_distill": ([0, 1], [2.0, 1.6]), "distill/0": ([0, 1], [0.5, 0.4]), "AP": ([0, 1], [1.0, 2.0]),
        },
    }  # fmt: skip
    figure = curves.losses(runs)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == ["detection losses, sum", "classification", "distillation loss, weighted",
                            "AP on validation images"]  # fmt: skip
    # The sum is without the distillation loss, so that the methods can be compared: 4 - 2, smoothed towards 2.5 - 1.6.
    assert list(panels["detection losses, sum"].lines[1].get_ydata()) == pytest.approx([2.0, 0.8 * 2.0 + 0.2 * 0.9])
    assert len(panels["distillation loss, weighted"].lines) == 1
    assert curves.levels(runs["alone"]) is None
    assert [axes.get_title() for axes in curves.levels(runs["ssim"]).axes] == ["distillation loss by level"]
    components = {f"{part}/{level}": ([0, 1], [0.5, 0.6]) for part in curves.PARTS for level in ("0", "p7")}
    by_level = curves.levels({**runs["ssim"], **components}).axes
    assert [axes.get_title().split(" by ")[0] for axes in by_level] == [
        "distillation loss", "luminance", "contrast", "structure"
    ]  # fmt: skip
    assert [len(axes.lines) for axes in by_level] == [1, 2, 2, 2]


def test_panels_and_their_axes_can_be_read():
    """Four panels are two by two, and a logarithmic axis says 0.4, not 4 x 10^-1."""
    names = ("loss", "one", "two", "three")
    figure = curves.losses({"run": {name: ([0, 1], [0.5, 0.3]) for name in names}})
    figure.draw_without_rendering()
    grid = figure.axes[0].get_subplotspec().get_gridspec()
    assert len(figure.axes) == 4 and (grid.nrows, grid.ncols) == (2, 2)
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels(which="both")]
    labels = [label for label in labels if label]
    assert labels and all(float(label) > 0 for label in labels)
