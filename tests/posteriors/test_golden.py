"""The published samplers' numbers, every run and every step, through the public posterior API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import bayes_prompt as bp

# float64 differs from the published code by the order of a handful of sums and products: measured 9e-16.
REFERENCE = {"rtol": 1e-12, "atol": 1e-12}
# float32 rounds each of about forty steps by 6e-8; they partly cancel. Concentrations exceed 1, so theirs is relative.
SINGLE_BELIEF = {"rtol": 0.0, "atol": 5e-6}
SINGLE_RELATIVE = {"rtol": 5e-6, "atol": 0.0}
BACKENDS = [("reference", torch.float64), ("cpu", torch.float32), ("triton", torch.float32)]


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    with np.load(shared / "golden" / "published_samplers.npz") as file:
        return {name: file[name] for name in file.files}


def transition_prior(name: str) -> Any:
    named = {"progress": bp.priors.progress, "stability": bp.priors.stability, "local": bp.priors.local}
    return named[name]() if name in named else bp.priors.uniform(float(name))


def initial_prior(name: str) -> torch.Tensor:
    return bp.priors.uniform_initial() if name == "uniform" else bp.priors.one_hot_initial(int(name) - 1)


@pytest.mark.parametrize("run", range(5))
@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
def test_dps(golden: dict[str, Any], run: int, backend: str, dtype: torch.dtype) -> None:
    def recorded(name: str) -> np.ndarray:
        return golden[f"dps{run}/{name}"]

    model = bp.SolvingProgress(
        transition=transition_prior(str(recorded("prior"))),
        initial=initial_prior(str(recorded("initial"))),
        decay=float(recorded("decay")),
    )
    steps, prompts = recorded("belief").shape[0] - 1, recorded("belief").shape[1]
    posterior = model.posterior(num_prompts=prompts, dtype=dtype, backend=backend)
    exact = dtype == torch.float64
    for step in range(steps + 1):
        belief, concentration = posterior.belief.double().numpy(), posterior.concentration.double().numpy()
        assert np.isfinite(belief).all() and np.isfinite(concentration).all()
        np.testing.assert_allclose(belief, recorded("belief")[step], **(REFERENCE if exact else SINGLE_BELIEF))
        published = recorded("alpha")[step].transpose(0, 2, 1)  # stored as [to, from]
        np.testing.assert_allclose(concentration, published, **(REFERENCE if exact else SINGLE_RELATIVE))
        if step < steps:
            posterior.update(recorded("index")[step], recorded("successes")[step], int(recorded("group_size")))
    np.testing.assert_array_equal(posterior.visits.numpy(), recorded("sampled_times"))
    if str(recorded("initial")) != "uniform":
        assert posterior.unexpected > 0


@pytest.mark.parametrize("run", range(3))
@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
def test_mopps(golden: dict[str, Any], run: int, backend: str, dtype: torch.dtype) -> None:
    def recorded(name: str) -> np.ndarray:
        return golden[f"mopps{run}/{name}"]

    steps, prompts = recorded("alpha").shape[0] - 1, recorded("alpha").shape[1]
    model = bp.SuccessRate(prior=dist.Beta(1.0, 1.0), decay=float(recorded("decay")))
    posterior = model.posterior(num_prompts=prompts, dtype=dtype, backend=backend)
    tolerance = REFERENCE if dtype == torch.float64 else SINGLE_RELATIVE
    for step in range(steps + 1):
        for name in ("alpha", "beta"):
            ours = getattr(posterior, name).double().numpy()
            assert np.isfinite(ours).all()
            np.testing.assert_allclose(ours, recorded(name)[step], **tolerance)
        if step < steps:
            posterior.update(recorded("index")[step], recorded("successes")[step], int(recorded("group_size")))
