"""The compiled Beta filters against the float64 reference, and all against recorded runs of the published code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bayes_prompt.kernels import backend

BACKENDS = ["reference", "cpu", "triton"]
COMPILED = ["cpu", "triton"]
GUARD = 64  # sentinels on both sides of the arrays that are written
STATE = ("alpha", "beta")

# Three products and two sums of non-negative numbers, decay and 1 - decay rounded: at most 5 roundings of half an ulp.
TOLERANCE = {torch.float32: 5 * 2.0**-24, torch.float64: 1e-14}
# What a step carries over from the 39 before it is multiplied by decay < 1, or decay is 1 and all are exact integers.
GOLDEN_TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-12}


def device_of(name: str) -> str:
    return "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"


def random_step(
    rows: int, dtype: torch.dtype, *, per_prompt: bool = False, decay: float = 0.5, observed: float = 0.3, seed: int = 0
) -> dict[str, Any]:
    """Arguments of `advance` but `decay_unobserved`; entries outside the pool and second ones of a row do not count."""
    g = torch.Generator().manual_seed(seed)

    def parameters(count: int) -> Tensor:
        return (torch.rand(count, generator=g, dtype=torch.float64) * 20 + 0.1).to(dtype)

    picked = (torch.rand(rows, generator=g) < observed).nonzero().squeeze(1)
    passed_over = torch.cat([torch.tensor([-1]), picked[::3], torch.tensor([rows])])
    index = torch.cat([picked, passed_over]).sort(stable=True).values if observed else picked
    trials = torch.randint(1, 17, (len(index),), generator=g)
    successes = (torch.rand(len(index), generator=g) * (trials + 1)).long()
    return {
        "alpha": parameters(rows),
        "beta": parameters(rows),
        "prior_alpha": parameters(rows if per_prompt else 1),
        "prior_beta": parameters(rows if per_prompt else 1),
        "index": index,
        "successes": successes,
        "trials": trials,
        "decay": decay,
    }


def run(name: str, step: dict[str, Any], decay_unobserved: bool) -> dict[str, Any]:
    """The arguments after a call on copies of them, the state in guarded arrays."""
    done = {
        key: value.to(device_of(name), copy=True) if isinstance(value, Tensor) else value for key, value in step.items()
    }
    outer = {key: torch.full((len(done[key]) + 2 * GUARD,), -99.0).to(done[key]) for key in STATE}
    for key in STATE:
        outer[key][GUARD:-GUARD] = done[key]
        done[key] = outer[key][GUARD:-GUARD]
    backend.load("beta_filter", name).advance(**done, decay_unobserved=decay_unobserved)
    for key in STATE:
        assert bool((outer[key][:GUARD] == -99).all() & (outer[key][-GUARD:] == -99).all()), (
            f"{key} was written outside"
        )
    done = {key: value.cpu() if isinstance(value, Tensor) else value for key, value in done.items()}
    for key in step.keys() - STATE:
        assert torch.equal(done[key], step[key]) if isinstance(step[key], Tensor) else done[key] == step[key], key
    return done


@pytest.mark.parametrize("per_prompt", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("decay_unobserved", [False, True], ids=["keep", "decay"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("name", COMPILED)
def test_agrees_with_the_reference(name: str, dtype: torch.dtype, decay_unobserved: bool, per_prompt: bool) -> None:
    for number, rows in enumerate([1, 2, 31, 257, 1000]):
        for decay, observed in [(0.0, 0.3), (0.5, 1.0), (0.9, 0.5), (1.0, 0.3), (0.5, 0.0)]:
            step = random_step(rows, dtype, per_prompt=per_prompt, decay=decay, observed=observed, seed=number)
            actual, expected = run(name, step, decay_unobserved), run("reference", step, decay_unobserved)
            for key in STATE:
                assert bool(actual[key].isfinite().all())
                torch.testing.assert_close(actual[key], expected[key], rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.parametrize("name", BACKENDS)
def test_by_hand(name: str) -> None:
    """Prompt 2 occurs twice, and only its first entry counts."""
    step = {
        "alpha": torch.tensor([3.0, 5.0, 9.0]),
        "beta": torch.tensor([1.0, 7.0, 1.0]),
        "prior_alpha": torch.tensor([1.0]),
        "prior_beta": torch.tensor([2.0]),
        "index": torch.tensor([0, 2, 2]),
        "successes": torch.tensor([8, 3, 50]),
        "trials": torch.tensor([8, 8, 50]),
        "decay": 0.5,
    }
    kept, decayed = run(name, step, False), run(name, step, True)
    assert kept["alpha"].tolist() == [10.0, 5.0, 8.0]
    assert kept["beta"].tolist() == [1.5, 7.0, 6.5]
    assert decayed["alpha"].tolist() == [10.0, 3.0, 8.0]
    assert decayed["beta"].tolist() == [1.5, 4.5, 6.5]


@pytest.mark.parametrize("decay_unobserved", [False, True], ids=["keep", "decay"])
@pytest.mark.parametrize("name", BACKENDS)
def test_chunks_do_not_matter(name: str, decay_unobserved: bool) -> None:
    step = random_step(601, torch.float32, per_prompt=True)
    whole = run(name, step, decay_unobserved)
    parts = []
    for start, stop in [(0, 300), (300, 601)]:
        rows = {key: step[key][start:stop] for key in (*STATE, "prior_alpha", "prior_beta")}
        index = step["index"] - start  # entries of other chunks fall outside this one
        parts.append(run(name, step | rows | {"index": index}, decay_unobserved))
    for key in STATE:
        assert torch.equal(torch.cat([part[key] for part in parts]), whole[key])


def test_threads_do_not_matter() -> None:
    step = random_step(80_001, torch.float32, observed=0.01)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run("cpu", step, True)
        torch.set_num_threads(3)
        together = run("cpu", step, True)
    finally:
        torch.set_num_threads(threads)
    for key in STATE:
        assert torch.equal(together[key], alone[key])


@pytest.mark.parametrize("case", ["mopps0", "mopps1", "mopps2"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("reference", torch.float64), *((name, dtype) for name in COMPILED for dtype in (torch.float32, torch.float64))],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_recorded_runs(shared: Path, name: str, dtype: torch.dtype, case: str) -> None:
    """Every step of every recorded run of the published code, which starts from Beta(1, 1)."""
    with np.load(shared / "golden" / "published_samplers.npz") as file:
        golden = {key.split("/")[1]: torch.from_numpy(file[key]) for key in file.files if key.startswith(case + "/")}
    device, tolerance = device_of(name), GOLDEN_TOLERANCE[dtype]
    steps, rows = len(golden["index"]), golden["alpha"].shape[1]
    one = torch.ones(1, dtype=dtype, device=device)
    state = {key: torch.ones(rows, dtype=dtype, device=device) for key in STATE}

    def compare(step: int) -> None:
        for key in STATE:
            actual = state[key].double().cpu()
            assert bool(actual.isfinite().all())
            torch.testing.assert_close(actual, golden[key][step], rtol=tolerance, atol=0)

    for step in range(steps):
        compare(step)
        index, order = golden["index"][step].to(device).sort()
        successes = golden["successes"][step].to(device)[order]
        trials = torch.full_like(index, int(golden["group_size"]))
        backend.load("beta_filter", name).advance(
            *state.values(), one, one, index, successes, trials, float(golden["decay"]), False
        )
    compare(steps)


@pytest.mark.parametrize("name", BACKENDS)
def test_bad_arguments_are_named_and_change_nothing(name: str) -> None:
    step = random_step(7, torch.float32, per_prompt=True)
    cases: list[tuple[type[Exception], str, Any]] = [
        (ValueError, "decay", -0.1),
        (TypeError, "alpha", step["alpha"].half()),
        (ValueError, "alpha", torch.ones(14)[::2]),
        (TypeError, "beta", step["beta"].double()),
        (ValueError, "beta", step["beta"][1:]),
        (ValueError, "prior_alpha", step["prior_alpha"][1:]),
        (ValueError, "prior_beta", step["prior_beta"][:1]),
        (ValueError, "index", step["index"].to("meta")),
        (TypeError, "index", step["index"].int()),
        (ValueError, "successes", step["successes"][1:]),
        (ValueError, "trials", step["trials"][:, None]),
    ]
    for error, argument, value in cases:
        before = {key: value.clone() for key, value in step.items() if isinstance(value, Tensor)}
        with pytest.raises(error, match=argument):
            backend.load("beta_filter", name).advance(**(step | {argument: value}), decay_unobserved=True)
        assert all(torch.equal(step[key], value) for key, value in before.items())
