"""Figures of a selector for a trainer's logger.

| figure | meaning |
|---|---|
| effective_sample_ratio | share of the last batch's groups with 0 < successes < trials |
| predicted_effective_sample_ratio | the same as the belief expected it before it saw them |
| success_rate, predicted_success_rate | share of the last batch's rollouts that succeeded; as expected before |
| pool_success_rate | posterior mean over the whole pool: a progress curve that selection does not bias |
| belief_entropy | mean entropy of the pool's beliefs, nats |
| coverage | share of the pool that was ever observed |
| visits_min, visits_median, visits_max | steps in which a prompt was observed |
| unexpected, impossible | observations that the belief, or the transition prior, held to be impossible (so far) |
| groups, rollouts | observed so far |
| step | steps of time that have passed |
| in_flight, reused | prompts that are out now; picks that had to repeat one that was out (so far) |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from bayes_prompt.errors import CheckpointError
from bayes_prompt.posteriors.base import Posterior, require_keys


@dataclass
class BatchRecord:
    """Sums over observed groups: what was seen, and what had been expected of the same groups."""

    groups: int = 0
    rollouts: int = 0
    informative: int = 0
    successes: int = 0
    expected_informative: float = 0.0
    expected_successes: float = 0.0

    @classmethod
    def of(cls, posterior: Posterior, index: Tensor, successes: Tensor, trials: Tensor) -> BatchRecord:
        """The record of counts (B,) that the posterior has not seen yet."""
        expected = 0.0
        for size in trials.unique().tolist():
            expected += float(posterior.informative_probability(size, index[trials == size]).double().sum())
        rate = posterior.success_rate(index).double().cpu()
        return cls(
            groups=index.numel(),
            rollouts=int(trials.sum()),
            informative=int(((successes > 0) & (successes < trials)).sum()),
            successes=int(successes.sum()),
            expected_informative=expected,
            expected_successes=float((rate * trials).sum()),
        )

    def __add__(self, other: BatchRecord) -> BatchRecord:
        return BatchRecord(**{name: value + getattr(other, name) for name, value in vars(self).items()})


class Metrics:
    """Keeps the records of the step that is under way, of the last one that had observations, and totals."""

    def __init__(self) -> None:
        self._open = BatchRecord()
        self._last = BatchRecord()
        self._groups = 0
        self._rollouts = 0

    def add(self, record: BatchRecord) -> None:
        """Take in what was observed within the step that is under way."""
        self._open = self._open + record
        self._groups += record.groups
        self._rollouts += record.rollouts

    def close(self) -> None:
        """End the step. One without observations leaves the figures of the last batch standing."""
        if self._open.groups:
            self._last, self._open = self._open, BatchRecord()

    def figures(self, posterior: Posterior) -> dict[str, float]:
        """All figures as floats; those of the last batch only once there was one."""
        visits = posterior.visits
        figures = {
            "pool_success_rate": float(posterior.success_rate().double().mean()),
            "belief_entropy": float(posterior.entropy().double().mean()),
            "coverage": float((visits > 0).double().mean()),
            "visits_min": float(visits.min()),
            "visits_median": float(visits.double().quantile(0.5))
            if visits.numel() < 1 << 20
            else float(visits.median()),
            "visits_max": float(visits.max()),
            "unexpected": float(posterior.unexpected),
            "impossible": float(posterior.impossible),
            "groups": float(self._groups),
            "rollouts": float(self._rollouts),
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
        totals = {"groups": self._groups, "rollouts": self._rollouts}
        return {"open": asdict(self._open), "last": asdict(self._last), "totals": totals}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave; CheckpointError where it is not that."""
        names = [field.name for field in fields(BatchRecord)]
        require_keys("metrics", state, ("open", "last", "totals"))
        require_keys("metrics.totals", state["totals"], ("groups", "rollouts"))
        for part in ("open", "last"):
            require_keys(f"metrics.{part}", state[part], names)
        for part in ("open", "last", "totals"):
            for name, value in state[part].items():
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise CheckpointError(f"metrics.{part}.{name} must be a number; got {value!r}")
        self._open, self._last = BatchRecord(**state["open"]), BatchRecord(**state["last"])
        self._groups, self._rollouts = state["totals"]["groups"], state["totals"]["rollouts"]
