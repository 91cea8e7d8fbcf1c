"""The texts of a pool, checked; and which of them are the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

import numpy as np


def checked(texts: Iterable[str]) -> list[str]:
    """The texts as a list; what a generator yields is taken.

    Raises:
        TypeError: `texts` is a single string, has no order, or holds something else than strings (the first is named).
        ValueError: there are none.
    """
    if isinstance(texts, str | bytes | Set | Mapping) or not isinstance(texts, Iterable):
        raise TypeError(f"texts must be a sequence of strings, one for each prompt; got {type(texts).__name__}")
    found = list(texts)
    for row, text in enumerate(found):
        if not isinstance(text, str):
            raise TypeError(f"texts[{row}] must be a string; got {type(text).__name__}")
    if not found:
        raise ValueError("texts must hold at least one prompt; got none")
    return found


def distinct(texts: list[str]) -> tuple[list[str], np.ndarray]:
    """The different texts in the order of their first occurrence, and (N,) int64: the row in them of each text."""
    rows: dict[str, int] = {}
    place = np.fromiter((rows.setdefault(text, len(rows)) for text in texts), np.int64, len(texts))
    return list(rows), place


def encodable(text: str) -> str:
    """The text, with a question mark for each lone surrogate: half a character, which no tokenizer can read."""
    return text.encode("utf-8", "replace").decode("utf-8")
