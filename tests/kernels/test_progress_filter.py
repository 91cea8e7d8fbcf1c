"""The compiled progress filters against the float64 reference, and all against recorded runs of the published code."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bayes_prompt.kernels import backend
from bayes_prompt.kernels.progress_filter import IMPOSSIBLE, UNEXPECTED

BACKENDS = ["reference", "cpu", "triton"]
COMPILED = ["cpu", "triton"]
SIZES = [257, 31, 1, 2, 1000]
OUTPUTS = ("concentration", "posterior", "belief", "evidence", "status")
GUARD = 64  # sentinels on both sides of every array that is written

# Every term of every sum is non-negative, so no rounding error is amplified: an entry passes through at most about
# 3 K + 10 roundings of half an ulp each, K <= 16. The sums of the float64 reference itself round too.
TOLERANCE = {torch.float32: 58 * 2.0**-24, torch.float64: 1e-12}
# Over the 40 steps of a recorded run, errors of one step are carried into the next.
GOLDEN_TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-12}


def device_of(name: str) -> str:
    return "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"


@dataclass
class Step:
    """The arguments of `advance`, by name."""

    concentration: Tensor | None
    posterior: Tensor
    belief: Tensor
    prior: Tensor
    slot: Tensor
    likelihood: Tensor
    decay: float
    learn: bool
    evidence: Tensor
    status: Tensor

    def run(self, name: str) -> Step:
        """A copy on the backend's device, advanced there in guarded arrays, and brought back."""
        device = device_of(name)
        guarded = {
            f.name: _guarded(value, device) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)
        }
        step = replace(self, **{key: inner for key, (inner, _) in guarded.items()})
        step.evidence.fill_(float("nan"))
        step.status.fill_(-7)
        backend.load("progress_filter", name).advance(**{f.name: getattr(step, f.name) for f in fields(step)})
        for key, (inner, outer) in guarded.items():
            edges = torch.cat([outer[:GUARD], outer[GUARD + inner.numel() :]])
            assert bool((edges == -99).all()), f"{key} was written outside its bounds"
        for key in ("prior", "slot", "likelihood"):
            torch.testing.assert_close(getattr(step, key).cpu(), getattr(self, key), rtol=0, atol=0, equal_nan=True)
        return replace(step, **{key: inner.cpu() for key, (inner, _) in guarded.items()})

    def rows(self, start: int, stop: int) -> Step:
        """The same step for a part of the rows."""
        part = {
            f.name: value[..., start:stop].contiguous()
            for f in fields(self)
            if f.name in ("concentration", "posterior", "belief", "slot")
            and (value := getattr(self, f.name)) is not None
        }
        prior = self.prior[..., start:stop].contiguous() if self.prior.ndim == 3 else self.prior
        return replace(self, prior=prior, **part)


def _guarded(value: Tensor, device: str) -> tuple[Tensor, Tensor]:
    outer = torch.full((value.numel() + 2 * GUARD,), -99, dtype=value.dtype, device=device)
    inner = outer[GUARD : GUARD + value.numel()].view(value.shape)
    inner.copy_(value)
    return inner, outer


