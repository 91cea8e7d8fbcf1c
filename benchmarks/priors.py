"""A gallery of priors: the line that swaps each, how well it predicts recorded training, and how well it picks.

    python benchmarks/priors.py --data ../shared/data [--out docs/priors.md] [--seeds 5]

Evidence is of all recorded counts, one step at a time: log P(counts of a step | all steps before), in nats a count; the
standard error is over prompts. The replay follows `bayes_prompt.replays`: a tenth of one_shot_rlvr's prompts, and 64 of
small_grpo's, at a visit. All models pick by the same acquisition, so that what differs is the belief.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch

import bayes_prompt as bp

#: A title, what it believes, and the line.
PRIORS = (
    (
        "Beta, forgetting (MoPPS)",
        "any rate is as likely; counts fade",
        "bp.SuccessRate(dist.Beta(1.0, 1.0), decay=0.8)",
    ),
    (
        "U-shaped Beta",
        "most prompts are never, or always, solved",
        "bp.SuccessRate(dist.Beta(0.3, 0.3), drift=bp.LogitRandomWalk(0.2))",
    ),
    (
        "Logit-normal walk",
        "the logit makes a random walk (KGPS, exactly)",
        "bp.SuccessRate(bp.priors.logit_normal(0.0, 1.5), drift=bp.LogitRandomWalk(0.3))",
    ),
    (
        "Walk with a trend and repulsion",
        "training lifts all, and drives rates from the middle",
        "bp.SuccessRate(bp.priors.logit_normal(0.0, 3.0), drift=bp.LogitRandomWalk(0.15, trend=0.03, repulsion=0.03))",
    ),
    (
        "Atoms at 0 and 1",
        "some prompts are never, some always solved, whatever happens",
        "prior = bp.priors.inflated(bp.priors.logit_normal(0.0, 2.0), 0.05, 0.05)\n"
        "bp.SuccessRate(prior, drift=bp.LogitRandomWalk(0.2))",
    ),
    (
        "A histogram",
        "a prior that was learned elsewhere, here with half of all prompts at the ends",
        "bp.SuccessRate(bp.priors.histogram(torch.tensor([3.0, 1, 1, 1, 1, 1, 1, 3])), drift=bp.LogitRandomWalk(0.2))",
    ),
    (
        "Frozen and moving",
        "half of the prompts do not move, which ones is learned",
        "bp.SuccessRate(bp.priors.logit_normal(0.0, 2.0), drift=bp.Mixture(0.5, bp.LogitRandomWalk(0.4)))",
    ),
    (
        "A bank of drifts, and a shared prior",
        "four drifts weighted online; unseen prompts learn from the others",
        "bank = bp.DriftBank([bp.LogitRandomWalk(s, t) for s in (0.15, 0.4) for t in (0.0, 0.04)])\n"
        "bp.SuccessRate(bp.priors.logit_normal(0.0, 3.0), drift=bank, sharing=bp.EmpiricalBayes())",
    ),
    ("Hidden states (DPS)", "three states, a transition matrix for each prompt", "bp.SolvingProgress(decay=0.7)"),
    ("Hidden states, pooled", "the same, one matrix for all prompts", 'bp.SolvingProgress(decay=0.9, pooling="pool")'),
    (
        "Hidden states, pooled, decays in a bank",
        "the same; how much is forgotten is weighted online",
        'bp.SolvingProgress(decay=bp.DecayBank(), pooling="pool")',
    ),
)
ACQUISITION = bp.acquisition.LookIndex(30.0)


def declared(line: str) -> Any:
    """The declaration that the last line of an entry makes."""
    names: dict[str, Any] = {"bp": bp, "dist": dist, "torch": torch}
    *before, last = line.splitlines()
    exec("\n".join(before), names)
    return eval(last, names)


def selector(line: str, num_prompts: int, batch_size: int, seed: int) -> bp.PromptSelector:
    """A selector over the line's belief."""
    return bp.PromptSelector(declared(line).posterior(num_prompts), ACQUISITION, batch_size, seed)


