"""Times of several ways to do the same, taken in turn, and what they come to."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]

LEAST_ROUNDS, MOST_ROUNDS = 3, 30
# Seconds of rest before each round on the CPU: OpenMP's threads keep their cores busy for up to 8 ms after torch has
# used them (measured), and whoever comes next would pay for it.
_REST = 0.01
_SHORT = 0.005  # seconds: a shorter call is made twice, and the second counts, for the rest has left the caches cold


@dataclass(frozen=True)
class Seconds:
    """Statistics of the seconds that one call took. Quartiles are interpolated between the sorted values."""

    median: float
    q1: float
    q3: float
    fastest: float
    slowest: float
    mean: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Seconds:
        """Of at least one value; ValueError without any."""
        if not values:
            raise ValueError("values must hold at least one time")
        # Of a single one too, which Python before 3.13 refuses.
        several = values if len(values) > 1 else [*values, *values]
        q1, median, q3 = statistics.quantiles(several, n=4, method="inclusive")
        return cls(median, q1, q3, min(values), max(values), statistics.fmean(values), len(values))


def seconds_of(call: Call, device: str, calls: int = 1) -> float:
    """Seconds of one call, the mean of so many in a row; on a CUDA device between two events of its stream."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / calls
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls


def rounds_within(budget: float, seconds: float) -> int:
    """Repetitions of something that takes so long, in about `budget` seconds: between 3 and 30."""
    return max(LEAST_ROUNDS, min(MOST_ROUNDS, int(budget / max(seconds, 1e-9))))


def turns(rounds: Mapping[str, int]) -> list[str]:
    """Who is timed when: every name as often as it says, spread evenly, so that other load meets all of them."""
    places = [((2 * n + 1) / (2 * count), name) for name, count in rounds.items() for n in range(count)]
    return [name for _, name in sorted(places)]


def alternate(
    runs: Mapping[str, Call], rounds: Mapping[str, int], device: str, calls: Mapping[str, int]
) -> dict[str, Seconds]:
    """Statistics of each run after so many rounds, taken in turn. calls: those that make up one round of a run.

    Warm them up before: the first call of a compiled function compiles it.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    collects = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection would fall on whoever happens to run
    try:
        for name in turns(rounds):
            if device == "cpu":
                time.sleep(_REST)
            seconds = seconds_of(runs[name], device, calls[name])
            times[name].append(seconds if seconds > _SHORT else seconds_of(runs[name], device, calls[name]))
    finally:
        if collects:
            gc.enable()
    return {name: Seconds.of(values) for name, values in times.items()}
