"""A run of made-up figures, and runs cut short: nothing here depends on a clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bayes_prompt.bench import machine, measure
from bayes_prompt.bench.cases import COPY, OURS
from bayes_prompt.bench.machine import Commit, CopyBandwidth, Machine
from bayes_prompt.bench.measure import Seconds
from bayes_prompt.bench.memory import Held
from bayes_prompt.bench.results import LeftOut, Measurement, Results, compared
from bayes_prompt.bench.verify import Verdict

PEER = "numpy float64"
MEDIANS = {OURS: 2e-9, COPY: 1e-9, PEER: 40e-9}  # seconds a prompt


def measurement(name: str, prompts: int, operation: str = "step", setting: str = "all visited") -> Measurement:
    median = MEDIANS[name] * prompts
    seconds = Seconds.of([0.9 * median, median, 1.2 * median])
    return Measurement(operation, setting, prompts, name, seconds, 96 * prompts, 5 * prompts, Held(48 * prompts, 13))


@pytest.fixture
def three_rounds(monkeypatch: pytest.MonkeyPatch) -> float:
    """Three rounds of everything and a small copy; the value is a budget within which nothing is too slow."""
    monkeypatch.setattr(measure, "MOST_ROUNDS", 3)
    monkeypatch.setitem(machine._COPIED, "cpu", 1 << 20)
    return 300.0


@pytest.fixture
def made_up() -> Callable[..., Results]:
    """Makes a run; `passed` are verdicts by implementation, `changed` replaces fields."""

    def make(passed: dict[str, bool] | None = None, **changed: Any) -> Results:
        agreed = {OURS: True, PEER: True} | (passed or {})
        verdicts = tuple(Verdict("step", name, ok, 3, "" if ok else "all wrong") for name, ok in agreed.items())
        copy = CopyBandwidth(1 << 28, 2, 90e9, 100e9)
        rows = [measurement(name, prompts) for prompts in (10_000, 1_000_000) for name in MEDIANS]
        left_out = tuple(
            LeftOut("step", "all visited", prompts, "dict of arrays", "too slow") for prompts in (10_000, 1_000_000)
        )
        options: dict[str, Any] = {
            "commit": Commit("0123456789abcdef", False),
            "versions": {"python": "3.11.7", "bayes-prompt": "0.1.0", "torch": "2.13.0+cpu", "numba": "0.68.1"},
            "date": "2026-01-02T03:04:05+00:00",
            "verdicts": verdicts,
            "measurements": compared(rows, verdicts, copy),
            "left_out": left_out,
        }
        processor = Machine("A Processor", "cpu", 2, 2, 1 << 34, 0.1)
        return replace(Results(processor, copy, "cpu", 1.0, **options), **changed)

    return make
