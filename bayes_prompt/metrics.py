"""Figures of a selector for a trainer's logger.

| figure | meaning |
|---|---|
| effective_sample_ratio | share of the last batch's groups with 0 < successes < trials |
| predicted_effective_sample_ratio | the same as the belief expected it before it saw them |
| success_rate, predicted_success_rate | share of the last batch's rollouts that succeeded; as expected before |
| pool_success_rate | posterior mean over the whole pool: a progress curve that selection does not bias (note 1) |
| belief_entropy | mean entropy of the pool's beliefs, nats |
| coverage | share of the pool that was ever observed |
| visits_min, visits_median, visits_max | steps in which a prompt was observed |
| unexpected, impossible | observations that the belief, or the transition prior, held to be impossible (so far) |
| groups, rollouts | observed so far |
| step | steps of time that have passed |
| in_flight, reused | prompts that are out now; picks that had to repeat one that was out (so far) |

Note 1: prompts not seen for long are back at the prior, which is 1/2 under DPS's uniform one, so that of a large pool
the figure says little there; Beta posteriors keep what they saw and follow progress.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from bayes_prompt.checkpoint import require_keys
from bayes_prompt.errors import CheckpointError
from bayes_prompt.posteriors.base import Posterior


@dataclass
class BatchRecord:
    """Sums over observed groups, as in `Posterior.record`: what was seen, and what had been expected of the same."""

    groups: int = 0
    rollouts: int = 0
    informative: int = 0
    successes: int = 0
    expected_informative: float = 0.0
    expected_successes: float = 0.0


class Metrics:
    """Keeps the record of the last step that had observations, and totals, where the posterior lives."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._record = torch.zeros(len(fields(BatchRecord)), dtype=torch.float64, device=device)
        self._totals = torch.zeros(2, dtype=torch.float64, device=device)  # groups, rollouts

    def close(self, record: Tensor) -> None:
        """End a step with its record (6,). One without observations leaves the figures of the last batch standing."""
        self._record = torch.where(record[:1] > 0, record, self._record)
        self._totals = self._totals + record[:2]

    @property
    def _last(self) -> BatchRecord:
        groups, rollouts, informative, successes, *expected = self._record.tolist()
        return BatchRecord(int(groups), int(rollouts), int(informative), int(successes), expected[0], expected[1])

    def figures(self, posterior: Posterior) -> dict[str, float]:
        """Figures that cost nothing to speak of; those of the last batch only once there was one."""
        groups, rollouts = self._totals.tolist()
        figures = {
            "unexpected": float(posterior.unexpected),
            "impossible": float(posterior.impossible),
            "groups": groups,
            "rollouts": rollouts,
            "step": float(posterior.step),
        }
        last = self._last
        if last.groups:
            figures["effective_sample_ratio"] = last.informative / last.groups
            figures["predicted_effective_sample_ratio"] = last.expected_informative / last.groups
            figures["success_rate"] = last.successes / last.rollouts
            figures["predicted_success_rate"] = last.expected_successes / last.rollouts
        return figures

    def state(self) -> dict[str, Any]:
        """Numbers for a checkpoint."""
        groups, rollouts = map(int, self._totals.tolist())
        return {"last": asdict(self._last), "totals": {"groups": groups, "rollouts": rollouts}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave; CheckpointError, and no change, where it is not that."""
        require_keys("metrics", state, ("last", "totals"))
        require_keys("metrics.totals", state["totals"], ("groups", "rollouts"))
        require_keys("metrics.last", state["last"], [field.name for field in fields(BatchRecord)])
        for part in ("last", "totals"):
            for name, value in state[part].items():
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if not number or not math.isfinite(value) or value < 0:
                    raise CheckpointError(f"metrics.{part}.{name} must be a finite number of at least 0; got {value!r}")
        last = BatchRecord(**state["last"])
        if not last.informative <= last.groups <= last.rollouts or last.successes > last.rollouts:
            raise CheckpointError(f"metrics.last counts more parts than there are of the whole: {last}")
        totals = [state["totals"][name] for name in ("groups", "rollouts")]
        self._record = torch.tensor(astuple(last), dtype=torch.float64, device=self._record.device)
        self._totals = torch.tensor(totals, dtype=torch.float64, device=self._record.device)


def pool_figures(posterior: Posterior) -> dict[str, float]:
    """Figures that look at every prompt of the pool: under a tenth of a second for a million of them on a free core."""
    visits = posterior.visits
    seen = visits.bincount()  # prompts by their number of visits
    upto = seen.cumsum(0)
    # The median of an even number of prompts is the mean of the two in the middle.
    middle = torch.tensor([(len(visits) - 1) // 2, len(visits) // 2], device=visits.device)
    levels = seen.nonzero()
    return {
        "pool_success_rate": float(posterior.success_rate().double().mean()),
        "belief_entropy": float(posterior.entropy().double().mean()),
        "coverage": 1.0 - float(seen[0]) / len(visits),
        "visits_min": float(levels[0]),
        "visits_median": float(torch.searchsorted(upto, middle, right=True).double().mean()),
        "visits_max": float(levels[-1]),
    }
