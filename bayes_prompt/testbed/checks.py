"""A check of settings that are rates or temperatures; `posteriors.checks` has those of integers."""

from __future__ import annotations

import math
from typing import Any


def number(name: str, value: Any, most: float = math.inf, *, zero: bool = False) -> None:
    """A finite int or float above 0, or from 0 on with `zero`, and at most `most`."""
    accepted = f"a finite number {'>=' if zero else '>'} 0" + (f" and <= {most:g}" if most < math.inf else "")
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or value < 0 or (value == 0 and not zero) or value > most:
        raise ValueError(f"{name} must be {accepted}; got {value!r}")
