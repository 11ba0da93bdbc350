"""``kd compare`` and ``kd ablate``: every student trained once and alike, resumed where it stopped, in one table."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from comparisons import compare, equal, in_process, student_weights, write_comparison
from foreign_checkpoints import mmdet_names
from rich.console import Console
from training_runs import write_config

from kd.compare import students
from kd.compare.methods import named_methods, swept_methods
from kd.compare.record import FIGURES
from kd.compare.students import Students, TrainingFailed, resolved
from kd.compare.table import Row, markdown
from kd.data import CocoDataModule
from kd.evaluation import CocoEvaluator
from kd.models import DetectorConfig, build
from kd.run_folder import learning_curves
from kd.training import DetectionTraining

MODEL = {"loss": "ssim", "weight": 2.0, "loss_options": {"normalize": "sample", "window_size": 7}, "adapters": "auto"}


def counted(monkeypatch, stop_at=None):
    """The (loss, step) pairs that are trained from now on; (loss, step) ``stop_at`` interrupts instead."""
    original, steps = DetectionTraining.training_step, []

    def training_step(self, batch, batch_idx):
        here = (self.hparams["loss"], self.global_step)
        if here == stop_at:
            raise KeyboardInterrupt
        steps.append(here)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DetectionTraining, "training_step", training_step)
    return steps


def interrupted(*args):
    raise KeyboardInterrupt


def test_one_command_makes_one_table(compared):
    out, _ = compared
    content = json.loads((out / "results.json").read_text())
    assert [row["method"] for row in content["rows"]] == ["teacher", "none", "ssim"]
    for row in content["rows"][1:]:
        results = [json.loads((out / f"students/{row['method']}-seed{s}/result.json").read_text()) for s in (0, 1)]
        assert row["AP"] == pytest.approx(sum(r["AP"] for r in results) / 2)
        assert [r["steps"] for r in results] == [6, 6] and row["seeds"] == 2
        assert row["ap_std_seeds"] is not None and row["step_ms"] > 0 and row["peak_memory_mb"] > 50
        assert (row["gain"] is None) == (row["method"] == "none")
    assert set(content["step_cost"]) == {"none with teacher", "none", "ssim"}
    assert content["rows"][2]["overhead_percent"] == content["step_cost"]["ssim"]["overhead_percent"]
    assert content["step_cost"]["none with teacher"]["overhead_percent"] == 0
    assert not equal(student_weights(out, "none-seed0"), student_weights(out, "none-seed1"))
    assert not equal(student_weights(out, "none-seed0"), student_weights(out, "ssim-seed0"))
    lines = [line for line in (out / "results.md").read_text().splitlines() if line.startswith("|")]
    heading, _, *cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    assert {"AP", "± images", "± seeds", "AP50", "AP75", "gain [95%]", "step ms", "overhead %", "peak MiB"} <= set(
        heading
    )
    with (out / "results.csv").open(newline="") as file:
        stored = list(csv.DictReader(file))
    for row, in_csv, in_table in zip(content["rows"], stored, cells, strict=True):
        assert {name: float(in_csv[name]) for name in FIGURES} == {name: row[name] for name in FIGURES}
        written = dict(zip(heading, in_table, strict=True))
        assert [written[name] for name in ("AP", "AP50", "AP75")] == [f"{row[n]:.1f}" for n in ("AP", "AP50", "AP75")]
        assert written["gain [95%]"].startswith("" if row["gain"] is None else f"{row['gain']:+.1f} [")
    assert "SSIM 4." in " ".join(content["notes"])


def test_every_figure_stands_under_its_name():
    figures = {"AP": 41.0, "AP50": 62.0, "AP75": 43.0, "APS": 24.0, "APM": 45.0, "APL": -1.0}
    row = Row(detector="RetinaNet", model="student + SSIM", method="ssim", seeds=3, **figures, ap_std_images=0.5,
              ap_std_seeds=0.25, gain=3.0, gain_low=2.0, gain_high=4.0, step_ms=100.0, overhead_percent=1.5,
              peak_memory_mb=300.0)  # fmt: skip
    heading, _, line = [[cell.strip() for cell in text[1:-1].split("|")] for text in markdown([row]).splitlines()]
    assert dict(zip(heading, line, strict=True)) == {
        "detector": "RetinaNet", "model": "student + SSIM", "AP": "41.0", "± images": "0.5", "± seeds": "0.2",
        "AP50": "62.0", "AP75": "43.0", "S": "24.0", "M": "45.0", "gain [95%]": "+3.0 [+2.0, +4.0]", "step ms": "100",
        "overhead %": "+1.5", "peak MiB": "300",
    }  # fmt: skip


def test_an_interrupted_comparison_goes_on_where_it_stopped(compared, tmp_path, monkeypatch):
    whole, config = compared
    arguments = (config, tmp_path, "--methods", "none,ssim", "--step-rounds", "0")
    with monkeypatch.context() as patch:
        first = counted(patch, stop_at=("ssim", 4))
        with pytest.raises(SystemExit):
            compare(*arguments)
    assert first == [("none", k) for k in range(6)] + [("ssim", k) for k in range(4)]
    assert not (tmp_path / "results.json").exists()
    with monkeypatch.context() as patch:
        second = counted(patch)
        assert compare(*arguments) == 0
    assert second == [("ssim", 4), ("ssim", 5)]
    for name in ("none-seed0", "ssim-seed0"):
        assert equal(student_weights(tmp_path, name), student_weights(whole, name))
        results = [json.loads((out / f"students/{name}/result.json").read_text()) for out in (tmp_path, whole)]
        assert results[0]["AP"] == results[1]["AP"]


@pytest.mark.slow
def test_a_terminated_comparison_lets_the_student_save(compared, tmp_path):
    whole, config = compared
    out = tmp_path / "out"
    program = """
