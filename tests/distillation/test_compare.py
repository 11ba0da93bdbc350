"""``kd compare``: every student trained once and alike, resumed where it stopped, in one table."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from rich.console import Console
from training_runs import write_config

from kd import cli
from kd.compare.command import main
from kd.compare.methods import named_methods, swept_methods
from kd.compare.students import Student, Students, TrainingFailed, resolved
from kd.models import build
from kd.training import DetectionTraining


def in_process(arguments):
    """``launch`` without the seconds that a new process takes."""
    cli.main(arguments)


@pytest.fixture
def config(coco_root, tmp_path):
    """A configuration of two epochs (six steps), with a teacher whose heads have been saved."""
    path = write_config("retinanet", coco_root, tmp_path / "run", trainer__log_every_n_steps=2)
    content = yaml.safe_load(open(path).read())
    torch.manual_seed(5)
    weights = tmp_path / "teacher.pth"
    torch.save(build(content["model"]["teacher"]).state_dict(), weights)
    content["model"]["teacher"]["weights"] = str(weights)
    open(path, "w").write(yaml.safe_dump(content))
    return path


def compare(config, out, *arguments, command="compare", launch=in_process):
    return main(command, ["--config", config, "--out", str(out), *arguments], launch=launch)


def weights(out, name):
    return torch.load(out / "students" / name / "student_last.pth", weights_only=True)


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_one_command_makes_one_table(config, tmp_path, capsys):
    out = tmp_path / "out"
    assert compare(config, out, "--methods", "none,l2,ssim", "--seeds", "2") == 0
    content = json.loads((out / "results.json").read_text())
    assert [row["method"] for row in content["rows"]] == ["teacher", "none", "l2", "ssim"]
    for row in content["rows"][1:]:
        assert row["seeds"] == 2 and row["ap_std_seeds"] is not None
        assert row["step_ms"] > 0 and row["peak_memory_mb"] > 50
        assert (row["gain"] is None) == (row["method"] == "none")
        results = [json.loads((out / f"students/{row['method']}-seed{s}/result.json").read_text()) for s in (0, 1)]
        assert row["AP"] == pytest.approx(sum(r["AP"] for r in results) / 2)
        assert [r["steps"] for r in results] == [6, 6]
    assert not equal(weights(out, "none-seed0"), weights(out, "none-seed1"))
    assert not equal(weights(out, "none-seed0"), weights(out, "ssim-seed0"))
    assert (out / "results.md").read_text().count("\n|") == 5
    assert len((out / "results.csv").read_text().splitlines()) == 5
    assert "L2 4, SSIM 4" in capsys.readouterr().out