def random_step(
    rows: int,
    states: int,
    dtype: torch.dtype = torch.float64,
    learn: bool = True,
    per_prompt: bool = False,
    decay: float = 0.5,
    observed: float = 0.3,
    seed: int = 0,
) -> Step:
    """A random step; about a quarter each of its rows has vague beliefs, certain beliefs, certain data, and both."""
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    def one_hot(columns: int) -> Tensor:
        return torch.nn.functional.one_hot(torch.randint(states, (columns,), generator=g), states).T.double()

    kind = torch.randint(4, (rows,), generator=g)
    certain = (kind == 1) | (kind == 3)
    belief = torch.where(certain, one_hot(rows), uniform(states, rows) + 0.01)
    posterior = torch.where(certain, one_hot(rows), uniform(states, rows) + 0.01)
    # Forbidden transitions: prior and learned concentrations vanish together, one entry of every row but the first.
    allowed = torch.ones(states, states, dtype=torch.float64)
    allowed[torch.arange(1, states), torch.arange(states - 1)] = 0.0
    shape = (states, states, rows) if per_prompt else (states, states)
    prior = (uniform(*shape) * 3 + 0.05) * (allowed[..., None] if per_prompt else allowed)
    concentration = (uniform(states, states, rows) * 9 + 0.05) * allowed[..., None]
    picked = (uniform(rows) < observed).nonzero().squeeze(1)
    spare = 2 if observed else 0  # rows of the likelihood that belong to nobody: never read
    entries = torch.randperm(len(picked) + spare, generator=g)[: len(picked)]
    slot = torch.full((rows,), -1, dtype=torch.int32)
    slot[picked] = entries.int()
    likelihood = torch.full((len(picked) + spare, states), float("nan"), dtype=torch.float64)
    data = torch.where(kind[picked] >= 2, one_hot(len(picked)), uniform(states, len(picked)) + 0.01)
    likelihood[entries] = (data / data.amax(0)).T
    return Step(
        concentration.to(dtype) if learn else None,
        (posterior / posterior.sum(0)).to(dtype).contiguous(),
        (belief / belief.sum(0)).to(dtype).contiguous(),
        prior.to(dtype),
        slot,
        likelihood.to(dtype),
        decay,
        learn,
        torch.empty(len(likelihood), dtype=dtype),
        torch.empty(len(likelihood), dtype=torch.int32),
    )


def assert_same(actual: Step, expected: Step, tolerance: float) -> None:
    """Every entry within a relative `tolerance`, small ones too; what is below the normal numbers may vanish."""
    for name in ("belief", "posterior", "evidence", "concentration"):
        value, wanted = getattr(actual, name), getattr(expected, name)
        if wanted is not None:
            assert bool(value.isfinite().all()), name
            torch.testing.assert_close(value, wanted, rtol=tolerance, atol=torch.finfo(wanted.dtype).tiny)
    assert torch.equal(actual.status, expected.status)


def assert_identical(actual: Step, expected: Step) -> None:
    for name in OUTPUTS:
        value = getattr(actual, name)
        assert getattr(expected, name) is None if value is None else torch.equal(value, getattr(expected, name)), name


