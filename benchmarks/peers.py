"""The same DPS step done in two other ways, for comparison: a dictionary of small arrays, and vectorised numpy.

Both follow the equations of DPS (arXiv 2603.10887) in float64, with uniform priors; written for this comparison.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class DictOfArrays:
    """One small array a prompt in dictionaries keyed by strings, and a Python loop over all of them."""

    def __init__(self, num_prompts: int, decay: float) -> None:
        self.keys = [str(n) for n in range(num_prompts)]
        self.decay = decay
        self.concentration = {key: np.ones((3, 3)) for key in self.keys}
        self.belief = {key: np.full(3, 1 / 3) for key in self.keys}
        self.posterior = {key: np.full(3, 1 / 3) for key in self.keys}

    def update(self, index: Ints, successes: Ints, trials: int) -> None:
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

    def select(self, batch_size: int, rng: np.random.Generator) -> Ints:
        ranked = sorted(self.keys, key=lambda key: (-self.belief[key][1], rng.random()))
        return np.array([int(key) for key in ranked[:batch_size]])

    def beliefs(self) -> Floats:
        return np.stack([self.belief[key] for key in self.keys])


class Vectorised:
    """All prompts in (N, 3, 3) and (N, 3) float64 arrays."""

    def __init__(self, num_prompts: int, decay: float) -> None:
        self.decay = decay
        self.concentration = np.ones((num_prompts, 3, 3))
        self.belief = np.full((num_prompts, 3), 1 / 3)
        self.posterior = self.belief.copy()

    def update(self, index: Ints, successes: Ints, trials: int) -> None:
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

    def select(self, batch_size: int, rng: np.random.Generator) -> Ints:
        scores = self.belief[:, 1] + 1e-12 * rng.random(len(self.belief))  # random ties, nearly
        best = np.argpartition(-scores, batch_size)[:batch_size]
        return best[np.argsort(-scores[best])]

    def beliefs(self) -> Floats:
        return self.belief


def _state(successes: Ints, trials: int) -> Ints:
    return np.where(successes == 0, 0, np.where(successes == trials, 2, 1))
