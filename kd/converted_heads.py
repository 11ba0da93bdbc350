"""Heads of mmdetection and detectron2 checkpoints, as torchvision's modules name and order them.

Those libraries compute three things differently, and the converted detector computes them their way: anchors are not
rounded and lie on the level's nominal stride, and RoIAlign is shifted by half a pixel and samples adaptively.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

from kd.checks import probe_features
from kd.weights import load_strictly

COCO_CATEGORY_IDS = [k for k in range(1, 91) if k not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
_ASPECT_RATIOS = (0.5, 1.0, 2.0)
_IMPOSSIBLE = -100.0
"""Logit of a label that the checkpoint has no class for: its probability is below 1e-43."""

Rename = tuple[str, str | Callable[[re.Match[str]], str]]


def _halved(prefix: str) -> Callable[[re.Match[str]], str]:
    # detectron2 counts convolutions and ReLUs, torchvision the convolutions
    return lambda m: f"{prefix}.conv.{int(m[1]) // 2}.0.{m[2]}" if int(m[1]) % 2 == 0 else m[0]


_CLASSIFICATION, _REGRESSION = "head.classification_head", "head.regression_head"
_RULES: dict[tuple[str, type[nn.Module]], tuple[Rename, ...]] = {
    ("mmdet", RetinaNet): (
        (r"bbox_head\.cls_convs\.(\d+)\.conv\.(\w+)", _CLASSIFICATION + r".conv.\1.0.\2"),
        (r"bbox_head\.reg_convs\.(\d+)\.conv\.(\w+)", _REGRESSION + r".conv.\1.0.\2"),
        (r"bbox_head\.retina_cls\.(\w+)", _CLASSIFICATION + r".cls_logits.\1"),
        (r"bbox_head\.retina_reg\.(\w+)", _REGRESSION + r".bbox_reg.\1"),
    ),
    ("detectron2", RetinaNet): (
        (r"head\.cls_subnet\.(\d+)\.(\w+)", _halved(_CLASSIFICATION)),
        (r"head\.bbox_subnet\.(\d+)\.(\w+)", _halved(_REGRESSION)),
        (r"head\.cls_score\.(\w+)", _CLASSIFICATION + r".cls_logits.\1"),
        (r"head\.bbox_pred\.(\w+)", _REGRESSION + r".bbox_reg.\1"),
    ),
    ("mmdet", FasterRCNN): (
        (r"rpn_head\.rpn_conv\.(\w+)", r"rpn.head.conv.0.0.\1"),
        (r"rpn_head\.rpn_cls\.(\w+)", r"rpn.head.cls_logits.\1"),
        (r"rpn_head\.rpn_reg\.(\w+)", r"rpn.head.bbox_pred.\1"),
        (r"roi_head\.bbox_head\.shared_fcs\.0\.(\w+)", r"roi_heads.box_head.fc6.\1"),
        (r"roi_head\.bbox_head\.shared_fcs\.1\.(\w+)", r"roi_heads.box_head.fc7.\1"),
        (r"roi_head\.bbox_head\.fc_cls\.(\w+)", r"roi_heads.box_predictor.cls_score.\1"),
        (r"roi_head\.bbox_head\.fc_reg\.(\w+)", r"roi_heads.box_predictor.bbox_pred.\1"),
    ),
    ("detectron2", FasterRCNN): (
        (r"proposal_generator\.rpn_head\.conv\.(\w+)", r"rpn.head.conv.0.0.\1"),
        (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", r"rpn.head.cls_logits.\1"),
        (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", r"rpn.head.bbox_pred.\1"),
        (r"roi_heads\.box_head\.fc1\.(\w+)", r"roi_heads.box_head.fc6.\1"),
        (r"roi_heads\.box_head\.fc2\.(\w+)", r"roi_heads.box_head.fc7.\1"),
        (r"roi_heads\.box_predictor\.(cls_score|bbox_pred)\.(\w+)", r"roi_heads.box_predictor.\1.\2"),
    ),
}
# The entry that tells a file with this detector's heads from one with other heads (Cascade R-CNN) or none.
_MARK = {
    ("mmdet", RetinaNet): "bbox_head.retina_cls.weight",
    ("detectron2", RetinaNet): "head.cls_score.weight",
    ("mmdet", FasterRCNN): "roi_head.bbox_head.fc_cls.weight",
    ("detectron2", FasterRCNN): "roi_heads.box_predictor.cls_score.weight",
}
# Not of the box heads, or no weights: mask heads, and the constants that detectron2 stores.
_IGNORED = re.compile(r"roi_heads?\.mask_.*|pixel_(mean|std)|(.*\.)?anchor_generator\..*|data_preprocessor\..*")


def load_heads(model: nn.Module, state: Mapping[str, Tensor], library: str, source: str = "file") -> bool:
    """Load the heads of ``state`` into a RetinaNet or Faster R-CNN, in place; False if the file has no such heads.

    Anchors and RoI pooling are replaced by the library's, with its default sizes and aspect ratios. The classes become
    labels 1..K of a model with K + 1 classes, or COCO's category ids if K is 80 and the model has 91.

    Args:
        model: detector of :func:`kd.models.retinanet` or ``faster_rcnn``.
        state: the checkpoint's state dict with the library's own names.
        library: "mmdet" or "detectron2".
        source: how messages call the checkpoint.

    Raises:
        ValueError: unknown, missing or unexpected entries, or a number of classes that does not fit the model's.
    """
    kind = next((k for k in _MARK if k[0] == library and isinstance(model, k[1])), None)
    if kind is None or _MARK[kind] not in state:
        return False
    heads = {k: v for k, v in state.items() if not k.startswith(("backbone.", "neck.")) and not _IGNORED.fullmatch(k)}
    converted = _renamed(heads, _RULES[kind], source)
    strides = _strides(model)
    if isinstance(model, RetinaNet):
        _spread_retinanet_classes(model, converted)
        sizes = [tuple(4 * s * 2 ** (k / 3) for k in range(3)) for s in strides]
        model.anchor_generator = UnroundedAnchors(sizes, strides, by_size=library == "detectron2")
        modules: dict[str, nn.Module] = {"head": model.head}
    else:
        _spread_box_classes(model, converted)
        model.rpn.anchor_generator = UnroundedAnchors([(8 * s,) for s in strides], strides)
        model.roi_heads.box_roi_pool = AlignedRoIAlign(model.roi_heads.box_roi_pool.featmap_names, strides)
        modules = {"rpn": model.rpn, "roi_heads": model.roi_heads}
    load_strictly(nn.ModuleDict(modules), converted, source)
    return True


class UnroundedAnchors(AnchorGenerator):
    """Anchors as mmdetection and detectron2 place them: exact sizes, on the levels' nominal strides.

    Torchvision's are rounded to whole pixels, and its strides are image size // map size, 57 instead of 64 on a level
    of 14 rows for 800 pixels.

    Args:
        sizes: per level the square roots of the anchors' areas, in pixels.
        strides: per level its stride in pixels.
        by_size: the aspect ratios of the first size come first (detectron2), not the sizes of the first ratio.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], strides: Sequence[int], *, by_size: bool = False) -> None:
        super().__init__(tuple(tuple(s) for s in sizes), (_ASPECT_RATIOS,) * len(sizes))
        self.strides = tuple(strides)
        pairs = [
            [(s, r) for s in level for r in _ASPECT_RATIOS]
            if by_size
            else [(s, r) for r in _ASPECT_RATIOS for s in level]
            for level in self.sizes
        ]
        self.cell_anchors = [
            torch.tensor([(-s / math.sqrt(r), -s * math.sqrt(r), s / math.sqrt(r), s * math.sqrt(r)) for s, r in level])
            / 2
            for level in pairs
        ]

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        self.set_cell_anchors(feature_maps[0].dtype, feature_maps[0].device)
        strides = [[torch.tensor(s, device=feature_maps[0].device)] * 2 for s in self.strides]
        anchors = torch.cat(self.grid_anchors([list(m.shape[-2:]) for m in feature_maps], strides))
        return [anchors for _ in image_list.image_sizes]


