"""How long exact diverse batches take, and how much of the work they spare: a markdown table.

python benchmarks/diversity.py EMBEDDINGS.npz    # arrays: embeddings (n, D), rates (n,) in [0, 1]

The pool is the given one, drawn with replacement and jittered to --prompts rows.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from bayes_prompt.acquisition.diversity import Diversity


def pools(file: Path, prompts: int, jitter: float) -> dict[str, tuple[np.ndarray, torch.Tensor]]:
    """For each kind of data the embeddings (N, D) and the utilities (N,)."""
    given, r = np.load(file), np.random.default_rng(0)
    source = r.integers(0, len(given["rates"]), prompts)
    near = given["embeddings"][source].astype(np.float32)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    near += r.standard_normal(near.shape, dtype=np.float32) * np.float32(jitter / near.shape[1] ** 0.5)
    rate = given["rates"][source]
    smooth = torch.from_numpy(-((np.clip(rate + r.normal(0, 0.05, prompts), 0, 1) - 0.5) ** 2))
    tied = torch.from_numpy(-((r.binomial(8, rate) / 8 - 0.5) ** 2))
    isotropic = r.standard_normal(near.shape, dtype=np.float32)
    return {"recorded": (near, smooth), "recorded, tied": (near, tied), "isotropic, tied": (isotropic, tied)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--history", type=int, default=0, help="rows of earlier batches")
    parser.add_argument("--jitter", type=float, default=0.3, help="length of the noise added to unit vectors")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.001, 0.01, 0.1])
    parser.add_argument("--data", nargs="+", default=["recorded", "recorded, tied", "isotropic, tied"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--compared", type=int, default=20_000, help="rows of the pool compared with every gain computed"
    )
    options = parser.parse_args()
    history = np.random.default_rng(1).integers(0, options.compared, options.history)
    print("| data | metric | variant | weight | prepared, s | pick, s | exact products, share | identical | load |")
    print("|---|---|---|---|---|---|---|---|---|")
    for data, (embeddings, utility) in pools(options.embeddings, options.prompts, options.jitter).items():
        if data not in options.data:
            continue
        for metric in ("cosine", "euclidean"):
            for variant in ("sum", "min"):
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
