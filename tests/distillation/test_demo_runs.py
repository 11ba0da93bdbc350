"""The demo's trainings: done once, resumed where they stopped, redone when the recipe changes, compared fairly."""

import json
import re
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from rich.console import Console

from kd.compare import table
from kd.demo.__main__ import main
from kd.demo.digits import DigitsConfig, write_digits
from kd.demo.recipe import FASTER_RCNN, METHODS, RETINANET, recipe
from kd.demo.runs import Run, Trainings, plan
from kd.report.command import main as report_command
from kd.report.page import write_report
from kd.run_folder import learning_curves
from kd.training import DetectionTraining

SMALL = {"width_mult": 0.25, "fpn_channels": 16}
DATA = DigitsConfig(train_images=16, val_images=5, image_size=64, min_digit=20, max_digit=40)


def small(detector, **options):
    return replace(detector, teacher={**SMALL, **options}, student={**SMALL, "fpn_channels": 8, **options},
                   teacher_steps=12, student_steps=12)  # fmt: skip


SMALL_RETINANET = small(RETINANET, head_convs=1)
SMALL_FASTER_RCNN = small(FASTER_RCNN, box_head_width=16)
RECIPE = replace(
    recipe(), detectors=(SMALL_RETINANET,), data=DATA, image_size=64, batch_size=2, save_every=3, resamples=10
)
TEACHER = Run(SMALL_RETINANET, None, 0)
STUDENT = Run(SMALL_RETINANET, METHODS[2], 0)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits", DATA)


def trainings(out, digits, chosen=RECIPE):
    return Trainings(out, digits, None, chosen, Console(quiet=True))


def weights(work, run):
    return torch.load(work.folder(run) / "student_last.pth", weights_only=True)


def interrupted_at(monkeypatch, step, error=KeyboardInterrupt):
    """Training stops in batch ``step`` for good."""
    original = DetectionTraining.training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == step:
            raise error
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DetectionTraining, "training_step", training_step)


def counted(monkeypatch):
    """The steps that are trained from now on."""
    original, steps = DetectionTraining.training_step, []

    def training_step(self, batch, batch_idx):
        steps.append(self.global_step)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DetectionTraining, "training_step", training_step)
    return steps


def test_plan_has_every_teacher_once_and_before_its_students():
    runs = plan(recipe(), seeds=2)
    assert len(runs) == 2 * (1 + 2 * 3) and len({run.name for run in runs}) == len(runs)
    for detector in (RETINANET, FASTER_RCNN):
        own = [run for run in runs if run.detector == detector]
        assert own[0].method is None and all(run.method for run in own[1:])
    assert [run.detector.name for run in plan(recipe(quick=True), 1)] == ["retinanet"] * 4


@pytest.mark.parametrize("detector", [SMALL_RETINANET, SMALL_FASTER_RCNN], ids=lambda d: d.name)
def test_all_runs_make_a_table_and_a_page(tmp_path, digits, detector):
    chosen = replace(RECIPE, detectors=(detector,))
    work = trainings(tmp_path, digits, chosen)
    results = [work.do(run) for run in plan(chosen, seeds=1)]
    made = table.rows(results, chosen.resamples)
    assert [row.method for row in made] == ["teacher", "none", "l2", "ssim"]
    for row, result in zip(made, results, strict=True):
        assert (row.AP, row.AP50, row.AP75) == (result.AP, result.AP50, result.AP75)
        assert result.steps == 12 and result.step_ms > 0 and 0 <= row.AP <= row.AP50 <= 100
        assert (row.gain is None) == (row.method in ("teacher", "none"))
    curve = learning_curves(work.folder(Run(detector, METHODS[2], 0)))
    assert min(curve["loss_distill"][1]) > 0
    assert "loss_distill" not in learning_curves(work.folder(Run(detector, METHODS[0], 0)))
    paths = table.write(made, ["a note"], {"fact": 1}, tmp_path)
    assert json.loads(paths[2].read_text())["rows"][3]["AP"] == made[3].AP
    assert paths[0].read_text().count("\n|") == 5 and len(paths[1].read_text().splitlines()) == 5
    page = write_report(
        tmp_path / "report.html", title="t", table=made, notes=["<note>"], results=results, facts={"a": "b"}
    ).read_text()
    # Detections, learning curves, and for L2 and SSIM the curves by level and three pictures of each of two images.
    assert page.count("data:image/png;base64,") == 2 + 2 * (1 + 3 * 2) and "&lt;note&gt;" in page
    # The command of everybody makes the same page of the same folder.
    assert report_command([str(tmp_path), "--out", str(tmp_path / "again.html")]) == 0
    again = (tmp_path / "again.html").read_text()
    assert again.count("data:image/png;base64,") == page.count("data:image/png;base64,")
    for row in made:
        assert f"<td>{row.model}</td><td>{row.AP:.1f}</td>" in again


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, digits, monkeypatch):
    whole, broken = trainings(tmp_path / "whole", digits), trainings(tmp_path / "broken", digits)
    for run in (TEACHER, STUDENT):
        whole.do(run)
        with monkeypatch.context() as patch:
            interrupted_at(patch, 7)
            with pytest.raises(SystemExit):
                broken.do(run)
        assert broken.finished(run) is None
        with monkeypatch.context() as patch:
            steps = counted(patch)
            result = broken.do(run)
        assert steps == [7, 8, 9, 10, 11]
        assert result.steps == 12
        for name, value in weights(whole, run).items():
            assert torch.equal(weights(broken, run)[name], value), name
        assert result.AP == whole.finished(run).AP


