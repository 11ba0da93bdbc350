"""Does this teacher fit this student? Asked once, before training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual as InvertedResidualV2
from torchvision.models.mobilenetv3 import InvertedResidual as InvertedResidualV3
from torchvision.models.resnet import BasicBlock, Bottleneck

from kd.taps import Features, named_features

_TRANSFORM_SETTINGS = ("image_mean", "image_std", "size_divisible")


def check_detector(role: str, model: nn.Module) -> None:
    """Raise TypeError unless ``model`` has the parts of a torchvision detector that distillation needs."""
    for part in ("backbone", "transform"):
        if not isinstance(getattr(model, part, None), nn.Module):
            raise TypeError(
                f"{role}: {type(model).__name__} has no module {part!r}; expected a torchvision-style detector such as "
                "RetinaNet or FasterRCNN (model.transform, model.backbone returning a dict of FPN levels)"
            )


def check_same_transform(student: nn.Module, teacher: nn.Module) -> None:
    """Raise ValueError if the teacher expects another normalisation or padding than the student's transform gives."""
    differences = []
    for name in _TRANSFORM_SETTINGS:
        ours, theirs = getattr(student.transform, name), getattr(teacher.transform, name)
        if torch.as_tensor(ours, dtype=torch.float64).tolist() != torch.as_tensor(theirs, dtype=torch.float64).tolist():
            differences.append(f"{name} is {ours} in the student and {theirs} in the teacher")
    if differences:
        raise ValueError(
            "teacher: it is shown the student's transformed batch, so both must normalise and pad alike, but "
            + "; ".join(differences)
        )


@torch.no_grad()
def probe_features(model: nn.Module) -> tuple[tuple[int, int], Features]:
    """The size of a small probe batch and the FPN features of it; the model's state is left as it was."""
    divisor = max(int(model.transform.size_divisible), 1)
    # At least 128 px so that a stride of 128 is told from one of 64; unequal sides tell height from width.
    height = -(-128 // divisor) * divisor
    size = (height, 2 * height)
    parameter = next(model.backbone.parameters())
    modes = {module: module.training for module in model.backbone.modules()}
    model.backbone.eval()
    try:
        output = model.backbone(torch.zeros(1, 3, *size, dtype=parameter.dtype, device=parameter.device))
    finally:
        for module, training in modes.items():
            module.training = training
    return size, named_features(output)


def matched_levels(
    student: Features, teacher: Features, level_map: Mapping[str, str] | None, size: tuple[int, int]
) -> dict[str, str]:
    """Student level -> teacher level, after checking that their maps are equally large.

    Raises:
        ValueError: a level is missing on one side, or the sizes (so the strides) of a pair differ; the message lists
        both
            pyramids.
    """
    pyramids = f"student: {_described(student, size)}; teacher: {_described(teacher, size)}"
    if level_map is None:
        if set(student) != set(teacher):
            raise ValueError(
                f"level_map: student and teacher have other FPN levels, say which belong together. {pyramids}"
            )
        level_map = {name: name for name in student}
    if not level_map:
        raise ValueError("level_map: it is empty, expected student level -> teacher level")
    for ours, theirs in level_map.items():
        if ours not in student or theirs not in teacher:
            raise ValueError(f"level_map: no level {ours!r} in the student or {theirs!r} in the teacher. {pyramids}")
        if student[ours].shape[-2:] != teacher[theirs].shape[-2:]:
            raise ValueError(f"level_map: {ours!r} and {theirs!r} differ in stride. {pyramids}")
    return dict(level_map)


def family(model: nn.Module) -> tuple[str, str]:
    """The detector's class and the kind of its backbone; student and teacher of one family need no adapters."""
    modules = list(model.backbone.modules())
    if any(isinstance(m, (InvertedResidualV2, InvertedResidualV3)) for m in modules):
        kind = "mobilenet"
    elif any(isinstance(m, (BasicBlock, Bottleneck)) for m in modules):
        grouped = any(isinstance(m, Bottleneck) and m.conv2.groups > 1 for m in modules)
        kind = "resnext" if grouped else "resnet"
    else:
        kind = type(model.backbone).__name__
    return type(model).__name__, kind


def check_alike(student: Tensor, teacher: Tensor, level: str) -> None:
    """Raise ValueError unless two feature maps about to be compared have one shape and device."""
    if student.shape != teacher.shape or student.device != teacher.device:
        raise ValueError(
            f"FPN level {level!r}: student {tuple(student.shape)} on {student.device}, "
            f"teacher {tuple(teacher.shape)} on {teacher.device}; they must agree"
        )


def _described(features: Features, size: tuple[int, int]) -> str:
    return ", ".join(
        f"{name!r} {map_.shape[1]} channels stride {round(size[0] / map_.shape[-2])}" for name, map_ in features.items()
    )
