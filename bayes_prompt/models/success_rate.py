"""SuccessRate: an unknown success rate for every prompt, with forgetting (MoPPS)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Beta

from bayes_prompt.errors import CannotLower
from bayes_prompt.models import checks

if TYPE_CHECKING:
    from bayes_prompt.history import History
    from bayes_prompt.posteriors.beta import BetaPosterior


@dataclass(frozen=True, eq=False)
class BetaTables:
    """A lowered `SuccessRate`: the numbers the kernels need.

    Attributes:
        alpha: (1,) or (N,) prior pseudo-counts of successes.
        beta: (1,) or (N,) prior pseudo-counts of failures.
        decay: what is left of observed counts after a step, in [0, 1].
        decay_unobserved: whether prompts that were not observed forget too.
    """

    alpha: Tensor
    beta: Tensor
    decay: float
    decay_unobserved: bool


@dataclass(frozen=True, eq=False)
class SuccessRate:
    """Every prompt has an unknown success rate; its rollouts are independent given the rate.

    Source: MoPPS (arXiv 2507.04632). An observation turns Beta(a, b) into decay * a + (1 - decay) * a0 + successes, and
    likewise b with failures.

    Args:
        prior: Beta with batch shape () for all prompts, or (N,), one for each prompt.
        decay: in [0, 1]; 1 never forgets and is exact Bayes, the published settings are 0.5 to 1.
        decay_unobserved: let prompts forget also in the steps in which they were not observed.

    Raises:
        CannotLower: `prior` is another distribution, or of another shape; the message says what would work.
        ValueError, TypeError: a number is out of range; the message names field and entry.
    """

    prior: Beta = field(default_factory=lambda: dist.Beta(1.0, 1.0))
    decay: float = 1.0
    decay_unobserved: bool = False

    def __post_init__(self) -> None:
        """Check every field."""
        what_works = "a Beta with batch shape () or (N,) works: dist.Beta(1.0, 1.0)"
        if not isinstance(self.prior, Beta):
            raise CannotLower(f"prior is a {type(self.prior).__name__}; {what_works}")
        if len(self.prior.batch_shape) > 1:
            raise CannotLower(f"prior has batch shape {tuple(self.prior.batch_shape)}; {what_works}")
        for name, values in zip(("alpha", "beta"), self._parameters(), strict=True):
            good = torch.isfinite(values) & (values > 0)
            checks.entries(f"prior: {name}", values, good, "must be positive and finite")
        checks.unit_interval("decay", self.decay)
        checks.flag("decay_unobserved", self.decay_unobserved)

    def lower(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> BetaTables:
        """The numbers the kernels need, evaluated in float64, then cast to `dtype` (float32 or float64) on `device`.

        Raises:
            CannotLower: a parameter of the prior, or the sum of the two, is not a normal number in `dtype`.
            TypeError: `dtype` is another one.
        """
        alpha, beta = (values.detach().cpu().reshape(-1) for values in self._parameters())
        checks.cast("prior", alpha + beta, dtype, "alpha + beta")
        return BetaTables(
            alpha=checks.cast("prior: alpha", alpha, dtype).to(device),
            beta=checks.cast("prior: beta", beta, dtype).to(device),
            decay=float(self.decay),
            decay_unobserved=self.decay_unobserved,
        )

    def describe(self) -> dict[str, Any]:
        """The model as JSON-able numbers and strings: equal exactly for models that filter alike.

        A prior that has an entry for each prompt is described by a digest of them.
        """
        alpha, beta = self._parameters()
        return {
            "model": "SuccessRate",
            "alpha": checks.summary(alpha),
            "beta": checks.summary(beta),
            "decay": float(self.decay),
            "decay_unobserved": self.decay_unobserved,
        }

    def posterior(
        self,
        num_prompts: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: str = "auto",
        first_prompt: int = 0,
        alpha: Tensor | None = None,
        beta: Tensor | None = None,
    ) -> BetaPosterior:
        """The online state of `num_prompts` prompts under this model.

        Args:
            num_prompts: N; it must agree with a prior that has one entry for each prompt.
            device: where the state lives.
            dtype: float32 or float64.
            backend: "auto", "reference", "cpu" or "triton".
            first_prompt: the number of row 0 within a larger pool; random draws depend on it, not on the chunking.
            alpha: (N,) prior pseudo-counts of successes, one for each prompt, in place of the prior's; with `beta`.
            beta: (N,) prior pseudo-counts of failures, likewise.

        Raises:
            CannotLower: as in `lower`.
            ValueError, TypeError: a shape or value of the per-prompt priors, or a backend that cannot be had.
        """
        from bayes_prompt.posteriors.beta import BetaPosterior

        return BetaPosterior(
            self,
            num_prompts,
            device=device,
            dtype=dtype,
            backend=backend,
            first_prompt=first_prompt,
            alpha=alpha,
            beta=beta,
        )

    def pyro_model(self, history: History) -> Tensor:
        """The generative model as a Pyro program over (steps x prompts), in float64.

        Sites: `rate` (N,), one for each prompt; `successes` (T, N), Binomial given the rate, masked where the history
        has no trials, observed where `history.successes` is given and else sampled. Plates: `prompts` (dim -1) and
        `steps` (dim -2). Use `max_plate_nesting=2`.

        `decay` has no generative counterpart: forgetting is a device of the online filter. With decay = 1 the filter is
        exact inference in this program.

        Args:
            history: counts (T, N), or trials alone to sample from the prior predictive.

        Returns:
            Successes (T, N) int64, 0 where the history has no trials.

        Raises:
            ValueError: the prior has one entry for each of a number of prompts that the history does not have.
        """
        trials = history.trials
        alpha, beta = (values.to(trials.device) for values in self._parameters())
        if alpha.ndim == 1 and len(alpha) not in (1, history.num_prompts):
            raise ValueError(f"prior has {len(alpha)} entries, but history has {history.num_prompts} prompts")
        seen = None if history.successes is None else history.successes.to(torch.float64)
        with pyro.plate("prompts", history.num_prompts, dim=-1):
            rate = pyro.sample("rate", dist.Beta(alpha, beta))
            with pyro.plate("steps", history.num_steps, dim=-2):
                law = dist.Binomial(trials.to(torch.float64), rate).mask(trials > 0)
                return pyro.sample("successes", law, obs=seen).long()

    def _parameters(self) -> tuple[Tensor, Tensor]:
        """Alpha and beta of the prior, () or (N,), float64; gradients reach the declaration."""
        return self.prior.concentration1.to(torch.float64), self.prior.concentration0.to(torch.float64)
