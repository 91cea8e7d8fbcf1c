"""What test-time allocation is worth: recorded success rates are sampled anew, with even and with allocated samples.

    python benchmarks/allocation.py --data deepscaler_solve_rates.parquet

The recorded rate of a prompt is taken for its true one. Beliefs come from the rates themselves (the upper bound) or
from rollouts that are drawn first, such as training leaves behind; these are not counted into the budget. The measured
saving is that of the smallest budget whose allocation has the true accuracy of even samples. Majorities are those of
right answers over all wrong ones: where the rate is below 1/2 more votes do harm, so that not voting there saves most
of the budget; the prompts above 1/2 are also shown alone. Intervals are of 95% over the seeds: of the rollouts that
beliefs come from, and of the answers.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet
import scipy.stats
import torch
from torch import Tensor

from bayes_prompt.acquisition.allocation import RateBeliefs, allocate, expected_accuracy
from bayes_prompt.acquisition.objectives import AnyCorrect, BestOfN, MajorityVote, Objective

# With the rate that a prompt must exceed to be in the pool.
OBJECTIVES: dict[str, tuple[Objective, float]] = {
    "any correct": (AnyCorrect(), -1.0),
    "majority": (MajorityVote(), -1.0),
    "majority, rates > 1/2": (MajorityVote(), 0.5),
    "verifier (.9, .2)": (BestOfN(0.9, 0.2), -1.0),
}
COLUMNS = (
    *("objective", "samples a prompt", "beliefs", "even, %", "allocated, %", "gain, points", "predicted"),
    *("saving, %", "predicted"),
)
CLOSE = 0.002  # of the budget: how closely the measured saving is searched


def fitted_prior(successes: np.ndarray, trials: int) -> tuple[float, float]:
    """The Beta prior whose counts have the mean and the variance of those seen (method of moments)."""
    mean, variance = successes.mean() / trials, successes.var() / trials**2
    even = mean * (1 - mean)
    correlation = np.clip((variance - even / trials) / (even - even / trials), 1e-6, 1 - 1e-6)
    concentration = 1 / correlation - 1
    return mean * concentration, (1 - mean) * concentration


def beliefs_from(rates: np.ndarray, rollouts: int, bins: int, g: np.random.Generator) -> dict[str, RateBeliefs]:
    """Beliefs by name; those from rollouts share what was drawn."""
    successes = g.binomial(rollouts, rates)
    a, b = fitted_prior(successes, rollouts)
    fitted = RateBeliefs.beta(a + successes, b + rollouts - successes)
    return {
        "rates known": RateBeliefs.known(rates),
        f"{rollouts} rollouts": fitted,
        f"{rollouts} rollouts, uniform prior": RateBeliefs.beta(1.0 + successes, 1.0 + rollouts - successes),
        f"{rollouts} rollouts, as if known": RateBeliefs.known(successes / rollouts),
        f"{rollouts} rollouts, {bins} bins": fitted.binned(bins),
    }


def simulate(objective: Objective, rates: np.ndarray, samples: Tensor, g: np.random.Generator) -> float:
    """The share of prompts that come out right, one draw of everything; nothing here comes from the package."""
    n = samples.numpy()
    right = g.binomial(n, rates)
    if isinstance(objective, AnyCorrect):
        return float((right > 0).mean())
    if isinstance(objective, MajorityVote):
        return float(((2 * right > n) | ((2 * right == n) & (g.random(len(n)) < 0.5))).mean())
    assert isinstance(objective, BestOfN)
    hits = g.binomial(right, objective.sensitivity)
    accepted = hits + g.binomial(n - right, objective.false_positive_rate)
    return float((g.random(len(n)) < np.where(accepted > 0, hits / np.maximum(accepted, 1), right / n)).mean())


def smallest_budget(reaches: Callable[[int], bool], least: int, budget: int) -> float:
    """The smallest budget that reaches the goal, to within `CLOSE`; infinity where eight times the budget does not."""
    low, high = least - 1, budget
    while not reaches(high):
        if high >= 8 * budget:
            return math.inf
        low, high = high, 2 * high
    while high - low > max(1, CLOSE * budget):
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def interval(values: Sequence[float], digits: int = 1) -> str:
    """Mean and half the width of its 95% interval, in percent."""
    if not np.isfinite(values).all():
        return "none"
    mean = 100 * float(np.mean(values))
    half = 100 * float(scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def rows(name: str, rates: np.ndarray, per_prompt: int, seeds: int, rollouts: int, bins: int) -> list[list[str]]:
    """The rows of the table for one objective at one budget."""
    objective, above = OBJECTIVES[name]
    rates = rates[rates > above]
    truth, budget = RateBeliefs.known(rates), per_prompt * len(rates)

    def true_accuracy(samples: Tensor) -> float:
        return float(expected_accuracy(truth, samples, objective).mean())

    def saving(belief: RateBeliefs, even: Tensor) -> float:
        goal = true_accuracy(even) - 1e-12
        reached = smallest_budget(
            lambda n: true_accuracy(allocate(belief, n, objective).samples) >= goal, len(rates), budget
        )
        return 1 - reached / budget

    found: dict[str, list[tuple[float, ...]]] = {}
    for seed in range(seeds):
        g = np.random.default_rng(seed)
        for kind, belief in beliefs_from(rates, rollouts, bins, g).items():
            entries = found.setdefault(kind, [])
            plan = allocate(belief, budget, objective)
            even, allocated = (simulate(objective, rates, n, g) for n in (plan.uniform, plan.samples))
            known_before = kind == "rates known" and entries
            saved = entries[0][4] if known_before else saving(belief, plan.uniform)
            predicted = plan.accuracy - plan.uniform_accuracy
            entries.append((even, allocated, allocated - even, predicted, saved, plan.saving))
    table = []
    for kind, entries in found.items():
        even, allocated, gain, predicted, saved, told = zip(*entries, strict=True)
        figures = [interval(even), interval(allocated), interval(gain, 2), f"{100 * np.mean(predicted):.2f}"]
        table.append([name, str(per_prompt), kind, *figures, interval(saved), f"{100 * np.mean(told):.1f}"])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Parquet file with a column solve_rate")
    parser.add_argument("--budgets", type=int, nargs="+", default=[4, 8, 16], help="samples a prompt")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rollouts", type=int, default=8, help="of each prompt, from which beliefs come")
    parser.add_argument("--bins", type=int, default=5)
    parser.add_argument("--prompts", type=int, help="take so many at random")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds must be at least 2, for an interval")
    torch.set_num_threads(1)  # the pool is small
    rates = pyarrow.parquet.read_table(options.data, columns=["solve_rate"])["solve_rate"].to_numpy()
    if options.prompts:
        rates = np.random.default_rng(0).choice(rates, options.prompts, replace=False)
    print(f"{len(rates)} prompts, mean rate {rates.mean():.3f}, {options.seeds} seeds\n")
    print("|", " | ".join(COLUMNS), "|")
    print("|", " | ".join(["---"] * len(COLUMNS)), "|")
    for per_prompt in options.budgets:
        for name in OBJECTIVES:
            for row in rows(name, rates, per_prompt, options.seeds, options.rollouts, options.bins):
                print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
