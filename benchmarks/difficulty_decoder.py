"""What decoding costs beside the matrix products that it cannot do without, as torch makes these. Prints Markdown.

    python benchmarks/difficulty_decoder.py [--prompts 1000000] [--draws 8] [--rounds 7] [--device cuda]

The products are those of the features with the first layer, once, and those of each draw with a second layer. Calls are
timed in turn, so that whatever else the machine does befalls all of them.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from bayes_prompt.bench.measure import seconds_of
from bayes_prompt.kernels import backend
from bayes_prompt.kernels.difficulty_decoder import Decoder

SIZES = {"small": (64, 0), "base": (256, 256)}  # hidden units of the first layer, of the second
# Rows of a product with a second layer in torch, which would take 8 GB for a million rows at once.
CHUNK = {"cpu": 1 << 14, "cuda": 1 << 18}


def problem(
    prompts: int, width: int, size: str, draws: int, dtype: torch.dtype
) -> tuple[Tensor, Decoder, Tensor, Tensor]:
    hidden, outputs = SIZES[size]
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g) / shape[-1] ** 0.5

    features = torch.empty(prompts, width, dtype=dtype)
    for part in features.split(CHUNK["cpu"]):
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
    chunk = CHUNK[features.device.type]
    out = features.new_empty(len(features), len(decoder.first))
    deep = features.new_empty(chunk, 0 if decoder.second is None else len(decoder.second))

    def call() -> None:
        torch.mm(features, decoder.first.T, out=out)
        if decoder.second is not None:
            for part in out.split(chunk):
                for _ in range(draws):
                    torch.mm(part, decoder.second.T, out=deep[: len(part)])

    return call


def operations(features: Tensor, size: str, draws: int) -> float:
    """Multiplications and additions of these products."""
    hidden, outputs = SIZES[size]
    return 2.0 * len(features) * hidden * (features.shape[1] + draws * outputs)


def on(device: str, decoder: Decoder) -> Decoder:
    """The same weights there."""
    return Decoder(*(None if each is None else each.to(device) for each in decoder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", choices=SIZES, nargs="+", default=["small", "base"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--device", choices=CHUNK, default="cpu")
    options = parser.parse_args()
    threads = f", {torch.get_num_threads()} threads" if options.device == "cpu" else ""
    print(f"Medians of {options.rounds} rounds{threads}, {options.draws} draws.\n")
    print("| prompts | size | features | decode, ms | TFLOP/s | one draw, ms | products in torch, ms | ratio |")
    print("| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    decode = backend.load("difficulty_decoder", backend.resolve("auto", options.device)).decode
    for name in options.dtype:
        for size in options.size:
            for prompts in options.prompts:
                features, decoder, shifts, offsets = problem(
                    prompts, options.width, size, options.draws, getattr(torch, name)
                )
                features, shifts, offsets = (each.to(options.device) for each in (features, shifts, offsets))
                decoder, outs = on(options.device, decoder), torch.empty(3, prompts, device=options.device)
                calls = [
                    lambda: decode(features, decoder, shifts, offsets, options.trials, *outs),  # noqa: B023
                    lambda: decode(features, decoder, shifts[:1], offsets[:1], options.trials, *outs[:2], None),  # noqa: B023
                    products(features, decoder, options.draws),
                ]
                for call in calls:
                    call()
                rounds = [[seconds_of(call, options.device) for call in calls] for _ in range(options.rounds)]
                ours, one, theirs = (1e3 * statistics.median(times) for times in zip(*rounds, strict=True))
                ratio = statistics.median(times[0] / times[2] for times in rounds)
                rate = operations(features, size, options.draws) / ours / 1e9
                cells = (f"{ours:.2f}", f"{rate:.3g}", f"{one:.2f}", f"{theirs:.2f}", f"{ratio:.2f}")
                print(f"| {prompts} | {size} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
