"""Beta beliefs, and the posterior of `SuccessRate`: conjugate counts with forgetting (MoPPS, arXiv 2507.04632)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayes_prompt.checkpoint import require_no_less
from bayes_prompt.kernels.shortlist import Shortlist
from bayes_prompt.kernels.tally import Observations
from bayes_prompt.models import checks as model_checks
from bayes_prompt.posteriors import beta_functions, checks, looks
from bayes_prompt.posteriors.base import Counts, Posterior

if TYPE_CHECKING:
    from bayes_prompt.models.success_rate import SuccessRate

_CHUNK = 1 << 18  # rows that are worked on in float64 at a time, so that a large pool needs no second copy of itself


class BetaBelief(Posterior):
    """Answers every question from the success rates' Beta(alpha, beta), which those who derive from it keep."""

    alpha: Tensor  # (N,)
    beta: Tensor  # (N,)

    def success_rate(self, index: Tensor | None = None) -> Tensor:
        """alpha / (alpha + beta), (N,), or (B,) for the rows `index`."""
        return beta_functions.mean(*self._rows(index))

    def informative_probability(self, trials: int | Tensor, index: Tensor | None = None) -> Tensor:
        """1 - E[p^G] - E[(1-p)^G] with the moments of the Beta, (N,), or (B,) for the rows `index`."""
        if isinstance(trials, Tensor):
            alpha, beta = self._rows(index)
            each = checks.group_sizes("trials", trials, alpha.numel()).to(self.device)
            return beta_functions.mixed_probability(alpha.double(), beta.double(), each).to(self.dtype)
        trials = checks.group_size("trials", trials)
        return self._wide(lambda a, b: beta_functions.mixed_probability(a, b, trials), index)

    def expected_variance(self, index: Tensor | None = None) -> Tensor:
        """E[p (1 - p)] = alpha beta / ((alpha + beta) (alpha + beta + 1)), (N,), or (B,) for the rows `index`."""
        return self._wide(lambda a, b: a / (a + b) * b / (a + b + 1), index)

    def entropy(self, index: Tensor | None = None) -> Tensor:
        """Differential entropy of the Beta in nats, (N,) or (B,): 0 for the uniform, negative for the well known."""
        return self._wide(beta_functions.entropy, index)

    def sample_success_rate(self, seed: int, step: int) -> Tensor:
        """One draw from every prompt's Beta, (N,)."""
        out = torch.empty_like(self.alpha)
        self._kernel("thompson").sample_beta(self.alpha, self.beta, seed, step, self.first_prompt, out)
        return out

    def _point_mass(self, index: Tensor) -> Tensor:
        """The Beta's density at `looks.rates`, made to sum to one."""
        rate = looks.rates(self.device)
        # With respect to the angle, in which the points are even: half a power less at either end.
        alpha, beta = self.alpha[index].double()[:, None] - 0.5, self.beta[index].double()[:, None] - 0.5
        return torch.softmax(alpha * rate.log() + beta * torch.log1p(-rate), 1)

    def _point_worth(self, trials: int) -> Tensor:
        rate = looks.rates(self.device)
        return 1 - rate**trials - (1 - rate) ** trials

    def _point_chance(self, trials: int) -> Tensor:
        return looks.binomial(looks.rates(self.device), trials)

    def _rows(self, index: Tensor | None) -> tuple[Tensor, Tensor]:
        if index is None:
            return self.alpha, self.beta
        rows = self._checked(index)
        return self.alpha[rows], self.beta[rows]

    def _wide(self, function: Any, index: Tensor | None) -> Tensor:
        """A function of (alpha, beta) in float64, whose differences would lose every digit in float32."""
        alpha, beta = self._rows(index)
        out = torch.empty_like(alpha)
        for start in range(0, alpha.numel(), _CHUNK):
            part = slice(start, start + _CHUNK)
            out[part] = function(alpha[part].double(), beta[part].double())
        return out

    def _observations(self, counts: Counts) -> Observations:
        """What was observed, and what had been expected of it."""
        rows = counts.index.clamp(max=self.num_prompts - 1)
        alpha, beta = self.alpha[rows].double(), self.beta[rows].double()
        evidence = beta_functions.log_beta_binomial(alpha, beta, counts.successes, counts.trials)
        expected = self.informative_probability(counts.trials, rows), self.success_rate(rows)
        seen = (counts.index, counts.successes, counts.trials, evidence)
        return Observations(*seen, torch.zeros_like(evidence), torch.zeros_like(rows, dtype=torch.int32), *expected)


