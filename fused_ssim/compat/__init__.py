"""Drop-in replacements for packages that people use today."""

from . import pytorch_msssim

__all__ = ["pytorch_msssim"]
