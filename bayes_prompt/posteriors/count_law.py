"""What the success rates of a grid say about counts."""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_prompt.models.grid import Points

_NEVER = 1e4  # stands for the infinity of log 0, and is still one when it is multiplied by 0


class CountLaw:
    """Binomial counts at K success rates, all in float64. rate: (K,)."""

    def __init__(self, points: Points, device: torch.device) -> None:
        self.rate = points.rate.detach().to(device)
        self._log_rate = points.log_rate.detach().to(device).clamp(min=-_NEVER)
        self._log_failure = points.log_failure.detach().to(device).clamp(min=-_NEVER)

    def log_chance(self, successes: Tensor, trials: Tensor) -> Tensor:
        """log P(successes | trials, rate), (M, K), of counts (M,)."""
        won, lost = successes.double(), (trials - successes).double()
        ways = torch.lgamma(won + lost + 1) - torch.lgamma(won + 1) - torch.lgamma(lost + 1)
        return ways[:, None] + won[:, None] * self._log_rate + lost[:, None] * self._log_failure

    def mixed(self, trials: int | Tensor) -> Tensor:
        """P(0 < successes < trials | rate), (K,), or (M, K) for trials (M,)."""
        each = trials.double()[:, None] if isinstance(trials, Tensor) else trials
        mixed = (1 - (each * self._log_rate).exp() - (each * self._log_failure).exp()).clamp(min=0)
        return mixed * (each > 1)  # where rounding would be all there is
