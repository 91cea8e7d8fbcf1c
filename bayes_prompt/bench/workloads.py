"""The operations that are measured, and what every implementation of one starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import bayes_prompt as bp

if TYPE_CHECKING:
    from bayes_prompt.posteriors.beta import BetaPosterior
    from bayes_prompt.posteriors.progress import ProgressPosterior

BATCH, TRIALS = 256, 8  # prompts of a step, and rollouts of each
DECAY = 0.7  # of DPS
VISITS = 3  # of a prompt before the timing starts
BATCHES = 16  # that the repetitions take in turn
_CHUNK = 1 << 20  # prompts that one update of the set-up visits

OPERATIONS = {
    "filter": "advance all prompts by one DPS step, with 256 observations of 8 rollouts (ours leaves beliefs to be "
    "worked out when they are asked for, the others write them down: compare `step`)",
    "select": "the exact 256 best of N scores",
    "thompson": "draw a success rate from every prompt's Beta belief and pick the 256 nearest to 0.5 (MoPPS)",
    "step": "a whole DPS step: learn from 256 groups of 8 rollouts, then pick the next 256 of all prompts",
}
_VISITED = {
    "all visited": f"every prompt was observed {VISITS} times before the timing",
    "1% visited": f"1% of the prompts (at least 256) were observed {VISITS} times before the timing; what the timed "
    "steps pick comes on top",
}
_TENTH = f"decay 0.5, 10% of the prompts observed {VISITS} times with 8 rollouts"
SETTINGS = {
    "filter": _VISITED,
    "select": {"distinct": "uniform float32 scores", "tied": "float32 scores of 16 levels, so that chance decides"},
    "thompson": {
        "Beta(1, 1)": f"prior Beta(1, 1), {_TENTH}",
        "Beta(0.2, 0.2)": f"shapes below 1: prior Beta(0.2, 0.2), {_TENTH}",
    },
    "step": _VISITED,
}
_SHARE = {"all visited": 1.0, "1% visited": 0.01, "Beta(1, 1)": 0.1, "Beta(0.2, 0.2)": 0.1}

#: Bytes a prompt of what the copy beside an operation copies, read and written: the 12 float32 of a DPS posterior
#: (concentrations and last posterior); of the others what they read, once.
BYTES_COPIED = {"filter": 2 * 12 * 4, "select": 4, "thompson": 2 * 4, "step": 2 * 12 * 4}
#: Bytes a prompt that ours moves, counted (docs/performance.md): concentrations in, posterior in and out, a score out
#: where one is asked for; scores in; alpha and beta in and a score out.
BYTES_OF_OURS = {"filter": (12 + 3) * 4, "select": 4, "thompson": 3 * 4, "step": (12 + 3 + 1) * 4}


@dataclass(frozen=True)
class Problem:
    """One operation in one of its settings on N prompts. device: "cpu" or "cuda". backend: of our kernels."""

    operation: str
    setting: str
    prompts: int
    device: str = "cpu"
    backend: str = "auto"

    @property
    def bytes_copied(self) -> int:
        """Bytes that the copy beside it reads and writes."""
        return BYTES_COPIED[self.operation] * self.prompts

    @property
    def bytes_of_ours(self) -> int:
        """Bytes that ours reads and writes, by count."""
        return BYTES_OF_OURS[self.operation] * self.prompts


class Workload:
    """A problem set up: our own state after the visits, and what all implementations observe.

    `batches` are pairs (index, successes), each (256,) int64 on the device, of distinct rows. `selector` and
    `posterior` are ours; `scores` (N,) is what "select" picks from. What an operation has no use for is None.
    """

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        self.problem = problem
        self._generator = torch.Generator(problem.device).manual_seed(seed)
        options: dict[str, Any] = {"device": problem.device, "backend": problem.backend}
        self.selector: bp.PromptSelector | None = None
        self.posterior: ProgressPosterior | BetaPosterior | None = None
        self.scores: Tensor | None = None
        if problem.operation == "select":
            uniform = torch.rand(problem.prompts, generator=self._generator, device=problem.device)
            self.scores = uniform if problem.setting == "distinct" else (uniform * 16).floor() / 16
        elif problem.operation == "thompson":
            import pyro.distributions as dist

            prior = dist.Beta(1.0, 1.0) if problem.setting == "Beta(1, 1)" else dist.Beta(0.2, 0.2)
            # In-flight prompts may be picked again, so that every pick is from the whole pool.
            self.selector = bp.recipes.mopps(
                num_prompts=problem.prompts, batch_size=BATCH, prior=prior, allow_in_flight=True, **options
            )
        elif problem.operation == "step":
            self.selector = bp.recipes.dps(num_prompts=problem.prompts, batch_size=BATCH, decay=DECAY, **options)
        else:
            self.posterior = bp.SolvingProgress(decay=DECAY).posterior(problem.prompts, **options)
        if self.selector is not None:
            self.posterior = self.selector.posterior  # type: ignore[assignment]
        if self.posterior is not None:
            rows = self._visit(_SHARE[problem.setting])
            self.batches = [self._batch(rows) for _ in range(BATCHES)]

    def _visit(self, share: float) -> Tensor:
        """Observe every prompt of an evenly spread share, some times; returns their rows."""
        prompts = self.problem.prompts
        stride = max(1, min(round(1 / share), prompts // BATCH))
        rows = torch.arange(0, prompts - stride + 1, stride, device=self.problem.device)
        rows = rows + self._integers(stride, len(rows))
        # In parts, so that the posterior's work on the observations stays small beside its state, and ages differ.
        part = min(max(_CHUNK, prompts >> 6), -(-len(rows) // 8))
        assert self.posterior is not None
        for _ in range(VISITS):
            for some in rows.split(part):
                self.posterior.update(some, self._successes(len(some)), TRIALS)
        return rows

    def _batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        apart = len(rows) // BATCH
        places = torch.arange(BATCH, device=rows.device) * apart + self._integers(apart, BATCH)
        return rows[places], self._successes(BATCH)

    def _successes(self, size: int) -> Tensor:
        """Of 8 rollouts whose success rates are mostly near 0 or 1, as those of a real pool are."""
        rate = torch.rand(size, generator=self._generator, device=self.problem.device)
        rate = (1 - torch.cos(torch.pi * rate)) / 2  # Beta(1/2, 1/2), by its quantile function
        rollouts = torch.rand(size, TRIALS, generator=self._generator, device=self.problem.device)
        return (rollouts < rate[:, None]).sum(1)

    def _integers(self, limit: int, size: int) -> Tensor:
        return torch.randint(limit, (size,), generator=self._generator, device=self.problem.device)
