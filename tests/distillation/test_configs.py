import contextlib
import io
from pathlib import Path

import pytest
import torch
import yaml

import kd
from kd.cli import main
from kd.models import build

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


@pytest.mark.parametrize(
    "stem", ["retinanet_r50_ssim", "retinanet_r18_ssim", "faster_rcnn_r50_ssim", "faster_rcnn_r50_l2"]
)
def test_the_papers_pairs_fit(stem):
    """Their detectors are built without weights or memory, and pass the start-up checks with the right adapters."""
    model = parsed(CONFIGS[0].with_name(f"{stem}.yaml"))["model"]
    detectors = []
    for role in ("student", "teacher"):
        config = model[role]
        options = {"relu_before_p7": config["weights_format"] != "mmdet"} if config["name"] == "retinanet" else {}
        options.update(config["options"], weights_backbone=None)
        with torch.device("meta"):
            detectors.append(build({**config, "weights": None, "weights_format": "torchvision", "options": options}))
    pair = kd.distill(*detectors, model["loss"], model["weight"], adapters=model["adapters"])
    assert len(pair.level_map) == 5 and all(ours == theirs for ours, theirs in pair.level_map.items())
    assert len(pair.adapters) == (0 if model["student"]["name"] == "retinanet" else 5)


def test_every_option_can_be_overridden():
    config = parsed(CONFIGS[0], "--data.root", "elsewhere", "--model.weight", "2", "--model.optimizer.lr", "0.5")
    assert config["data"]["root"] == "elsewhere" and config["model"]["weight"] == 2.0
    assert config["model"]["optimizer"]["lr"] == 0.5
    assert len(CONFIGS) >= 12
