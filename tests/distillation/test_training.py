import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from fsspec.implementations.local import LocalFileOpener
from training_runs import BACKBONE, logged, write_config

from kd import cli
from kd.cli import main
from kd.models import DetectorConfig, build
from kd.optimization import OptimizerConfig, ScheduleConfig
from kd.training import DetectionTraining, student_state


def test_end_to_end(detector_name, coco_root, tmp_path):
    run = tmp_path / "run"
    path = write_config(detector_name, coco_root, run, trainer__max_epochs=8, trainer__check_val_every_n_epoch=4)
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
    content = yaml.safe_load(Path(path).read_text())["model"]["student"]
    student = build({**content, "weights": str(run / "student_last.pth")})
    checkpoint = torch.load(run / "checkpoints/last_epoch.ckpt", weights_only=True)
    state = student_state(checkpoint)
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
    assert any(name.startswith("distiller.adapters.") for name in checkpoint["state_dict"])
    assert not any("teacher" in name for name in checkpoint["state_dict"])
    main(["validate", "--config", path, "--ckpt_path", str(run / "checkpoints/best.ckpt")])


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["kill", "interrupt", "terminate"])
def test_resumed_run_equals_an_uninterrupted_one(stop, coco_root, tmp_path):
    name = "faster_rcnn" if stop == "kill" else "retinanet"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    changes = {"trainer__max_epochs": 3, "data__workers": 1 if stop == "kill" else 0}
    main(["fit", "--config", write_config(name, coco_root, whole, **changes)])
    path = write_config(name, coco_root, broken, **changes)
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
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as the tests' own process: sums in the same order
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == dict(kill=-9, interrupt=1, terminate=143)[stop], done.stderr
    assert not (broken / "student_last.pth").exists()
    checkpoint = torch.load(broken / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == (4 if stop == "kill" else 6)
    main(["fit", "--config", path, "--ckpt_path", "last"])
    expected = torch.load(whole / "student_last.pth", weights_only=True)
    resumed = torch.load(broken / "student_last.pth", weights_only=True)
    start = build(DetectorConfig(**yaml.safe_load(Path(path).read_text())["model"]["student"])).state_dict()
    assert any(not torch.equal(expected[name], start[name]) for name in expected)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


@pytest.mark.parametrize("place", ["training_step", "on_before_batch_transfer"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_gradients_that_are_accumulated(coco_root, tmp_path, monkeypatch, number, place):
    """Whether it comes in a batch or while one is loaded."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    changes = {"trainer__accumulate_grad_batches": 2, "trainer__limit_val_batches": 0, "save_every": 50}
    main(["fit", "--config", write_config("retinanet", coco_root, whole, **changes)])
    path = write_config("retinanet", coco_root, broken, **changes)
    original, sent = getattr(DetectionTraining, place), []

    def interrupted(self, *args, **kwargs):
        if self.current_epoch == 1 and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(DetectionTraining, place, interrupted)
        main(["fit", "--config", path])
    assert sent and signal.getsignal(signal.SIGTERM) == handlers[signal.SIGTERM]
    signal.signal(signal.SIGINT, handlers[signal.SIGINT])
    assert torch.load(broken / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    main(["fit", "--config", path, "--ckpt_path", "last"])
    expected, resumed = (torch.load(run / "student_last.pth", weights_only=True) for run in (whole, broken))
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_sigterm_does_not_wait_for_the_end_of_a_validation(coco_root, tmp_path, monkeypatch):
    path = write_config("retinanet", coco_root, tmp_path / "run", trainer__accumulate_grad_batches=2)
    original, seen = DetectionTraining.validation_step, []

    def terminated(self, batch, batch_idx):
        seen.append(batch_idx)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patched, pytest.raises(SystemExit, match="143"):
        patched.setattr(DetectionTraining, "validation_step", terminated)
        main(["fit", "--config", path])
    assert seen == [0, 1]  # of eight
    main(["fit", "--config", path, "--ckpt_path", "last"])
    assert (tmp_path / "run/student_last.pth").is_file()


def test_non_finite_loss_names_the_images(coco_root, tmp_path, capsys):
    path = write_config("retinanet", coco_root, tmp_path / "run", model__optimizer={"name": "sgd", "lr": 1e20},
                  model__schedule={"warmup_steps": 0})  # fmt: skip
    with pytest.raises(SystemExit, match=r"epoch 0, batch 1: .*image ids \[1\d, 1\d\]"):
        main(["fit", "--config", path])


def test_too_few_classes_and_missing_data_end_with_a_sentence(coco_root, tmp_path):
    path = write_config("retinanet", coco_root, tmp_path / "run")
    with pytest.raises((SystemExit, ValueError), match=r"num_classes: 4 is too few .* at least 8"):
        main(["fit", "--config", path, "--model.student.num_classes", "4", "--model.teacher.num_classes", "4"])
    with pytest.raises(SystemExit, match=r"no such folder; data.root"):
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
    student = DetectorConfig(
        backbone="mobilenet_v2", num_classes=4, options={**BACKBONE, "trainable_backbone_layers": 2}
    )
    module = DetectionTraining(student)
    optimised = OptimizerConfig().build(module.distiller).param_groups[0]["params"]
    frozen = [p for p in module.parameters() if not p.requires_grad]
    assert frozen and len(optimised) + len(frozen) == len(list(module.parameters()))


def test_a_bad_teacher_stops_the_run_unless_told_otherwise(coco_root, tmp_path):
    run = tmp_path / "run"
    path = write_config("retinanet", coco_root, run, teacher_check={"images": 5}, trainer__max_epochs=1)
    with pytest.raises(SystemExit, match=r"teacher: its AP is \d.* below teacher_check.min_ap=5"):
        main(["fit", "--config", path])
    assert not (run / "student_last.pth").exists()
    main(["fit", "--config", path, "--teacher_check.min_ap", "0"])
    assert (run / "student_last.pth").exists() and len(logged(run, "teacher/AP")) == 2


def test_teacher_and_last_student_are_measured_in_the_runs_precision(coco_root, tmp_path):
    run = tmp_path / "run"
    record = {"class_path": "kd.compare.record.RunRecord", "init_args": {"folder": str(run)}}
    path = write_config("retinanet", coco_root, run, trainer__max_epochs=1, trainer__limit_val_batches=0,
                        trainer__precision="64-true", trainer__callbacks=[record],
                        teacher_check={"images": 2, "min_ap": 0})  # fmt: skip
    main(["fit", "--config", path])
    assert logged(run, "teacher/AP") and (run / "record.json").is_file()


def test_moving_average(coco_root, tmp_path):
    states = []
    for decay in (None, 0.0, 0.9):
        run = tmp_path / f"decay_{decay}"
        path = write_config("retinanet", coco_root, run, trainer__max_epochs=1)
        average = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": decay}}
        arguments = [] if decay is None else [f"--trainer.callbacks={json.dumps([average])}"]
        main(["fit", "--config", path, *arguments])
        states.append(torch.load(run / "student_last.pth", weights_only=True))
    plain, followed, averaged = states
    assert all(torch.equal(plain[name], followed[name]) for name in plain)
    assert any(not torch.equal(plain[name], averaged[name]) for name in plain)


def test_dry_run_writes_nothing(coco_root, tmp_path):
    run = tmp_path / "run"
    main(["fit", "--config", write_config("retinanet", coco_root, run), "--trainer.fast_dev_run", "1"])
    assert not list(run.glob("**/*.pth")) and not list(run.glob("**/*.ckpt"))


def test_overfitting_one_batch_repeats_it(coco_root, tmp_path, monkeypatch):
    seen = []
    step = DetectionTraining.training_step

    def recording(self, batch, batch_idx):
        seen.append(sorted(int(target["image_id"]) for target in batch[1]))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DetectionTraining, "training_step", recording)
    path = write_config("retinanet", coco_root, tmp_path / "run", trainer__max_epochs=4)
    main(["fit", "--config", path, "--trainer.overfit_batches", "1"])
    assert len(seen) == 4 and all(ids == seen[0] for ids in seen)
    seen.clear()
    main(["fit", "--config", path, "--trainer.limit_train_batches", "1"])
    assert len(seen) == 4 and any(ids != seen[0] for ids in seen)


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_no_code_runs_from_a_checkpoint(coco_root, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    path = write_config("retinanet", coco_root, run, trainer__max_epochs=1)
    own = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"dirpath": str(run / "own"), "every_n_train_steps": 3},
    }
    main(["fit", "--config", path, f"--trainer.callbacks={json.dumps([own])}"])
    assert list(run.glob("own/*.ckpt"))  # the user's callbacks stay beside the run's own
    checkpoint = torch.load(run / "checkpoints/last_epoch.ckpt", weights_only=True)
    torch.save({**checkpoint, "extra": Evil()}, tmp_path / "evil.ckpt")
    arguments = ["--config", path, "--ckpt_path", str(tmp_path / "evil.ckpt")]
    for command in ("fit", "validate"):
        with pytest.raises(SystemExit, match="weights_only"):
            main([command, *arguments])
        with monkeypatch.context() as unchecked, pytest.raises(Exception, match="weights_only"):
            unchecked.setattr(cli, "check_checkpoint", lambda *_, **options: None)  # Lightning reads it no other way
            main([command, *arguments])
    assert "code ran" not in capsys.readouterr().out


def test_a_checkpoint_that_is_cut_off_leaves_the_one_before(coco_root, tmp_path, monkeypatch):
    """Lightning writes to the system's temporary folder first; from another file system it then copies the file onto
    the checkpoint, which is lost where that is cut off."""

    def cut_off(*args):
        raise OSError("no space left")

    monkeypatch.setattr(LocalFileOpener, "commit", cut_off)
    run = tmp_path / "run"
    path = write_config("retinanet", coco_root, run, trainer__max_epochs=1, model__loss="none")
    main(["fit", "--config", path])
    before = (run / "checkpoints/last.ckpt").read_bytes()
    monkeypatch.setattr(torch, "save", lambda state, file: (Path(file).write_bytes(b"half"), cut_off()))
    with pytest.raises(OSError, match="no space left"):
        main(["fit", "--config", path, "--trainer.max_epochs=2", "--ckpt_path", "last"])
    assert (run / "checkpoints/last.ckpt").read_bytes() == before
    assert sorted(f.name for f in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt", "last_epoch.ckpt"]


def test_the_optimiser_is_the_configured_one():
    module = torch.nn.Linear(2, 2)
    sgd = OptimizerConfig(lr=0.02, momentum=0.8, weight_decay=3e-4).build(module)
    assert type(sgd) is torch.optim.SGD
    adamw = OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.05).build(module)
    assert type(adamw) is torch.optim.AdamW
    found = [{k: o.param_groups[0].get(k) for k in ("lr", "momentum", "weight_decay")} for o in (sgd, adamw)]
    assert found == [
        {"lr": 0.02, "momentum": 0.8, "weight_decay": 3e-4},
        {"lr": 1e-3, "momentum": None, "weight_decay": 0.05},
    ]


def test_step_seeds_differ_by_seed_epoch_batch_and_process(monkeypatch):
    student = DetectorConfig(backbone="mobilenet_v2", num_classes=4, options=BACKBONE)
    module = DetectionTraining(student)
    place = {"current_epoch": 0, "global_rank": 0}
    for name in place:
        monkeypatch.setattr(DetectionTraining, name, property(lambda _, name=name: place[name]))
    seeds = set()
    for module.seed in (0, 1):
        for place["current_epoch"] in (0, 1):
            for place["global_rank"] in (0, 1):
                seeds |= {module._step_seed(batch) for batch in (0, 1)}
    assert len(seeds) == 16 and all(0 <= seed < 2**63 for seed in seeds)
