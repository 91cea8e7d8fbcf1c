"""The posterior of `LogitGaussian`: a Gaussian over the logit of every success rate (KGPS, arXiv 2607.27610)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from bayes_prompt.checkpoint import require_no_less
from bayes_prompt.errors import CheckpointError
from bayes_prompt.kernels import rng
from bayes_prompt.kernels.tally import Observations
from bayes_prompt.models.kalman import LARGEST_LOGIT
from bayes_prompt.models.numerics import log_binomial
from bayes_prompt.posteriors import checks, looks
from bayes_prompt.posteriors.base import Counts, Posterior
from bayes_prompt.posteriors.logit_gaussian import expectation, mixed, polya_gamma, tilted

if TYPE_CHECKING:
    from bayes_prompt.models.kalman import LogitGaussian

_CELLS = 1 << 15  # rows times nodes that are worked on at a time on a CPU: the temporaries then stay in its cache
_LANES = 32  # numbers that fill whole vector registers, of whatever type and machine
_LONGEST = 1e300  # the clock stops there, so that it never becomes infinite


class KalmanPosterior(Posterior):
    """Normal(mean, variance) over the logit of the success rate of each of N prompts.

    A row is written when its prompt is observed. What time does to the others is the same for all of them, so that a
    clock and the time of each row's last observation tell it: a step costs M rows, not N.

    Args:
        model: the declaration; its prior is lowered to `dtype` on `device`.
        num_prompts: N. The other keywords are those of `Posterior`.
    """

    def __init__(
        self,
        model: LogitGaussian,
        num_prompts: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: str = "auto",
        first_prompt: int = 0,
    ) -> None:
        super().__init__(num_prompts, device=device, dtype=dtype, backend=backend, first_prompt=first_prompt)
        self.model = model
        tables = model.lower(dtype, self.device)
        if tables.mean.numel() not in (1, self.num_prompts):
            raise ValueError(f"prior has {tables.mean.numel()} entries, but num_prompts is {self.num_prompts}")
        # One row more than there are prompts, where entries that do not count are written without being looked for.
        nobody = (0, 1)
        with torch.inference_mode(False):  # kept beyond this call, and written to
            self._mean = pad(tables.mean.expand(self.num_prompts), nobody)
            self._variance = pad(tables.variance.expand(self.num_prompts), nobody, value=1.0)
            self._seen_at = torch.zeros(self.num_prompts + 1, dtype=torch.float64, device=self.device)
            self._clock = torch.zeros((), dtype=torch.float64, device=self.device)

    @property
    def mean(self) -> Tensor:
        """Mean of the logit at the coming rollout, (N,)."""
        return self._moments(None)[0].to(self.dtype)

    @property
    def variance(self) -> Tensor:
        """Variance of the logit at the coming rollout, (N,)."""
        return self._moments(None)[1].to(self.dtype)

    def success_rate(self, index: Tensor | None = None) -> Tensor:
        """E[sigmoid(logit)], (N,), or (B,) for the rows `index`."""
        return self._expected(torch.sigmoid, index)

    def informative_probability(self, trials: int | Tensor, index: Tensor | None = None) -> Tensor:
        """E[1 - p^G - (1-p)^G] over the Gaussian, (N,), or (B,) for the rows `index`."""
        if isinstance(trials, Tensor):
            rows = self.num_prompts if index is None else torch.as_tensor(index).numel()
            return self._expected(mixed, index, checks.group_sizes("trials", trials, rows).to(self.device))
        size = checks.group_size("trials", trials)
        return self._expected(lambda logit: mixed(logit, size), index)

    def expected_variance(self, index: Tensor | None = None) -> Tensor:
        """E[p (1 - p)] over the Gaussian, (N,), or (B,) for the rows `index`."""
        return self._expected(lambda logit: torch.sigmoid(logit) * torch.sigmoid(-logit), index)

    def entropy(self, index: Tensor | None = None) -> Tensor:
        """Differential entropy of the logit in nats, log(2 pi e variance) / 2, (N,) or (B,): it has no lower bound."""
        _, variance = self._moments(index)
        return _in_parts(lambda v: (2 * math.pi * math.e * v).log() / 2, _CELLS, variance).to(self.dtype)

    def sample_success_rate(self, seed: int, step: int) -> Tensor:
        """sigmoid of one draw of every prompt's logit, (N,): Box and Muller's, of two random words."""
        mean, variance = self._moments(None)
        prompts = torch.arange(self.first_prompt, self.first_prompt + self.num_prompts, device=self.device)

        def draw(mean: Tensor, variance: Tensor, prompts: Tensor) -> Tensor:
            words = rng.words(seed, step, prompts, rng.LOGIT)
            radius, angle, _, _ = (rng.uniform(word, torch.float64) for word in words)
            normal = (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()
            return torch.sigmoid(mean + variance.sqrt() * normal)

        return _in_parts(draw, _CELLS, mean, variance, prompts).to(self.dtype)

    def _point_mass(self, index: Tensor) -> Tensor:
        """What the Gaussian has between the middles, in the angle, of `looks.rates`: narrow beliefs are not missed."""
        mean, variance = self._moments(index)
        angle = torch.arange(1, looks.POINTS, dtype=torch.float64, device=self.device) * (math.pi / 2 / looks.POINTS)
        below = torch.special.ndtr((2 * angle.tan().log() - mean[:, None]) / variance.sqrt()[:, None])
        return pad(pad(below, (1, 0)), (0, 1), value=1.0).diff(dim=1)

    def _point_worth(self, trials: int) -> Tensor:
        return mixed(torch.logit(looks.rates(self.device)), trials)

    def _point_later(self, trials: int, index: Tensor) -> Tensor:
        if self.model.drift == self.model.trend == 0:
            return self._point_worth(trials)
        logit = torch.logit(looks.rates(self.device)) + self.model.trend
        spread = torch.full_like(logit, self.model.drift**2).clamp(min=torch.finfo(torch.float64).tiny)
        return expectation(lambda later: mixed(later, trials), logit, spread, self.model.points)

    def _point_chance(self, trials: int) -> Tensor:
        return looks.binomial(looks.rates(self.device), trials)

    def _moments(self, index: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance of the logit now, (N,) or (B,), in float64."""
        rows = slice(self.num_prompts) if index is None else self._checked(index)
        rested = self._clock - self._seen_at[rows]
        mean = self._mean[rows].double() + self.model.trend * rested
        variance = self._variance[rows].double() + self.model.drift**2 * rested
        return mean.clamp(-LARGEST_LOGIT, LARGEST_LOGIT), variance.clamp(max=LARGEST_LOGIT**2)

    def _expected(self, function: Callable[..., Tensor], index: Tensor | None, *columns: Tensor) -> Tensor:
        """E[function(logit, *columns)] for the rows `index`; columns of one number a row."""
        points = self.model.points

        def part(mean: Tensor, variance: Tensor, *values: Tensor) -> Tensor:
            each = [column[:, None] for column in values]
            return expectation(lambda logit: function(logit, *each), mean, variance, points)

        return _in_parts(part, _CELLS // points, *self._moments(index), *columns).to(self.dtype)

    def _conditioned(self, counts: Counts) -> tuple[Tensor, Tensor, Tensor]:
        """Log probability of each entry's counts, and the mean and variance that they leave, (M,) float64."""
        points = 4 * self.model.points

        def part(mean: Tensor, variance: Tensor, successes: Tensor, trials: Tensor) -> Tensor:
            given = mean, variance, successes.double(), trials.double()
            evidence, *moments = tilted(*given, points)
            if self.model.method == "polya_gamma":
                moments = list(polya_gamma(*given))
            return torch.stack((evidence, *moments), 1)

        belief = self._moments(counts.index.clamp(max=self.num_prompts - 1))
        found = _in_parts(part, _CELLS // points, *belief, counts.successes, counts.trials)
        log_chance, mean, variance = found.unbind(1)
        failures = (counts.trials - counts.successes).double()
        return log_chance + log_binomial(failures + 1, counts.successes.double()), mean, variance

    def _write(self, counts: Counts, mean: Tensor, variance: Tensor) -> None:
        rows = torch.where(counts.leader, counts.index, self.num_prompts)
        self._mean[rows] = mean.clamp(-LARGEST_LOGIT, LARGEST_LOGIT).to(self._mean.dtype)
        self._variance[rows] = variance.clamp(min=torch.finfo(self.dtype).tiny).to(self._variance.dtype)
        self._seen_at[rows] = self._clock

    def _apply(self, counts: Counts, elapsed: float) -> Observations:
        evidence, mean, variance = self._conditioned(counts)
        rows = counts.index.clamp(max=self.num_prompts - 1)
        expected = self.informative_probability(counts.trials, rows), self.success_rate(rows)
        self._write(counts, mean, variance)
        self._clock.add_(elapsed).clamp_(max=_LONGEST)
        seen = (counts.index, counts.successes, counts.trials, evidence)
        return Observations(*seen, torch.zeros_like(evidence), torch.zeros_like(rows, dtype=torch.int32), *expected)

    def _warm_start(self, counts: Counts) -> None:
        _, mean, variance = self._conditioned(counts)
        self._write(counts, mean, variance)

    def _describe(self) -> dict[str, Any]:
        return {
            "model": self.model.describe(),
            "num_prompts": self.num_prompts,
            "first_prompt": self.first_prompt,
            "dtype": str(self.dtype),
        }

    def _tensors(self) -> dict[str, Tensor]:
        rows = slice(self.num_prompts)
        return {
            "mean": self._mean[rows],
            "variance": self._variance[rows],
            "seen_at": self._seen_at[rows],
            "clock": self._clock,
        }

    def _check_belief(self, tensors: Mapping[str, Tensor]) -> None:
        require_no_less("posterior.tensors.variance", tensors["variance"], torch.finfo(self.dtype).tiny)
        require_no_less("posterior.tensors.seen_at", tensors["seen_at"], 0)
        if bool((tensors["seen_at"] > tensors["clock"]).any()):
            raise CheckpointError("posterior.tensors.seen_at has rows that were seen after posterior.tensors.clock")


def _in_parts(function: Callable[..., Tensor], size: int, *columns: Tensor) -> Tensor:
    """function(*columns) of (M,) columns, at most `size` rows at a time; on an accelerator a hundred times as many."""
    if columns[0].device.type != "cpu":
        size *= 128
    parts = []
    for part in zip(*(column.split(max(size, 1)) for column in columns), strict=True):
        # What does not fill a vector register is computed by other instructions, and rounded otherwise: rows are added
        # so that a prompt's answer does not depend on how many others are asked about.
        rows = len(part[0])
        filled = (torch.cat((column, column[-1:].expand(-rows % _LANES))) for column in part)
        parts.append(function(*filled)[:rows])
    return parts[0] if len(parts) == 1 else torch.cat(parts)