class AlignedRoIAlign(MultiScaleRoIAlign):
    """7x7 RoIAlign with half-pixel alignment and adaptive sampling, which torchvision's own pooler does not offer.

    Args:
        levels: names of the FPN levels to pool from.
        strides: strides of the pyramid in pixels, at least one per name in ``levels``.
    """

    def __init__(self, levels: Sequence[str], strides: Sequence[int]) -> None:
        super().__init__(list(levels), output_size=7, sampling_ratio=0)
        self.strides = tuple(strides[: len(self.featmap_names)])
        first = round(math.log2(self.strides[0]))
        self.levels = LevelMapper(first, first + len(self.strides) - 1)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        level = self.levels(boxes)
        rois = torch.cat([torch.cat([b.new_full((len(b), 1), i), b], dim=1) for i, b in enumerate(boxes)])
        first = x[self.featmap_names[0]]
        pooled = first.new_zeros(len(rois), first.shape[1], *self.output_size)
        for k, (name, stride) in enumerate(zip(self.featmap_names, self.strides, strict=True)):
            chosen = torch.where(level == k)[0]
            part = roi_align(x[name], rois[chosen].to(first.dtype), self.output_size, 1 / stride, 0, aligned=True)
            pooled = pooled.index_put((chosen,), part)
        return pooled


