"""What decoding costs beside the matrix products that it cannot do without, as torch makes these. Prints Markdown.

    python benchmarks/difficulty_decoder.py [--prompts 1000000] [--draws 8] [--rounds 7]

The products are those of the features with the first layer, once, and those of each draw with a second layer. Calls are
timed in turn, so that whatever else the machine does befalls all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bayes_prompt.kernels import backend
from bayes_prompt.kernels.difficulty_decoder import Decoder

SIZES = {"small": (64, 0), "base": (256, 256)}  # hidden units of the first layer, of the second
CHUNK = 1 << 14  # rows of a product with a second layer in torch, which would take 8 GB for a million rows at once


def problem(
    prompts: int, width: int, size: str, draws: int, dtype: torch.dtype
) -> tuple[Tensor, Decoder, Tensor, Tensor]:
    hidden, outputs = SIZES[size]
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g) / shape[-1] ** 0.5

    features = torch.empty(prompts, width, dtype=dtype)
    for part in features.split(CHUNK):
        part.copy_(torch.randn(part.shape, generator=g))
    decoder = Decoder(
        normal(hidden, width).to(dtype),
        normal(width),
        normal(outputs, hidden).to(dtype) if outputs else None,
        normal(outputs) if outputs else None,
        normal(outputs or hidden),
    )
    return features, decoder, normal(draws, hidden), normal(draws)


def products(features: Tensor, decoder: Decoder, draws: int) -> Callable[[], None]:
    """The matrix products alone, into tensors that are there."""
    out = torch.empty(len(features), len(decoder.first), dtype=features.dtype)
    deep = torch.empty(CHUNK, 0 if decoder.second is None else len(decoder.second), dtype=features.dtype)

    def call() -> None:
        torch.mm(features, decoder.first.T, out=out)
        if decoder.second is not None:
            for part in out.split(CHUNK):
                for _ in range(draws):
                    torch.mm(part, decoder.second.T, out=deep[: len(part)])

    return call


def seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", choices=SIZES, nargs="+", default=["small", "base"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    print(f"Medians of {options.rounds} rounds, {torch.get_num_threads()} threads, {options.draws} draws.\n")
    print("| prompts | size | features | decode, ms | one draw, ms | products in torch, ms | ratio |")
    print("| ---: | --- | --- | ---: | ---: | ---: | ---: |")
    decode = backend.load("difficulty_decoder", "cpu").decode
    for name in options.dtype:
        for size in options.size:
            for prompts in options.prompts:
                features, decoder, shifts, offsets = problem(
                    prompts, options.width, size, options.draws, getattr(torch, name)
                )
                outs = torch.empty(3, prompts)
                calls = [
                    lambda: decode(features, decoder, shifts, offsets, options.trials, *outs),  # noqa: B023
                    lambda: decode(features, decoder, shifts[:1], offsets[:1], options.trials, *outs[:2], None),  # noqa: B023
                    products(features, decoder, options.draws),
                ]
                for call in calls:
                    call()
                rounds = [[seconds(call) for call in calls] for _ in range(options.rounds)]
                ours, one, theirs = (1e3 * statistics.median(times) for times in zip(*rounds, strict=True))
                ratio = statistics.median(times[0] / times[2] for times in rounds)
                print(
                    f"| {prompts} | {size} | {name} | {ours:.1f} | {one:.1f} | {theirs:.1f} | {ratio:.2f} |", flush=True
                )


if __name__ == "__main__":
    main()
