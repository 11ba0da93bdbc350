"""Tiny runs of ``kd fit`` and what they logged."""

import csv

import yaml

BACKBONE = {"fpn_channels": 16, "width_mult": 0.25, "norm": "frozen_bn", "min_size": 64, "max_size": 64}


def write_config(name, root, run, **changes):
    """A file for ``kd fit`` of a tiny run; ``changes`` are ``section__key=value``."""
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
        "teacher_check": {"images": 0},  # it is untrained
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


def logged(run, column, folder="csv"):
    """All values of a column of the run's CSV log, of its training or ("validate", "test") of an evaluation."""
    rows = []
    for path in sorted(run.glob(f"{folder}/version_*/metrics.csv")):
        with path.open() as file:
            rows += [float(row[column]) for row in csv.DictReader(file) if row.get(column)]
    return rows
