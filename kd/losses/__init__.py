"""Feature losses: each takes two lists of feature maps and gives one mean per FPN level."""

from __future__ import annotations

from typing import Any

from kd.losses.base import FeatureLoss
from kd.losses.cwd import CWDLoss
from kd.losses.lp import L1Loss, L2Loss
from kd.losses.pkd import PKDLoss
from kd.losses.ssim import SSIMFeatureLoss

LOSSES: dict[str, type[FeatureLoss]] = {
    "ssim": SSIMFeatureLoss,
    "l1": L1Loss,
    "l2": L2Loss,
    "pkd": PKDLoss,
    "cwd": CWDLoss,
}


def feature_loss(name: str, **options: Any) -> FeatureLoss:
    """The feature loss ``name`` ("ssim", "l1", "l2", "pkd" or "cwd") with its own options.

    Raises:
        ValueError: there is no such loss, or it has no such option.
    """
    if name not in LOSSES:
        raise ValueError(f"loss: got {name!r}, expected 'none' or one of {', '.join(map(repr, LOSSES))}")
    try:
        return LOSSES[name](**options)
    except TypeError as error:
        raise ValueError(f"loss options: {error} (loss {name!r})") from error


__all__ = ["LOSSES", "CWDLoss", "FeatureLoss", "L1Loss", "L2Loss", "PKDLoss", "SSIMFeatureLoss", "feature_loss"]