def _strides(model: nn.Module) -> list[int]:
    (height, _), features = probe_features(model)
    return [height // feature.shape[-2] for feature in features.values()]


def _renamed(heads: Mapping[str, Tensor], rules: Sequence[Rename], source: str) -> dict[str, Tensor]:
    converted = {}
    for name, value in heads.items():
        for pattern, new in rules:
            if match := re.fullmatch(pattern, name):
                converted[new(match) if callable(new) else match.expand(new)] = value
                break
        else:
            raise ValueError(
                f"weights: entry {name!r} of {source} is not known in this detector's heads; with convert_heads=False "
                "backbone and FPN alone are taken"
            )
    return converted


def _labels(classes: int, num_classes: int) -> list[int]:
    if num_classes == classes + 1:
        return list(range(1, classes + 1))
    if (classes, num_classes) == (80, 91):
        return COCO_CATEGORY_IDS
    raise ValueError(
        f"num_classes: got {num_classes}, but the file's heads have {classes} classes; use {classes + 1}"
        + (" or 91 (COCO's category ids)" if classes == 80 else "")
        + ", or convert_heads=False to take backbone and FPN alone"
    )


def _spread_retinanet_classes(model: RetinaNet, converted: dict[str, Tensor]) -> None:
    head = model.head.classification_head
    for leaf, fill in (("weight", 0.0), ("bias", _IMPOSSIBLE)):
        name = f"{_CLASSIFICATION}.cls_logits.{leaf}"
        if name in converted:
            # [A * K, ...] -> [A, K, ...]: classes change fastest in all three libraries
            rows = converted[name].unflatten(0, (head.num_anchors, -1))
            spread = rows.new_full((head.num_anchors, head.num_classes, *rows.shape[2:]), fill)
            spread[:, _labels(rows.shape[1], head.num_classes)] = rows
            converted[name] = spread.flatten(0, 1)


def _spread_box_classes(model: FasterRCNN, converted: dict[str, Tensor]) -> None:
    num_classes = model.roi_heads.box_predictor.cls_score.out_features
    for leaf, fill in (("weight", 0.0), ("bias", _IMPOSSIBLE)):
        name = f"roi_heads.box_predictor.cls_score.{leaf}"
        if name in converted:
            rows = converted[name]
            spread = rows.new_full((num_classes, *rows.shape[1:]), fill)
            spread[_labels(len(rows) - 1, num_classes)] = rows[:-1]
            spread[0] = rows[-1]  # the background is last there and first here
            converted[name] = spread
        name = f"roi_heads.box_predictor.bbox_pred.{leaf}"
        if name in converted:
            rows = converted[name].unflatten(0, (-1, 4))
            spread = rows.new_zeros(num_classes, *rows.shape[1:])
            spread[_labels(len(rows), num_classes)] = rows
            converted[name] = spread.flatten(0, 1)
