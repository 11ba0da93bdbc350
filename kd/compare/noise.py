"""How far AP moves by chance: a paired bootstrap over validation images.

The images are drawn again with replacement, many times, and AP is computed on every draw; all models see the same
draws, so the difference of two models is compared image by image. This measures the noise of a finite validation set;
the noise of training (initial weights, data order) shows only in several seeds.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

# torchmetrics' thresholds to the last bit: theirs are of single precision, so 0.1 is not quite 0.1.
IOU_THRESHOLDS = torch.linspace(0.5, 0.95, 10).double().numpy()
RECALLS = torch.linspace(0, 1, 101).double().numpy()
DETECTIONS_PER_IMAGE = 100


@dataclass(frozen=True)
class MatchedClass:
    """One category's detections, sorted by falling score, matched as COCO's evaluation does.

    Attributes:
        image: index of the image of each detection, (D,).
        hit: whether it is a true positive, per IoU threshold, (T, D).
        ignored: whether it counts neither way (it lies on a crowd region), (T, D).
        truths: ground-truth boxes of this category in each image, crowds left out, (I,).
    """

    image: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    truths: np.ndarray


def match(detections: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> list[MatchedClass]:
    """Matches detections to ground truth, per category that occurs in the ground truth.

    Args:
        detections: per image ``boxes`` (D, 4) as x1, y1, x2, y2, ``scores`` (D,), ``labels`` (D,).
        targets: per image ``boxes`` (G, 4), ``labels`` (G,) and, optionally, ``iscrowd`` (G,).
    """
    labels = sorted({int(label) for target in targets for label in target["labels"]})
    return [_match_class(detections, targets, label) for label in labels]


def average_precision(classes: list[MatchedClass], weights: np.ndarray) -> np.ndarray:
    """AP over IoU .50:.95 in percent, with every image counted ``weights`` times.

    Args:
        classes: what :func:`match` returned, for I images.
        weights: (B, I) how often each of B draws holds each image; ones give the plain AP.

    Returns:
        (B,) array. Categories without ground truth in a draw are left out of that draw's mean.
    """
    total, counted = np.zeros(len(weights)), np.zeros(len(weights))
    for matched in classes:
        truths = weights @ matched.truths
        ap = np.stack([_class_ap(matched, t, weights, truths) for t in range(len(IOU_THRESHOLDS))]).mean(0)
        present = truths > 0
        total += np.where(present, ap, 0)
        counted += present
    return 100 * total / np.maximum(counted, 1)


def draws(images: int, resamples: int, seed: int = 0) -> np.ndarray:
    """(resamples, images) counts of ``resamples`` bootstrap draws of ``images`` out of ``images``."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples).astype(float)


def _match_class(detections, targets, label: int) -> MatchedClass:
    scores, images, hits, ignored = [], [], [], []
    truths = np.zeros(len(targets))
    for index, (found, truth) in enumerate(zip(detections, targets, strict=True)):
        of_class = truth["labels"] == label
        crowd = truth["iscrowd"][of_class].bool().numpy() if "iscrowd" in truth else np.zeros(int(of_class.sum()), bool)
        truths[index] = (~crowd).sum()
        # COCO's limit counts the image's detections of one category.
        keep = found["labels"] == label
        order = found["scores"][keep].argsort(descending=True, stable=True)[:DETECTIONS_PER_IMAGE]
        boxes = found["boxes"][keep][order].float()
        iou = box_iou(boxes, truth["boxes"][of_class].float()).numpy()
        if crowd.any():
            iou[:, crowd] = _crowd_overlap(boxes, truth["boxes"][of_class][crowd])
        hit, ignore = _greedy(iou, crowd)
        scores.append(found["scores"][keep][order].double().numpy())  # NumPy has no bfloat16
        images.append(np.full(len(boxes), index))
        hits.append(hit)
        ignored.append(ignore)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return MatchedClass(
        np.concatenate(images)[order],
        np.concatenate(hits, axis=1)[:, order],
        np.concatenate(ignored, axis=1)[:, order],
        truths,
    )


def _greedy(iou: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best free truth first, by falling score; a crowd region may be matched by any number of detections."""
    hit = np.zeros((len(IOU_THRESHOLDS), len(iou)), bool)
    ignored = np.zeros_like(hit)
    for t, threshold in enumerate(IOU_THRESHOLDS):
        free = ~crowd
        for d, row in enumerate(iou):
            candidates = np.where(free, row, -1)
            if candidates.size and candidates.max() >= threshold:
                hit[t, d] = True
                # COCO keeps the last of equally good truths.
                free[len(row) - 1 - candidates[::-1].argmax()] = False
            elif crowd.any() and row[crowd].max() >= threshold:
                ignored[t, d] = True
    return hit, ignored


def _crowd_overlap(boxes: Tensor, crowds: Tensor) -> np.ndarray:
    """Share of each detection that a crowd region covers, (D, C)."""
    low = torch.maximum(boxes[:, None, :2], crowds[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], crowds[None, :, 2:])
    inside = (high - low).clamp(min=0).prod(2)
    return (inside / (boxes[:, 2:] - boxes[:, :2]).prod(1, keepdim=True)).numpy()


def _class_ap(matched: MatchedClass, t: int, weights: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """(B,) AP at one threshold: precision made monotone from the right, read at COCO's 101 recalls."""
    if not len(matched.image):
        return np.zeros(len(weights))
    weight = weights[:, matched.image] * ~matched.ignored[t]
    true = np.cumsum(weight * matched.hit[t], axis=1)
    positives = np.cumsum(weight, axis=1)
    precision = true / np.maximum(positives, 1e-9)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = true / np.maximum(truths, 1e-9)[:, None]
    ap = np.zeros(len(weights))
    for b in range(len(weights)):
        at = np.searchsorted(recall[b], RECALLS, side="left")
        reached = at < recall.shape[1]
        ap[b] = precision[b, at[reached]].sum() / len(RECALLS)
    return ap
