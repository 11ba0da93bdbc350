"""Backbone and FPN of mmdetection and detectron2 checkpoints as torchvision's modules name and compute them.

This is all that distillation needs of a teacher; :mod:`kd.converted_heads` converts the heads, to measure its AP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from kd.backbones import LastLevelP6P7NoReLU
from kd.weights import load_strictly

_TORCHVISION_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class WeightsFormat:
    """What sets a library's checkpoints apart from torchvision's."""

    library: str
    bgr: bool = False
    """The first convolution expects blue, green, red."""
    pixel_std: tuple[float, float, float] | None = None
    """What pixels in [0, 255] are divided by, in the order of the channels; None for torchvision's normalisation."""
    stride_in_1x1: bool = False
    """A bottleneck strides in its first 1x1 convolution instead of the 3x3 one."""
    relu_before_p7: bool = True


FORMATS = {
    # style="pytorch" backbones
    "mmdet": WeightsFormat(library="mmdet", relu_before_p7=False),
    # style="caffe" backbones
    "mmdet_caffe": WeightsFormat(
        library="mmdet", bgr=True, pixel_std=(1.0, 1.0, 1.0), stride_in_1x1=True, relu_before_p7=False
    ),
    # of the model zoo (MSRA backbones)
    "detectron2": WeightsFormat(library="detectron2", bgr=True, pixel_std=(1.0, 1.0, 1.0), stride_in_1x1=True),
    # X-101-32x8d of the model zoo
    "detectron2_x101": WeightsFormat(library="detectron2", bgr=True, pixel_std=(57.375, 57.120, 58.395)),
}
_HEADS = {
    "mmdet": ("bbox_head.", "rpn_head.", "roi_head.", "mask_head.", "data_preprocessor."),
    "detectron2": ("head.", "proposal_generator.", "roi_heads.", "pixel_mean", "pixel_std", "anchor_generator."),
}


def load_features(model: nn.Module, state: Mapping[str, Tensor], format_name: str, source: str = "file") -> None:
    """Load backbone and FPN of ``state`` into a detector of :func:`kd.models.retinanet` or ``faster_rcnn``, in place.

    The detector then computes the features of the original on torchvision's normalised RGB input. Its heads stay as
    they are.

    Args:
        model: detector with a ResNet or ResNeXt backbone.
        state: the checkpoint's state dict with the library's own names.
        format_name: one of ``FORMATS``.
        source: how messages call the checkpoint.

    Raises:
        ValueError: an unknown format, a P7 computed differently, or keys or shapes that do not fit.
    """
    if format_name not in FORMATS:
        raise ValueError(f"weights_format: got {format_name!r}, expected 'torchvision' or one of {', '.join(FORMATS)}")
    kind = FORMATS[format_name]
    extra = model.backbone.fpn.extra_blocks
    if hasattr(extra, "p7") and isinstance(extra, LastLevelP6P7NoReLU) == kind.relu_before_p7:
        raise ValueError(
            f"weights_format: {format_name} computes P7 {'with' if kind.relu_before_p7 else 'without'} a ReLU; "
            f"build the detector with relu_before_p7={kind.relu_before_p7}"
        )
    converted = convert_names(state, kind.library)
    first = "body.conv1.weight"
    if first in converted:
        converted[first] = _fold_normalisation(converted[first], kind)
    load_strictly(model.backbone, converted, source)
    if kind.stride_in_1x1:
        for block in model.backbone.body.modules():
            if isinstance(block, Bottleneck) and block.conv2.stride == (2, 2):
                block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)


def convert_names(state: Mapping[str, Tensor], library: str) -> dict[str, Tensor]:
    """Backbone and FPN entries under torchvision's names ("body...", "fpn..."); heads are dropped.

    Raises:
        ValueError: an entry is neither a head's nor known.
    """
    kept = {k: v for k, v in state.items() if not k.startswith(_HEADS[library])}
    laterals = sorted(
        {m.group(1) for k in kept if (m := re.search(r"(?:lateral_convs\.|fpn_lateral)(\d+)", k))}, key=int
    )
    rename = _mmdet_name if library == "mmdet" else _detectron2_name
    converted: dict[str, Tensor] = {}
    for name, value in kept.items():
        new = rename(name, laterals)
        if new is None:
            raise ValueError(f"weights: entry {name!r} is not known in a {library} checkpoint with a ResNet and an FPN")
        converted[new] = value
    return converted


def _mmdet_name(name: str, laterals: list[str]) -> str | None:
    if name.startswith("backbone."):
        return "body." + name.removeprefix("backbone.")
    if match := re.fullmatch(r"neck\.(lateral|fpn)_convs\.(\d+)\.conv\.(weight|bias)", name):
        kind, level, leaf = match.group(1), int(match.group(2)), match.group(3)
        if kind == "lateral":
            return f"fpn.inner_blocks.{level}.0.{leaf}"
        if level < len(laterals):
            return f"fpn.layer_blocks.{level}.0.{leaf}"
        return f"fpn.extra_blocks.p{level - len(laterals) + 6}.{leaf}"
    return None


def _detectron2_name(name: str, laterals: list[str]) -> str | None:
    if match := re.fullmatch(r"backbone\.fpn_(lateral|output)(\d+)\.(weight|bias)", name):
        blocks = "inner_blocks" if match.group(1) == "lateral" else "layer_blocks"
        return (
            f"fpn.{blocks}.{laterals.index(match.group(2))}.0.{match.group(3)}" if match.group(2) in laterals else None
        )
    if match := re.fullmatch(r"backbone\.top_block\.(p[67])\.(weight|bias)", name):
        return f"fpn.extra_blocks.{match.group(1)}.{match.group(2)}"
    if match := re.fullmatch(r"backbone\.bottom_up\.stem\.conv1\.(norm\.)?(\w+)", name):
        return f"body.{'bn1' if match.group(1) else 'conv1'}.{match.group(2)}"
    if match := re.fullmatch(r"backbone\.bottom_up\.res(\d)\.(\d+)\.(conv(\d)|shortcut)\.(norm\.)?(\w+)", name):
        stage, block, _, conv, norm, leaf = match.groups()
        part = f"{'bn' if norm else 'conv'}{conv}" if conv else f"downsample.{1 if norm else 0}"
        return f"body.layer{int(stage) - 1}.{block}.{part}.{leaf}"
    return None


def _fold_normalisation(weight: Tensor, kind: WeightsFormat) -> Tensor:
    """The first convolution [O, 3, k, k] for pixels normalised as torchvision does; both libraries use its means."""
    std = torch.tensor(kind.pixel_std or [255 * s for s in _TORCHVISION_STD], dtype=weight.dtype)
    if kind.bgr:
        weight, std = weight.flip(1), (std.flip(0) if kind.pixel_std else std)
    return weight * (255 * torch.tensor(_TORCHVISION_STD, dtype=weight.dtype) / std)[None, :, None, None]
