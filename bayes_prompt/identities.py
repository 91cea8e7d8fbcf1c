"""Users' own names of prompts beside their row numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


class Identities:
    """A two-way map between the N prompts' rows and their names, or the rows themselves where there are no names.

    `fingerprint` tells two pools apart in checkpoints: a digest of the names where they are made of strings, bytes,
    numbers and tuples of them, whose text is the same in every process; else a word that says that names were given.
    """

    def __init__(self, ids: Sequence[Hashable] | None, num_prompts: int) -> None:
        self._names: list[Hashable] | None = None
        self._rows: dict[Hashable, int] = {}
        self.num_prompts = num_prompts
        self.fingerprint = "none"
        if ids is None:
            return
        names = list(ids)
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
        if all(_has_stable_text(name) for name in names):
            digest = hashlib.sha256()
            for name in names:
                digest.update(repr(name).encode() + b"\0")
            self.fingerprint = digest.hexdigest()[:16]
        else:
            self.fingerprint = "opaque"

    def rows(self, ids: Sequence[Hashable]) -> Tensor:
        """Row numbers (B,) int64; KeyError names the first unknown name."""
        if self._names is None:
            raise ValueError("this selector was given no ids; name prompts by index")
        if isinstance(ids, str | bytes):
            raise TypeError(f"ids must be a sequence of ids; got the single {type(ids).__name__} {ids!r}")
        for place, name in enumerate(ids):
            if name not in self._rows:
                raise KeyError(f"ids[{place}] = {name!r} names no prompt of the pool")
        return torch.tensor([self._rows[name] for name in ids], dtype=torch.int64)

    def names(self, rows: Sequence[int]) -> list[Hashable]:
        """The names of rows, or the rows themselves."""
        return list(rows) if self._names is None else [self._names[row] for row in rows]


def _has_stable_text(name: Hashable) -> bool:
    if isinstance(name, tuple):
        return all(_has_stable_text(part) for part in name)
    return name is None or isinstance(name, str | bytes | bool | int | float)
