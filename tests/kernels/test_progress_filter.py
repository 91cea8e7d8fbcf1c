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
from bayes_prompt.kernels.progress_filter import IMPOSSIBLE, SMALLEST_SCALE, UNEXPECTED, Scoring
from bayes_prompt.kernels.shortlist import Shortlist

BACKENDS = ["reference", "cpu", "triton"]
COMPILED = ["cpu", "triton"]
SIZES = [257, 31, 1, 2, 1000]
OUTPUTS = ("learned", "posterior", "scale", "expected", "evidence", "status", "scores", "belief")
GUARD = 64  # sentinels on both sides of every array that is written

# Every term of every sum is non-negative, so no rounding error is amplified: an entry passes through at most about
# 5 K + 15 roundings of half an ulp each, K <= 16. The sums of the float64 reference itself round too.
TOLERANCE = {torch.float32: 95 * 2.0**-24, torch.float64: 1e-12}
# Over the 40 steps of a recorded run, errors of one step are carried into the next.
GOLDEN_TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-12}


def device_of(name: str) -> str:
    return "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"


@dataclass
class Step:
    """The arguments of `advance`, by name; what it is to score; and the belief after it."""

    learned: Tensor | None
    posterior: Tensor
    scale: Tensor
    prior: Tensor
    index: Tensor
    likelihood: Tensor
    decay: float
    expected: Tensor
    evidence: Tensor
    status: Tensor
    utility: Tensor
    scores: Tensor
    belief: Tensor

    def run(self, name: str, threshold: float | None = None, step: bool = True) -> Step:
        """A copy on the backend's device, advanced and asked for its belief in guarded arrays, and brought back.

        threshold: of a shortlist, which is compared with the scores. step=False only scores.
        """
        device = device_of(name)
        guarded = {
            f.name: _guarded(value, device) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)
        }
        done = replace(self, **{key: inner for key, (inner, _) in guarded.items()})
        for out in (done.expected, done.evidence, done.scores, done.belief):
            out.fill_(float("nan"))
        done.status.fill_(-7)
        kernels = backend.load("progress_filter", name)
        kept = None if threshold is None else shortlist(threshold, done.scores)
        state = done.learned, done.posterior, done.scale, done.prior
        scoring = Scoring(done.utility, done.scores, kept)
        if step:
            observed = done.index, done.likelihood, done.decay, done.expected, done.evidence, done.status
            kernels.advance(*state, *observed, scoring)
        else:
            kernels.score(*state, scoring)
        kernels.predict(*state, done.belief)
        if kept is not None:
            check_noted(kept, done.scores)
        for key, (inner, outer) in guarded.items():
            edges = torch.cat([outer[:GUARD], outer[GUARD + inner.numel() :]])
            assert bool((edges == -99).all()), f"{key} was written outside its bounds"
        for key in ("prior", "index", "likelihood", "utility"):
            torch.testing.assert_close(getattr(done, key).cpu(), getattr(self, key), rtol=0, atol=0, equal_nan=True)
        return replace(done, **{key: inner.cpu() for key, (inner, _) in guarded.items()})

    def rows(self, start: int, stop: int) -> Step:
        """The same step for a part of the rows, whose observations keep their places."""
        part = {
            f.name: value[..., start:stop].contiguous()
            for f in fields(self)
            if f.name in ("learned", "posterior", "scores", "belief") and (value := getattr(self, f.name)) is not None
        }
        prior = self.prior[..., start:stop].contiguous() if self.prior.ndim == 3 else self.prior
        return replace(self, prior=prior, index=self.index - start, **part)

    @property
    def concentration(self) -> Tensor:
        """(K, K, N) float64."""
        prior = self.prior.double() if self.prior.ndim == 3 else self.prior.double()[..., None]
        return prior if self.learned is None else prior + self.scale * self.learned.double()


