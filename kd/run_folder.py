"""The folder that a training leaves behind, read back: configuration, figures, curves, and the models themselves."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from kd.coco import CocoDetection
from kd.distiller import Distiller, distill
from kd.models import build

#: Logged quantity -> (steps, values).
Curves = dict[str, tuple[list[int], list[float]]]


class RunFolderError(ValueError):
    """A folder is not what a training leaves behind; the message names it and what is missing."""


class RunFolder:
    """A run of ``kd fit``, ``kd compare`` or the demo, or one that is still going on.

    Args:
        path: the run's folder, which holds ``config.yaml`` once training has begun.

    Raises:
        RunFolderError: there is no configuration in it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        if not self.config_file.is_file():
            raise RunFolderError(f"{self.path}: no config.yaml in it, so it is no folder of a run")
        self.config: dict[str, Any] = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))

    @property
    def model(self) -> dict[str, Any]:
        """The ``model`` section of the configuration."""
        return self.config["model"]

    def curves(self) -> Curves:
        """What the run logged, its resumed parts put together; a later part wins."""
        return learning_curves(self.path)

    def distiller(self, teacher: Mapping[str, Any] | None = None) -> Distiller:
        """Student, teacher and adapters as the run left them, in evaluation mode, on the CPU.

        Args:
            teacher: fields of :class:`kd.models.DetectorConfig` of another teacher than the run's, or of one for a run
                without; it must fit without adapters other than the run's. None takes the run's own, if it has one.

        Raises:
            RunFolderError: there is no checkpoint, or the teacher needs adapters that the run has not trained.
            FileNotFoundError: the teacher's weights are not where the configuration says.
        """
        model = self.model
        loss = model["loss"]
        if teacher is None and loss != "none":
            teacher = model["teacher"]
        if teacher is not None and loss == "none":
            loss = "ssim"  # the run's own says nothing about how to compare features
        made = distill(
            build(_without_initial_weights(model["student"], "weights")),
            build(_without_initial_weights(teacher)) if teacher is not None else None,
            loss,
            adapters=model["adapters"],
            level_map=model["level_map"],
            mask_padding=model.get("mask_padding", False),  # older runs do not know it
            **((model["loss_options"] or {}) if loss == model["loss"] else {}),
        )
        prefix = "distiller."
        state = torch.load(self.checkpoint(), map_location="cpu", weights_only=True)["state_dict"]
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        untrained = [name for name in made.adapters if f"adapters.{name}.weight" not in state]
        if untrained:
            raise RunFolderError(
                f"{self.path}: to compare its features with this teacher's takes adapters on the levels "
                f"{', '.join(untrained)}, which this run has not trained"
            )
        made.load_state_dict({k: v for k, v in state.items() if made.adapters or not k.startswith("adapters.")})
        return made.eval()

    def checkpoint(self) -> Path:
        """The newest checkpoint that training can go on from.

        Raises:
            RunFolderError: there is none.
        """
        found = [*self.path.glob("checkpoints/last*.ckpt"), *self.path.glob("last.ckpt")]
        if not found:
            raise RunFolderError(f"{self.path}: no checkpoint in it (checkpoints/last*.ckpt)")
        return max(found, key=lambda file: file.stat().st_mtime_ns)

    def validation_images(self) -> CocoDetection:
        """The validation images that the run was evaluated on."""
        from kd.data import CocoDataModule

        data = CocoDataModule(**self.config["data"])
        data.setup("validate")
        assert data.val is not None
        return data.val


def learning_curves(folder: str | Path) -> Curves:
    """Logged quantity -> (steps, values) of the run in ``folder``. A part of it that began later, resumed or afresh,
    takes the place of all that was logged before from its first step on."""
    values: dict[str, dict[int, float]] = {}
    files = [*Path(folder).glob("csv/*/metrics.csv"), *Path(folder).glob("curve/*/metrics.csv")]
    for part in sorted(files, key=lambda p: int(re.sub(r"\D", "", p.parent.name) or 0)):
        with part.open(newline="") as file:
            rows = list(csv.DictReader(file))
        first = min((int(row["step"]) for row in rows), default=math.inf)
        values = {name: {s: v for s, v in points.items() if s < first} for name, points in values.items()}
        for row in rows:
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    values.setdefault(name, {})[int(row["step"])] = float(value)
    return {name: (sorted(points), [points[s] for s in sorted(points)]) for name, points in values.items() if points}


def run_folders(path: str | Path) -> list[RunFolder]:
    """The runs at or below ``path``, in the order of their names.

    Raises:
        RunFolderError: there are none.
    """
    path = Path(path)
    files = [path / "config.yaml"] if (path / "config.yaml").is_file() else sorted(path.glob("**/config.yaml"))
    if not files:
        raise RunFolderError(f"{path}: no run in it or below it (a run's folder holds config.yaml)")
    return [RunFolder(file.parent) for file in files]


def _without_initial_weights(detector: Mapping[str, Any], *fields: str) -> dict[str, Any]:
    """The detector without the files its training started from (``fields``), which may be gone by now and would be
    overwritten. Its kind of normalisation layer depends on whether there were any, so that choice is kept."""
    made = {**detector, "options": dict(detector.get("options") or {})}
    if made["name"] not in ("retinanet", "faster_rcnn") or made.get("weights_format", "torchvision") != "torchvision":
        return made
    given = [made["options"].pop("weights_backbone", None)]
    given += [made.pop(name, None) for name in fields]
    if any(given):
        made["options"].setdefault("norm", "frozen_bn")
    return made


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by their dotted names, as the command line writes them."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {k: v for key, value in tree.items() for k, v in flat(value, f"{prefix}.{key}" if prefix else key).items()}