def test_a_finished_training_is_not_repeated(tmp_path, digits, monkeypatch):
    first = trainings(tmp_path, digits).do(TEACHER)
    monkeypatch.setattr(pl.Trainer, "fit", lambda *a, **k: pytest.fail("trained again"))
    assert trainings(tmp_path, digits).do(TEACHER) == first


def test_a_changed_recipe_starts_afresh_and_says_so(tmp_path, digits, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted_at(patch, 7)
        with pytest.raises(SystemExit):
            trainings(tmp_path, digits).do(TEACHER)
    console = Console(record=True, width=200)
    changed = replace(SMALL_RETINANET, lr=1e-3)
    work = Trainings(tmp_path, digits, None, replace(RECIPE, detectors=(changed,)), console)
    work.do(Run(changed, None, 0))
    said = console.export_text()
    assert "starting afresh" in said and "going on" not in said
    fresh = trainings(tmp_path / "fresh", digits)
    fresh.do(Run(changed, None, 0))
    for name, value in weights(fresh, Run(changed, None, 0)).items():
        assert torch.equal(weights(work, Run(changed, None, 0))[name], value)


def test_what_a_run_depends_on_and_what_not(tmp_path, digits):
    work = trainings(tmp_path, digits)

    def redone(run, **change):
        detector = replace(run.detector, **change)
        return work._fingerprint(run) != work._fingerprint(replace(run, detector=detector))

    plain = Run(SMALL_RETINANET, METHODS[0], 0)
    assert not redone(TEACHER, student_steps=99) and redone(TEACHER, teacher_steps=99) and redone(TEACHER, lr=1.0)
    assert redone(STUDENT, teacher_steps=99) and redone(STUDENT, student_steps=99)
    assert not redone(plain, teacher_steps=99) and redone(plain, student={**SMALL, "fpn_channels": 4})
    assert not redone(STUDENT, title="another name")


def test_students_start_equal_and_see_the_same_batches(tmp_path, digits):
    work = trainings(tmp_path, digits)
    work.do(TEACHER)
    starts, orders = [], []
    for method in METHODS:
        run = Run(SMALL_RETINANET, method, 3)
        pl.seed_everything(run.seed, verbose=False)
        starts.append(work._module(run).student.state_dict())
        data = work._data_module(run.seed)
        data.setup("fit")
        orders.append([int(t["image_id"]) for _, targets in data.train_dataloader() for t in targets])
    for other in starts[1:]:
        assert all(torch.equal(value, other[name]) for name, value in starts[0].items())
    assert len(orders[0]) == 16 and orders[0] == orders[1] == orders[2] != sorted(orders[0])


def test_verdicts_call_noise_noise():
    row = table.Row(
        detector="RetinaNet", model="student + SSIM", method="ssim", seeds=1, AP=10.0, AP50=20.0, AP75=5.0,
        APS=1.0, APM=2.0, APL=-1.0, ap_std_images=1.0, ap_std_seeds=None, gain=1.0, gain_low=-0.5, gain_high=2.5,
        step_ms=1.0, overhead_percent=None, peak_memory_mb=None,
    )  # fmt: skip
    assert "can't be told from noise" in table.verdicts([row])[0]
    assert "is outside the noise" in table.verdicts([replace(row, gain_low=0.2)])[0]
    teacher, alone = (replace(row, method=method, gain=None, gain_low=None, gain_high=None, AP=ap)
                      for method, ap in (("teacher", 4.0), ("none", 5.0)))  # fmt: skip
    assert "no better than the student alone" in table.verdicts([teacher, alone, row])[0]
    assert len(table.verdicts([replace(teacher, AP=6.0), alone, row])) == 1
    assert "--seeds 3" in table.noise_note([row], 5, 10)
    assert "was not measured" not in table.noise_note([replace(row, seeds=2)], 5, 10)


def test_bad_input_ends_with_a_sentence(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "o"), "--data", str(tmp_path / "none")]) == 1
    assert "no such annotation file" in re.sub(r"\s+", " ", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        main(["--seeds", "0"])
    assert "--seeds: got 0" in capsys.readouterr().err
