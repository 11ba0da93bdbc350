"""Distil torchvision detectors through their FPN features.

``model = kd.distill(student, teacher)`` is the whole interface to an existing training loop; ``kd fit --config ...``
is a ready one. Importing this package does not import Lightning.
"""

from kd.distiller import Distiller, distill

__all__ = ["Distiller", "distill"]