import os, signal, sys
from kd import training
from kd.__main__ import main
step = training.DetectionTraining.training_step
def stopping(self, batch, batch_idx):
    if self.global_step == 3:
        os.kill(os.getppid(), signal.SIGTERM)
        import time; time.sleep(2)
    return step(self, batch, batch_idx)
training.DetectionTraining.training_step = stopping
main(sys.argv[1:])
"""
    child = tmp_path / "child.py"
    child.write_text(program)
    parent = f"""
import sys
from pathlib import Path
from kd.compare import students
from kd.compare.command import main
students.COMMAND = [sys.executable, {str(child)!r}]
sys.exit(main("compare", ["--config", {config!r}, "--out", {str(out)!r}, "--methods", "none", "--step-rounds", "0"]))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert not (out / "students/none-seed0/result.json").exists()
    assert torch.load(out / "students/none-seed0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    assert compare(config, out, "--methods", "none", "--step-rounds", "0") == 0
    assert equal(student_weights(out, "none-seed0"), student_weights(whole, "none-seed0"))


def test_changed_settings_are_refused_and_harmless_ones_are_not(compared, monkeypatch, capsys):
    out, config = compared
    arguments = (config, out, "--methods", "none,ssim", "--seeds", "2", "--step-rounds", "2")
    before = (out / "step_cost.json").read_text()
    steps = counted(monkeypatch)
    assert compare(*arguments, "--trainer.log_every_n_steps", "3", "--data.eval_batch_size", "2") == 0
    assert steps == [] and (out / "step_cost.json").read_text() == before
    assert compare(*arguments, "--model.optimizer.lr", "0.5") == 1
    said = capsys.readouterr().err
    assert "model.optimizer.lr (was 0.003, is 0.5)" in said and "--out" in said
    # The window is SSIM's only: the students alone stand.
    assert compare(*arguments, "--model.loss_options", '{"window_size": 5}') == 1
    assert "ssim-seed0 was trained with other settings: model.loss_options.window_size" in capsys.readouterr().err
    assert steps == []


@pytest.mark.slow
def test_a_failing_student_is_named_and_the_others_make_a_table(compared, tmp_path, capsys):
    _, config = compared

    def launch(arguments):
        # Without adapters the channels differ, which the distiller refuses.
        if yaml.safe_load(Path(arguments[2]).read_text())["model"]["adapters"] == "never":
            with pytest.raises(SystemExit, match="channels"):
                in_process(arguments)
            raise TrainingFailed("on purpose")
        in_process(arguments)

    sweep = ("--sweeps", "adapters", "--trainer.max_epochs", "1", "--step-rounds", "1")
    assert compare(config, tmp_path, *sweep, command="ablate", launch=launch) == 1
    content = json.loads((tmp_path / "results.json").read_text())
    assert [row["method"] for row in content["rows"]] == ["teacher", "none", "ssim", "ssim-adapters-on"]
    assert content["failed"] == ["ssim-adapters-off-seed0"]
    # The student and its teacher differ in channels on every level, so "auto" had them all.
    assert equal(student_weights(tmp_path, "ssim-seed0"), student_weights(tmp_path, "ssim-adapters-on-seed0"))
    assert "failed: ssim-adapters-off-seed0" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_none_is_plain_torchvision_training_step_for_step(name, coco_root, tmp_path):
    """The loop below knows nothing of the trainer or the distiller: torchvision's model, PyTorch's optimiser."""
    config = write_comparison(
        name, coco_root, tmp_path / "run", model__optimizer={"name": "sgd", "lr": 0.01}, trainer__gradient_clip_val=5.0
    )
    assert compare(config, tmp_path / "out", "--methods", "none", "--step-rounds", "0") == 0
    section = yaml.safe_load(Path(config).read_text())

    torch.manual_seed(0)
    model = build(DetectorConfig(**section["model"]["student"])).train()
    data = CocoDataModule(**section["data"], seed=0)
    data.setup("fit")
    loader = data.train_dataloader()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4)
    history = []
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        for number, (images, targets) in enumerate(loader):
            step = epoch * 3 + number
            warm_up = min(1.0, 0.001 + (1 - 0.001) * step / 2)
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * warm_up * (0.1 if step >= 1.5 * 3 else 1.0)
            torch.manual_seed(epoch * 1_000_003**2 + number * 1_000_003)  # the trainer's, for the sampled proposals
            losses = sum(model(images, targets).values())
            optimizer.zero_grad()
            losses.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            history.append(float(losses))
    run = tmp_path / "out/students/none-seed0"
    assert learning_curves(run)["loss"][1] == pytest.approx(history, rel=1e-6)
    trained = torch.load(run / "student_last.pth", weights_only=True)
    assert equal(trained, model.state_dict())


