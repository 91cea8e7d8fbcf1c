"""Users' own names of prompts beside their row numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from datetime import date
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

import numpy as np
import torch
from torch import Tensor


class Identities:
    """A two-way map between the N prompts' rows and their names, or the rows themselves where there are no names.

    `fingerprint` tells two pools apart in checkpoints: a digest of the names where their text is the same in every
    process (strings, bytes, numbers, UUIDs, paths, dates, enums, and tuples and frozensets of them); of others only
    that there were names.
    """

    def __init__(self, ids: Sequence[Hashable] | None, num_prompts: int) -> None:
        self._names: list[Hashable] | None = None
        self._rows: dict[Hashable, int] = {}
        self.num_prompts = num_prompts
        self.fingerprint = "none"
        if ids is None:
            return
        names = _listed(ids)
        if len(names) != num_prompts:
            raise ValueError(f"ids must have {num_prompts} entries, one for each prompt; got {len(names)}")
        for row, name in enumerate(names):
            try:
                earlier = self._rows.setdefault(name, row)
            except TypeError as error:
                raise TypeError(f"ids[{row}] = {name!r} must be hashable") from error
            if earlier != row:
                raise ValueError(f"ids[{row}] = {name!r} is also ids[{earlier}]; ids must be distinct")
        self._names = names
        texts = [_stable_text(name) for name in names]
        if any(text is None for text in texts):
            self.fingerprint = "opaque"
        else:
            self.fingerprint = hashlib.sha256("\0".join(map(str, texts)).encode()).hexdigest()[:16]

    def rows(self, ids: Sequence[Hashable]) -> Tensor:
        """Row numbers (B,) int64; IndexError names the first unknown name."""
        if self._names is None:
            raise ValueError("this selector was given no ids; name prompts by index")
        rows = []
        for place, name in enumerate(_listed(ids)):
            try:
                rows.append(self._rows[name])
            except KeyError:
                raise IndexError(f"ids[{place}] = {name!r} names no prompt of the pool") from None
            except TypeError as error:
                raise TypeError(f"ids[{place}] = {name!r} must be hashable") from error
        return torch.tensor(rows, dtype=torch.int64)

    def names(self, rows: Sequence[int]) -> list[Hashable]:
        """The names of rows, or the rows themselves."""
        return list(rows) if self._names is None else [self._names[row] for row in rows]


def _listed(ids: Any) -> list[Hashable]:
    """Names in an order that is the same in every process: a set has none."""
    if isinstance(ids, Tensor | np.ndarray) and ids.ndim != 1:
        raise ValueError(f"ids must have one dimension; got shape {tuple(ids.shape)}")
    in_order = hasattr(ids, "__len__") and hasattr(ids, "__getitem__")  # columns of pandas and datasets too
    if not in_order or isinstance(ids, str | bytes | Mapping):
        raise TypeError(f"ids must be a sequence with one name for each prompt; got a {type(ids).__name__}")
    return ids.tolist() if isinstance(ids, Tensor) else list(ids)


def _stable_text(name: Hashable) -> str | None:
    """A text that equal names share in every process and different ones do not; None where we know of none."""
    if isinstance(name, np.generic):
        name = name.item()
    if isinstance(name, Enum):
        return f"{type(name).__qualname__}.{name.name}"
    if isinstance(name, bool | float) and name == name // 1:
        name = int(name)  # to which it is equal
    if isinstance(name, str):
        return repr(str(name))
    if isinstance(name, tuple | frozenset):
        parts = [_stable_text(part) for part in name]
        if any(part is None for part in parts):
            return None
        texts = [str(part) for part in parts]
        return f"({','.join(texts)})" if isinstance(name, tuple) else f"{{{','.join(sorted(texts))}}}"
    if isinstance(name, UUID | PurePath | date):
        return f"{type(name).__name__} {name}"
    return repr(name) if name is None or isinstance(name, bytes | int | float) else None
