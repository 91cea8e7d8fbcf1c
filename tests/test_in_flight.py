"""Prompts that are out: what keeps count of them outlives the mode it was made in."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import bayes_prompt as bp
from bayes_prompt.in_flight import InFlight


def test_made_in_inference_mode_and_used_outside() -> None:
    with torch.inference_mode():
        out = InFlight(5, torch.device("cpu"))
    out.send(torch.tensor([1, 3]), 0)
    assert out.available.tolist() == [True, False, True, False, True]
    with torch.inference_mode():
        out.land(torch.tensor([3]))
    out.send_unread(torch.tensor([0]), 1)
    assert out.available.tolist() == [False, False, True, True, True]


@pytest.mark.parametrize("name", ["uniform", "mopps", "history_resampling", "dps", "kgps", "gps"])
def test_selectors_made_in_inference_mode(name: str) -> None:
    """They pick and learn outside of it as one that was made there."""
    given: dict[str, Any] = {"num_prompts": 12, "batch_size": 4}
    if name == "gps":
        given["embeddings"] = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    plain, within = getattr(bp.recipes, name)(**given), None
    with torch.inference_mode():
        within = getattr(bp.recipes, name)(**given)
    for _ in range(3):
        picks = []
        for selector in (plain, within):
            index = selector.select()
            selector.update(index, successes=index % 9, trials=8)
            selector.posterior.group_size = 4
            picks.append(index.tolist())
        assert picks[0] == picks[1]
    assert torch.equal(plain.posterior.success_rate(), within.posterior.success_rate())