def test_a_teacher_without_trained_heads_has_no_row_and_that_is_said(coco_root, tmp_path, capsys):
    source = build("retinanet", backbone="resnet18", num_classes=8, fpn_channels=16, relu_before_p7=False)
    torch.save(mmdet_names(source, 3), tmp_path / "mmdet.pth")
    teacher = {"name": "retinanet", "backbone": "resnet18", "num_classes": 8, "weights": str(tmp_path / "mmdet.pth"),
               "weights_format": "mmdet", "options": {"fpn_channels": 16, "min_size": 64, "max_size": 64}}  # fmt: skip
    made = write_config("retinanet", coco_root, tmp_path / "run", model__teacher=teacher)
    students = Students(tmp_path / "out", resolved(["--config", made]), Console(width=1000))
    assert students.teacher() is None and not list((tmp_path / "out").glob("**/result.json"))
    assert "teacher: AP not measured" in capsys.readouterr().out
    # One file further, with weights for the heads too, it has a row.
    torch.save(source.state_dict(), tmp_path / "whole.pth")
    whole = {**teacher, "weights": str(tmp_path / "whole.pth"), "weights_format": "torchvision"}
    whole["options"] = {**teacher["options"], "relu_before_p7": False, "norm": "bn"}
    made = write_config("retinanet", coco_root, tmp_path / "run", model__teacher=whole)
    result = Students(tmp_path / "out", resolved(["--config", made]), Console(width=1000)).teacher()
    assert result.method == "teacher" and result.AP >= 0


