"""Weights from files and from torchvision's enums. Nothing stored in a file is ever executed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_weight

from kd.inert_pickle import BESIDE_WEIGHTS, Inert, read_arrays

# Counters that FrozenBatchNorm2d does not keep and that carry no weight.
_COUNTER = "num_batches_tracked"


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.pth``/``.pt``/``.ckpt``, ``.safetensors`` or detectron2 ``.pkl`` file onto the CPU.

    A nesting under ``state_dict`` or ``model`` (mmdetection, detectron2, torchvision's reference scripts) is opened.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something other than named tensors, or needs code to be run to be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: no file {str(path)!r}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        content = read_arrays(path) if path.suffix == ".pkl" else _load_tensors(path)
    except Exception as error:  # unpickling fails in many ways; every one of them means "not a plain weights file"
        raise ValueError(
            f"weights: {str(path)!r} can not be read as plain tensors (weights_only=True): {error}. "
            "Export its state dict with torch.save(model.state_dict(), ...) in the library that wrote it."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"weights: {str(path)!r} holds {type(content).__name__}, expected a state dict (name -> tensor)"
        )
    wrong = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(f"weights: {str(path)!r} is not a state dict: {_some(wrong)} hold no tensor")
    return dict(content)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError(f"weights: {str(path)!r} needs the package safetensors (pip install safetensors)") from error
    try:
        return dict(load_file(str(path)))
    except SafetensorError as error:
        raise ValueError(f"weights: {str(path)!r} can not be read as safetensors ({error})") from error


def _load_tensors(path: Path) -> Any:
    with torch.serialization.safe_globals([(Inert, name) for name in BESIDE_WEIGHTS]):
        return torch.load(path, map_location="cpu", weights_only=True)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy ``state`` into ``module``; keys missing, unexpected or of another shape are an error that lists them.

    Only batch-norm counters (``num_batches_tracked``) may be absent or left over.

    Raises:
        ValueError: the names or shapes differ. ``module`` is then unchanged.
    """
    own = module.state_dict()
    # RetinaNet checkpoints older than torchvision 0.13 name the head's convolutions conv.{2i} instead of conv.{i}.0;
    # torchvision renames them on loading, so the comparison below has to see the names after that.
    state = {_current_name(name, own): value for name, value in state.items()}
    missing = [k for k in own if k not in state and not k.endswith(_COUNTER)]
    unexpected = [k for k in state if k not in own and not k.endswith(_COUNTER)]
    shapes = [
        f"{k}: file {tuple(v.shape)}, model {tuple(own[k].shape)}"
        for k, v in state.items()
        if k in own and v.shape != own[k].shape
    ]
    if missing or unexpected or shapes:
        parts = [f"{len(missing)} missing ({_some(missing)})"] if missing else []
        parts += [f"{len(unexpected)} unexpected ({_some(unexpected)})"] if unexpected else []
        parts += [f"{len(shapes)} of another shape ({_some(shapes)})"] if shapes else []
        raise ValueError(f"weights: {source} does not fit {type(module).__name__}: " + "; ".join(parts))
    with torch.no_grad():
        for name, target in own.items():
            if name in state:
                target.copy_(state[name])


def weights_enum(name: str) -> WeightsEnum:
    """Torchvision's weights by enum name, such as ``ResNet50_Weights.IMAGENET1K_V1``.

    Raises:
        ValueError: torchvision has no such weights.
    """
    try:
        return get_weight(name)
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"weights: {name!r} is neither a file nor a torchvision weights name "
            "(expected e.g. 'ResNet50_Weights.IMAGENET1K_V1' or a path)"
        ) from error


@contextmanager
def downloading(weights: WeightsEnum | None) -> Iterator[None]:
    """Raise ValueError, with what to do, where torchvision can not fetch ``weights`` in this context."""
    try:
        yield
    except OSError as error:  # urllib's errors are such
        if weights is None:
            raise
        raise ValueError(
            f"weights: {str(weights)!r} can not be downloaded ({error}); fetch {weights.url} elsewhere and put it "
            f"into {torch.hub.get_dir()}/checkpoints"
        ) from error


def is_file_name(name: str | Path) -> bool:
    """Whether ``name`` is meant as a file rather than as a torchvision enum name."""
    return (
        isinstance(name, Path) or "/" in name or Path(name).suffix in {".pth", ".pt", ".ckpt", ".safetensors", ".pkl"}
    )


def _current_name(name: str, own: Mapping[str, Tensor]) -> str:
    parts = name.split(".")
    if name not in own and len(parts) >= 3 and parts[-3] == "conv" and parts[-2].isdigit():
        renamed = ".".join([*parts[:-2], str(int(parts[-2]) // 2), "0", parts[-1]])
        if renamed in own:
            return renamed
    return name


def _some(names: list[str], shown: int = 6) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
