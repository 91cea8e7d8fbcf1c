"""Columns of different origin, brought to scales at which one penalty or one length scale suits all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bayes_prompt.embedding.arrays import check_finite
from bayes_prompt.posteriors import checks

_NUMBERS = 1 << 20  # that are in float64 at a time


@dataclass(frozen=True)
class Scaling:
    """(features - mean) * factor, by column. It is learnt from a pool without labels, and applied to prompts to come.

    Attributes:
        mean: (D,) float64.
        factor: (D,) float64, 0 for a column that is constant in the pool.
    """

    mean: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, blocks: Sequence[int] | None = None) -> Scaling:
        """The scaling after which the pool has mean 0 and rows have a mean squared length of 1, equal shares by block.

        The first block, an embedding, keeps the proportions of its columns: dividing each by its own deviation, or
        whitening, makes noise as loud as what it carries. Every other block's columns, which have different units,
        get equal variances. Constant columns become 0.

        Args:
            features: (N, D), finite.
            blocks: widths that add up to D, such as (256, len(SURFACE_FEATURES)); None is one block of all. A first
                width of 0 says that there is no embedding.

        Raises:
            ValueError, TypeError: a shape, a number that is not finite (its row is named), widths that do not add up,
                a column whose spread float64 cannot hold.
        """
        features = _matrix(features)
        widths = [features.shape[1]] if blocks is None else [checks.integer("blocks", width, 0) for width in blocks]
        if sum(widths) != features.shape[1]:
            raise ValueError(f"blocks must add up to {features.shape[1]} columns; got {widths}")
        changes = features.max(0) != features.min(0)
        mean, deviation = _moments(features)
        deviation[~changes] = 0  # rounding would leave a little
        factor = np.zeros(len(mean))
        start = 0
        for place, width in enumerate(widths):
            block = slice(start, start + width)
            spread = np.full(width, math.hypot(*deviation[block])) if place == 0 else deviation[block]
            alive = changes[block]
            with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
                factor[block][alive] = 1 / spread[alive]
            bad = alive & ~(np.isfinite(deviation[block]) & np.isfinite(factor[block]))
            if bad.any():
                column = int(bad.argmax())
                raise ValueError(
                    f"features spread too much or too little to be scaled: in column {start + column} from "
                    f"{features[:, start + column].min()} to {features[:, start + column].max()}"
                )
            if place > 0:
                factor[block] /= np.sqrt(max(int(np.count_nonzero(alive)), 1))
            start += width
        used = sum(bool(factor[sum(widths[:k]) : sum(widths[: k + 1])].any()) for k in range(len(widths)))
        return cls(mean, factor / np.sqrt(max(used, 1)))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(M, D) float32, scaled; ValueError for another width or a number that is not finite, before or after."""
        features = _matrix(features)
        if features.shape[1] != len(self.mean):
            raise ValueError(f"features must have {len(self.mean)} columns; got {features.shape[1]}")
        scaled = np.empty(features.shape, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for part in _parts(features):
                scaled[part] = (features[part] - self.mean) * self.factor
        check_finite("scaled features", scaled)
        return scaled


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of columns, (D,) float64; not finite where squares overflow."""
    square = np.zeros(features.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):
        mean = features.mean(0, dtype=np.float64)
        for part in _parts(features):
            square += np.square(features[part] - mean).sum(0)
    return mean, np.sqrt(square / len(features))


def _parts(features: np.ndarray) -> Iterator[slice]:
    """Blocks of rows, so that no float64 copy of the whole is made."""
    height = max(_NUMBERS // features.shape[1], 1)
    return (slice(start, start + height) for start in range(0, len(features), height))


def _matrix(features: np.ndarray) -> np.ndarray:
    found = np.asarray(features)
    if found.dtype.kind not in "fiu":
        raise TypeError(f"features must be real numbers; got {found.dtype}")
    if found.ndim != 2 or 0 in found.shape:
        raise ValueError(f"features must have shape (N, D) with N >= 1 and D >= 1; got {found.shape}")
    check_finite("features", found)
    return found
