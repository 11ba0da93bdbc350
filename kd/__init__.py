"""Distil torchvision detectors through their FPN features.

``model = kd.distill(student, teacher)`` is the whole interface to an existing training loop; ``kd fit --config ...``
is a ready one. Importing this package does not import Lightning.
"""

try:
    from kd.distiller import Distiller, distill
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] in ("kd", "fused_ssim"):
        raise
    raise ModuleNotFoundError(
        f'kd needs the package {error.name}, which is not installed: pip install "fused-ssim-distill[kd]"',
        name=error.name,
    ) from error

__all__ = ["Distiller", "distill"]
