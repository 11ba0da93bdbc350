"""RetinaNet and Faster R-CNN on any backbone with an FPN; the detectors themselves are torchvision's classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from kd.backbones import Norm, P6Source, backbone_with_fpn
from kd.weights import load_strictly, read_state_dict

AnchorSizes = Sequence[Sequence[float]]
BOX_LOSSES = ("l1", "smooth_l1", "giou", "diou", "ciou")


def retinanet(
    backbone: str = "resnet50",
    *,
    num_classes: int = 91,
    fpn_channels: int = 256,
    returned_stages: Sequence[int] = (3, 4, 5),
    tapped_blocks: Sequence[str] | None = None,
    p6_from: P6Source | None = "c5",
    relu_before_p7: bool = True,
    anchor_sizes: AnchorSizes | None = None,
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    head_norm: Literal["group_norm"] | None = None,
    head_convs: int = 4,
    box_loss: str = "l1",
    weights: str | Path | None = None,
    weights_backbone: str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    norm: Norm | None = None,
    width_mult: float = 1.0,
    **torchvision_kwargs: Any,
) -> RetinaNet:
    """RetinaNet (Lin et al., ICCV 2017) on ``backbone`` with an FPN.

    ``retinanet("resnet50", p6_from="p5")`` is torchvision's ``retinanet_resnet50_fpn``, key for key;
    ``p6_from="c5", head_norm="group_norm", box_loss="giou"`` are what its ``_v2`` builder changes.

    Args:
        num_classes: classes including the background class 0, so the largest label plus one.
        p6_from: source of the extra levels "p6" and "p7": "c5" (paper, mmdetection, detectron2) or "p5" (torchvision).
        anchor_sizes: per FPN level the anchor sizes in pixels of the network's input. None: torchvision's 32..512 times
            three octave scales; those are halved per missing level where the pyramid starts at another stride than 8.
        aspect_ratios: height / width of the anchors, on every level.
        head_norm: "group_norm" puts GroupNorm into the head as torchvision's v2 builder does.
        head_convs: 3x3 convolutions before the output in each of the head's two branches, 1 to 4.
        box_loss: one of "l1", "smooth_l1", "giou", "diou", "ciou".
        weights: a file with the whole detector's state dict; names and shapes have to fit exactly.
        torchvision_kwargs: ``min_size``, ``max_size``, ``score_thresh``, ... of
            ``torchvision.models.detection.RetinaNet``.
        fpn_channels, returned_stages, tapped_blocks, relu_before_p7, weights_backbone, trainable_backbone_layers, norm,
            width_mult: see :func:`kd.backbones.backbone_with_fpn`.

    Raises:
        ValueError: an argument outside of its range, or weights that do not fit.
    """
    if box_loss not in BOX_LOSSES:
        raise ValueError(f"box_loss: got {box_loss!r}, expected one of {', '.join(BOX_LOSSES)}")
    if not 1 <= head_convs <= 4:
        raise ValueError(f"head_convs: got {head_convs}, expected 1 to 4 (torchvision's head has 4)")
    _check_num_classes(num_classes)
    features = backbone_with_fpn(
        backbone,
        fpn_channels=fpn_channels,
        returned_stages=returned_stages,
        tapped_blocks=tapped_blocks,
        p6_from=p6_from,
        relu_before_p7=relu_before_p7,
        weights_backbone=weights_backbone,
        trainable_backbone_layers=trainable_backbone_layers,
        norm=norm if norm or not weights else "frozen_bn",
        width_mult=width_mult,
    )
    levels = _number_of_levels(features, p6_from)
    if anchor_sizes is None:
        first = 4 * 2 ** (returned_stages[0] if tapped_blocks is None else 3)
        anchor_sizes = [
            (size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))) for size in (first * 2**k for k in range(levels))
        ]
    anchors = _anchor_generator(anchor_sizes, aspect_ratios, levels)
    head = RetinaNetHead(
        fpn_channels,
        anchors.num_anchors_per_location()[0],
        num_classes,
        norm_layer=_head_norm(head_norm, fpn_channels),
    )
    for branch in (head.classification_head, head.regression_head):
        branch.conv = branch.conv[:head_convs]
    head.regression_head._loss_type = box_loss
    model = RetinaNet(features, num_classes, anchor_generator=anchors, head=head, **torchvision_kwargs)
    return _with_weights(model, weights)


def faster_rcnn(
    backbone: str = "resnet50",
    *,
    num_classes: int = 91,
    fpn_channels: int = 256,
    returned_stages: Sequence[int] = (2, 3, 4, 5),
    tapped_blocks: Sequence[str] | None = None,
    p6_from: P6Source | None = "pool",
    anchor_sizes: AnchorSizes | None = None,
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    proposals: int | None = None,
    rpn_conv_depth: int = 1,
    box_head_width: int = 1024,
    box_head_convs: int = 0,
    head_norm: Literal["group_norm", "bn"] | None = None,
    weights: str | Path | None = None,
    weights_backbone: str | Path | None = None,
    trainable_backbone_layers: int | None = None,
    norm: Norm | None = None,
    width_mult: float = 1.0,
    **torchvision_kwargs: Any,
) -> FasterRCNN:
    """Faster R-CNN (Ren et al., NeurIPS 2015) with an FPN (Lin et al., CVPR 2017) on ``backbone``.

    ``faster_rcnn("resnet50")`` is torchvision's ``fasterrcnn_resnet50_fpn``, key for key.

    Args:
        num_classes: classes including the background class 0, so the largest label plus one.
        anchor_sizes: per FPN level (the pooled one included) the anchor sizes in pixels of the network's input.
            None: one size per level, 8 times its stride (32..512).
        proposals: how many proposals the RPN keeps per image, before and after NMS, in training and in testing.
            None: torchvision's 2000 and 1000.
        rpn_conv_depth: 3x3 convolutions in the RPN's head (2 in torchvision's v2 builder).
        box_head_width: width of the box head's fully connected layers.
        box_head_convs: 0 gives the head with two fully connected layers; n > 0 gives n 3x3 convolutions and one fully
            connected layer (4 in torchvision's v2 builder).
        head_norm: normalisation between the box head's convolutions.
        weights: a file with the whole detector's state dict; names and shapes have to fit exactly.
        torchvision_kwargs: ``min_size``, ``box_score_thresh``, ... of ``torchvision.models.detection.FasterRCNN``.
        fpn_channels, returned_stages, tapped_blocks, p6_from, weights_backbone, trainable_backbone_layers, norm,
            width_mult: see :func:`kd.backbones.backbone_with_fpn`.

    Raises:
        ValueError: an argument outside of its range, or weights that do not fit.
    """
    _check_num_classes(num_classes)
    features = backbone_with_fpn(
        backbone,
        fpn_channels=fpn_channels,
        returned_stages=returned_stages,
        tapped_blocks=tapped_blocks,
        p6_from=p6_from,
        weights_backbone=weights_backbone,
        trainable_backbone_layers=trainable_backbone_layers,
        norm=norm if norm or not weights else "frozen_bn",
        width_mult=width_mult,
    )
    levels = _number_of_levels(features, p6_from)
    if anchor_sizes is None:
        first = 8 * 2 ** (returned_stages[0] if tapped_blocks is None else 2)
        anchor_sizes = [(first * 2**k,) for k in range(levels)]
    anchors = _anchor_generator(anchor_sizes, aspect_ratios, levels)
    if proposals is not None:
        if proposals < 1:
            raise ValueError(f"proposals: got {proposals}, expected a positive number")
        for name in ("pre_nms_top_n_train", "pre_nms_top_n_test", "post_nms_top_n_train", "post_nms_top_n_test"):
            torchvision_kwargs.setdefault(f"rpn_{name}", proposals)
    pooled_levels = [str(level) for level in range(len(features.fpn.inner_blocks))]
    if box_head_convs:
        box_head: nn.Module = FastRCNNConvFCHead(
            (fpn_channels, 7, 7),
            [fpn_channels] * box_head_convs,
            [box_head_width],
            norm_layer=_head_norm(head_norm, fpn_channels),
        )
    elif head_norm is not None:
        raise ValueError(f"head_norm: got {head_norm!r}, but without box_head_convs there is nothing to normalise")
    else:
        box_head = TwoMLPHead(fpn_channels * 7 * 7, box_head_width)
    model = FasterRCNN(
        features,
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(fpn_channels, anchors.num_anchors_per_location()[0], conv_depth=rpn_conv_depth),
        box_roi_pool=MultiScaleRoIAlign(pooled_levels, output_size=7, sampling_ratio=2),
        box_head=box_head,
        box_predictor=FastRCNNPredictor(box_head_width, num_classes),
        **torchvision_kwargs,
    )
    return _with_weights(model, weights)


def _with_weights(model: nn.Module, weights: str | Path | None) -> nn.Module:
    if weights is not None:
        load_strictly(model, read_state_dict(weights), repr(str(weights)))
    return model


def _number_of_levels(features: nn.Module, p6_from: str | None) -> int:
    return len(features.fpn.inner_blocks) + {"c5": 2, "p5": 2, "pool": 1, None: 0}[p6_from]


def _check_num_classes(num_classes: int) -> None:
    if num_classes < 2:
        raise ValueError(f"num_classes: got {num_classes}, expected at least 2 (background and one class)")


def _anchor_generator(sizes: AnchorSizes, aspect_ratios: Sequence[float], levels: int) -> AnchorGenerator:
    if any(isinstance(level, (int, float)) for level in sizes):
        raise ValueError(f"anchor_sizes: got {list(sizes)}, expected a list of sizes for every level")
    if len(sizes) != levels:
        raise ValueError(f"anchor_sizes: got sizes for {len(sizes)} levels, the pyramid has {levels}")
    if len({len(level) for level in sizes}) != 1:
        raise ValueError(f"anchor_sizes: got {list(sizes)}, expected equally many on every level (the head is shared)")
    return AnchorGenerator(tuple(tuple(level) for level in sizes), (tuple(aspect_ratios),) * levels)


def _head_norm(norm: str | None, channels: int) -> Callable[..., nn.Module] | None:
    if norm is None:
        return None
    if norm == "bn":
        return nn.BatchNorm2d
    if norm == "group_norm":
        # torchvision's 32 groups, but never single channels: those can not be normalised on a 1x1 level.
        return partial(nn.GroupNorm, math.gcd(32, max(channels // 2, 1)))
    raise ValueError(f"head_norm: got {norm!r}, expected None, 'group_norm' or 'bn'")
