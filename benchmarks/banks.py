"""What a bank of eight drifts or decays costs beside a single one: a whole step of selecting and learning.

The decays are those of success rates, and of hidden states whose transitions the pool learns together, or nine groups.

    python benchmarks/banks.py [--sizes 1e4,1e5,1e6] [--rounds 15] [--device cuda] [--elapsed]

A step is `select` (greedy on P(informative), 256 prompts) and `update`; half of the pool has been seen, in steps of 256
and, so that it is quick, in large ones. With `--elapsed` no step takes the time of another. Single and bank take turns
within one process; medians, and their ratio.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter

import pyro.distributions as dist
import torch

import bayes_prompt as bp

WALKS = [bp.LogitRandomWalk(scale, trend) for scale in (0.1, 0.2, 0.4, 0.8) for trend in (0.0, 0.05)]
PRIOR = bp.priors.logit_normal(0.0, 1.5)
MODELS = {
    "one drift": bp.SuccessRate(PRIOR, drift=WALKS[2]),
    "eight drifts": bp.SuccessRate(PRIOR, drift=bp.DriftBank(WALKS)),
    "one mixture": bp.SuccessRate(PRIOR, drift=bp.Mixture(0.3, WALKS[2], thaw=0.02)),
    "eight mixtures": bp.SuccessRate(PRIOR, drift=bp.DriftBank([bp.Mixture(0.3, each, thaw=0.02) for each in WALKS])),
    "one decay": bp.SuccessRate(dist.Beta(1.0, 1.0), grid=41, decay=0.8),
    "eight decays": bp.SuccessRate(dist.Beta(1.0, 1.0), decay=bp.DecayBank()),
    "pooled": bp.SolvingProgress(decay=0.8, pooling="pool"),
    "eight pooled": bp.SolvingProgress(decay=bp.DecayBank(), pooling="pool"),
    "grouped": bp.SolvingProgress(decay=0.8, pooling="group"),
    "eight grouped": bp.SolvingProgress(decay=bp.DecayBank(), pooling="group"),
}
PAIRS = [(f"one {name}", f"eight {name}s") for name in ("drift", "mixture", "decay")]
PAIRS += [(name, f"eight {name}") for name in ("pooled", "grouped")]
GROUPS = 9


def prepared(model: bp.SuccessRate | bp.SolvingProgress, size: int, device: str) -> bp.PromptSelector:
    """A selector whose pool has been seen by halves."""
    told = {"groups": torch.arange(size) % GROUPS} if getattr(model, "pooling", None) == "group" else {}
    posterior: bp.Posterior = model.posterior(size, device=device, **told)
    selector = bp.PromptSelector(posterior, bp.acquisition.InformativeProbability(), min(256, size), seed=0)
    generator = torch.Generator().manual_seed(0)
    for part in torch.randperm(size, generator=generator)[: size // 2].chunk(20):
        counts = torch.randint(0, 9, (len(part),), generator=generator)
        posterior.update(part.to(device), counts.to(device), 8)
    return selector


def step(selector: bp.PromptSelector, elapsed: float) -> float:
    """Seconds of one step, until a device is done with it; elapsed: the time that it counts as."""
    start = perf_counter()
    index = selector.select()
    selector.observe(index, successes=index % 9, trials=8)
    selector.advance(elapsed=elapsed)
    if index.is_cuda:
        torch.cuda.synchronize()
    return perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1e4,1e5,1e6")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--elapsed", action="store_true", help="every step takes another time, not 1")
    options = parser.parse_args()
    heads = ["prompts"]
    for name, _ in PAIRS:
        heads += [f"{name}, ms", "eight, ms", "ratio"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for size in (int(float(text)) for text in options.sizes.split(",")):
        selectors = {name: prepared(model, size, options.device) for name, model in MODELS.items()}
        times: dict[str, list[float]] = {name: [] for name in selectors}
        for turn in range(options.rounds + 3):
            for name, selector in selectors.items():
                spent = step(selector, 0.7 + 0.01 * turn if options.elapsed else 1.0)
                if turn >= 3:
                    times[name].append(spent)
        ms = {name: 1e3 * median(spent) for name, spent in times.items()}
        cells = [f"{ms[a]:.2f} | {ms[b]:.2f} | {ms[b] / ms[a]:.2f}" for a, b in PAIRS]
        print(f"| {size:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
