"""Named priors are the published matrices, transposed to [from, to]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pyro.distributions import Dirichlet

from bayes_prompt.models import priors

# As published (arXiv 2603.10887, recipe/dps/task_sampler.py): columns are the states that are left, [to, from].
PUBLISHED = {
    "uniform": [[1, 1, 1], [1, 1, 1], [1, 1, 1]],
    "progress": [[1, 0.5, 0.5], [1, 1, 0.5], [1, 1, 1]],
    "stability": [[1, 0.5, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 1]],
    "local": [[1, 1, 0], [1, 1, 1], [0, 1, 1]],
}


def concentration(name: str) -> torch.Tensor:
    prior = getattr(priors, name)()
    return prior.concentration if isinstance(prior, Dirichlet) else prior


@pytest.mark.parametrize("name", PUBLISHED)
def test_priors_are_the_published_matrices(name: str) -> None:
    assert concentration(name).dtype == torch.float64
    assert concentration(name).T.tolist() == PUBLISHED[name]


def test_priors_equal_what_the_published_sampler_starts_from(shared: Path) -> None:
    runs = np.load(shared / "golden" / "published_samplers.npz")
    seen = set()
    for run in range(5):
        name, alpha = str(runs[f"dps{run}/prior"]), runs[f"dps{run}/alpha"][0]
        ours = concentration(name) if name in PUBLISHED else priors.uniform(float(name)).concentration
        np.testing.assert_array_equal(np.broadcast_to(ours.T.numpy(), alpha.shape), alpha)
        initial = str(runs[f"dps{run}/initial"])
        start = priors.uniform_initial() if initial == "uniform" else priors.one_hot_initial(int(initial) - 1)
        belief = runs[f"dps{run}/belief"][0]
        np.testing.assert_array_equal(np.broadcast_to(start.numpy(), belief.shape), belief)
        seen |= {name, initial}
    assert {"progress", "stability", "uniform"} <= seen


def test_other_sizes() -> None:
    assert priors.uniform(0.25, num_states=5).concentration.tolist() == [[0.25] * 5] * 5
    assert priors.uniform_initial(4).tolist() == [0.25] * 4
    assert priors.one_hot_initial(1, num_states=2).tolist() == [0.0, 1.0]
    assert priors.one_hot_initial(np.int64(1), num_states=np.int32(2)).tolist() == [0.0, 1.0]


def test_bad_arguments_are_named() -> None:
    for a in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="a must be positive and finite"):
            priors.uniform(a)
    with pytest.raises(ValueError, match="num_states must be at least 2; got 1"):
        priors.uniform(1.0, num_states=1)
    with pytest.raises(ValueError, match="num_states must be at least 2; got 0"):
        priors.uniform_initial(0)
    for wrong in (2.5, True, "3"):
        kind = type(wrong).__name__
        with pytest.raises(TypeError, match=f"num_states must be an integer; got {kind}"):
            priors.uniform(num_states=wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=f"num_states must be an integer; got {kind}"):
            priors.uniform_initial(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=f"state must be an integer; got {kind}"):
            priors.one_hot_initial(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a must be a number; got str"):
        priors.uniform("1")  # type: ignore[arg-type]
    for state in (-1, 3):
        with pytest.raises(ValueError, match=rf"state must lie in \[0, 2\]; got {state}"):
            priors.one_hot_initial(state)


def test_each_prior_cites_its_source() -> None:
    for name in (*PUBLISHED, "uniform_initial", "one_hot_initial"):
        assert "2603.10887" in (getattr(priors, name).__doc__ or "")