@pytest.mark.parametrize("per_prompt", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("learn", [True, False], ids=["learn", "fixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("states", [2, 3, 5, 16])
@pytest.mark.parametrize("name", COMPILED)
def test_agrees_with_the_reference(name: str, states: int, dtype: torch.dtype, learn: bool, per_prompt: bool) -> None:
    decays, shares = (0.5, 1.0, 0.0), (1.0, 0.3, 0.0)
    flags = 0
    for number, rows in enumerate(SIZES if states < 16 else SIZES[:2]):  # the interpreter takes a second for K = 16
        step = random_step(rows, states, dtype, learn, per_prompt, decays[number % 3], shares[number % 3], number)
        expected = step.run("reference")
        assert_same(step.run(name), expected, TOLERANCE[dtype])
        flags |= int(expected.status.max()) if len(expected.status) else 0
    assert flags == (UNEXPECTED | IMPOSSIBLE if learn else UNEXPECTED), "not every surprise was among the cases"


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("observed", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", COMPILED)
def test_every_decay_with_every_share_of_observations(name: str, observed: float, decay: float) -> None:
    step = random_step(61, 3, torch.float32, decay=decay, observed=observed)
    assert (len(step.likelihood) == 0) == (observed == 0.0)
    assert_same(step.run(name), step.run("reference"), TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("name", BACKENDS)
def test_surprises(name: str, dtype: torch.dtype) -> None:
    """Row 0 unexpected, row 1 impossible, row 2 both, row 3 neither; states certain, transitions 0 -> 2 forbidden."""
    local = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=dtype)
    certain = torch.eye(3, dtype=dtype)
    step = Step(
        concentration=local[..., None].repeat(1, 1, 4),
        posterior=certain[[1, 0, 0, 0]].T.contiguous(),
        belief=certain[[0, 2, 0, 1]].T.contiguous(),
        prior=local,
        slot=torch.tensor([3, 2, 1, 0], dtype=torch.int32),
        likelihood=certain[[1, 2, 2, 2]],
        decay=0.5,
        learn=True,
        evidence=torch.empty(4, dtype=dtype),
        status=torch.empty(4, dtype=torch.int32),
    )
    done = step.run(name)
    assert done.status.tolist() == [0, UNEXPECTED | IMPOSSIBLE, IMPOSSIBLE, UNEXPECTED]
    assert done.evidence.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert torch.equal(done.posterior, certain[[2, 2, 2, 1]].T)
    learned = local[..., None].repeat(1, 1, 4)
    learned[1, 2, 0] += 1  # row 0 was in state 1 and is now in 2
    learned[0, 1, 3] += 1
    torch.testing.assert_close(done.concentration, learned, rtol=TOLERANCE[dtype], atol=0)
    moved = torch.stack(
        [learned[state, :, row] / learned[state, :, row].sum() for row, state in enumerate([2, 2, 2, 1])], 1
    )
    torch.testing.assert_close(done.belief, moved, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", BACKENDS)
def test_thresholds_are_the_smallest_normal_number(name: str) -> None:
    """Evidence of exactly the smallest normal number has vanished, twice that has not, and nothing overflows."""
    for dtype in (torch.float32, torch.float64):
        tiny = torch.finfo(dtype).tiny
        belief = torch.tensor([[tiny, 2 * tiny], [1.0, 1.0]], dtype=dtype)
        step = Step(
            concentration=torch.full((2, 2, 2), 1e-30, dtype=dtype),
            posterior=torch.full((2, 2), 0.5, dtype=dtype),
            belief=belief,
            prior=torch.full((2, 2), 1e-30, dtype=dtype),
            slot=torch.tensor([0, 1], dtype=torch.int32),
            likelihood=torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=dtype),
            decay=0.5,
            learn=True,
            evidence=torch.empty(2, dtype=dtype),
            status=torch.empty(2, dtype=torch.int32),
        )
        done = step.run(name)
        assert done.status.tolist() == [UNEXPECTED, 0]
        assert done.evidence.tolist() == [0.0, 2 * tiny]
        assert_same(done, step.run("reference"), TOLERANCE[dtype])


@pytest.mark.parametrize("name", BACKENDS)
def test_a_small_concentration_times_a_small_likelihood_does_not_vanish(name: str) -> None:
    """Their product underflows float32, while the probability of what was seen is 5e-13."""
    local = torch.tensor([[1.0, 1, 0], [1, 1, 1], [0, 1, 1]]) * 1e-36
    step = Step(
        concentration=local[..., None].clone(),
        posterior=torch.tensor([[1.0], [0.0], [0.0]]),
        belief=torch.tensor([[0.5], [0.5], [0.0]]),
        prior=local,
        slot=torch.tensor([0], dtype=torch.int32),
        likelihood=torch.tensor([[1e-12, 1e-12, 1.0]]),
        decay=0.0,
        learn=True,
        evidence=torch.empty(1),
        status=torch.empty(1, dtype=torch.int32),
    )
    done = step.run(name)
    assert done.status.tolist() == [0]
    assert done.concentration is not None
    assert float(done.concentration.sum()) == pytest.approx(1.0, rel=TOLERANCE[torch.float32])
    assert_same(done, step.run("reference"), TOLERANCE[torch.float32])


@pytest.mark.parametrize("learn", [True, False], ids=["learn", "fixed"])
@pytest.mark.parametrize("name", BACKENDS)
def test_order_of_observations_and_chunks_do_not_matter(name: str, learn: bool) -> None:
    step = random_step(301, 3, torch.float32, learn, per_prompt=True, observed=0.4)
    whole = step.run(name)

    order = torch.randperm(len(step.likelihood), generator=torch.Generator().manual_seed(1))
    position = order.argsort().int()
    slot = torch.where(step.slot >= 0, position[step.slot.long()], -1)
    shuffled = replace(step, slot=slot, likelihood=step.likelihood[order]).run(name)
    back = {key: getattr(shuffled, key)[position.long()] for key in ("evidence", "status")}
    assert_identical(replace(shuffled, **back), whole)

    parts = [step.rows(*edges).run(name) for edges in [(0, 150), (150, 300), (300, 301)]]
    for field in ("concentration", "posterior", "belief") if learn else ("posterior", "belief"):
        assert torch.equal(torch.cat([getattr(part, field) for part in parts], -1), getattr(whole, field)), field
    assert torch.equal(sum(part.evidence for part in parts), whole.evidence)
    assert torch.equal(sum(part.status for part in parts), whole.status)


def test_threads_do_not_matter() -> None:
    """Neither those that a call uses nor those that call at once."""
    step = random_step(130_001, 3, torch.float32, observed=0.01)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = step.run("cpu")
        torch.set_num_threads(3)
        with ThreadPoolExecutor(2) as pool:
            for together in pool.map(lambda _: step.run("cpu"), range(4)):
                assert_identical(together, alone)
    finally:
        torch.set_num_threads(threads)


def test_beliefs_stay_normalised_in_float32() -> None:
    advance = backend.load("progress_filter", "cpu").advance
    step = random_step(16, 5, torch.float32, decay=1.0, observed=0.0)
    assert step.concentration is not None
    none = (step.likelihood, 1.0, True, step.evidence, step.status)
    for _ in range(10_000):
        advance(step.concentration, step.posterior, step.belief, step.prior, step.slot, *none)
    # A division rounds each of the five entries by half an ulp of at most 1, and so does each addition of the check.
    assert float((step.belief.double().sum(0) - 1).abs().max()) <= 5 * 2.0**-24


def test_prior_is_the_fixed_point_of_decay() -> None:
    """After 20,000 unobserved steps nothing is left but the prior, also where 1 - decay is small."""
    advance = backend.load("progress_filter", "cpu").advance
    step = random_step(4, 3, torch.float32, decay=0.998, observed=0.0)
    assert step.concentration is not None
    for _ in range(20_000):
        advance(**{f.name: getattr(step, f.name) for f in fields(step)})
    # decay and 1 - decay are each half an ulp off; that and two roundings a step act 1 / (1 - decay) times.
    torch.testing.assert_close(
        step.concentration, step.prior[..., None].expand(3, 3, 4).contiguous(), rtol=3 * 2.0**-24 / 0.002, atol=0
    )


def read_golden(shared: Path, run: str) -> dict[str, np.ndarray]:
    with np.load(shared / "golden" / "published_samplers.npz") as file:
        return {key.split("/")[1]: file[key] for key in file.files if key.startswith(run + "/")}


PUBLISHED = {
    "progress": [[1, 0.5, 0.5], [1, 1, 0.5], [1, 1, 1]],
    "stability": [[1, 0.5, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 1]],
}


@pytest.mark.parametrize("run", [f"dps{number}" for number in range(5)])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("reference", torch.float64), ("cpu", torch.float64), ("cpu", torch.float32), ("triton", torch.float32)],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_recorded_runs(shared: Path, name: str, dtype: torch.dtype, run: str) -> None:
    """Every step of every recorded run of the published code (which is column-stochastic: [to, from])."""
    golden = read_golden(shared, run)
    device = device_of(name)
    label = str(golden["prior"])
    prior = torch.tensor(PUBLISHED[label]).T if label in PUBLISHED else torch.full((3, 3), float(label))
    steps, rows = golden["index"].shape[0], golden["belief"].shape[1]
    start = str(golden["initial"])
    initial = torch.full((3,), 1 / 3, dtype=torch.float64) if start == "uniform" else torch.eye(3)[int(start) - 1]
    belief = initial.to(device, dtype)[:, None].repeat(1, rows)
    posterior = belief.clone()
    prior = prior.to(device, dtype).contiguous()
    concentration = prior[..., None].repeat(1, 1, rows)
    group, tolerance = int(golden["group_size"]), GOLDEN_TOLERANCE[dtype]
    unexpected = 0

    def compare(step: int) -> None:
        recorded = torch.from_numpy(golden["belief"][step]).T, torch.from_numpy(golden["alpha"][step]).permute(2, 1, 0)
        actual = belief.double().cpu(), concentration.double().cpu()
        assert all(bool(value.isfinite().all()) for value in actual)
        torch.testing.assert_close(actual[0], recorded[0], rtol=0, atol=tolerance)
        # In float64 the bound is absolute, the tighter one where concentrations exceed 1.
        bound = {"rtol": 0.0, "atol": tolerance} if dtype == torch.float64 else {"rtol": tolerance, "atol": 0.0}
        torch.testing.assert_close(actual[1], recorded[1], **bound)

    for step in range(steps):
        compare(step)
        index, successes = golden["index"][step], golden["successes"][step]
        slot = torch.full((rows,), -1, dtype=torch.int32)
        slot[index] = torch.arange(len(index), dtype=torch.int32)
        state = np.where(successes == 0, 0, np.where(successes == group, 2, 1))
        likelihood = torch.eye(3, dtype=dtype)[state]
        evidence, status = torch.empty(len(index), dtype=dtype), torch.empty(len(index), dtype=torch.int32)
        out = evidence.to(device), status.to(device)
        backend.load("progress_filter", name).advance(
            concentration,
            posterior,
            belief,
            prior,
            slot.to(device),
            likelihood.to(device),
            float(golden["decay"]),
            True,
            *out,
        )
        unexpected += int((out[1] == UNEXPECTED).sum())
        assert int(out[1].max()) <= UNEXPECTED
        seen = golden["belief"][step][index, state]
        np.testing.assert_allclose(out[0].double().cpu().numpy(), seen, rtol=0, atol=tolerance)
    compare(steps)
    assert (unexpected > 0) == (start != "uniform")


@pytest.mark.parametrize("name", BACKENDS)
def test_bad_arguments_are_named_and_change_nothing(name: str) -> None:
    step = random_step(7, 3, torch.float32)
    assert step.concentration is not None
    cases: list[tuple[type[Exception], str, dict[str, object]]] = [
        (ValueError, "decay", {"decay": 1.5}),
        (ValueError, "decay", {"decay": float("nan")}),
        (ValueError, "concentration", {"concentration": None}),
        (ValueError, "concentration", {"concentration": step.concentration[..., :5].contiguous()}),
        (ValueError, "concentration", {"concentration": step.concentration.permute(1, 0, 2)}),
        (ValueError, "posterior", {"posterior": step.posterior.T.contiguous().T}),
        (TypeError, "posterior", {"posterior": step.posterior.double()}),
        (TypeError, "belief", {"belief": step.belief.half()}),
        (TypeError, "slot", {"slot": step.slot.long()}),
        (ValueError, "prior", {"prior": step.prior[:2].contiguous()}),
        (ValueError, "likelihood", {"likelihood": step.likelihood[:, :2].contiguous()}),
        (ValueError, "likelihood", {"likelihood": step.likelihood[0]}),
        (ValueError, "evidence", {"evidence": step.evidence[1:]}),
        (ValueError, "status", {"status": step.status.to("meta")}),
    ]
    for error, argument, change in cases:
        arguments = {f.name: getattr(step, f.name) for f in fields(step)}
        before = {key: value.clone() for key, value in arguments.items() if isinstance(value, Tensor)}
        with pytest.raises(error, match=argument):
            backend.load("progress_filter", name).advance(**(arguments | change))
        for key, value in before.items():
            torch.testing.assert_close(arguments[key], value, rtol=0, atol=0, equal_nan=True)
