"""The bootstrap: its AP is COCO's, and its draws behave."""

import contextlib
import io

import numpy as np
import pytest
import torch
from torchmetrics.detection import MeanAveragePrecision

from kd.compare.noise import average_precision, draws, match


def scene(images=14, classes=4, seed=0):
    """Ground truth with crowds, and detections: shifted truths, duplicates, wrong labels, and boxes on nothing."""
    generator = torch.Generator().manual_seed(seed)
    rand = lambda *size: torch.rand(*size, generator=generator)  # noqa: E731
    detections, targets = [], []
    for _ in range(images):
        count = int(torch.randint(0, 6, (), generator=generator))
        low = 60 * rand(count, 2)
        boxes = torch.cat([low, low + 10 + 30 * rand(count, 2)], 1)
        labels = torch.randint(1, classes + 1, (count,), generator=generator)
        targets.append({"boxes": boxes, "labels": labels, "iscrowd": (rand(count) < 0.2).long()})
        noise = torch.cat([boxes + 4 * rand(count, 4) - 2, boxes + 12 * rand(count, 4) - 6, 40 + 30 * rand(2, 4)])
        noise[:, 2:] = torch.maximum(noise[:, 2:], noise[:, :2] + 2)
        found = torch.cat([labels, labels, torch.ones(2, dtype=torch.long)])
        wrong = rand(len(found)) < 0.2
        found[wrong] = torch.randint(1, classes + 1, (int(wrong.sum()),), generator=generator)
        detections.append({"boxes": noise, "labels": found, "scores": rand(len(found))})
    return detections, targets


def library_ap(detections, targets):
    metric = MeanAveragePrecision(backend="faster_coco_eval")
    metric.update(detections, targets)
    with contextlib.redirect_stdout(io.StringIO()):
        return 100 * float(metric.compute()["map"])


@pytest.mark.parametrize("seed", range(5))
def test_ap_of_all_images_once_is_the_librarys(seed):
    detections, targets = scene(seed=seed)
    ours = average_precision(match(detections, targets), np.ones((1, len(targets))))
    assert ours[0] == pytest.approx(library_ap(detections, targets), abs=1e-4)


def test_detections_in_bfloat16():
    """As trainer.precision bf16-true has them, where torchvision's kernels take it."""
    detections, targets = scene()
    half = [{k: v.bfloat16() if v.is_floating_point() else v for k, v in found.items()} for found in detections]
    ours = average_precision(match(half, targets), np.ones((1, len(targets))))
    assert ours[0] == pytest.approx(library_ap(half, targets), abs=1e-4)


def test_leaving_images_out_by_weight_is_leaving_them_out():
    detections, targets = scene()
    keep = [0, 2, 3, 7, 8, 11]
    weights = np.zeros((1, len(targets)))
    weights[0, keep] = 1
    ours = average_precision(match(detections, targets), weights)
    assert ours[0] == pytest.approx(library_ap([detections[k] for k in keep], [targets[k] for k in keep]), abs=1e-4)


def test_perfect_detections_score_100_in_every_draw():
    _, targets = scene()
    for target in targets:
        target["iscrowd"] = torch.zeros_like(target["iscrowd"])
    perfect = [{**t, "scores": torch.linspace(0.5, 1, len(t["labels"]))} for t in targets]
    assert average_precision(match(perfect, targets), draws(len(targets), 50)) == pytest.approx(100)


def test_nothing_found_scores_0():
    _, targets = scene()
    nothing = [{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}] * len(targets)
    assert average_precision(match(nothing, targets), draws(len(targets), 5)).tolist() == [0.0] * 5


def test_draws_have_the_sets_size_and_are_repeatable():
    first = draws(20, 100)
    assert (first.sum(1) == 20).all() and (first == draws(20, 100)).all()
    assert (first != draws(20, 100, seed=1)).any()
    assert first.std(0).min() > 0.5  # Poisson-like counts: a standard deviation near 1.
