import csv
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from kd.cli import main
from kd.models import DetectorConfig, build
from kd.optimization import OptimizerConfig, ScheduleConfig
from kd.training import DetectionTraining, student_state

BACKBONE = {"fpn_channels": 16, "width_mult": 0.25, "norm": "frozen_bn", "min_size": 64, "max_size": 64}


def config(name, root, run, **changes):
    extra = {"proposals": 20, "box_head_width": 32} if name == "faster_rcnn" else {"head_norm": "group_norm"}
    detector = {"name": name, "backbone": "mobilenet_v2", "num_classes": 8, "options": {**BACKBONE, **extra}}
    content = {
        "trainer": {
            "max_epochs": 2,
            "default_root_dir": str(run),
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "model": {
            "student": detector,
            "teacher": {**detector, "options": {**detector["options"], "fpn_channels": 24}},
            "loss": "ssim",
            "weight": 4.0,
            "optimizer": {"name": "adamw", "lr": 0.003},
            "schedule": {"name": "multistep", "milestones": [1.5], "warmup_steps": 2},
        },
        "data": {"root": str(root), "batch_size": 2, "workers": 0},
        "save_every": 2,
    }
    for dotted, value in changes.items():
        *parents, key = dotted.split("__")
        inner = content
        for parent in parents:
            inner = inner[parent]
        inner[key] = value
    run.mkdir(parents=True, exist_ok=True)
    path = run.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(content))
    return str(path)


def logged(run, column):
    rows = []
    for path in sorted(run.glob("csv/version_*/metrics.csv")):
        with path.open() as file:
            rows += [float(row[column]) for row in csv.DictReader(file) if row.get(column)]
    return rows


def test_end_to_end(detector_name, coco_root, tmp_path):
    run = tmp_path / "run"
    path = config(detector_name, coco_root, run, trainer__max_epochs=8, trainer__check_val_every_n_epoch=4)
    main(["fit", "--config", path])
    losses, distillation = logged(run, "loss"), logged(run, "loss_distill")
    assert len(losses) == 8 * 3
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])
    assert sum(distillation[-6:]) < 0.9 * sum(distillation[:6])
    assert len(logged(run, "AP")) == 2 and len(logged(run, "AP50")) == 2
    assert logged(run, "distill/0")
    for name in ("student_last.pth", "student_best.pth", "config.yaml", "checkpoints/best.ckpt"):
        assert (run / name).is_file(), name
    # The student's file is one of the plain detector, and what the checkpoint holds.
    content = yaml.safe_load(open(path))["model"]["student"]
    student = build({**content, "weights": str(run / "student_last.pth")})
    checkpoint = torch.load(run / "checkpoints/last_epoch.ckpt", weights_only=True)
    state = student_state(checkpoint)
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
    assert any(name.startswith("distiller.adapters.") for name in checkpoint["state_dict"])
    assert not any("teacher" in name for name in checkpoint["state_dict"])
    main(["validate", "--config", path, "--ckpt_path", str(run / "checkpoints/best.ckpt")])


def step_values(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("stop", ["kill", "interrupt", "terminate"])
def test_resumed_run_equals_an_uninterrupted_one(stop, coco_root, tmp_path):
    name = "faster_rcnn" if stop == "kill" else "retinanet"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    changes = {"trainer__max_epochs": 3, "data__workers": 1 if stop == "kill" else 0}
    main(["fit", "--config", config(name, coco_root, whole, **changes)])
    path = config(name, coco_root, broken, **changes)
    stop_at = 5  # the second epoch's middle; the checkpoint of a killed run is of step 4
    program = f"""
import os, signal, sys
import lightning.pytorch as pl
from kd import cli, training
step = training.DetectionTraining.training_step
def stopping(self, batch, batch_idx):
    if self.global_step == {stop_at}:
        os.kill(os.getpid(), signal.{dict(kill="SIGKILL", interrupt="SIGINT", terminate="SIGTERM")[stop]})
    return step(self, batch, batch_idx)
training.DetectionTraining.training_step = stopping
cli.main(["fit", "--config", {path!r}])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0, done.stderr
    assert not (broken / "student_last.pth").exists()
    checkpoint = torch.load(broken / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == (4 if stop == "kill" else 6)
    main(["fit", "--config", path, "--ckpt_path", "last"])
    expected = torch.load(whole / "student_last.pth", weights_only=True)
    resumed = torch.load(broken / "student_last.pth", weights_only=True)
    start = build(DetectorConfig(**yaml.safe_load(open(path))["model"]["student"])).state_dict()
    assert any(not torch.equal(expected[name], start[name]) for name in expected)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_non_finite_loss_names_the_images(coco_root, tmp_path, capsys):
    path = config("retinanet", coco_root, tmp_path / "run", model__optimizer={"name": "sgd", "lr": 1e20},
                  model__schedule={"warmup_steps": 0})  # fmt: skip
    with pytest.raises(SystemExit, match=r"epoch 0, batch 1: .*image ids \[1\d, 1\d\]"):
        main(["fit", "--config", path])


def test_too_few_classes_and_missing_data_end_with_a_sentence(coco_root, tmp_path):
    path = config("retinanet", coco_root, tmp_path / "run")
    with pytest.raises((SystemExit, ValueError), match="num_classes: 4 is too few .* at least 8"):
        main(["fit", "--config", path, "--model.student.num_classes", "4", "--model.teacher.num_classes", "4"])
    with pytest.raises(SystemExit, match="no such folder; data.root"):
        main(["fit", "--config", path, "--data.root", str(tmp_path / "nowhere")])


def test_schedule_factor():
    schedule = ScheduleConfig(milestones=(2, 3), warmup_steps=10, warmup_factor=0.1)
    factors = [schedule.factor(step, steps_per_epoch=20) for step in range(80)]
    assert factors[0] == pytest.approx(0.1) and factors[5] == pytest.approx(0.55) and factors[10:40] == [1.0] * 30
    assert factors[40:60] == pytest.approx([0.1] * 20) and factors[60:] == pytest.approx([0.01] * 20)
    with pytest.raises(ValueError, match="milestones"):
        ScheduleConfig(milestones=(3, 2))
    with pytest.raises(ValueError, match="lr > 0"):
        OptimizerConfig(lr=0)


def test_frozen_parameters_are_not_optimised():
    student = DetectorConfig(backbone="mobilenet_v2", num_classes=4, options={**BACKBONE, "trainable_backbone_layers": 2})
    module = DetectionTraining(student)
    optimised = OptimizerConfig().build(module.distiller).param_groups[0]["params"]
    frozen = [p for p in module.parameters() if not p.requires_grad]
    assert frozen and len(optimised) + len(frozen) == len(list(module.parameters()))
