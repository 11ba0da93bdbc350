"""The distiller: a student, its frozen teacher, and the loss between their FPN features."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kd import checks
from kd.losses import FeatureLoss, feature_loss
from kd.masks import valid_cells
from kd.taps import Features, named_features, tapped

Adapters = Literal["auto", "always", "never"]
_HALF = (torch.float16, torch.bfloat16)


class Distiller(nn.Module):
    """A detector to train: in training the student's losses plus ``loss_distill``, in evaluation the student itself.

    ``loss_distill = weight * sum over FPN levels r of L(phi_r(S_r), T_r)`` (de Rijk et al., NeurIPS 2022, section 3)
    with the student's and teacher's features S and T, an optional 1x1 convolution phi, and the mean distance L in a
    level; the rescaling psi is part of L. The student's transformed batch is shown to the teacher's backbone and FPN;
    the teacher's transform and heads never run.

    The teacher is frozen (its parameters' ``requires_grad`` is set to False) and moved to the student's device. It is
    no submodule: neither ``parameters()`` nor ``state_dict()`` hold it and DDP does not see it, but it follows ``to()``
    and stays in evaluation mode. Before saving, take ``distiller.student.state_dict()``: it fits the plain torchvision
    model.

    Args:
        student: torchvision-style detector, trained.
        teacher: torchvision-style detector with equal normalisation and FPN strides. Not needed for loss "none".
        loss: "ssim", "l1", "l2", "pkd", "cwd", "none", or a :class:`kd.losses.FeatureLoss`. "none" is plain training.
        weight: lambda, >= 0; the paper uses 2 to 4. With 0 the teacher does not run, as for "none".
        adapters: 1x1 convolutions on the student's levels: "auto" where channels or families differ, "always", "never".
        level_map: student level -> teacher level, for pyramids with other level names. None: equal names.
        mask_padding: take every mean over the cells that see an image, leaving out those that see only the padding to
            the batch's common size. SSIM's windows and psi's minimum and maximum still see whole maps. The paper's
            code does not mask, so it is off by default.
        loss_options: options of the loss, see :mod:`kd.losses`.

    Raises:
        TypeError: student or teacher is no torchvision-style detector.
        ValueError: they do not fit, or an argument is out of range; the message says what differs.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        loss: str | FeatureLoss = "ssim",
        weight: float = 4.0,
        *,
        adapters: Adapters = "auto",
        level_map: Mapping[str, str] | None = None,
        mask_padding: bool = False,
        **loss_options: Any,
    ) -> None:
        super().__init__()
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weight: got {weight}, expected a finite number >= 0")
        if adapters not in ("auto", "always", "never"):
            raise ValueError(f"adapters: got {adapters!r}, expected 'auto', 'always' or 'never'")
        checks.check_detector("student", student)
        self.student = student
        self.weight = float(weight)
        self.distils = loss != "none" and weight > 0
        self.level_map: dict[str, str] = {}
        self.level_strides: dict[str, int] = {}
        """Student level -> its stride in pixels."""
        self.mask_padding = mask_padding
        self.adapters = nn.ModuleDict()
        self.feature_loss: FeatureLoss | None = None
        self.log_components = False
        """Also measure SSIM's components in every step (costs an extra pass over the features)."""
        self.level_losses: dict[str, Tensor] = {}
        """After a training step: student level -> unweighted mean loss of the level, detached."""
        self.level_components: dict[str, Tensor] = {}
        """After a step with ``log_components``: student level -> mean luminance, contrast and structure, [3]."""
        self._set_teacher(None)
        if isinstance(loss, FeatureLoss):
            if loss_options:
                raise ValueError(f"loss_options: {sorted(loss_options)} can not be given beside a FeatureLoss object")
            self.feature_loss = loss
        elif loss != "none":
            self.feature_loss = feature_loss(loss, **loss_options)
        if mask_padding and self.distils and not self.feature_loss.takes_mask:
            raise ValueError(f"mask_padding: {type(self.feature_loss).__name__} takes no mask (takes_mask is False)")
        if self.distils:
            self._pair_with(teacher, adapters, level_map)

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen teacher; None if nothing is distilled."""
        return self.__dict__["_teacher"]

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """The student's call: in training a dict of scalar losses, in evaluation a list of detections."""
        if not (self.student.training and self.distils):
            return self.student(images, targets)
        with tapped(self.student.backbone, self.student.transform if self.mask_padding else None) as tap:
            losses = dict(self.student(images, targets))
        if tap.calls != 1 or tap.images is None:
            raise RuntimeError(f"student: its backbone ran {tap.calls} times in one step, expected once")
        losses["loss_distill"] = self.distillation_loss(tap.images, tap.features, tap.sizes)
        return losses

    def distillation_loss(
        self, images: Tensor, features: Features, sizes: Sequence[tuple[int, int]] | None = None
    ) -> Tensor:
        """``weight`` times the feature loss summed over levels, a scalar.

        Args:
            images: the student's transformed batch [N, 3, H, W].
            features: the student's FPN features of it, level -> [N, C, h, w].
            sizes: (height, width) of every image in the batch; ``mask_padding`` needs them.

        Raises:
            ValueError: features that do not fit, or no sizes where the padding is masked.
        """
        if self.mask_padding and (sizes is None or len(sizes) != len(images)):
            raise ValueError(f"sizes: mask_padding needs those of all {len(images)} images, got {sizes}")
        with torch.no_grad():
            teacher_features = named_features(self.teacher.backbone(images))
        with torch.autocast(images.device.type, enabled=False):
            ours, theirs = [], []
            for student_level, teacher_level in self.level_map.items():
                feature = features[student_level]
                if student_level in self.adapters:
                    adapter = self.adapters[student_level]
                    feature = adapter(feature.to(adapter.weight.dtype))
                ours.append(_at_least_float32(feature))
                theirs.append(_at_least_float32(teacher_features[teacher_level]))
                checks.check_alike(ours[-1], theirs[-1], student_level)
            mask: tuple[list[Tensor], ...] = ()
            if self.mask_padding:
                mask = (valid_cells(sizes, ours, [self.level_strides[level] for level in self.level_map]),)
            # A weight that was set to 0 between steps would leave nothing to tell the levels' losses by.
            weight = self.weight or 1.0
            if self.feature_loss.takes_weight:
                losses = self.feature_loss(ours, theirs, *mask, weight=weight)
            else:
                losses = weight * self.feature_loss(ours, theirs, *mask)
            self.level_losses = dict(zip(self.level_map, (losses.detach() / weight).unbind(), strict=True))
            self.level_components = {}
            if self.log_components and hasattr(self.feature_loss, "components"):
                components = self.feature_loss.components(ours, theirs, *mask)
                self.level_components = dict(zip(self.level_map, components.unbind(), strict=True))
            return losses.sum() if self.weight else 0 * losses.sum()

    def train(self, mode: bool = True) -> Distiller:
        """As for any module, but the teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distiller:
        super()._apply(fn, recurse)
        if self.teacher is not None:
            self.teacher._apply(fn)
        return self

    def _set_teacher(self, teacher: nn.Module | None) -> None:
        # Past nn.Module.__setattr__, which would make it a submodule.
        self.__dict__["_teacher"] = teacher

    def _pair_with(self, teacher: nn.Module | None, adapters: Adapters, level_map: Mapping[str, str] | None) -> None:
        if teacher is None:
            raise ValueError("teacher: got None, which only loss='none' or weight=0 allow")
        checks.check_detector("teacher", teacher)
        own = {id(p) for p in self.student.parameters()}
        if any(id(p) in own for p in teacher.parameters()):
            raise ValueError("teacher: it shares parameters with the student; pass copy.deepcopy(student)")
        checks.check_same_transform(self.student, teacher)
        parameter = next(self.student.parameters())
        self._set_teacher(teacher.to(parameter.device).requires_grad_(False).eval())
        size, student_features = checks.probe_features(self.student)
        _, teacher_features = checks.probe_features(teacher)
        self.level_map = checks.matched_levels(student_features, teacher_features, level_map, size)
        # Widths, because the probe is wide enough to tell all strides apart.
        self.level_strides = {name: round(size[1] / student_features[name].shape[-1]) for name in self.level_map}
        channels = {
            ours: (student_features[ours].shape[1], teacher_features[theirs].shape[1])
            for ours, theirs in self.level_map.items()
        }
        differing = [name for name, (ours, theirs) in channels.items() if ours != theirs]
        if adapters == "never" and differing:
            raise ValueError(
                f"adapters: 'never', but channels (student, teacher) differ: { {n: channels[n] for n in differing} }"
            )
        everywhere = adapters == "always" or (
            adapters == "auto" and checks.family(self.student) != checks.family(teacher)
        )
        for name in self.level_map if everywhere else differing:
            self.adapters[name] = _adapter(*channels[name]).to(parameter.device, parameter.dtype)


def distill(
    student: nn.Module,
    teacher: nn.Module | None,
    loss: str | FeatureLoss = "ssim",
    weight: float = 4.0,
    *,
    adapters: Adapters = "auto",
    level_map: Mapping[str, str] | None = None,
    mask_padding: bool = False,
    **loss_options: Any,
) -> Distiller:
    """Make ``student`` learn from ``teacher``'s FPN features; arguments and errors as in :class:`Distiller`.

    Example:
        >>> model = kd.distill(student, teacher, loss="ssim", weight=4.0)
        >>> losses = model(images, targets)  # the student's own losses and "loss_distill"
        >>> sum(losses.values()).backward()
        >>> torch.save(model.student.state_dict(), "student.pth")
    """
    return Distiller(
        student,
        teacher,
        loss,
        weight,
        adapters=adapters,
        level_map=level_map,
        mask_padding=mask_padding,
        **loss_options,
    )


def _adapter(student_channels: int, teacher_channels: int) -> nn.Conv2d:
    """phi: starts as the identity where it can, so that adding it changes nothing at first."""
    adapter = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
    if student_channels == teacher_channels:
        nn.init.dirac_(adapter.weight)
    nn.init.zeros_(adapter.bias)
    return adapter


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in _HALF else x