class BetaPosterior(BetaBelief):
    """Beta(alpha, beta) over the success rate of each of N prompts.

    Args:
        model: the declaration; its prior is lowered to `dtype` on `device`.
        num_prompts: N. The other keywords are those of `Posterior`.
        alpha, beta: (N,) a prior for each prompt, in place of the model's; both or neither.
    """

    def __init__(
        self,
        model: SuccessRate,
        num_prompts: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: str = "auto",
        first_prompt: int = 0,
        alpha: Tensor | None = None,
        beta: Tensor | None = None,
    ) -> None:
        super().__init__(num_prompts, device=device, dtype=dtype, backend=backend, first_prompt=first_prompt)
        self.model = model
        if (alpha is None) != (beta is None):
            raise ValueError("alpha and beta must be given together")
        tables = model.lower(dtype, self.device)
        self._prior_alpha = self._prior_of("alpha", tables.alpha if alpha is None else alpha, alpha is not None)
        self._prior_beta = self._prior_of("beta", tables.beta if beta is None else beta, beta is not None)
        self._own_prior = {}
        if alpha is not None:
            both = torch.stack([self._prior_alpha, self._prior_beta]).cpu().double()
            self._own_prior = {"alpha_beta": hashlib.sha256(both.numpy().tobytes()).hexdigest()[:16]}
        self.alpha: Tensor = self._prior_alpha.expand(num_prompts).clone()
        self.beta: Tensor = self._prior_beta.expand(num_prompts).clone()
        self._kept: tuple[int, Tensor, Shortlist] | None = None  # batch size, scores and shortlist of its picks

    def draw_scores(self, seed: int, step: int, low: float, high: float, batch: int) -> tuple[Tensor, Shortlist | None]:
        """See `Posterior`: drawn and scored in one pass."""
        if type(self).sample_success_rate is not BetaPosterior.sample_success_rate:
            return super().draw_scores(seed, step, low, high, batch)
        if self._kept is None or self._kept[0] != batch:
            with torch.inference_mode(False):  # kept beyond this call, and written to
                scores = torch.empty_like(self.alpha)
                self._kept = batch, scores, Shortlist.empty(batch, scores)
        _, scores, shortlist = self._kept
        self._kernel("thompson").score_beta(
            self.alpha, self.beta, seed, step, self.first_prompt, low, high, scores, shortlist
        )
        return scores, shortlist

    def _describe(self) -> dict[str, Any]:
        return {
            "model": self.model.describe(),
            "own_prior": self._own_prior,
            "num_prompts": self.num_prompts,
            "first_prompt": self.first_prompt,
            "dtype": str(self.dtype),
        }

    def _tensors(self) -> dict[str, Tensor]:
        return {"alpha": self.alpha, "beta": self.beta}

    def _check_belief(self, tensors: Mapping[str, Tensor]) -> None:
        for name, values in tensors.items():
            if name in ("alpha", "beta"):
                require_no_less(f"posterior.tensors.{name}", values, torch.finfo(self.dtype).tiny)

    def _apply(self, counts: Counts, elapsed: float) -> Observations:
        seen = self._observations(counts)
        self._kernel("beta_filter").advance(
            self.alpha,
            self.beta,
            self._prior_alpha,
            self._prior_beta,
            counts.index,
            counts.successes,
            counts.trials,
            self.model.single_decay**elapsed,
            self.model.decay_unobserved,
        )
        return seen

    def _warm_start(self, counts: Counts) -> None:
        rows = counts.index[counts.leader]
        self.alpha[rows] += counts.successes[counts.leader].to(self.dtype)
        self.beta[rows] += (counts.trials - counts.successes)[counts.leader].to(self.dtype)

    def _prior_of(self, name: str, values: Tensor, own: bool) -> Tensor:
        """A prior parameter, (N,) or where all prompts share it (1,); a copy, which no one else can change."""
        values = model_checks.real(name, values)
        if values.shape != (self.num_prompts,) and (own or values.shape != (1,)):
            raise ValueError(f"{name} must have shape ({self.num_prompts},); got {tuple(values.shape)}")
        cast = values.detach().to(self.device, self.dtype)
        bad = ~(torch.isfinite(cast) & (cast >= torch.finfo(self.dtype).tiny))
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(f"{name}[{row}] = {float(values[row])} must be finite and greater than 0 in {self.dtype}")
        return cast.clone(memory_format=torch.contiguous_format)
