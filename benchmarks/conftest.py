"""What the benchmarks need: checks before times, cases set up, results in the form that `bayes-prompt bench` writes.

make bench ARGS=--benchmark-json=results.json

Here each is timed after the other, not in turn: so times are told, and no ratios. `bayes-prompt bench` tells those.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch

from bayes_prompt.bench.cases import COPY, GRAPH, OURS, Case, cases
from bayes_prompt.bench.machine import CopyBandwidth, Machine
from bayes_prompt.bench.measure import LEAST_ROUNDS, Call, Seconds, rounds_within, seconds_of
from bayes_prompt.bench.memory import Held, peak_over_rest
from bayes_prompt.bench.results import Measurement, Results
from bayes_prompt.bench.verify import Verdict, verify
from bayes_prompt.bench.workloads import Problem, Workload
from bayes_prompt.kernels.backend import resolve

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BUDGET = 2.0  # seconds for the rounds of a benchmark

TimeCase = Callable[[str, str, int, str], None]


@functools.cache
def checked(operation: str, implementation: str) -> Verdict:
    """The verdict of this session; the copy has nothing to agree with."""
    if implementation == COPY:
        return Verdict(operation, implementation, True, 0)
    return verify(operation, implementation, DEVICE)


@functools.cache
def copy_bandwidth() -> CopyBandwidth:
    return CopyBandwidth.here(DEVICE)


@pytest.fixture
def verdict() -> Callable[[str, str], Verdict]:
    return checked


@pytest.fixture
def time_case(benchmark: Any) -> TimeCase:
    """Times one case, unless it or ours disagrees with the reference in this session: then it fails, untimed."""

    def run(operation: str, setting: str, prompts: int, implementation: str) -> None:
        for name in (OURS, implementation):
            if not (found := checked(operation, name)).passed:
                pytest.fail(f"no time is told: {operation} by {name} disagrees with the reference: {found.detail}")
        (case,) = [case for case in cases(operation, DEVICE) if case.implementation == implementation]
        if LEAST_ROUNDS * case.seconds_needed * prompts > BUDGET:
            pytest.skip(f"one call would take about {case.seconds_needed * prompts:.2g} s")
        problem = Problem(operation, setting, prompts, DEVICE)
        ready = case.prepare(Workload(problem))
        *_, seconds = (seconds_of(ready.call, DEVICE) for _ in range(2))
        benchmark.group = f"{operation}, {setting}, {prompts} prompts"
        benchmark.pedantic(_finished(ready.call, case), rounds=rounds_within(BUDGET, seconds), iterations=1)
        counted = problem.bytes_of_ours if implementation in (OURS, GRAPH) else problem.bytes_copied
        bandwidth = counted / benchmark.stats.stats.median * case.calls
        benchmark.extra_info.update(
            operation=operation,
            setting=setting,
            prompts=prompts,
            implementation=implementation,
            calls=case.calls,
            bytes=counted,
            share_of_copy=bandwidth / copy_bandwidth().best if implementation in (OURS, GRAPH) else None,
            peak=peak_over_rest(ready.call, "cpu" if case.host else DEVICE),
            held=asdict(Held.by(ready.holder)),
        )
        torch.compiler.reset()  # keeps few compiled sizes, and would give up compiling

    return run


def _finished(call: Call, case: Case) -> Call:
    """So many calls as make up a round, waited for."""

    def round_() -> None:
        for _ in range(case.calls):
            call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return round_


def pytest_benchmark_update_json(config: object, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """Write what `bayes-prompt bench` writes, so that one report reads both."""
    measurements, verdicts = [], {}
    for each in output_json["benchmarks"]:
        info, stats = each["extra_info"], each["stats"]
        kinds = ("median", "q1", "q3", "min", "max", "mean")
        seconds = Seconds(*(stats[kind] / info["calls"] for kind in kinds), stats["rounds"])
        group = (info["operation"], info["setting"], info["prompts"], info["implementation"])
        held, share = Held(**info["held"]), info["share_of_copy"]
        measurements.append(Measurement(*group, seconds, info["bytes"], info["peak"], held, share))
        for name in (OURS, info["implementation"]):
            verdicts[info["operation"], name] = checked(info["operation"], name)
    results = Results(
        Machine.here(DEVICE),
        copy_bandwidth(),
        resolve("auto", DEVICE),
        BUDGET,
        verdicts=tuple(verdicts.values()),
        measurements=tuple(measurements),
    )
    output_json.clear()
    output_json.update(results.to_json())
