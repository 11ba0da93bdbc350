"""A tiny comparison, as ``kd compare`` makes it."""

from pathlib import Path

import torch
import yaml
from training_runs import write_config

from kd import cli
from kd.compare.command import main
from kd.models import build


def write_comparison(name, root, run, **changes):
    """A file for ``kd compare``: two epochs of three steps, with a teacher whose heads have been saved."""
    path = Path(write_config(name, root, run, trainer__log_every_n_steps=1, **changes))
    content = yaml.safe_load(path.read_text())
    torch.manual_seed(5)
    weights = run.with_name("teacher.pth")
    torch.save(build(content["model"]["teacher"]).state_dict(), weights)
    content["model"]["teacher"]["weights"] = str(weights)
    path.write_text(yaml.safe_dump(content))
    return str(path)


def in_process(arguments):
    """``launch`` without the seconds that a new process takes."""
    cli.main(arguments)


def compare(config, out, *arguments, command="compare", launch=in_process):
    """The exit status of ``kd compare`` or ``kd ablate``."""
    return main(command, ["--config", str(config), "--out", str(out), *arguments], launch=launch)


def student_weights(out, name):
    return torch.load(out / "students" / name / "student_last.pth", weights_only=True)


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())
