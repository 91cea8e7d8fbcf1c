"""How long exact diverse batches take, and how much of the work they spare: a markdown table.

python benchmarks/diversity.py PROMPTS.parquet    # columns: text, solve_rate; embedded by WordLlama

The pool is the given one, drawn with replacement and jittered to --prompts rows. "Tied" utilities come from 8 rollouts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from bayes_prompt.acquisition.diversity import Diversity
from bayes_prompt.embedding import WordLlama, embed

DATA = ["recorded", "recorded, tied", "isotropic, tied", "isotropic, all alike"]


def pools(file: Path, prompts: int, jitter: float) -> dict[str, tuple[np.ndarray, torch.Tensor]]:
    """For each kind of data the embeddings (N, D) and the utilities (N,)."""
    columns, r = pq.read_table(file, columns=["text", "solve_rate"]).to_pydict(), np.random.default_rng(0)
    given, rates = embed(columns["text"], WordLlama()), np.array(columns["solve_rate"])
    source = r.integers(0, len(rates), prompts)
    near = given[source]
    near += r.standard_normal(near.shape, dtype=np.float32) * np.float32(jitter / near.shape[1] ** 0.5)
    rate = rates[source]
    smooth = torch.from_numpy(-((np.clip(rate + r.normal(0, 0.05, prompts), 0, 1) - 0.5) ** 2))
    tied = torch.from_numpy(-((r.binomial(8, rate) / 8 - 0.5) ** 2))
    isotropic, alike = r.standard_normal(near.shape, dtype=np.float32), torch.zeros(prompts)
    return {
        "recorded": (near, smooth),
        "recorded, tied": (near, tied),
        "isotropic, tied": (isotropic, tied),
        "isotropic, all alike": (isotropic, alike),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts_file", type=Path)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--history", type=int, default=0, help="rows of earlier batches")
    parser.add_argument("--jitter", type=float, default=0.3, help="length of the noise added to unit vectors")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.001, 0.01, 0.1])
    parser.add_argument("--variants", nargs="+", default=["min", "sum"])
    parser.add_argument(
        "--data", nargs="+", default=["recorded", "recorded, tied", "isotropic, tied", "isotropic, all alike"]
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--compared", type=int, default=20_000, help="rows of the pool compared with every gain computed"
    )
    options = parser.parse_args()
    history = np.random.default_rng(1).integers(0, options.compared, options.history)
    print("| data | metric | variant | weight | prepared, s | pick, s | exact products, share | identical | load |")
    print("|---|---|---|---|---|---|---|---|---|")
    for data, (embeddings, utility) in pools(options.prompts_file, options.prompts, options.jitter).items():
        if data not in options.data:
            continue
        for metric in ("cosine", "euclidean"):
            for variant in options.variants:
                start = time.perf_counter()
                diversity = Diversity(embeddings, metric=metric, variant=variant)
                diversity.pick(utility, 1, weight=0.1, seed=0, step=0)  # projects the vectors, compiles
                prepared = time.perf_counter() - start
                few = Diversity(embeddings[: options.compared], metric=metric, variant=variant)
                for weight in options.weights:
                    times = []
                    for _ in range(options.repeats):
                        start = time.perf_counter()
                        picked = diversity.pick(utility, options.batch, weight=weight, seed=0, step=1, history=history)
                        times.append(time.perf_counter() - start)
                    fast, slow = (
                        few.pick(
                            utility[: options.compared], min(options.batch, 64), weight=weight, seed=0, step=1,
                            history=history[:64], backend=backend,
                        )
                        for backend in ("cpu", "reference")
                    )  # fmt: skip
                    equal = torch.equal(fast.rows, slow.rows) and torch.equal(fast.gains, slow.gains)
                    share = picked.evaluated / picked.naive
                    print(
                        f"| {data} | {metric} | {variant} | {weight} | {prepared:.1f} | {statistics.median(times):.2f} "
                        f"| {share:.4f} | {'yes' if equal else 'NO'} | {os.getloadavg()[0]:.1f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
