"""Run: a world that time passes in."""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_prompt.history import History
from bayes_prompt.kernels import rng
from bayes_prompt.models.seeding import seeded
from bayes_prompt.posteriors import checks
from bayes_prompt.posteriors.checks import IntegersLike
from bayes_prompt.simulate.world import Learner, World

# Streams of random words. They count down from the last, so that selectors with the same seed never use them too.
POOL, NOISE, COUNTS = 255, 254, 253


class Run:
    """A policy in a world, between one training step and the next: rolled out, then taught.

    Whatever happens is a function of (seed, step, prompt) and of what was learned from before: two selectors that pick
    the same prompt in the same step, of a policy in the same state, see the same count. The luck of a prompt in a step
    does not depend on its rate, and better rates never give fewer successes, so that runs of one seed compare with
    little noise.

    Args:
        world: the declaration.
        seed: in [0, 2**63).
    """

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.seed = checks.integer("seed", seed, 0, rng.SEED_LIMIT - 1)
        self.step = 0
        self.learner: Learner = self._begin()
        self._taught: list[tuple[Tensor, Tensor]] = []  # successes and trials (N,) of each step

    def rates(self) -> Tensor:
        """The true success rate of every prompt now, (N,) float64."""
        return self.learner.rates()

    def informative_probability(self) -> Tensor:
        """The true P(0 < successes < trials) of every prompt now, (N,) float64."""
        rates = self.rates()
        return 1 - rates**self.world.trials - (1 - rates) ** self.world.trials

    def roll_out(self, index: IntegersLike) -> Tensor:
        """Successes of prompts `index` (B,) in `trials` rollouts each, (B,) int64; asked again in a step, the same.

        Raises IndexError where a prompt is outside [0, N), TypeError where one is no integer.
        """
        rows = checks.rows("index", index, self.world.num_prompts)
        word, *_ = rng.words(self.seed, self.step, rows, COUNTS)
        return binomial_quantile(rng.uniform(word, torch.float64), self.rates()[rows], self.world.trials)

    def learn(self, index: IntegersLike, successes: IntegersLike, trials: IntegersLike | int | None = None) -> None:
        """Train on counts of distinct prompts `index` (B,); one step of time passes.

        Args:
            index: rows of the prompts, (B,) integers.
            successes: (B,) integers in [0, trials].
            trials: (B,) integers or one for all, at least 1; None: the world's.

        Raises:
            IndexError, TypeError, ValueError: named after the first bad argument and row; nothing has changed then.
        """
        given = self.world.trials if trials is None else trials
        rows, successes_, trials_ = checks.counts(index, successes, given, self.world.num_prompts)
        first = {row: place for place, row in reversed(list(enumerate(rows.tolist())))}
        for place, row in enumerate(rows.tolist()):
            if first[row] != place:
                raise ValueError(f"index[{place}] = {row} occurs twice; prompts of a step must be distinct")
        tables = torch.zeros(2, self.world.num_prompts, dtype=torch.int64)
        tables[0, rows], tables[1, rows] = successes_, trials_
        with torch.no_grad(), seeded(rng.derived_seed(self.seed, self.step + 1, NOISE), torch.device("cpu")):
            self.learner = self.world.move(self.learner, tables[0], tables[1], self.step + 1)
        self.step += 1
        self._taught.append((tables[0], tables[1]))

    def history(self) -> History:
        """What was learned from so far, (T, N) counts; ValueError before the first step."""
        if not self._taught:
            raise ValueError("nothing was learned from yet, so there is no history")
        successes, trials = (torch.stack(tables) for tables in zip(*self._taught, strict=True))
        return History(successes, trials)

    def _begin(self) -> Learner:
        with torch.no_grad(), seeded(rng.derived_seed(self.seed, 0, POOL), torch.device("cpu")):
            return self.world.begin()


def binomial_quantile(levels: Tensor, rates: Tensor, trials: int) -> Tensor:
    """The least count whose Binomial(trials, rate) distribution function reaches the level, int64 (B,).

    levels: (B,) in (0, 1). rates: (B,) in [0, 1]. Of uniform levels the counts are Binomial draws.
    """
    counts = torch.arange(trials, dtype=torch.float64)  # that it is `trials` or fewer needs no computing
    size = torch.tensor(float(trials), dtype=torch.float64)
    ways = torch.lgamma(size + 1) - torch.lgamma(counts + 1) - torch.lgamma(size - counts + 1)
    rates = rates[:, None]
    mass = torch.exp(ways + torch.xlogy(counts, rates) + torch.special.xlog1py(size - counts, -rates))
    return (mass.cumsum(1) < levels[:, None]).sum(1)
