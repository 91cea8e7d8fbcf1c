"""Invariants of every posterior, over random steps with extreme priors, zeros and decays."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.posteriors.beta import BetaBelief, BetaPosterior
from bayes_prompt.posteriors.grid import GridPosterior
from bayes_prompt.posteriors.progress import ProgressPosterior

N = 6
BACKENDS = ["reference", "cpu", "triton"]
CONCENTRATIONS = [0.0, 1e-6, 0.5, 1.0, 1e6]
EMISSIONS = {
    "published": None,
    "beta_binomial": bp.BetaBinomialEmission(dist.Beta(torch.tensor([0.1, 2.0, 8.0]), torch.tensor([8.0, 2.0, 0.1]))),
    "partition": bp.PartitionEmission([0.0, 0.0, 1.0, 1.0]),
}
ATOMS = bp.priors.inflated(bp.priors.logit_normal(0.0, 1.5), zero=0.1, one=0.1)
WALK = bp.LogitRandomWalk(0.5, 0.2)
GRIDS = {
    "forgets": bp.SuccessRate(ATOMS, decay=0.3, grid=7),
    "forgets all": bp.SuccessRate(ATOMS, decay=0.0, grid=7),
    "narrow": bp.SuccessRate(dist.Beta(1e6, 1e6), grid=7),
    "walks": bp.SuccessRate(ATOMS, drift=WALK, grid=7),
    "has modes": bp.SuccessRate(dist.Beta(1e-3, 1.0), drift=bp.Mixture(0.5, WALK, thaw=0.1), grid=5),
    "drifts": bp.SuccessRate(ATOMS, drift=bp.DriftBank([WALK, bp.Redraw()]), grid=7, sharing=bp.EmpiricalBayes()),
    "decays": bp.SuccessRate(ATOMS, decay=bp.DecayBank(floor=0.0), grid=7, sharing=bp.EmpiricalBayes()),
}
KINDS = ["published", "beta_binomial", "partition", "beta", "grid"]


@st.composite
def priors(draw: st.DrawFn) -> Tensor:
    rows = st.lists(st.sampled_from(CONCENTRATIONS), min_size=3, max_size=3).filter(any)
    return torch.tensor([draw(rows) for _ in range(3)], dtype=torch.float64)


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[list[int], list[int], list[int], float]]:
    """Index, successes, trials and elapsed time of a few steps; some observe nothing, some a prompt twice."""
    result = []
    for _ in range(draw(st.integers(1, 8))):
        index = draw(st.lists(st.integers(0, N - 1), max_size=N))
        trials = [draw(st.sampled_from([1, 2, 8, 500])) for _ in index]
        successes = [draw(st.sampled_from([0, t // 2, t])) for t in trials]
        result.append((index, successes, trials, draw(st.sampled_from([0.0, 0.5, 1.0, 3.0]))))
    return result


def check_progress(posterior: ProgressPosterior) -> None:
    belief, concentration = posterior.belief, posterior.concentration
    assert bool(torch.isfinite(belief).all()) and bool(torch.isfinite(concentration).all())
    assert bool((belief >= 0).all()) and bool((concentration >= 0).all())
    # Three additions and a division, each rounded once: a few units in the last place of 1.
    torch.testing.assert_close(belief.sum(1), torch.ones(N, dtype=posterior.dtype), rtol=0, atol=8 * eps(posterior))
    assert torch.isfinite(torch.tensor(posterior.log_evidence))
    for figure in (posterior.success_rate(), posterior.informative_probability(8), posterior.entropy()):
        assert bool(torch.isfinite(figure).all())


def check_beta(posterior: BetaBelief, step: int) -> None:
    for parameter in (posterior.alpha, posterior.beta):
        assert bool(torch.isfinite(parameter).all()) and bool((parameter > 0).all())
    for figure in (
        posterior.success_rate(),
        posterior.informative_probability(8),
        posterior.expected_variance(),
        posterior.sample_success_rate(0, step),
    ):
        assert bool(((figure >= 0) & (figure <= 1)).all())
    assert bool(torch.isfinite(posterior.entropy()).all())
    assert torch.isfinite(torch.tensor(posterior.log_count_evidence))


def check_grid(posterior: GridPosterior, step: int) -> None:
    belief = posterior.belief
    assert bool(torch.isfinite(belief).all()) and bool((belief >= 0).all())
    # Sums of as many products as there are states, and a division, on the way from the last look and in the look.
    bound = 8 * posterior._belief.shape[1] * eps(posterior)
    torch.testing.assert_close(belief.sum(1), torch.ones(N, dtype=posterior.dtype), rtol=0, atol=bound)
    for figure in (
        posterior.success_rate(),
        posterior.informative_probability(8),
        posterior.expected_variance(),
        posterior.sample_success_rate(0, step),
        posterior.look_index(8, 10.0),
        posterior.informative_quantile(8, 0.7),
    ):
        assert bool(((figure >= 0) & (figure <= 1 + bound)).all())
    weights = posterior.bank_weights()
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights), dtype=weights.dtype), rtol=0, atol=bound)
    assert torch.isfinite(torch.tensor(posterior.log_count_evidence))


def eps(posterior: bp.Posterior) -> float:
    return torch.finfo(posterior.dtype).eps


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("emission", EMISSIONS)
@settings(max_examples=40, deadline=None)
@given(
    prior=priors(), one_hot=st.booleans(), decay=st.sampled_from([0.0, 0.3, 1.0]), learn=st.booleans(), history=steps()
)
def test_progress_stays_a_belief(
    backend: str, emission: str, prior: Tensor, one_hot: bool, decay: float, learn: bool, history: list[Any]
) -> None:
    initial = bp.priors.one_hot_initial(1) if one_hot else bp.priors.uniform_initial()
    model = bp.SolvingProgress(prior, initial, decay=decay, learn=learn, emission=EMISSIONS[emission])
    posterior = model.posterior(N, backend=backend)
    for index, successes, trials, elapsed in history:
        posterior.update(index, successes, trials, elapsed)
        check_progress(posterior)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(
    alpha=st.sampled_from([1e-6, 0.5, 1e6]),
    beta=st.sampled_from([1e-6, 1.0, 1e6]),
    decay=st.sampled_from([0.0, 0.3, 1.0]),
    decay_unobserved=st.booleans(),
    history=steps(),
)
def test_beta_stays_positive(
    backend: str, alpha: float, beta: float, decay: float, decay_unobserved: bool, history: list[Any]
) -> None:
    model = bp.SuccessRate(dist.Beta(alpha, beta), decay=decay, decay_unobserved=decay_unobserved)
    posterior = model.posterior(N, backend=backend)
    for step, (index, successes, trials, elapsed) in enumerate(history):
        posterior.update(index, successes, trials, elapsed)
        check_beta(posterior, step)


@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, each) for name in GRIDS for each in BACKENDS if each != "triton" or name == "has modes"],
)
@settings(max_examples=8, deadline=None)
@given(history=steps(), grouped=st.booleans(), embedded=st.booleans())
def test_grids_stay_beliefs(backend: str, name: str, grouped: bool, embedded: bool, history: list[Any]) -> None:
    model, groups = GRIDS[name], [0, 1, 2] * 2 if grouped else None
    embeddings = torch.arange(N)[:, None] // 2 if embedded and model.sharing is not None else None
    posterior = model.posterior(N, backend=backend, groups=groups, embeddings=embeddings)
    assert isinstance(posterior, GridPosterior)
    for step, (index, successes, trials, elapsed) in enumerate(history):
        posterior.update(index, successes, trials, elapsed)
        check_grid(posterior, step)


@settings(max_examples=8, deadline=None)
@given(
    own_record=st.booleans(),
    likelihood=st.sampled_from(["beta_binomial", "binomial"]),
    learning_rate=st.sampled_from([0.0, 0.01, 1.0]),
    history=steps(),
)
def test_difficulty_stays_a_belief(own_record: bool, likelihood: str, learning_rate: float, history: list[Any]) -> None:
    model = bp.GenerativeDifficulty(
        own_record=own_record, likelihood=likelihood, learning_rate=learning_rate, gradient_steps=2, latent=None
    )
    posterior = model.posterior(embeddings=torch.eye(N))
    for step, (index, successes, trials, elapsed) in enumerate(history):
        posterior.update(index, successes, trials, elapsed)
        check_beta(posterior, step)


@pytest.mark.slow
def test_ten_thousand_steps() -> None:
    generator = torch.Generator().manual_seed(11)
    own = torch.rand(N, 3, 3, generator=generator) + 1e-3
    settings = [(decay, dtype) for decay in (0.0, 0.5, 1.0) for dtype in (torch.float32, torch.float64)]
    progress = [
        bp.SolvingProgress(prior, decay=decay, emission=emission).posterior(N, dtype=dtype, concentration=each)
        for decay, dtype in settings
        for prior, emission, each in [
            (bp.priors.uniform(1.0), None, None),
            (bp.priors.local(), None, None),
            (bp.priors.uniform(1e-6), EMISSIONS["beta_binomial"], None),
            (bp.priors.uniform(1.0), None, own),
        ]
    ]
    beta = [
        bp.SuccessRate(dist.Beta(1e-3, 1.0), decay=decay, decay_unobserved=True).posterior(N, dtype=dtype)
        for decay, dtype in settings
    ]
    grids = [GRIDS[name].posterior(N, dtype=dtype) for name in GRIDS for dtype in (torch.float32, torch.float64)]
    for _ in range(10_000):
        index = torch.randint(N, (2,), generator=generator)
        successes = torch.randint(9, (2,), generator=generator)
        for posterior in (*progress, *beta, *grids):
            posterior.update(index, successes, 8)
    for posterior in progress:
        check_progress(posterior)
    for posterior in grids:
        check_grid(posterior, 10_000)
    for posterior in beta:
        for parameter in (posterior.alpha, posterior.beta):
            assert bool(torch.isfinite(parameter).all()) and bool((parameter > 0).all())


def make(
    kind: str, num_prompts: int, first_prompt: int = 0, **options: Any
) -> ProgressPosterior | BetaPosterior | GridPosterior:
    if kind == "grid":
        return GRIDS["walks"].posterior(num_prompts, first_prompt=first_prompt, **options)
    if kind == "beta":
        return bp.SuccessRate(dist.Beta(0.5, 1.5), decay=0.6, decay_unobserved=True).posterior(
            num_prompts, first_prompt=first_prompt, **options
        )
    return bp.SolvingProgress(bp.priors.progress(), decay=0.6, emission=EMISSIONS[kind]).posterior(
        num_prompts, first_prompt=first_prompt, **options
    )


def observations(num_prompts: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(num_prompts, (12,), generator=generator)
    return index, torch.randint(9, (12,), generator=generator)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), cut=st.integers(0, 12))
def test_order_within_a_batch_does_not_matter(kind: str, backend: str, seed: int, cut: int) -> None:
    forward, shuffled = make(kind, 30, backend=backend), make(kind, 30, backend=backend)
    for step in range(3):
        index, successes = observations(30, seed + step)
        order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
        forward.update(index, successes, 8)
        shuffled.observe(index[order[:cut]], successes[order[:cut]], 8)
        shuffled.observe(index[order[cut:]], successes[order[cut:]], 8)
        shuffled.advance()
    for name, tensor in forward.state_dict()["tensors"].items():
        assert torch.equal(tensor, shuffled.state_dict()["tensors"][name]), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**31), cut=st.integers(1, 100))
def test_a_chunked_pool_is_the_whole_pool(kind: str, backend: str, seed: int, cut: int) -> None:
    """Wherever the pool of 101 is cut, rows meet the tail of a block in one and not in the other."""
    whole = make(kind, 101, backend=backend)
    chunks = [make(kind, cut, backend=backend), make(kind, 101 - cut, first_prompt=cut, backend=backend)]
    for step in range(3):
        index, successes = observations(101, seed + step)
        whole.update(index, successes, 8)
        low = index < cut
        chunks[0].update(index[low], successes[low], 8)
        chunks[1].update(index[~low] - cut, successes[~low], 8)
    parts = {name: [chunk._tensors()[name] for chunk in chunks] for name in whole._tensors()}
    for name, tensor in whole._tensors().items():
        axis = next((axis for axis, size in enumerate(tensor.shape) if size == 101), None)
        together = parts[name][0] if axis is None else torch.cat(parts[name], dim=axis)  # None: the same for all rows
        assert torch.equal(tensor, together), name
    draws = torch.cat([chunk.sample_success_rate(seed, 9) for chunk in chunks])
    assert torch.equal(whole.sample_success_rate(seed, 9), draws)
    evidence = sum(chunk.log_evidence for chunk in chunks)
    assert whole.log_evidence == pytest.approx(evidence, rel=1e-12)  # float64 sums in another order


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**31), cut=st.integers(0, 12))
def test_order_within_a_batch_does_not_matter_to_what_is_learned(seed: int, cut: int) -> None:
    model = bp.GenerativeDifficulty(gradient_steps=2, replay=1)
    forward, shuffled = (model.posterior(embeddings=torch.eye(30)) for _ in range(2))
    for step in range(2):
        index, successes = observations(30, seed + step)
        order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
        forward.update(index, successes, 8)
        shuffled.observe(index[order[:cut]], successes[order[:cut]], 8)
        shuffled.observe(index[order[cut:]], successes[order[cut:]], 8)
        shuffled.advance()
    assert torch.equal(forward.alpha, shuffled.alpha) and torch.equal(forward.beta, shuffled.beta)


def test_a_prompt_that_occurs_twice_counts_once() -> None:
    twice, once = make("published", 3), make("published", 3)
    twice.update([1, 1, 2], [0, 8, 4], 8)
    once.update([1, 2], [8, 4], [16, 8])
    assert torch.equal(twice.belief, once.belief)
    assert torch.equal(twice.concentration, once.concentration)
    assert twice.visits.tolist() == [0, 1, 1]


def test_local_prior_survives_a_forbidden_jump() -> None:
    """The published code divides by zero here and is NaN for ever."""
    posterior = bp.SolvingProgress(bp.priors.local()).posterior(1)
    posterior.update([0], [0], 8)
    before = posterior.concentration.clone()
    posterior.update([0], [8], 8)  # unsolved -> solved has no concentration
    assert (posterior.unexpected, posterior.impossible) == (1, 1)
    # Nothing is learnt: the concentration only decays towards its prior.
    torch.testing.assert_close(posterior.concentration[0], 0.7 * before[0] + 0.3 * bp.priors.local().float())
    # Certainly solved now; the prior's last row moves a solved prompt to partial or keeps it, in equal parts.
    # Rounding: a handful of sums and a division in float32.
    torch.testing.assert_close(posterior.belief[0], torch.tensor([0.0, 0.5, 0.5]), rtol=0, atol=8 * eps(posterior))
    assert bool(torch.isfinite(posterior.belief).all())