EXACTNESS = """\
## How exact the filters are

Without a drift, a grid is a Gauss quadrature of its prior: the mean of a Beta belief is met within 1e-6 for up to 2 K
- 2 rollouts of a prompt (80 with 41 points), and with 800 within 1.4e-3. With a drift the filter is exact Bayes on
its points: beliefs agree with a sum over all paths within 1e-10 (`tests/posteriors/test_grid.py`,
`tests/kernels/test_grid_filter_bayes.py`).

KGPS's Kalman filter (`bp.LogitGaussian`) keeps a Gaussian of the logit, which the exact belief is not. Its errors
against a grid of 4,001 points, after each of 20 looks of 8 rollouts, 2,000 sequences drawn from the model with drift
.3 and a prior deviation of 1.5, mean / largest:

| method | success rate | P(informative) | evidence of a look, nats |
|---|---|---|---|
| moments | .0013 / .052 | .0026 / .044 | -.0002 |
| polya_gamma | .0045 / .035 | .0159 / .109 | -.0019 |

A bank of eight drifts or decays costs 1.1 to 1.7 times a single one on a grid, in whole steps of 10^6 and 10^4 prompts,
and 1.0 to 1.2 times where hidden states have pooled transitions (`python benchmarks/banks.py`, one core).

Transitions that prompts learn together are exact inference where every state is seen, and else not: a look at a
prompt that rested tells little of a transition. It counts as much as it narrows what is known (`PooledTransitions`),
not as a transition that was seen, as in DPS. By simulation-based calibration
(`tests/calibration/test_approximate.py`; groups of four prompts, half of the looks missing, no forgetting) the ranks
of true transitions in 16 bins are off by 1% in the root mean square after 8 steps and by 10% after 30, too narrow,
and those of success rates by less than chance; counted as seen it was 20% and 31%. Groups that lean on the pool are
off by 11% to 17%, for what early steps told the pool lies too near to what was declared. Transitions of each prompt's
own, which count as published, are off by 7% to 11% after 8 steps.

Weights of a bank's members are as often right as they say for walks, walks of a hidden mode and the bank of training
(`tests/calibration/test_banks.py`), within .07 for decays on a grid, and within .11 where members differ in how many
prompts are in a hidden mode, which averaging forgets, and for strengths. Beliefs about rates are calibrated all the
same: ranks are off by 5% at the most, no more than chance does. Banks that forget (`memory` below 1), or have a
`floor`, have no program to be calibrated in.

What unseen prompts learn from first looks is approximate: a first look counts as the posterior of what was met. In
the program that its pseudo-counts stand for, ranks of unseen rates depart by .06 where rates stay and .00 to .04
where they drift; P(informative) is too near to its mean, by up to .05 in the lowest fifth. Of `best` the central half
of draws holds .50 to .51 of unseen rates and .49 to .50 of seen ones (`tests/calibration/test_sharing.py`).
"""


def rows(history: bp.History, seeds: int, **replayed: Any) -> list[list[str]]:
    """A row of figures for each prior."""
    methods = {title: partial(selector, line) for title, _, line in PRIORS}
    results = bp.replay(history, methods, seeds=seeds, **replayed)
    comparison = bp.compare(history, {title: declared(line) for title, _, line in PRIORS}, replicates=0)
    evidence = {score.name: score for score in comparison.scores}
    table = []
    for title, _, _ in PRIORS:
        figures, score = results[title].figures, evidence[title]
        shown = [f"{score.per_look:.3f} ± {score.error:.3f}"]
        for name in ("effective_sample_ratio", "second_half", "log_loss", "coverage"):
            shown.append(f"{figures[name].mean:.3f}")
        table.append([title, *shown])
    return table


def page(tables: dict[str, list[list[str]]], seeds: int) -> str:
    """The page as Markdown."""
    parts = [
        "# A gallery of priors\n",
        "<!-- generated by benchmarks/priors.py -->\n",
        "Swapping a prior is changing one field of a declaration; posterior, kernels and acquisitions follow.\n"
        f"Below are {len(PRIORS)} of them, from one line each:\n",
    ]
    for title, about, line in PRIORS:
        parts.append(f"**{title}**: {about}.\n\n```python\n{line}\n```\n")
    parts.append(
        "## On recorded training\n\n"
        "Evidence is the mean log predictive probability of a recorded count (nats; higher is better; ± one standard\n"
        "error over prompts). The other figures are of a replay with `LookIndex(30)`, means over\n"
        f"{seeds} seeds: the share of picks with a gradient (over all visits, and in the second half), log loss of\n"
        "P(informative) over the whole pool, and the share of the pool that was ever picked.\n"
    )
    head = ["prior", "evidence", "effective sample ratio", "second half", "log loss", "coverage"]
    for name, table in tables.items():
        lines = [head, ["---"] * len(head), *table]
        parts.append(f"### {name}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "\n".join([*parts, EXACTNESS])


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the recorded histories")
    parser.add_argument("--out", type=Path, default=Path("docs/priors.md"))
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    tables = {}
    for name, replayed in (("one_shot_rlvr", {}), ("small_grpo", {"batch_size": 64})):
        history = bp.History.read(options.data / f"{name}_histories.parquet")
        tables[name] = rows(history, options.seeds, **replayed)
        print(name, *tables[name], sep="\n")
    options.out.write_text(page(tables, options.seeds), encoding="utf-8")


if __name__ == "__main__":
    main()
