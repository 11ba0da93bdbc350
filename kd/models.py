"""Detectors by name or from a configuration: the project's own builders and torchvision's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torchvision.models import detection, get_model_builder, get_model_weights
from torchvision.models.detection import FasterRCNN, RetinaNet

from kd.conversion import FORMATS, load_features
from kd.converted_heads import load_heads
from kd.detectors import faster_rcnn, retinanet
from kd.weights import downloading, is_file_name, load_strictly, read_state_dict, weights_enum

__all__ = ["DetectorConfig", "build", "faster_rcnn", "retinanet"]


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """How to build one detector; the form in which configuration files describe student and teacher."""

    name: str = "retinanet"
    """"retinanet", "faster_rcnn", or one of torchvision's own builders such as "retinanet_resnet50_fpn_v2"."""
    backbone: str | None = None
    """Backbone of "retinanet" and "faster_rcnn" ("resnet50" if None); torchvision's builders name theirs."""
    num_classes: int = 91
    """Classes including background: the largest label plus one. 91 for COCO's own category ids."""
    weights: str | None = None
    """The whole detector's weights: a file, or for torchvision's builders also an enum name."""
    weights_format: str = "torchvision"
    """Or "mmdet", "mmdet_caffe", "detectron2", "detectron2_x101": ``weights`` is a checkpoint of that library, see
    :mod:`kd.conversion`. Backbone and FPN are all that a teacher needs."""
    convert_heads: bool = True
    """Of another library's checkpoint also take the heads, where it has those of this detector (a Cascade R-CNN has
    not); otherwise they stay random and the built detector's ``heads_are_trained`` is False."""
    options: dict[str, Any] = field(default_factory=dict)
    """Any further keyword argument of the builder."""


def build(name: str | DetectorConfig | Mapping[str, Any] = "retinanet", **options: Any) -> nn.Module:
    """Build a detector from a name and keyword arguments, from a :class:`DetectorConfig`, or from a mapping of its
    fields.

    Example:
        >>> student = build("retinanet", backbone="resnet18", num_classes=21)
        >>> teacher = build(DetectorConfig(name="retinanet_resnet50_fpn_v2"))

    Raises:
        ValueError: there is no such builder, or it has no such argument.
    """
    if isinstance(name, Mapping):
        unknown = set(name) - set(DetectorConfig.__dataclass_fields__)
        if unknown:
            raise ValueError(
                f"detector: unknown fields {sorted(unknown)}, known {list(DetectorConfig.__dataclass_fields__)}"
            )
        name = DetectorConfig(**name)
    if isinstance(name, DetectorConfig):
        given = {"num_classes": name.num_classes, "weights": name.weights, "backbone": name.backbone}
        given = {key: value for key, value in given.items() if value is not None}
        if name.weights_format != "torchvision":
            return _with_converted_features(name, {**given, **name.options, **options})
        return build(name.name, **{**given, **name.options, **options})
    if name in ("retinanet", "faster_rcnn"):
        builder: Callable[..., nn.Module] = retinanet if name == "retinanet" else faster_rcnn
        family = RetinaNet if name == "retinanet" else FasterRCNN
        accepted = {**inspect.signature(family.__init__).parameters, **inspect.signature(builder).parameters}
        # torchvision forwards these to the image transform
        accepted.update(dict.fromkeys(("fixed_size", "size_divisible")))
        unknown = set(options) - set(accepted)
        if unknown:
            raise ValueError(f"options: {name} takes no {sorted(unknown)}")
        return builder(**options)
    return _torchvision_builder(name, **options)


def _with_converted_features(config: DetectorConfig, options: dict[str, Any]) -> nn.Module:
    weights = options.pop("weights", None)
    if weights is None:
        raise ValueError(f"weights: weights_format is {config.weights_format!r}, so weights must name a file")
    if config.name == "retinanet" and config.weights_format in FORMATS:
        options.setdefault("relu_before_p7", FORMATS[config.weights_format].relu_before_p7)
    options.setdefault("norm", "frozen_bn")
    model = build(config.name, **options)
    state, source = read_state_dict(weights), repr(str(weights))
    load_features(model, state, config.weights_format, source)
    model.heads_are_trained = config.convert_heads and load_heads(
        model, state, FORMATS[config.weights_format].library, source
    )
    return model


def _torchvision_builder(name: str, *, weights: str | None = None, **options: Any) -> nn.Module:
    known = [builder for builder in detection.__dict__ if builder.startswith(("retinanet_", "fasterrcnn_"))]
    known = [builder for builder in known if callable(detection.__dict__[builder])]
    if name not in known:
        raise ValueError(f"detector: got {name!r}, expected 'retinanet', 'faster_rcnn' or one of {', '.join(known)}")
    # Its default would download ImageNet weights that nobody asked for.
    options.setdefault("weights_backbone", None)
    if isinstance(options["weights_backbone"], str):
        options["weights_backbone"] = weights_enum(options["weights_backbone"])
    source = options["weights_backbone"]
    from_file = weights is not None and is_file_name(weights)
    if weights is not None and not from_file:
        if "." not in weights:  # without its enum, as torchvision's builders take it too
            weights = f"{get_model_weights(name).__name__}.{weights}"
        source = options["weights"] = weights_enum(weights)
    with downloading(source):
        model = get_model_builder(name)(**options)
    if from_file:
        load_strictly(model, read_state_dict(weights), repr(str(weights)))
    return model
