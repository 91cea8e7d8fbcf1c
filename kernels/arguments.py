"""What every kernel asks of its tensors: shape, dtype, device and contiguity. Values are never read here."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)


def check_layout(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor, dtype: str | None = None) -> None:
    """Raise unless `tensor` is contiguous, of `shape`, on the device of `like`, and of `dtype`.

    dtype: a name such as "int32"; by default the dtype of `like`, which must be float32 or float64.
    Raises TypeError for a dtype and ValueError for anything else; both say what the argument is and what it must be.
    """
    wanted = like.dtype if dtype is None else getattr(torch, dtype)
    if dtype is None and wanted not in FLOATS:
        raise TypeError(f"{name} must be float32 or float64, got {wanted}")
    if tensor.dtype != wanted:
        raise TypeError(f"{name} must be {wanted}, got {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {tensor.device}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")
