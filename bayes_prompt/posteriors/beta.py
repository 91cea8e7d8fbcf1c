"""Posterior of `SuccessRate` with a Beta prior: conjugate counts with forgetting (MoPPS, arXiv 2507.04632)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayes_prompt.posteriors import checks
from bayes_prompt.posteriors.base import Counts, Posterior

if TYPE_CHECKING:
    from bayes_prompt.models.success_rate import SuccessRate

_CHUNK = 1 << 18  # rows that are worked on in float64 at a time, so that a large pool needs no second copy of itself


class BetaPosterior(Posterior):
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
        self._prior_alpha = self._prior_of("alpha", tables.alpha if alpha is None else alpha)
        self._prior_beta = self._prior_of("beta", tables.beta if beta is None else beta)
        self._own_prior = {}
        if alpha is not None:
            both = torch.stack([self._prior_alpha, self._prior_beta]).cpu().double()
            self._own_prior = {"alpha_beta": hashlib.sha256(both.numpy().tobytes()).hexdigest()[:16]}
        self.alpha: Tensor = self._prior_alpha.expand(num_prompts).clone()
        self.beta: Tensor = self._prior_beta.expand(num_prompts).clone()

    def success_rate(self, index: Tensor | None = None) -> Tensor:
        """alpha / (alpha + beta), (N,), or (B,) for the rows `index`."""
        alpha, beta = self._rows(index)
        return alpha / (alpha + beta)

    def informative_probability(self, trials: int, index: Tensor | None = None) -> Tensor:
        """1 - E[p^G] - E[(1-p)^G] with the moments of the Beta, (N,), or (B,) for the rows `index`."""
        trials = checks.group_size("trials", trials)

        def mixed(alpha: Tensor, beta: Tensor) -> Tensor:
            all_right, all_wrong = torch.ones_like(alpha), torch.ones_like(alpha)
            for i in range(trials):
                all_right *= (alpha + i) / (alpha + beta + i)
                all_wrong *= (beta + i) / (alpha + beta + i)
            return (1 - all_right - all_wrong).clamp(0, 1)

        return self._wide(mixed, index)

    def expected_variance(self, index: Tensor | None = None) -> Tensor:
        """E[p (1 - p)] = alpha beta / ((alpha + beta) (alpha + beta + 1)), (N,), or (B,) for the rows `index`."""
        return self._wide(lambda a, b: a / (a + b) * b / (a + b + 1), index)

    def entropy(self, index: Tensor | None = None) -> Tensor:
        """Differential entropy of the Beta in nats, (N,) or (B,): 0 for the uniform, negative for the well known."""

        def differential(a: Tensor, b: Tensor) -> Tensor:
            log_beta = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
            digammas = (a - 1) * torch.digamma(a) + (b - 1) * torch.digamma(b) - (a + b - 2) * torch.digamma(a + b)
            return log_beta - digammas

        return self._wide(differential, index)

    def sample_success_rate(self, seed: int, step: int) -> Tensor:
        """One draw from every prompt's Beta, (N,)."""
        out = torch.empty_like(self.alpha)
        self._kernel("thompson").sample_beta(self.alpha, self.beta, seed, step, self.first_prompt, out)
        return out

    def _rows(self, index: Tensor | None) -> tuple[Tensor, Tensor]:
        if index is None:
            return self.alpha, self.beta
        index = index.to(self.device)
        return self.alpha[index], self.beta[index]

    def _wide(self, function: Any, index: Tensor | None) -> Tensor:
        """A function of (alpha, beta) in float64, whose differences would lose every digit in float32."""
        alpha, beta = self._rows(index)
        out = torch.empty_like(alpha)
        for start in range(0, alpha.numel(), _CHUNK):
            part = slice(start, start + _CHUNK)
            out[part] = function(alpha[part].double(), beta[part].double())
        return out

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

    def _apply(self, counts: Counts, slot: Tensor, elapsed: float) -> None:
        rows = counts.index.clamp(max=self.num_prompts - 1)
        evidence = _beta_binomial(self.alpha[rows], self.beta[rows], counts.successes, counts.trials)
        total = torch.where(counts.leader, evidence, 0.0).sum()
        self._counters["log_evidence"] += total
        self._counters["log_count_evidence"] += total
        self._kernel("beta_filter").advance(
            self.alpha,
            self.beta,
            self._prior_alpha,
            self._prior_beta,
            slot,
            torch.where(counts.leader, counts.index, rows),
            counts.successes,
            counts.trials,
            self.model.decay**elapsed,
            self.model.decay_unobserved,
        )

    def _warm_start(self, counts: Counts) -> None:
        rows = counts.index[counts.leader]
        self.alpha[rows] += counts.successes[counts.leader].to(self.dtype)
        self.beta[rows] += (counts.trials - counts.successes)[counts.leader].to(self.dtype)

    def _prior_of(self, name: str, values: Tensor) -> Tensor:
        values = torch.as_tensor(values).to(self.device, self.dtype).reshape(-1)
        if values.numel() not in (1, self.num_prompts):
            raise ValueError(f"{name} must have shape ({self.num_prompts},); got {tuple(values.shape)}")
        bad = ~(torch.isfinite(values) & (values >= torch.finfo(self.dtype).tiny))
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(f"{name}[{row}] = {float(values[row])} must be finite and greater than 0 in {self.dtype}")
        return values.contiguous()


def _beta_binomial(alpha: Tensor, beta: Tensor, successes: Tensor, trials: Tensor) -> Tensor:
    """log P(successes) under a Beta-Binomial, binomial coefficient included; all (M,), float64."""
    a, b, s, n = (values.double() for values in (alpha, beta, successes, trials))

    def log_beta(x: Tensor, y: Tensor) -> Tensor:
        return torch.lgamma(x) + torch.lgamma(y) - torch.lgamma(x + y)

    coefficient = torch.lgamma(n + 1) - torch.lgamma(s + 1) - torch.lgamma(n - s + 1)
    return coefficient + log_beta(a + s, b + n - s) - log_beta(a, b)
