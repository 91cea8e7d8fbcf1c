"""Which compiler for the CPU: a step of the progress filter by numba (kernels' cpu.py) or torch.compile.

    python benchmarks/filter_backends.py [--sizes 40000 1000000 10000000] [--out benchmarks/results/filter_backends]

K = 3, float32, 256 observed prompts, learning on. Both work on the same arrays, in place, in `torch.get_num_threads()`
threads; runs alternate, so that whatever else the machine does meets both. A step has to move 112 bytes a prompt:
concentrations and belief in and out, posterior out, slot in. A copy of 256 MB in the same run says what memory can do.
Writes a table (.md) and the numbers (.json).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numba
import torch
from torch import Tensor

from bayes_prompt.kernels import backend

STATES, OBSERVED, DECAY = 3, 256, 0.7
BYTES_PER_PROMPT = 4 * (2 * STATES * STATES + 3 * STATES + 1)


def expressed_in_torch(
    C: Tensor,
    p: Tensor,
    b: Tensor,
    prior: Tensor,
    slot: Tensor,
    likelihood: Tensor,
    decay: float,
    evidence: Tensor,
    status: Tensor,
) -> None:
    """The step as elementwise torch, states unrolled, so that inductor can fuse it into one loop over the prompts."""
    tiny = torch.finfo(b.dtype).tiny
    states = range(len(b))
    observed = slot >= 0
    m = slot.clamp_min(0).long()
    seen = [likelihood[:, i][m] for i in states]
    total = sum(b[i] * seen[i] for i in states)
    expected = total > tiny
    mass = torch.where(expected, total, sum(seen))
    q = [torch.where(observed, torch.where(expected, b[i] * seen[i], seen[i]) / mass, b[i]) for i in states]
    leaving = [sum(C[j, i] for i in states) for j in states]
    joint = [[p[j] * (C[j, i] / leaving[j]) * seen[i] for i in states] for j in states]
    x = sum(sum(row) for row in joint)
    learned = observed & (x > tiny)
    xi = [[torch.where(learned, joint[j][i] / x, 0.0) for i in states] for j in states]
    new = [[decay * C[j, i] + (1.0 - decay) * prior[j, i] + xi[j][i] for i in states] for j in states]
    share = [q[j] / sum(new[j]) for j in states]
    predicted = [sum(share[j] * new[j][i] for j in states) for i in states]
    norm = sum(predicted)
    flags = torch.where(expected, 0, 1) + torch.where(x > tiny, 0, 2)
    where = torch.where(observed, m, len(evidence) - 1)  # the last entry takes what nobody asked for
    evidence.index_copy_(0, where, torch.where(expected, total, 0.0))
    status.index_copy_(0, where, flags.int())
    for j in states:
        for i in states:
            C[j, i].copy_(new[j][i])
        p[j].copy_(q[j])
        b[j].copy_(predicted[j] / norm)


def expressed_sparsely(
    C: Tensor,
    p: Tensor,
    b: Tensor,
    prior: Tensor,
    index: Tensor,
    likelihood: Tensor,
    decay: float,
    evidence: Tensor,
    status: Tensor,
) -> None:
    """The step with the observed prompts gathered by their index, handled apart and scattered back."""
    tiny = torch.finfo(b.dtype).tiny
    seen, mine, old = likelihood.T, b[:, index], C[:, :, index]
    total = (mine * seen).sum(0)
    expected = total > tiny
    q = torch.where(expected, mine * seen, seen) / torch.where(expected, total, seen.sum(0))
    joint = p[:, None, index] * (old / old.sum(1, keepdim=True)) * seen[None]
    x = joint.sum((0, 1))
    xi = torch.where(x > tiny, joint / x, 0.0)
    evidence.copy_(torch.where(expected, total, 0.0))
    status.copy_(torch.where(expected, 0, 1) + torch.where(x > tiny, 0, 2))
    p.copy_(b)
    p[:, index] = q
    C.mul_(decay).add_((1.0 - decay) * prior[..., None])
    C[:, :, index] += xi
    predicted = (p[:, None] / C.sum(1, keepdim=True) * C).sum(0)
    b.copy_(predicted / predicted.sum(0))


def problem(prompts: int) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    index = torch.randperm(prompts, generator=g)[:OBSERVED]
    slot = torch.full((prompts,), -1, dtype=torch.int32)
    slot[index] = torch.arange(OBSERVED, dtype=torch.int32)
    return {
        "concentration": torch.rand(STATES, STATES, prompts, generator=g) + 0.5,
        "posterior": torch.full((STATES, prompts), 1 / STATES),
        "belief": torch.full((STATES, prompts), 1 / STATES),
        "prior": torch.ones(STATES, STATES),
        "slot": slot,
        "index": index,
        "likelihood": torch.eye(STATES)[torch.randint(STATES, (OBSERVED,), generator=g)],
    }


def candidates(state: dict[str, Any]) -> dict[str, Callable[[], None]]:
    C, p, b, prior, slot, index, likelihood = state.values()
    evidence, status = torch.empty(OBSERVED + 1), torch.empty(OBSERVED + 1, dtype=torch.int32)
    advance = backend.load("progress_filter", "cpu").advance
    fused = torch.compile(expressed_in_torch, dynamic=False)
    sparse = torch.compile(expressed_sparsely, dynamic=False)
    out = evidence[:-1], status[:-1]
    return {
        "numba": lambda: advance(C, p, b, prior, slot, likelihood, DECAY, True, *out),
        "torch.compile, one loop": lambda: fused(C, p, b, prior, slot, likelihood, DECAY, evidence, status),
        "torch.compile, gather and scatter": lambda: sparse(C, p, b, prior, index, likelihood, DECAY, *out),
    }


def agree(prompts: int = 5_000) -> float:
    """The largest difference of the candidates' beliefs after one step from the same start."""
    beliefs = []
    for name in candidates(problem(prompts)):
        state = problem(prompts)
        candidates(state)[name]()
        beliefs.append(state["belief"])
    return max(float((belief - beliefs[0]).abs().max()) for belief in beliefs)


