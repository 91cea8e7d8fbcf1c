"""Runs the cases: what is checked first, what is timed beside what, what is left out and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from bayes_prompt.bench import memory
from bayes_prompt.bench.cases import COPY, GRAPH, OURS, PEERS, Case, Ready, cases
from bayes_prompt.bench.machine import CopyBandwidth, Machine
from bayes_prompt.bench.measure import LEAST_ROUNDS, alternate, rounds_within, seconds_of
from bayes_prompt.bench.memory import Held, peak_over_rest
from bayes_prompt.bench.results import LeftOut, Measurement, Results, compared
from bayes_prompt.bench.verify import Verdict, verify
from bayes_prompt.bench.workloads import OPERATIONS, SETTINGS, Problem, Workload
from bayes_prompt.kernels import backend as backends

#: stage, done, total, remark: as in the testbed.
Progress = Callable[[str, int, int | None, str], None]

_WARM = 2  # calls before the timing: the first compiles and touches memory, the second says how long one takes
_USABLE = {"cpu": 0.8, "cuda": 0.9}  # of the free memory; the host has other work too


def run(
    operations: Sequence[str] = tuple(OPERATIONS),
    sizes: Sequence[int] = (10_000, 100_000, 1_000_000),
    *,
    device: str = "cpu",
    backend: str = "auto",
    peers: Sequence[str] = PEERS,
    budget: float = 0.5,
    progress: Progress = lambda *_: None,
) -> Results:
    """Check and time the operations at each size, with the peers beside them.

    device: "cpu" or "cuda". backend: of our kernels; BackendUnavailable where it cannot be had. peers: names of
    implementations. budget: seconds that the repetitions of a case may take (three are made of ours in any case; a peer
    of which three take longer is left out).
    """
    backend = backends.resolve(backend, device)
    machine = Machine.here(device)
    progress("copy bandwidth", 0, 1, "")
    results = Results(machine, CopyBandwidth.here(device), backend, budget)
    progress("copy bandwidth", 1, 1, f"{results.copy.best / 1e9:.1f} GB/s")
    wanted = [case for name in operations for case in cases(name, device)]
    wanted = [case for case in wanted if not case.is_peer or case.implementation in peers]
    verdicts = _verdicts(wanted, device, backend, progress)
    measured: list[Measurement] = []
    left_out: list[LeftOut] = []
    for operation in operations:
        kinds = [(setting, size) for setting in SETTINGS[operation] for size in sorted(sizes)]
        problems = [Problem(operation, *kind, device, backend) for kind in kinds]
        for done, problem in enumerate(problems):
            progress(operation, done, len(problems), f"{problem.setting}, N = {problem.prompts:,}")
            rows, omitted = measure(problem, [case for case in wanted if case.operation == operation], budget)
            measured += rows
            left_out += omitted
        progress(operation, len(problems), len(problems), "")
    ratios = compared(measured, verdicts, results.copy)
    return replace(results, verdicts=tuple(verdicts), measurements=ratios, left_out=tuple(left_out))


def measure(problem: Problem, chosen: Sequence[Case], budget: float) -> tuple[list[Measurement], list[LeftOut]]:
    """All cases of one problem, timed in turn; and those that memory or time forbids."""
    fitting, omitted = _fitting(problem, chosen, budget)
    if not fitting:
        return [], omitted
    ready: dict[str, Ready] = {}
    rounds: dict[str, int] = {}
    calls = {case.implementation: case.calls for case in fitting}
    places = {case.implementation: "cpu" if case.host else problem.device for case in fitting}
    work = Workload(problem)
    for case in fitting:
        try:
            made = case.prepare(work)
            *_, seconds = (seconds_of(made.call, problem.device) for _ in range(_WARM))
        except Exception as error:
            # A peer may lack a compiler, or memory, and fail as its library pleases. Ours may lack memory alone.
            if not case.is_peer and not isinstance(error, MemoryError | torch.OutOfMemoryError):
                raise
            reason = (str(error).strip().splitlines() or [""])[0]
            omitted.append(_left_out(problem, case, f"{type(error).__name__}: {reason}"))
            continue
        if case.is_peer and LEAST_ROUNDS * seconds > budget:
            omitted.append(_left_out(problem, case, f"one call takes {seconds:.2g} s"))
            continue
        ready[case.implementation] = made
        rounds[case.implementation] = rounds_within(budget, seconds * case.calls)
    runs = {name: made.call for name, made in ready.items()}
    times = alternate(runs, rounds, problem.device, calls)
    measured = [
        Measurement(
            *(problem.operation, problem.setting, problem.prompts, name),
            times[name],
            problem.bytes_of_ours if name in (OURS, GRAPH) else problem.bytes_copied,
            peak_over_rest(made.call, places[name]),
            Held.by(made.holder),
        )
        for name, made in ready.items()
    ]
    torch.compiler.reset()  # keeps few compiled sizes, and would give up compiling
    return measured, omitted


def _fitting(problem: Problem, chosen: Sequence[Case], budget: float) -> tuple[list[Case], list[LeftOut]]:
    """The cases that memory holds at once, those before others in the list; and the others."""
    free = {kind: _USABLE[kind] * memory.available(kind) for kind in {"cpu", problem.device}}
    fitting, omitted = [], []
    ours_fits = True
    for case in chosen:
        where = "cpu" if case.host else problem.device
        needed = case.bytes_needed * problem.prompts
        slow = case.seconds_needed * problem.prompts
        if not ours_fits:
            omitted.append(_left_out(problem, case, "ours does not fit"))
        elif needed > free[where]:
            reason = f"needs about {needed / 1e9:.3g} GB; {max(free[where], 0) / 1e9:.3g} GB are free beside the others"
            omitted.append(_left_out(problem, case, reason))
            ours_fits = case.implementation != OURS
        elif LEAST_ROUNDS * slow > budget:
            omitted.append(_left_out(problem, case, f"one call would take about {slow:.2g} s"))
        else:
            free[where] -= needed
            fitting.append(case)
    return fitting, omitted


def _verdicts(wanted: Sequence[Case], device: str, backend: str, progress: Progress) -> list[Verdict]:
    checked = [case for case in wanted if case.implementation != COPY]
    verdicts: list[Verdict] = []
    for done, case in enumerate(checked):
        progress("checks", done, len(checked), f"{case.operation}, {case.implementation}")
        verdicts.append(verify(case.operation, case.implementation, device, backend))
    failed = sum(not verdict.passed for verdict in verdicts)
    progress("checks", len(checked), len(checked), f"{failed} failed" if failed else "")
    return verdicts


def _left_out(problem: Problem, case: Case, reason: str) -> LeftOut:
    return LeftOut(problem.operation, problem.setting, problem.prompts, case.implementation, reason)
