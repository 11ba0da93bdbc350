"""Where student and teacher differ: feature maps of one image, level by level, and the measures between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import fused_ssim
from kd.distiller import Distiller
from kd.losses import SSIMFeatureLoss
from kd.losses.rescale import min_max
from kd.taps import named_features, tapped

Detections = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class LevelMaps:
    """One FPN level. All maps are of the level's own size h x w, the measures are means over channels."""

    level: str
    student: Tensor
    """[C, h, w], behind the adapter, rescaled by psi."""
    teacher: Tensor
    """[C, h, w], rescaled by psi."""
    squared_error: Tensor
    """[h, w], what the L2 loss is the mean of."""
    ssim_loss: Tensor
    """[h, w], (1 - SSIM) / 2."""
    luminance: Tensor
    """[h, w]; 1 is equality, as for contrast and structure."""
    contrast: Tensor
    structure: Tensor
    channel_loss: Tensor
    """[C], mean SSIM loss of every channel."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """One image as student and teacher see it."""

    image: Tensor
    """[3, H, W] in [0, 1], as it came."""
    transformed: Tensor
    """[3, H', W'] in [0, 1]: as the backbones see it, padding included, normalisation undone."""
    size: tuple[int, int]
    """Height and width of the image in ``transformed``; what is beyond is padding."""
    student: Detections
    """Boxes [n, 4] in pixels of ``image``, scores [n], labels [n]."""
    teacher: Detections | None
    """None without a teacher, or where its heads are not trained."""
    levels: list[LevelMaps]
    """Empty without a teacher."""


@torch.no_grad()
def inspect_image(distiller: Distiller, image: Tensor, *, teacher_detects: bool = True) -> Inspection:
    """Run student and teacher on ``image`` and measure their features against each other.

    The features are rescaled as the distiller's loss does it, or per channel where that does not rescale. SSIM's
    options are the distiller's if it distils by SSIM, else the paper's.

    Args:
        distiller: student, teacher and adapters; both models' modes are restored.
        image: [3, H, W] in [0, 1].
        teacher_detects: whether the teacher's heads are trained, so that its detections mean something.
    """
    student, teacher = distiller.student, distiller.teacher
    was_training = distiller.training
    distiller.eval()
    try:
        with tapped(student.backbone) as tap:
            found = student([image])[0]
        assert tap.images is not None
        batch = tap.images
        (size,) = student.transform([image])[0].image_sizes
        theirs = teacher([image])[0] if teacher is not None and teacher_detects else None
        levels = [] if teacher is None else _levels(distiller, batch, tap.features)
    finally:
        distiller.train(was_training)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (student.transform.image_mean, student.transform.image_std))
    return Inspection(
        image=image,
        transformed=(batch[0].cpu() * std + mean).clamp(0, 1),
        size=size,
        student={k: v.cpu() for k, v in found.items()},
        teacher=None if theirs is None else {k: v.cpu() for k, v in theirs.items()},
        levels=levels,
    )


def _levels(distiller: Distiller, batch: Tensor, features: dict[str, Tensor]) -> list[LevelMaps]:
    assert distiller.teacher is not None
    teacher_features = named_features(distiller.teacher.backbone(batch))
    loss = distiller.feature_loss
    axes = getattr(loss, "normalize", None) or "channel"
    options = (loss if isinstance(loss, SSIMFeatureLoss) else SSIMFeatureLoss()).ssim_options
    made = []
    for ours, theirs in distiller.level_map.items():
        feature = features[ours].float()
        if ours in distiller.adapters:
            feature = distiller.adapters[ours](feature)
        s, t = (min_max(x, axes) for x in (feature, teacher_features[theirs].float()))
        # The bare components, whatever the loss's exponents.
        plain = {**options, "exponents": (1.0, 1.0, 1.0)}
        parts = [part[0].mean(0).cpu() for part in fused_ssim.ssim_components(s, t, **plain)]
        loss_map = fused_ssim.ssim_loss(s, t, reduction="none", **options)
        made.append(
            LevelMaps(
                level=ours,
                student=s[0].cpu(),
                teacher=t[0].cpu(),
                squared_error=(s - t).square()[0].mean(0).cpu(),
                ssim_loss=loss_map[0].mean(0).cpu(),
                luminance=parts[0],
                contrast=parts[1],
                structure=parts[2],
                channel_loss=loss_map[0].mean((1, 2)).cpu(),
            )
        )
    return made