def alternate(runs: dict[str, Callable[[], None]], repetitions: int) -> dict[str, list[float]]:
    """Milliseconds of each run, after a first one that compiles and touches memory."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(repetitions + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repetition:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def measure(sizes: list[int]) -> dict[str, Any]:
    source, target = torch.ones(64_000_000), torch.empty(64_000_000)
    copy_ms: list[float] = []

    def copy() -> None:
        target.copy_(source)

    rows = []
    for prompts in sizes:
        copy_ms += alternate({"copy": copy}, 10)["copy"]  # apart, because it empties the caches
        times = alternate(candidates(problem(prompts)), 300 if prompts <= 100_000 else 15)
        for name, values in times.items():
            rows.append({"prompts": prompts, "compiler": name, "median_ms": median(values), "fastest_ms": min(values)})
    copied = 2 * 4 * source.numel()
    for row in rows:
        base = next(r for r in rows if r["prompts"] == row["prompts"])
        row["times_numba"] = row["median_ms"] / base["median_ms"]
        row["gigabytes_per_second"] = BYTES_PER_PROMPT * row["prompts"] / row["median_ms"] / 1e6
        row["share_of_copy"] = row["gigabytes_per_second"] / (copied / median(copy_ms) / 1e6)
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numba": numba.__version__,
        "bytes_per_prompt": BYTES_PER_PROMPT,
        "largest_difference": agree(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "copy_gigabytes_per_second": copied / median(copy_ms) / 1e6,
        "copy_fastest_gigabytes_per_second": copied / min(copy_ms) / 1e6,
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        "# One step of the progress filter on the CPU: numba and torch.compile",
        "",
        f"K = {STATES}, float32, {OBSERVED} observed prompts, {result['threads']} threads, torch {result['torch']}, "
        f"numba {result['numba']}.",
        f"Load average {result['load_average']:.1f} on {result['cores']} cores: above {result['threads']}, other work "
        "took its share, and only rows of one size compare.",
        f"A step moves {result['bytes_per_prompt']} bytes a prompt; a copy in the same run moved "
        f"{result['copy_gigabytes_per_second']:.1f} GB/s "
        f"(median; fastest {result['copy_fastest_gigabytes_per_second']:.1f}),",
        "read and write counted. 40,000 prompts stay in the cache, where the share of copy bandwidth may exceed 1.",
        "",
        "| prompts | compiler | median ms | fastest ms | times numba | GB/s | share of copy |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in result["rows"]:
        times = f"{r['median_ms']:.3f} | {r['fastest_ms']:.3f} | {r['times_numba']:.2f}"
        bandwidth = f"{r['gigabytes_per_second']:.1f} | {r['share_of_copy']:.2f}"
        lines.append(f"| {r['prompts']:,} | {r['compiler']} | {times} | {bandwidth} |")
    lines += ["", f"Beliefs after one step differ by {result['largest_difference']:.1e} at most."]
    lines += ["Written by `python benchmarks/filter_backends.py`."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[40_000, 1_000_000, 10_000_000])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "filter_backends")
    options = parser.parse_args()
    result = measure(options.sizes)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
