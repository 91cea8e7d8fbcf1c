"""The beliefs of all prompts advance by one DPS step, with 256 observations of 8 rollouts.

make bench
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bayes_prompt.bench.workloads import SETTINGS

OPERATION = "filter"


def test_it_agrees_with_the_reference(verdict: Callable[[str, str], Any], implementation: str) -> None:
    found = verdict(OPERATION, implementation)
    assert found.passed, found.detail


@pytest.mark.parametrize("setting", SETTINGS[OPERATION])
def test_filter(time_case: Callable[..., None], setting: str, prompts: int, implementation: str) -> None:
    time_case(OPERATION, setting, prompts, implementation)