def shortlist(threshold: float, scores: Tensor) -> Shortlist:
    """With room for a third of the rows."""
    kept = Shortlist.empty(1, scores)
    kept.threshold.fill_(threshold)
    return replace(kept, rows=torch.zeros(len(scores) // 3, dtype=torch.int64, device=scores.device), wanted=0)


def check_noted(kept: Shortlist, scores: Tensor) -> None:
    reached = (scores >= kept.threshold).nonzero().squeeze(1)
    assert int(kept.count) == len(reached)
    noted = kept.rows[: len(reached)].unique()
    assert len(noted) == min(len(kept.rows), len(reached))
    assert bool(torch.isin(noted, reached).all())


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
    scale: float = 0.3,
) -> Step:
    """A random step; about a quarter each of its rows has vague beliefs, certain beliefs, certain data, and both.

    One row in seven has not made a step. Of the observations some are passed over: the second one of a row, and those
    outside the pool.
    """
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    def one_hot(columns: int) -> Tensor:
        return torch.nn.functional.one_hot(torch.randint(states, (columns,), generator=g), states).T.double()

    kind = torch.randint(4, (rows,), generator=g)
    certain = (kind == 1) | (kind == 3)
    posterior = torch.where(certain, one_hot(rows), uniform(states, rows) + 0.01)
    posterior = posterior / posterior.sum(0) * torch.where(torch.arange(rows) % 7 == 3, -1.0, 1.0)
    # Forbidden transitions: prior and learned concentrations vanish together, one entry of every row but the first.
    allowed = torch.ones(states, states, dtype=torch.float64)
    allowed[torch.arange(1, states), torch.arange(states - 1)] = 0.0
    shape = (states, states, rows) if per_prompt else (states, states)
    prior = (uniform(*shape) * 3 + 0.05) * (allowed[..., None] if per_prompt else allowed)
    learned = uniform(states, states, rows) * 30 * allowed[..., None]
    picked = (uniform(rows) < observed).nonzero().squeeze(1)
    index, likelihood = picked, torch.empty(0, states, dtype=torch.float64)
    if observed:
        data = torch.where(kind[picked] >= 2, one_hot(len(picked)), uniform(states, len(picked)) + 0.01)
        passed_over = torch.cat([torch.tensor([-1]), picked[:3], torch.tensor([rows, rows])])
        index, order = torch.cat([picked, passed_over]).sort(stable=True)
        nobody = torch.full((len(passed_over), states), float("nan"), dtype=torch.float64)  # never read
        likelihood = torch.cat([(data / data.amax(0)).T, nobody])[order].contiguous()
    return Step(
        learned.to(dtype) if learn else None,
        posterior.to(dtype).contiguous(),
        torch.tensor([scale], dtype=torch.float64),
        prior.to(dtype),
        index,
        likelihood.to(dtype),
        decay,
        torch.empty(len(likelihood), states, dtype=dtype),
        torch.empty(len(likelihood), dtype=dtype),
        torch.empty(len(likelihood), dtype=torch.int32),
        uniform(states).to(dtype),
        torch.empty(rows, dtype=dtype),
        torch.empty(states, rows, dtype=dtype),
    )


def assert_same(actual: Step, expected: Step, tolerance: float) -> None:
    """Every entry within a relative `tolerance`, small ones too; what is below the normal numbers may vanish."""
    for name in ("belief", "posterior", "expected", "evidence", "concentration", "scores", "scale"):
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


@pytest.mark.parametrize("per_prompt", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("learn", [True, False], ids=["learn", "fixed"])
@pytest.mark.parametrize("states", [2, 3, 5])
@pytest.mark.parametrize("name", BACKENDS)
def test_scores_are_what_the_belief_is_worth(name: str, states: int, learn: bool, per_prompt: bool) -> None:
    """With a step and without one, and the shortlist has the rows that reach its threshold, as far as there is room."""
    step = random_step(500, states, torch.float32, learn, per_prompt)
    worth = float(step.utility.mean())
    for threshold in (-1.0, worth, worth + 0.1, float("inf")):
        for stepped in (True, False):
            done = step.run(name, threshold, stepped)
            expected = step.utility.double() @ done.belief.double()
            torch.testing.assert_close(done.scores.double(), expected, rtol=TOLERANCE[torch.float32], atol=0)
    kept = step.run(name, step=False)
    for key in ("learned", "posterior", "scale"):
        value = getattr(kept, key)
        assert value is None or torch.equal(value, getattr(step, key)), f"{key} was changed by asking"


@pytest.mark.parametrize("per_prompt", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("learn", [True, False], ids=["learn", "fixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["f32", "f64", "bf16"])
@pytest.mark.parametrize("states", [2, 3, 5])
@pytest.mark.parametrize("name", BACKENDS)
def test_a_step_scores_as_asking_does(
    name: str, states: int, dtype: torch.dtype, learn: bool, per_prompt: bool
) -> None:
    """To the last bit, so that a resumed run picks what the run would have picked."""
    step = random_step(301, states, torch.float32 if dtype == torch.bfloat16 else dtype, learn, per_prompt)
    if dtype == torch.bfloat16:
        step = replace(step, posterior=step.posterior.bfloat16(), learned=step.learned.bfloat16() if learn else None)
    done = step.run(name)
    assert torch.equal(done.run(name, step=False).scores, done.scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("decay", [0.5, 1e-30, 0.0])
@pytest.mark.parametrize("states", [3, 5])
@pytest.mark.parametrize("name", BACKENDS)
def test_a_scale_that_gets_too_small_is_multiplied_in(name: str, states: int, decay: float, dtype: torch.dtype) -> None:
    """The concentrations decay as ever, the scale is 1 again, and no number is left that would become subnormal."""
    step = random_step(300, states, dtype, decay=decay, observed=0.1, scale=1.5 * SMALLEST_SCALE)
    assert step.learned is not None
    step.learned /= SMALLEST_SCALE
    step.learned[0, 0, :100] *= 1e-30
    done = step.run(name)
    assert done.learned is not None
    assert float(done.scale) == 1.0
    small = (done.learned > 0) & (done.learned < torch.finfo(dtype).tiny / SMALLEST_SCALE)
    assert not bool(small.any())
    unobserved = torch.ones(300, dtype=torch.bool)
    unobserved[step.index[(step.index >= 0) & (step.index < 300)]] = False
    prior = step.prior.double()[..., None]
    decayed = (prior + decay * (step.concentration - prior))[:, :, unobserved]
    torch.testing.assert_close(done.concentration[:, :, unobserved], decayed, rtol=4 * TOLERANCE[dtype], atol=0)
    assert_same(done, step.run("reference"), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("name", BACKENDS)
def test_surprises(name: str, dtype: torch.dtype) -> None:
    """Every row was certainly in state 0, which may only be left for state 1; all but the last two made no step yet.

    The belief of a row without a step is its initial one, state 0, while the transition into it is judged all the same.
    """
    prior = torch.tensor([[0, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=dtype)
    certain = torch.eye(3, dtype=dtype)
    seen = [1, 2, 0, 1, 2]
    step = Step(
        learned=torch.zeros(3, 3, 5, dtype=dtype),
        posterior=(certain[[0] * 5] * torch.tensor([-1, -1, -1, 1, 1], dtype=dtype)[:, None]).T.contiguous(),
        scale=torch.ones(1, dtype=torch.float64),
        prior=prior,
        index=torch.arange(5),
        likelihood=certain[seen],
        decay=0.5,
        expected=torch.empty(5, 3, dtype=dtype),
        evidence=torch.empty(5, dtype=dtype),
        status=torch.empty(5, dtype=torch.int32),
        utility=torch.ones(3, dtype=dtype),
        scores=torch.empty(5, dtype=dtype),
        belief=torch.empty(3, 5, dtype=dtype),
    )
    done = step.run(name)
    both = UNEXPECTED | IMPOSSIBLE
    assert done.status.tolist() == [UNEXPECTED, both, IMPOSSIBLE, 0, both]
    assert done.evidence.tolist() == [0.0, 0.0, 1.0, 1.0, 0.0]
    assert torch.equal(done.posterior, certain[seen].T)
    learned = prior[..., None].repeat(1, 1, 5).double()
    learned[0, 1, [0, 3]] += 1
    torch.testing.assert_close(done.concentration, learned, rtol=TOLERANCE[dtype], atol=0)
    moved = torch.stack([learned[state, :, row] / learned[state, :, row].sum() for row, state in enumerate(seen)], 1)
    torch.testing.assert_close(done.belief.double(), moved, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", BACKENDS)
def test_thresholds_are_the_smallest_normal_number(name: str) -> None:
    """Evidence of exactly the smallest normal number has vanished, twice that has not, and nothing overflows."""
    for dtype in (torch.float32, torch.float64):
        tiny = torch.finfo(dtype).tiny
        step = Step(
            learned=torch.zeros(2, 2, 2, dtype=dtype),
            posterior=-torch.tensor([[tiny, 2 * tiny], [1.0, 1.0]], dtype=dtype),
            scale=torch.ones(1, dtype=torch.float64),
            prior=torch.full((2, 2), 1e-30, dtype=dtype),
            index=torch.arange(2),
            likelihood=torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=dtype),
            decay=0.5,
            expected=torch.empty(2, 2, dtype=dtype),
            evidence=torch.empty(2, dtype=dtype),
            status=torch.empty(2, dtype=torch.int32),
            utility=torch.ones(2, dtype=dtype),
            scores=torch.empty(2, dtype=dtype),
            belief=torch.empty(2, 2, dtype=dtype),
        )
        done = step.run(name)
        assert done.status.tolist() == [UNEXPECTED, 0]
        assert done.evidence.tolist() == [0.0, 2 * tiny]
        assert_same(done, step.run("reference"), TOLERANCE[dtype])


@pytest.mark.parametrize("name", BACKENDS)
def test_a_small_concentration_times_a_small_likelihood_does_not_vanish(name: str) -> None:
    """Their product underflows float32, while the probability of what was seen is 1e-12."""
    step = Step(
        learned=torch.zeros(3, 3, 1),
        posterior=torch.tensor([[1.0], [0.0], [0.0]]),
        scale=torch.ones(1, dtype=torch.float64),
        prior=torch.tensor([[1.0, 1, 0], [1, 1, 1], [0, 1, 1]]) * 1e-36,
        index=torch.tensor([0]),
        likelihood=torch.tensor([[1e-12, 1e-12, 1.0]]),
        decay=0.0,
        expected=torch.empty(1, 3),
        evidence=torch.empty(1),
        status=torch.empty(1, dtype=torch.int32),
        utility=torch.ones(3),
        scores=torch.empty(1),
        belief=torch.empty(3, 1),
    )
    done = step.run(name)
    assert done.status.tolist() == [0]
    assert float(done.concentration.sum()) == pytest.approx(1.0, rel=TOLERANCE[torch.float32])
    assert_same(done, step.run("reference"), TOLERANCE[torch.float32])


@pytest.mark.parametrize("learn", [True, False], ids=["learn", "fixed"])
@pytest.mark.parametrize("name", BACKENDS)
def test_chunks_do_not_matter(name: str, learn: bool) -> None:
    step = random_step(301, 3, torch.float32, learn, per_prompt=True, observed=0.4)
    whole = step.run(name)
    parts = [step.rows(*edges).run(name) for edges in [(0, 150), (150, 300), (300, 301)]]
    for field in ("posterior", "belief", "scores", *(["learned"] if learn else [])):
        assert torch.equal(torch.cat([getattr(part, field) for part in parts], -1), getattr(whole, field)), field
    assert torch.equal(sum(part.evidence for part in parts), whole.evidence)
    assert torch.equal(sum(part.status for part in parts), whole.status)


def test_threads_do_not_matter() -> None:
    """Neither those that a call uses nor those that call at once."""
    step = random_step(130_001, 3, torch.float32, observed=0.01)
    worth = float(step.utility.mean()) + 0.3
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = step.run("cpu", worth)
        torch.set_num_threads(3)
        with ThreadPoolExecutor(2) as pool:
            for together in pool.map(lambda _: step.run("cpu", worth), range(4)):
                assert_identical(together, alone)
    finally:
        torch.set_num_threads(threads)


def test_beliefs_stay_normalised_in_float32() -> None:
    kernels = backend.load("progress_filter", "cpu")
    step = random_step(16, 5, torch.float32, decay=1.0, observed=0.0)
    state = step.learned, step.posterior, step.scale, step.prior
    for _ in range(10_000):
        kernels.advance(*state, step.index, step.likelihood, 1.0, step.expected, step.evidence, step.status)
    kernels.predict(*state, step.belief)
    # The factor that divides the sum out rounds by half an ulp, and so do the sum's four additions, the products with
    # that factor and the additions of the check.
    assert float((step.belief.double().sum(0) - 1).abs().max()) <= 8 * 2.0**-24


def test_prior_is_the_fixed_point_of_decay() -> None:
    """After 20,000 unobserved steps nothing is left but the prior, also where 1 - decay is small."""
    kernels = backend.load("progress_filter", "cpu")
    step = random_step(4, 3, torch.float32, decay=0.998, observed=0.0)
    state = step.learned, step.posterior, step.scale, step.prior
    for _ in range(20_000):
        kernels.advance(*state, step.index, step.likelihood, step.decay, step.expected, step.evidence, step.status)
    # What was learned is exp(-40) of what it was.
    torch.testing.assert_close(
        step.concentration, step.prior.double()[..., None].expand(3, 3, 4), rtol=0, atol=30 * 0.998**20_000
    )


@pytest.mark.parametrize(("name", "rows"), [("cpu", 512), ("triton", 512 if torch.cuda.is_available() else 64)])
@pytest.mark.parametrize("decay", [0.7, 0.98, 1.0])
def test_float32_after_a_thousand_random_steps(name: str, rows: int, decay: float) -> None:
    """Beliefs within 1e-4 of the float64 reference, and the same pick but for scores that differ by less than that."""
    wide = random_step(rows, 3, decay=decay)
    narrow = random_step(rows, 3, torch.float32, decay=decay)
    wide.learned, narrow.learned = torch.zeros_like(wide.learned), torch.zeros_like(narrow.learned)
    wide.posterior.copy_(narrow.posterior)
    wide.prior.copy_(narrow.prior)
    utility = torch.tensor([0.0, 1.0, 0.0])
    g = torch.Generator().manual_seed(3)
    device = device_of(name)
    for which, step in (("reference", wide), (name, narrow)):
        where = device if step is narrow else "cpu"
        for key in ("learned", "posterior", "scale", "prior", "scores", "belief"):
            setattr(step, key, getattr(step, key).to(where))
        step.utility = utility.to(where, step.scores.dtype)
        assert which
    for _ in range(1000):
        index = torch.randperm(rows, generator=g)[: rows // 8].sort().values
        seen = torch.eye(3)[torch.randint(3, (len(index),), generator=g)]
        for which, step in (("reference", wide), (name, narrow)):
            likelihood = seen.to(step.scores)
            out = (
                torch.empty_like(likelihood),
                likelihood.new_empty(len(index)),
                torch.empty(len(index), dtype=torch.int32, device=step.scores.device),
            )
            state = step.learned, step.posterior, step.scale, step.prior
            observed = index.to(likelihood.device), likelihood, decay, *out
            backend.load("progress_filter", which).advance(*state, *observed, Scoring(step.utility, step.scores))
    for which, step in (("reference", wide), (name, narrow)):
        backend.load("progress_filter", which).predict(
            step.learned, step.posterior, step.scale, step.prior, step.belief
        )
    torch.testing.assert_close(narrow.belief.double().cpu(), wide.belief, rtol=0, atol=1e-4)
    best, ours = wide.scores.argsort(descending=True)[: rows // 4], narrow.scores.cpu().argsort(descending=True)
    worst = float(wide.scores[best[-1]])
    for row in set(best.tolist()) ^ set(ours[: rows // 4].tolist()):
        assert abs(float(wide.scores[row]) - worst) < 1e-4


def narrowed(step: Step) -> Step:
    assert step.learned is not None
    return replace(step, learned=step.learned.bfloat16(), posterior=step.posterior.bfloat16())


@pytest.mark.parametrize("states", [3, 5])
@pytest.mark.parametrize("per_prompt", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("name", COMPILED)
def test_a_state_in_bfloat16_agrees_with_the_reference(name: str, per_prompt: bool, states: int) -> None:
    """What is stored may be rounded to another neighbour, 2**-8 away; what is told follows from it."""
    for decay, scale in ((0.5, 0.3), (0.5, 1.5 * SMALLEST_SCALE)):
        step = narrowed(random_step(500, states, torch.float32, per_prompt=per_prompt, decay=decay, scale=scale))
        done, expected = step.run(name, threshold=0.5), step.run("reference")
        for key in ("posterior", "learned", "scores", "belief", "expected", "evidence"):
            value, wanted = getattr(done, key).double(), getattr(expected, key).double()
            # Twice, for the belief follows from two such numbers; below the smallest concentration nothing is told.
            torch.testing.assert_close(value, wanted, rtol=2 * 2.0**-8, atol=1e-30, msg=lambda text: f"{key}: {text}")  # noqa: B023
        assert torch.equal(done.status, expected.status)
        told = done.utility.double() @ done.belief.double()
        torch.testing.assert_close(done.scores.double(), told, rtol=TOLERANCE[torch.float32], atol=0)


@pytest.mark.parametrize("decay", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_bfloat16_after_a_thousand_steps(name: str, decay: float) -> None:
    """A step rounds posterior and concentrations by 2**-9 and carries on at most 0.7 of the error from before.

    So the belief is wrong by 3 * 2**-9 / 0.3 at most. (0.7 bounds the priors of this pool, whose rows have in common
    at least 0.3 of their probability.)
    """
    g = torch.Generator().manual_seed(4)
    exact = random_step(600, 3, decay=decay)
    exact.prior = torch.rand(3, 3, generator=g, dtype=torch.float64) + 0.5
    exact.prior = exact.prior.float().double()
    exact.learned, exact.posterior = torch.zeros(3, 3, 600, dtype=torch.float64), -torch.full((3, 600), 0.25).double()
    exact.posterior[1] = -0.5
    exact.scale.fill_(1.0)
    learned, posterior = exact.learned.bfloat16(), exact.posterior.bfloat16()
    narrow = replace(exact, learned=learned, posterior=posterior, prior=exact.prior.float(), scale=exact.scale.clone())
    for _ in range(1000):
        index = torch.randperm(600, generator=g)[:60].sort().values
        seen = torch.eye(3)[torch.randint(3, (60,), generator=g)]
        for which, step in (("reference", exact), (name, narrow)):
            kernels, likelihood = backend.load("progress_filter", which), seen.to(step.prior)
            out = likelihood.new_empty(60, 3), likelihood.new_empty(60), torch.empty(60, dtype=torch.int32)
            state = step.learned, step.posterior, step.scale, step.prior
            kernels.advance(*state, index, likelihood, decay, *out)
    for which, step in (("reference", exact), (name, narrow)):
        step.belief = torch.empty(3, 600, dtype=step.prior.dtype)
        backend.load("progress_filter", which).predict(
            step.learned, step.posterior, step.scale, step.prior, step.belief
        )
    worst = float((exact.belief - narrow.belief.double()).abs().max())
    assert 0 < worst < 3 * 2.0**-9 / 0.3


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
    posterior = -initial.to(device, dtype)[:, None].repeat(1, rows)
    prior = prior.to(device, dtype).contiguous()
    learned, scale = (
        torch.zeros(3, 3, rows, dtype=dtype, device=device),
        torch.ones(1, dtype=torch.float64, device=device),
    )
    belief, kernels = torch.empty_like(posterior), backend.load("progress_filter", name)
    group, tolerance = int(golden["group_size"]), GOLDEN_TOLERANCE[dtype]
    unexpected = 0

    def compare(step: int) -> None:
        kernels.predict(learned, posterior, scale, prior, belief)
        concentration = prior[..., None].double() + scale * learned.double()
        recorded = torch.from_numpy(golden["belief"][step]).T, torch.from_numpy(golden["alpha"][step]).permute(2, 1, 0)
        actual = belief.double().cpu(), concentration.cpu()
        assert all(bool(value.isfinite().all()) for value in actual)
        torch.testing.assert_close(actual[0], recorded[0], rtol=0, atol=tolerance)
        # In float64 the bound is absolute, the tighter one where concentrations exceed 1.
        bound = {"rtol": 0.0, "atol": tolerance} if dtype == torch.float64 else {"rtol": tolerance, "atol": 0.0}
        torch.testing.assert_close(actual[1], recorded[1], **bound)

    for step in range(steps):
        compare(step)
        order = golden["index"][step].argsort()
        index, successes = golden["index"][step][order], golden["successes"][step][order]
        state = np.where(successes == 0, 0, np.where(successes == group, 2, 1))
        likelihood = torch.eye(3, dtype=dtype)[state].to(device)
        evidence, status = likelihood.new_empty(len(index)), torch.empty(len(index), dtype=torch.int32, device=device)
        out = torch.empty_like(likelihood), evidence, status
        observed = torch.from_numpy(index).long().to(device), likelihood, float(golden["decay"]), *out
        kernels.advance(learned, posterior, scale, prior, *observed)
        unexpected += int((status == UNEXPECTED).sum())
        assert int(status.max()) <= UNEXPECTED
        seen = golden["belief"][step][index, state]
        np.testing.assert_allclose(evidence.double().cpu().numpy(), seen, rtol=0, atol=tolerance)
    compare(steps)
    assert (unexpected > 0) == (start != "uniform")


@pytest.mark.parametrize("name", BACKENDS)
def test_bad_arguments_are_named_and_change_nothing(name: str) -> None:
    step = random_step(7, 3, torch.float32)
    assert step.learned is not None
    cases: list[tuple[type[Exception], str, dict[str, object]]] = [
        (ValueError, "decay", {"decay": 1.5}),
        (ValueError, "decay", {"decay": float("nan")}),
        (ValueError, "learned", {"learned": step.learned[..., :5].contiguous()}),
        (ValueError, "learned", {"learned": step.learned.permute(1, 0, 2)}),
        (ValueError, "posterior", {"posterior": step.posterior.T.contiguous().T}),
        (ValueError, "posterior", {"posterior": step.posterior[0]}),
        (TypeError, "posterior", {"posterior": step.posterior.half()}),
        (TypeError, "learned", {"posterior": step.posterior.bfloat16()}),
        (TypeError, "learned", {"learned": step.learned.double()}),
        (TypeError, "scale", {"scale": step.scale.float()}),
        (TypeError, "index", {"index": step.index.int()}),
        (ValueError, "prior", {"prior": step.prior[:2].contiguous()}),
        (ValueError, "likelihood", {"likelihood": step.likelihood[:, :2].contiguous()}),
        (ValueError, "likelihood", {"likelihood": step.likelihood[0]}),
        (ValueError, "expected", {"expected": step.expected.T.contiguous()}),
        (ValueError, "evidence", {"evidence": step.evidence[1:]}),
        (ValueError, "status", {"status": step.status.to("meta")}),
        (ValueError, "scoring.utility", {"scoring": Scoring(step.utility[:2], step.scores)}),
        (TypeError, "scoring.scores", {"scoring": Scoring(step.utility, step.scores.double())}),
        (
            ValueError,
            "shortlist.wanted",
            {"scoring": Scoring(step.utility, step.scores, replace(Shortlist.empty(1, step.scores), wanted=17))},
        ),
    ]
    accepted = (
        "learned",
        "posterior",
        "scale",
        "prior",
        "index",
        "likelihood",
        "decay",
        "expected",
        "evidence",
        "status",
    )
    for error, argument, change in cases:
        arguments = {key: getattr(step, key) for key in accepted}
        before = {key: value.clone() for key, value in arguments.items() if isinstance(value, Tensor)}
        with pytest.raises(error, match=argument):
            backend.load("progress_filter", name).advance(**(arguments | change))
        for key, value in before.items():
            torch.testing.assert_close(arguments[key], value, rtol=0, atol=0, equal_nan=True)
