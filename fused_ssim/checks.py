"""The checks of tensor arguments that every function shares."""

import torch
from torch import Tensor

from .options import SSIMOptions

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Level = tuple[Tensor, Tensor, Tensor | None]
"""x, y and the weights of one level; weights None or expanded to the map."""


def check_inputs(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    options: SSIMOptions,
    x_name: str = "x",
    y_name: str = "y",
    weight_name: str = "weight",
) -> Level:
    """Raise TypeError or ValueError unless x, y (and weight) are fit; return them as (N, C, H, W)."""
    for name, value in ((x_name, x), (y_name, y)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if value.dtype not in DTYPES:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {value.dtype}")
        if value.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got one of layout {value.layout}")
        if value.dim() not in (3, 4):
            raise ValueError(f"{name} must have shape (N, C, H, W) or (C, H, W), got {tuple(value.shape)}")
    if x.shape != y.shape:
        raise ValueError(f"{x_name} and {y_name} must have the same shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    if x.device != y.device:
        raise ValueError(f"{x_name} and {y_name} must be on the same device, got {x.device} and {y.device}")
    if x.numel() == 0:
        raise ValueError(f"{x_name} and {y_name} must not be empty, got shape {tuple(x.shape)}")
    if x.dtype != y.dtype:
        kind = x.device.type
        if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
            raise TypeError(f"{x_name} and {y_name} must have the same dtype, got {x.dtype} and {y.dtype}")
        x, y = x.float(), y.float()
    if x.dim() == 3:
        x, y = x.unsqueeze(0), y.unsqueeze(0)
    shape = list(x.shape)
    if options.padding == "valid":
        shape[2] -= options.window_size - 1
        shape[3] -= options.window_size - 1
        if shape[2] < 1 or shape[3] < 1:
            raise ValueError(
                f"padding='valid' needs H and W of at least window_size={options.window_size}, got {tuple(x.shape)}"
            )
    if weight is not None:
        if not isinstance(weight, Tensor):
            raise TypeError(f"{weight_name} must be a torch.Tensor or None, got {type(weight).__name__}")
        if not (weight.dtype.is_floating_point or weight.dtype in (torch.bool, torch.uint8)):
            raise TypeError(f"{weight_name} must be floating point, bool or uint8, got {weight.dtype}")
        if weight.layout != torch.strided:
            raise TypeError(f"{weight_name} must be a dense tensor, got one of layout {weight.layout}")
        if weight.device != x.device:
            raise ValueError(f"{weight_name} must be on the device of {x_name}, {x.device}, got {weight.device}")
        try:
            weight = weight.to(torch.float64 if x.dtype == torch.float64 else torch.float32).expand(shape)
        except RuntimeError:
            raise ValueError(
                f"{weight_name} must broadcast to the map {tuple(shape)}, got {tuple(weight.shape)}"
            ) from None
    return x, y, weight
