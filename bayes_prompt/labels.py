"""Labels of prompts, such as the data set that each comes from, as numbers of groups."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeAlias

import numpy as np
from torch import Tensor

Labels: TypeAlias = Sequence[Hashable] | Tensor | np.ndarray


def codes(labels: Labels, num_prompts: int, name: str = "groups") -> list[int]:
    """Numbers of N labels, from 0 up in the order in which the labels first occur.

    Args:
        labels: strings, numbers or other hashable labels, (N,), one for each prompt.
        num_prompts: N.
        name: what errors call them.

    Raises:
        ValueError: they are of another shape, or one is nan. TypeError: they are no sequence, or one is no label.
    """
    if isinstance(labels, str | bytes | set | frozenset | dict) or not hasattr(labels, "__len__"):
        raise TypeError(f"{name} must be a sequence of labels; got {type(labels).__name__}")
    if isinstance(labels, Tensor | np.ndarray) and labels.ndim != 1:
        raise ValueError(f"{name} must have shape ({num_prompts},); got {tuple(labels.shape)}")
    listed = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
    if len(listed) != num_prompts:
        raise ValueError(f"{name} must have {num_prompts} entries, one for each prompt; got {len(listed)}")
    known: dict[Hashable, int] = {}
    for row, label in enumerate(listed):
        try:
            hash(label)
        except TypeError as error:
            raise TypeError(f"{name}[{row}] must be a label; got {type(label).__name__}: {error}") from error
        if label != label:
            raise ValueError(f"{name}[{row}] = {label} must be a label, which nan is not")
        known.setdefault(label, len(known))
    return [known[label] for label in listed]
