"""How long the grid filter's kernels and a step of `recipes.best` take, beside a copy of the bytes that they must move.

    python benchmarks/grid_filter.py [--device cuda] [--sizes 1e5,1e6,1e7] [--rounds 20] [--batch 256] [--groups 0,8,64]

Half of the pool has been seen, in twenty steps. Times are medians; the share is that of the bandwidth at which torch
copies on the same device, for the bytes that there is no doing without: beliefs of who was seen, slots and scores, each
once. Tables are small and not counted. Names without brackets are kernels alone, those with them are what a trainer
calls, with the tables that it needs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product
from statistics import median

import torch

import bayes_prompt as bp
from bayes_prompt.bench.machine import CopyBandwidth, Machine
from bayes_prompt.bench.measure import seconds_of
from bayes_prompt.posteriors.grid import GridPosterior

TRIALS = 8


def prepared(size: int, device: str, batch: int = 256, groups: int = 0) -> bp.PromptSelector:
    """A selector whose pool has been seen by half; groups: of prompts, at random, or 0."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, groups, (size,), generator=generator) if groups else None
    selector = bp.recipes.best(num_prompts=size, batch_size=min(batch, size), device=device, groups=labels)
    for part in torch.randperm(size, generator=generator)[: size // 2].chunk(20):
        counts = torch.randint(0, TRIALS + 1, (len(part),), generator=generator)
        selector.posterior.update(part.to(device), counts.to(device), TRIALS)
    return selector


def cases(selector: bp.PromptSelector) -> dict[str, tuple[Callable[[], object], float]]:
    """What is timed, and the bytes that it must move."""
    posterior = selector.posterior
    assert isinstance(posterior, GridPosterior)
    size, states, item = *posterior._belief.shape, posterior._belief.element_size()
    row = states * item
    pool = size // 2 * row + size * (4 + item)
    rows = torch.arange(0, size, max(1, size // 100_000), device=posterior.device)
    wide = torch.empty(len(rows), states, dtype=posterior.dtype, device=posterior.device)
    kernels, tables = posterior._kernel("grid_filter"), posterior._carried_as_stored()
    asked, shared = posterior._outcomes(TRIALS)
    slot = posterior._slot
    asked, price = [posterior._cast(table) for table in asked], posterior._cast(shared[0])
    scores = torch.empty(size, dtype=posterior.dtype, device=posterior.device)

    def prices() -> None:
        kernels.look_index(posterior._belief, slot, *asked, price, 16.0, scores)

    def values() -> None:
        kernels.score(posterior._belief, slot, asked[0], price, scores)

    def predict() -> None:
        kernels.predict(posterior._belief, posterior._slot, *tables, rows, wide)

    def step() -> None:
        picked = selector.select()
        selector.update(picked, successes=picked % (TRIALS + 1), trials=TRIALS)

    return {
        "score": (values, pool),
        "look_index": (prices, pool),
        "predict, 100,000 rows": (predict, len(rows) * (1.5 * row + 12)),
        "success_rate()": (posterior.success_rate, pool),
        "look_index()": (lambda: posterior.look_index(TRIALS, 16.0), pool),
        "look_gain()": (lambda: posterior.look_gain(TRIALS, 0.7), 2 * pool),
        "select()": (selector.select, pool + size * item),
        "select() and update()": (step, pool + size * item),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", default="1e5,1e6,1e7")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--groups", default="0", help="numbers of groups, such as 0,8,64")
    options = parser.parse_args()
    copy = CopyBandwidth.here(options.device).median
    machine = Machine.here(options.device)
    print(f"{machine.device}, {machine.threads} threads of the CPU; torch copies {copy / 1e9:.1f} GB/s.\n")
    print("| prompts | groups | what | ms | of the copy bandwidth |\n|---:|---:|---|---:|---:|")
    sizes, numbers = ([int(float(text)) for text in each.split(",")] for each in (options.sizes, options.groups))
    for size, groups in product(sizes, numbers):
        selector = prepared(size, options.device, options.batch, groups)
        for name, (call, moved) in cases(selector).items():
            times = [seconds_of(call, options.device) for _ in range(options.rounds + 3)][3:]
            spent = median(times)
            print(f"| {size:,} | {groups} | {name} | {1e3 * spent:.3f} | {moved / copy / spent:.0%} |", flush=True)


if __name__ == "__main__":
    main()
