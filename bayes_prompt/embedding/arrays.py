"""Embeddings that a user brings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bayes_prompt.posteriors import checks

ArrayOrPath: TypeAlias = ArrayLike | Tensor | str | os.PathLike[str]
_CHUNK = 1 << 22  # numbers that are looked at at a time


def load_array(source: ArrayOrPath, num_prompts: int) -> np.ndarray:
    """Embeddings (num_prompts, D), one row for each prompt, checked.

    A path is that of a .npy, which stays on disk, memory-mapped and read-only: its numbers are looked at once, some at
    a time. An array or a tensor on the CPU of floats is not copied, unless torch has no such type: other byte orders,
    long doubles. Integers, booleans and lists become float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no whole .npy of numbers; the shape is another one; a number is NaN or infinite, of
            which the first row is named.
        TypeError: the entries are not real numbers.
    """
    num_prompts = checks.integer("num_prompts", num_prompts, 1)
    if isinstance(source, str | os.PathLike):
        name = f"the array in {os.fspath(source)!r}"
        array = _mapped(Path(source))
    else:
        name = "embeddings"
        array = _as_array(source)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers; got {array.dtype}")
    if array.ndim != 2 or len(array) != num_prompts or array.shape[1] < 1:
        raise ValueError(f"{name} must have shape ({num_prompts}, D) with D >= 1; got {array.shape}")
    check_finite(name, array)
    if array.dtype not in (np.float16, np.float32, np.float64):
        with np.errstate(over="ignore"):  # a long double beyond float64 is named below
            array = array.astype(np.float64 if array.dtype.kind == "f" and array.dtype.itemsize > 4 else np.float32)
        check_finite(name, array)
    return array


def check_finite(name: str, array: np.ndarray) -> None:
    """ValueError that names the first row of `array` (N, D) in which a number is NaN or infinite."""
    rows = max(_CHUNK // array.shape[1], 1)
    for start in range(0, len(array), rows):
        bad = ~np.isfinite(array[start : start + rows])
        if bad.any():
            row, column = (int(place) for place in np.argwhere(bad)[0])
            value = array[start + row, column]
            raise ValueError(f"{name} must be finite; got {value} in row {start + row}, column {column}")


def to_array(tensor: Tensor) -> np.ndarray:
    """The numbers of a tensor, on the host; as float32 where numpy has no such type of floats, as of bfloat16."""
    tensor = tensor.detach().cpu()
    native = not tensor.is_floating_point() or tensor.dtype in (torch.float16, torch.float32, torch.float64)
    return (tensor if native else tensor.float()).numpy()


def _mapped(path: Path) -> np.ndarray:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{os.fspath(path)!r} must be a whole .npy file of numbers ({error})") from error
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{os.fspath(path)!r} must be a .npy file; it is an archive of several arrays")
    return found


def _as_array(source: ArrayLike | Tensor) -> np.ndarray:
    if isinstance(source, Tensor):
        source = to_array(source)
    try:
        found = np.asarray(source)
    except (TypeError, ValueError) as error:
        raise ValueError("embeddings must be numbers of shape (N, D), every row of the same length") from error
    return found if isinstance(source, np.ndarray) or found.dtype != np.float64 else found.astype(np.float32)
