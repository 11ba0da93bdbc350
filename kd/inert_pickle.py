"""Reading pickled arrays without running what a file asks for."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

# All that a pickled dict of arrays names. Both spellings of NumPy's module occur: it was renamed in NumPy 2.
_ARRAYS = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}

BESIDE_WEIGHTS = (
    "argparse.Namespace",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    *(".".join(name) for name in sorted(_ARRAYS) if name[0].startswith("numpy")),
)
"""What is stored beside the weights names these: the options of torchvision's reference scripts, and the history of
mmdetection 3's log. Nobody needs them here."""


class Inert:
    """Stands for an object of a file that is not needed: takes anything, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which is no part of an array")
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)


def read_arrays(path: Path) -> Any:
    """The content of a pickle of dicts and NumPy arrays, such as detectron2's model zoo, the arrays as tensors.

    Raises:
        pickle.UnpicklingError: the file names anything else; nothing of it has then been run.
    """
    with path.open("rb") as file:
        # detectron2's zoo was written by Python 2
        return _as_tensors(_ArrayUnpickler(file, encoding="latin1").load())


def _as_tensors(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _as_tensors(value) for name, value in content.items()}
    return torch.from_numpy(content) if isinstance(content, np.ndarray) else content
