"""Every operation by every implementation: does it agree with the reference, and how long does it take?

make bench
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bayes_prompt.bench.cases import cases
from bayes_prompt.bench.workloads import OPERATIONS, SETTINGS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = (10_000, 1_000_000)
PAIRS = [(operation, case.implementation) for operation in OPERATIONS for case in cases(operation, DEVICE)]
TIMED = [
    (operation, setting, prompts, implementation)
    for operation, implementation in PAIRS
    for setting in SETTINGS[operation]
    for prompts in SIZES
]


@pytest.mark.parametrize(("operation", "implementation"), PAIRS)
def test_it_agrees_with_the_reference(verdict: Callable[[str, str], Any], operation: str, implementation: str) -> None:
    found = verdict(operation, implementation)
    assert found.passed, found.detail


@pytest.mark.parametrize(("operation", "setting", "prompts", "implementation"), TIMED)
def test_time(
    time_case: Callable[[str, str, int, str], None], operation: str, setting: str, prompts: int, implementation: str
) -> None:
    time_case(operation, setting, prompts, implementation)
