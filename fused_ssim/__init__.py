"""Structural similarity as a loss, fused: values and gradients in one pass. See :func:`ssim` and the README."""

from . import compat, reference
from .compat.fused_ssim import fused_ssim
from .dispatch import info
from .functional import l1_ssim_loss, pyramid_ssim_loss, ssim, ssim_components, ssim_loss
from .modules import SSIM, L1SSIMLoss, PyramidSSIMLoss, SSIMLoss

__version__ = "0.1.0"

__all__ = [
    "SSIM",
    "L1SSIMLoss",
    "PyramidSSIMLoss",
    "SSIMLoss",
    "compat",
    "fused_ssim",
    "info",
    "l1_ssim_loss",
    "pyramid_ssim_loss",
    "reference",
    "ssim",
    "ssim_components",
    "ssim_loss",
]
