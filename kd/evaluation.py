"""COCO average precision of a detector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision

# COCO's names of the figures that torchmetrics calls map, map_50, ...
_FIGURES = {
    "AP": "map",
    "AP50": "map_50",
    "AP75": "map_75",
    "APS": "map_small",
    "APM": "map_medium",
    "APL": "map_large",
}


class CocoEvaluator:
    """Collects detections and ground truth, and computes COCO's average precision from them.

    Every image counts once, however often it was given: distributed samplers repeat images to give every process as
    many. Ground truth keeps the annotation file's ``iscrowd`` and ``area``, as COCO's evaluation does.
    """

    def __init__(self) -> None:
        self._images: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}

    def reset(self) -> None:
        """Forget all images."""
        self._images = {}

    @property
    def images(self) -> dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Image id -> (detections, ground truth) as given to this process, on the CPU."""
        return self._images

    def process(self, detections: list[dict[str, Tensor]], targets: list[Mapping[str, Tensor]]) -> None:
        """Add images: a detector's output (boxes [n, 4], scores [n], labels [n]) and :class:`kd.coco.CocoDetection`
        targets, in pixels of the same image."""
        for found, target in zip(detections, targets, strict=True):
            truth = {key: target[key].cpu() for key in ("boxes", "labels", "area", "iscrowd")}
            found = {key: found[key].detach().cpu() for key in ("boxes", "scores", "labels")}
            self._images[int(target["image_id"])] = (found, truth)

    def evaluate(self, class_names: Mapping[int, str] | None = None) -> dict[str, float]:
        """AP, AP50, AP75, APS, APM, APL in percent over the images of all processes (every process must call this).

        With ``class_names`` (label -> name) also "AP/<name>" of every class that occurs. A figure without
        any ground truth is -1, as in pycocotools.

        Raises:
            RuntimeError: no image was processed.
        """
        images = self.gathered_images()
        if not images:
            raise RuntimeError("evaluation: no image was processed")
        # Not gathered once more by the metric, whose tensors on the CPU NCCL would refuse.
        metric = MeanAveragePrecision(
            backend="faster_coco_eval", class_metrics=class_names is not None, sync_on_compute=False
        )
        # By image id, so that equal scores are broken the same way however the images were distributed.
        for image_id in sorted(images):
            found, truth = images[image_id]
            metric.update([found], [truth])
        result = metric.compute()
        figures = {name: _percent(result[key]) for name, key in _FIGURES.items()}
        if class_names is not None:
            labels, values = torch.atleast_1d(result["classes"]), torch.atleast_1d(result["map_per_class"])
            for label, value in zip(labels.tolist(), values, strict=True):
                figures[f"AP/{class_names.get(label, str(label))}"] = _percent(value)
        return figures

    def gathered_images(self) -> dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """As :attr:`images`, but of all processes; every process must call this."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self._images
        parts: list[dict] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, self._images)
        return {image_id: pair for part in parts for image_id, pair in part.items()}


@torch.no_grad()
def evaluate_detector(
    model: nn.Module,
    batches: Iterable[tuple[list[Tensor], list[dict[str, Tensor]]]],
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """The COCO figures of ``model`` on ``batches`` as :func:`kd.coco.collate` makes them; the mode is restored."""
    training = model.training
    model.eval()
    evaluator = CocoEvaluator()
    try:
        for images, targets in batches:
            evaluator.process(model([image.to(device) for image in images]), targets)
    finally:
        model.train(training)
    return evaluator.evaluate()


def _percent(value: Tensor) -> float:
    return -1.0 if value < 0 else 100 * float(value)
