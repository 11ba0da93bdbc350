import contextlib
import io
from pathlib import Path

import pytest
import yaml

from kd.cli import main

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def parsed(path, *arguments):
    """The configuration as the command line understands it: types checked, defaults filled in, nothing built."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(path), *arguments, "--print_config"])
    assert stopped.value.code in (0, None), output.getvalue()
    return yaml.safe_load(output.getvalue())


@pytest.mark.parametrize("path", CONFIGS, ids=[p.stem for p in CONFIGS])
def test_configuration_is_the_papers(path):
    config = parsed(path)
    model, detector = config["model"], config["model"]["student"]["name"]
    assert path.stem.startswith(detector) and f"_{model['loss']}" in path.stem
    assert model["optimizer"] == {
        "name": "sgd", "lr": 0.01 if detector == "retinanet" else 0.02, "momentum": 0.9, "weight_decay": 1e-4
    }  # fmt: skip
    epochs = 24 if path.stem.endswith("_2x") else 12
    assert config["trainer"]["max_epochs"] == epochs
    assert model["schedule"]["milestones"] == ([16, 22] if epochs == 24 else [8, 11])
    assert (model["schedule"]["warmup_steps"], config["data"]["batch_size"], config["data"]["flip"]) == (500, 8, 0.5)
    assert (model["teacher"] is None) == (model["loss"] == "none")
    options = model["student"]["options"]
    assert (options["min_size"], options["max_size"], options["norm"]) == (800, 1333, "frozen_bn")
    assert "The paper's AP: " in path.read_text()


def test_every_option_can_be_overridden():
    config = parsed(CONFIGS[0], "--data.root", "elsewhere", "--model.weight", "2", "--model.optimizer.lr", "0.5")
    assert config["data"]["root"] == "elsewhere" and config["model"]["weight"] == 2.0
    assert config["model"]["optimizer"]["lr"] == 0.5
    assert len(CONFIGS) >= 12