def test_the_teacher_is_measured_on_the_configurations_device(compared, tmp_path, monkeypatch):
    """A GPU that the configuration does not take may be busy or too small."""
    students = Students(tmp_path, resolved(["--config", compared[1]]), Console(width=1000))
    assert students.config["trainer"]["accelerator"] == "cpu"
    batches, devices, process = list(students._data.val_dataloader()), set(), CocoEvaluator.process

    def recording(self, detections, targets):
        devices.update(found["boxes"].device.type for found in detections)
        process(self, detections, targets)

    monkeypatch.setattr(CocoEvaluator, "process", recording)
    monkeypatch.setattr(students._data, "val_dataloader", lambda: batches)  # which would pin memory
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert students.teacher() and devices == {"cpu"}


def test_a_cut_off_measurement_of_the_teacher_leaves_no_earlier_result(compared, tmp_path, monkeypatch):
    config = resolved(["--config", compared[1]])
    console = Console(width=1000)
    assert Students(tmp_path, config, console).teacher().AP < 99
    file = tmp_path / "teacher/result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "AP": 99.0}))
    assert Students(tmp_path, config, console).teacher().AP == 99  # the stored one
    config["model"]["teacher"]["options"]["max_size"] = 72
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(students, "write_result", interrupted)
        Students(tmp_path, config, console).teacher()
    assert Students(tmp_path, config, console).teacher().AP < 99


def test_methods_share_what_the_paper_shares_and_no_more():
    made = {m.name: m for m in named_methods(["none", "l1", "l2", "ssim", "pkd", "cwd"], MODEL, {"l2": 8.0})}
    alone = made["none"].model_section()
    assert (alone["loss"], alone["teacher"], alone["loss_options"]) == ("none", None, None)
    assert made["ssim"].options == {"normalize": "sample", "window_size": 7} and made["ssim"].weight == 2.0
    assert made["l1"].options == {"normalize": "sample"} and made["l1"].weight == 2.0 and made["l2"].weight == 8.0
    assert made["pkd"].options == {} and made["pkd"].weight == made["cwd"].weight == 10.0
    with pytest.raises(ValueError, match="--methods: got 'huber'"):
        named_methods(["huber"], MODEL, {})
    with pytest.raises(ValueError, match="each once"):
        named_methods(["l1", "l1"], MODEL, {})
    with pytest.raises(ValueError, match="--weights: l1 is not among"):
        named_methods(["ssim"], MODEL, {"l1": 1.0})


def test_sweeps_are_the_papers_and_train_nothing_twice():
    model = {**MODEL, "weight": 4.0, "loss_options": {}}
    made = swept_methods(("exponents", "window", "weight", "psi", "adapters"), model)
    names = [method.name for method in made]
    assert names[:2] == ["none", "ssim"] and len(set(names)) == len(names)
    # Those that equal the base are not repeated: exponents (1, 1, 1), window 11, weight 4, psi per channel.
    assert len(made) == 2 + 6 + 4 + 4 + 3 + 2
    by_name = {method.name: method for method in made}
    assert by_name["ssim-exponents-010"].options == {"exponents": (0.0, 1.0, 0.0)}
    assert by_name["ssim-exponents-010"].title == "SSIM of c"
    assert by_name["ssim-window-3"].options == {"window_size": 3}
    assert by_name["ssim-weight-0.5"].weight == 0.5 and by_name["ssim-psi-off"].options == {"normalize": None}
    assert by_name["ssim-adapters-off"].adapters == "never"
    # Where the configuration is another point of a sweep, that one is the base.
    assert "ssim-window-11" in [
        m.name for m in swept_methods(("window",), {**model, "loss_options": {"window_size": 7}})
    ]
    with pytest.raises(ValueError, match="'l2'"):
        swept_methods(("window",), {**MODEL, "loss": "l2"})


def test_bad_arguments_end_with_a_sentence(compared, tmp_path, capsys):
    _, config = compared
    assert compare(config, tmp_path, "--methods", "none,huber") == 1
    assert compare(config, tmp_path, "--weights", "ssim=much") == 1
    assert compare(config, tmp_path, "--sweeps", "colour", command="ablate") == 1
    assert compare(config, tmp_path, "--data.root", str(tmp_path / "nowhere")) == 1
    said = capsys.readouterr().err
    for words in ("got 'huber'", "got 'ssim=much'", "--sweeps: got colour", "no such folder"):
        assert words in said
    with pytest.raises(SystemExit):
        compare(config, tmp_path, "--seeds", "0")
