"""The same operations by other means on the host: dictionaries of small arrays, and vectorised numpy in float64.

The DPS step follows the equations of the paper (arXiv 2603.10887) with uniform priors; written for this comparison. The
batch that it observes has distinct rows.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class ProgressPeer(Protocol):
    """Another way to do a DPS step; arrays are the library's own, numpy's or torch's."""

    def __init__(self, num_prompts: int, decay: float, device: str) -> None: ...

    def start(self, belief: Tensor, concentration: Tensor) -> None:
        """Take over the state of N prompts, (N, 3) and (N, 3, 3); the last posterior is set to the belief."""

    def update(self, index: Any, successes: Any, trials: int) -> None:
        """Learn from counts (B,) of the distinct rows `index` (B,), and let all prompts take a step."""

    def select(self, batch_size: int) -> Any:
        """The rows (batch_size,) that are most surely partially solved."""

    def beliefs(self) -> Any:
        """The belief of every prompt, (N, 3)."""


class DictOfArrays:
    """As published: one small array a prompt in dictionaries keyed by strings, and a Python loop over all of them."""

    def __init__(self, num_prompts: int, decay: float, device: str = "cpu") -> None:
        self.keys = [str(n) for n in range(num_prompts)]
        self.decay = decay
        self.rng = np.random.default_rng(0)
        self.concentration = {key: np.ones((3, 3)) for key in self.keys}
        self.belief = {key: np.full(3, 1 / 3) for key in self.keys}
        self.posterior = {key: np.full(3, 1 / 3) for key in self.keys}

    def start(self, belief: Tensor, concentration: Tensor) -> None:
        """Take over (N, 3) and (N, 3, 3)."""
        for key, row, counts in zip(self.keys, _float64(belief), _float64(concentration), strict=True):
            self.belief[key], self.posterior[key], self.concentration[key] = row.copy(), row.copy(), counts.copy()

    def update(self, index: Ints, successes: Ints, trials: int) -> None:
        """One step; index and successes (B,)."""
        observed = [str(n) for n in index]
        for key, count in zip(observed, successes, strict=True):
            likelihood = np.zeros(3)
            likelihood[_state(count, trials)] = 1.0
            self._step(key, likelihood, learn=True)
        for key in self.keys:
            if key not in observed:  # a list: every prompt is looked for among the batch
                self._step(key, np.ones(3), learn=False)

    def _step(self, key: str, likelihood: Floats, learn: bool) -> None:
        concentration = self.concentration[key]
        transition = concentration / concentration.sum(axis=1, keepdims=True)
        state = self.belief[key] * likelihood
        state = state / state.sum()
        moved = self.decay * concentration + (1 - self.decay)
        if learn:
            pairs = self.posterior[key][:, None] * transition * likelihood[None, :]
            moved = moved + pairs / pairs.sum()
        self.concentration[key], self.posterior[key] = moved, state
        self.belief[key] = state @ (moved / moved.sum(axis=1, keepdims=True))

    def select(self, batch_size: int) -> Ints:
        """The best rows (batch_size,), by a full sort."""
        ranked = sorted(self.keys, key=lambda key: (-self.belief[key][1], self.rng.random()))
        return np.array([int(key) for key in ranked[:batch_size]])

    def beliefs(self) -> Floats:
        """(N, 3)."""
        return np.stack([self.belief[key] for key in self.keys])


class Vectorised:
    """All prompts in (N, 3, 3) and (N, 3) float64 arrays."""

    def __init__(self, num_prompts: int, decay: float, device: str = "cpu") -> None:
        self.decay = decay
        self.rng = np.random.default_rng(0)
        self.concentration = np.ones((num_prompts, 3, 3))
        self.belief = np.full((num_prompts, 3), 1 / 3)
        self.posterior = self.belief.copy()

    def start(self, belief: Tensor, concentration: Tensor) -> None:
        """Take over (N, 3) and (N, 3, 3)."""
        self.belief[:], self.posterior[:] = _float64(belief), _float64(belief)
        self.concentration[:] = _float64(concentration)

    def update(self, index: Ints, successes: Ints, trials: int) -> None:
        """One step; index and successes (B,)."""
        shown = _state(successes, trials)
        likelihood = np.ones_like(self.belief)
        likelihood[index] = np.eye(3)[shown]
        state = self.belief * likelihood
        state /= state.sum(axis=1, keepdims=True)
        rows = self.concentration[index]
        pairs = self.posterior[index][:, :, None] * (rows / rows.sum(axis=2, keepdims=True))
        pairs = pairs * likelihood[index][:, None, :]
        self.concentration *= self.decay
        self.concentration += 1 - self.decay
        self.concentration[index] += pairs / pairs.sum(axis=(1, 2), keepdims=True)
        transition = self.concentration / self.concentration.sum(axis=2, keepdims=True)
        self.posterior = state
        self.belief = np.einsum("nj,nji->ni", state, transition)

    def select(self, batch_size: int) -> Ints:
        """The best rows (batch_size,), best first, with random ties, nearly."""
        return argpartition(self.belief[:, 1] + 1e-12 * self.rng.random(len(self.belief)), batch_size)

    def beliefs(self) -> Floats:
        """(N, 3)."""
        return self.belief


class NumpyThompson:
    """Beta draws by numpy in float64: `numpy.random.beta`, or the newer generator's where `generator` is True."""

    def __init__(self, alpha: Tensor, beta: Tensor, generator: bool) -> None:
        self.alpha, self.beta = _float64(alpha), _float64(beta)
        self._beta = np.random.default_rng(0).beta if generator else np.random.RandomState(0).beta

    def draw(self) -> Floats:
        """One draw of every prompt, (N,)."""
        return self._beta(self.alpha, self.beta)

    def select(self, batch_size: int) -> Ints:
        """The rows (batch_size,) whose draws are nearest to 0.5."""
        return argpartition(-np.abs(self.draw() - 0.5), batch_size)


def argpartition(scores: NDArray[Any], batch_size: int) -> Ints:
    """The rows (batch_size,) of the best of `scores` (N,), best first; the order among ties is numpy's."""
    best = np.argpartition(-scores, batch_size)[:batch_size]
    return best[np.argsort(-scores[best])]


def _state(successes: Ints, trials: int) -> Ints:
    return np.where(successes == 0, 0, np.where(successes == trials, 2, 1))


def _float64(values: Tensor) -> Floats:
    return values.detach().cpu().double().numpy()
