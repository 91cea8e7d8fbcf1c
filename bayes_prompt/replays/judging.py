"""How well P(informative) fits what came out, and which prompts were neglected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 10  # of equal width, for calibration
LEAST = 1e-6  # a probability of what happened below this counts as this: no single surprise is an infinite loss


@dataclass(frozen=True)
class Bin:
    """Prompts, over all visits, whose P(informative) lay in one bin: how many, its mean, and the share that was."""

    count: int
    predicted: float
    observed: float


class Judge:
    """Adds up, visit by visit, how well probabilities fit what came out.

    Every pair of visit and prompt weighs the same in the log loss, the Brier score and the bins; the AUC is a mean over
    visits, since a pick compares the prompts of one visit.
    """

    def __init__(self) -> None:
        self._fit = True
        self._pairs, self._loss, self._square = 0, 0.0, 0.0
        self._order: list[float] = []
        self._bins = np.zeros((3, BINS))

    def add(self, chance: np.ndarray, true: np.ndarray) -> None:
        """Judge the probabilities of one visit, (M,), by what came out, (M,) bool. NaN among them: never mind any."""
        chance = chance.astype(np.float64)
        if not self._fit or not np.isfinite(chance).all():
            self._fit = False
            return
        self._pairs += len(true)
        self._loss -= float(np.log(np.where(true, chance, 1 - chance).clip(LEAST, 1.0)).sum())
        self._square += float(((chance - true) ** 2).sum())
        self._order.append(auc(chance, true))
        place = (chance * BINS).astype(np.int64).clip(0, BINS - 1)
        for row, weights in enumerate((np.ones_like(chance), chance, true)):
            self._bins[row] += np.bincount(place, weights, BINS)

    @property
    def judged(self) -> bool:
        """Whether there were visits to judge, and probabilities throughout."""
        return self._fit and self._pairs > 0

    @property
    def log_loss(self) -> float:
        """Mean of -log P(what came out), in nats; NaN where nothing was judged, like all that follow."""
        return self._loss / self._pairs if self.judged else np.nan

    @property
    def brier(self) -> float:
        """Mean squared distance to what came out, 0 or 1."""
        return self._square / self._pairs if self.judged else np.nan

    @property
    def auc(self) -> float:
        """Mean over visits of `auc`; visits at which all prompts came out alike have none."""
        values = [value for value in self._order if not np.isnan(value)]
        return float(np.mean(values)) if self.judged and values else np.nan

    @property
    def bins(self) -> tuple[Bin, ...]:
        """The `BINS` bins, from 0 to 1; empty ones have NaN. None at all where nothing was judged."""
        return bins_of(self._bins) if self.judged else ()


def auc(chance: np.ndarray, true: np.ndarray) -> float:
    """The chance that a prompt that came out true had the higher probability than one that did not; ties count half.

    chance: (M,). true: (M,) bool. NaN where all came out alike.
    """
    hits, others = chance[true], np.sort(chance[~true])
    if not len(hits) or not len(others):
        return np.nan
    below = np.searchsorted(others, hits, "left") + np.searchsorted(others, hits, "right")
    return float(below.mean() / 2 / len(others))


def bins_of(sums: np.ndarray) -> tuple[Bin, ...]:
    """Bins from the sums (3, BINS) of ones, of probabilities, and of what came out."""
    with np.errstate(invalid="ignore"):
        predicted, observed = sums[1:] / sums[0]
    return tuple(Bin(int(n), float(p), float(o)) for n, p, o in zip(sums[0], predicted, observed, strict=True))


def pooled(bins: tuple[tuple[Bin, ...], ...]) -> tuple[Bin, ...]:
    """The bins of several runs as those of one; none where none has any."""
    sums = np.zeros((3, BINS))
    for run in bins:
        for place, each in enumerate(run):
            if each.count:
                sums[:, place] += each.count, each.count * each.predicted, each.count * each.observed
    return bins_of(sums) if any(bins) else ()


def calibration_error(bins: tuple[Bin, ...]) -> float:
    """Expected calibration error: the mean gap between predicted and observed, bins weighted by their prompts."""
    total = sum(each.count for each in bins)
    gaps = sum(each.count * abs(each.predicted - each.observed) for each in bins if each.count)
    return gaps / total if total else np.nan


class Absences:
    """How long each of N prompts was not picked: the longest run of visits, from the first to the last of all."""

    def __init__(self, num_prompts: int) -> None:
        self._last = np.full(num_prompts, -1)
        self._longest = np.zeros(num_prompts, np.int64)
        self._visits = 0

    def add(self, picked: np.ndarray) -> None:
        """One more visit, at which the rows (B,) were picked."""
        self._longest[picked] = np.maximum(self._longest[picked], self._visits - self._last[picked] - 1)
        self._last[picked] = self._visits
        self._visits += 1

    @property
    def longest(self) -> np.ndarray:
        """Of every prompt, (N,)."""
        return np.maximum(self._longest, self._visits - self._last - 1)

    @property
    def coverage(self) -> float:
        """Share of the prompts that were ever picked."""
        return float((self._last >= 0).mean())
