"""The posterior of `GenerativeDifficulty`: moments by integration, limits, learning, resuming, and odd input."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn

import bayes_prompt as bp
from bayes_prompt.acquisition import InformativeProbability
from bayes_prompt.kernels import rng
from bayes_prompt.posteriors.difficulty import DifficultyPosterior

N, D = 40, 4
QUICK = {"gradient_steps": 2, "replay": 1}
FLOAT = {"rtol": 2e-6, "atol": 0}  # a few roundings of float32


def pool(rows: int = N, features: int = D, seed: int = 0) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed))


def make(
    rows: int = N, *, embeddings: Any = None, options: dict[str, Any] | None = None, **settings: Any
) -> DifficultyPosterior:
    model = bp.GenerativeDifficulty(**{**QUICK, **settings})
    return model.posterior(embeddings=pool(rows) if embeddings is None else embeddings, **(options or {}))


def rollouts(step: int, rows: int = N, size: int = 6) -> tuple[Tensor, Tensor, int]:
    g = torch.Generator().manual_seed(step)
    return torch.randperm(rows, generator=g)[:size], torch.randint(9, (size,), generator=g), 8


def trained(steps: int = 3, **settings: Any) -> DifficultyPosterior:
    made = make(**settings)
    for step in range(steps):
        made.update(*rollouts(step))
    return made


def everything(posterior: DifficultyPosterior) -> dict[str, Tensor]:
    """All tensors of the state, by path, and the answers that follow from it."""
    found: dict[str, Tensor] = {"alpha": posterior.alpha.clone(), "beta": posterior.beta.clone()}
    found["draw"] = posterior.sample_success_rate(3, 4)
    found["step"] = torch.tensor(posterior.step)

    def walk(node: Any, path: str) -> None:
        for name, value in node.items():
            if isinstance(value, Tensor):
                found[f"{path}/{name}"] = value.clone()
            elif isinstance(value, dict):
                walk(value, f"{path}/{name}")

    walk(posterior.state_dict(), "")
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# The belief


def contexts(posterior: DifficultyPosterior) -> Tensor:
    """The rates (S, N) of the draws that the belief averages, float64, one context at a time."""
    from bayes_prompt.models.seeding import seeded

    model = posterior.model
    with torch.no_grad(), seeded(rng.derived_seed(model.seed, posterior.step, rng.CONTEXT), torch.device("cpu")):
        z = posterior._fit.program.predicted(posterior._replay.last()).sample((model.draws,))[:, 0, 0]
    return torch.stack([posterior._decoding.rates(each[None])[0].double() for each in z])


def test_the_belief_has_the_moments_of_the_mixture() -> None:
    """Over contexts, each with its Beta; integrated by quadrature, where a record adds nothing yet."""
    posterior = trained(own_record=False)
    rates, c = contexts(posterior), posterior._decoding.concentration().double()
    assert float(rates.std(0).max()) > 1e-3  # contexts differ
    alpha, beta = posterior.alpha.double(), posterior.beta.double()
    nodes, weight = np.polynomial.legendre.leggauss(200)
    # p = sin(t)**2 takes the ends out of the integrals: a Beta density is then smooth for shapes of a half and more.
    t = torch.from_numpy((nodes + 1) * math.pi / 4)[:, None]
    p, dp = t.sin().square(), 2 * t.sin() * t.cos() * torch.from_numpy(weight)[:, None] * math.pi / 4

    def moment(a: Tensor, b: Tensor, power: int) -> Tensor:
        log = (a - 1) * p.log() + (b - 1) * (-p).log1p() - torch.lgamma(a) - torch.lgamma(b) + torch.lgamma(a + b)
        return (log.exp() * p**power * dp).sum(0)

    smooth = ((c * rates).amin(0) > 0.6) & ((c * (1 - rates)).amin(0) > 0.6)
    assert int(smooth.sum()) >= N // 4
    for power in (0, 1, 2):
        mixture = torch.stack([moment(c * m, c * (1 - m), power) for m in rates]).mean(0)
        one = moment(alpha, beta, power)
        torch.testing.assert_close(one[smooth], mixture[smooth], rtol=1e-4, atol=0)


def test_a_draw_of_one_context_has_the_moments_of_its_beta() -> None:
    posterior = trained(own_record=False, draws=1)
    c, m = posterior._decoding.concentration(), contexts(posterior)[0].float()
    torch.testing.assert_close(posterior.alpha, c * m, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(posterior.beta, c * (1 - m), rtol=1e-5, atol=1e-7)


def test_the_record_is_added_with_its_trust() -> None:
    posterior, blank = trained(), trained()
    blank._own_record.zero_()
    blank._forget_answers()
    trust = posterior._fit.program.trust.detach()
    own = (posterior.own_record * trust[:, None]).sum(1)
    assert own.shape == (N, 2) and float(own.max()) > 1
    torch.testing.assert_close(posterior.alpha, blank.alpha + own[:, 0], **FLOAT)
    torch.testing.assert_close(posterior.beta, blank.beta + own[:, 1], **FLOAT)
    torch.testing.assert_close(blank.success_rate(), posterior.predicted_rate(), **FLOAT)


def test_records_are_forgotten_at_their_rates() -> None:
    posterior = make(memory=(0.0, 0.5, 1.0), gradient_steps=0)
    posterior.update([3, 3, 5], [2, 1, 8], [4, 4, 8])
    assert posterior.own_record[3].tolist() == [[3.0, 5.0]] * 3
    assert posterior.own_record[5].tolist() == [[8.0, 0.0]] * 3 and not bool(posterior.own_record[0].any())
    posterior.advance(elapsed=2.0)
    assert posterior.own_record[3].tolist() == [[0.0, 0.0], [0.75, 1.25], [3.0, 5.0]]
    posterior.update([3], [1], 1, elapsed=0.0)
    assert posterior.own_record[3].tolist() == [[1.0, 0.0], [1.75, 1.25], [4.0, 5.0]]


def test_cold_prompts_follow_the_text_and_warm_ones_their_record() -> None:
    posterior = make(gradient_steps=0)
    text = posterior.predicted_rate()
    torch.testing.assert_close(posterior.success_rate(), text, **FLOAT)
    posterior.update([0, 1], [0, 10**6], 10**6)
    rate = posterior.success_rate()
    # The text is worth at most c = 1000, and each of the records at least a quarter of a million, since w is 1/4 at
    # first and no gradient has moved it: 0.002 and less.
    assert float(rate[0]) < 2e-3 and float(rate[1]) > 1 - 2e-3
    torch.testing.assert_close(rate[2:], posterior.predicted_rate()[2:], **FLOAT)


def test_without_own_record_only_learning_sees_it() -> None:
    still = make(own_record=False, gradient_steps=0, latent=None)
    before = still.success_rate().clone()
    still.update(*rollouts(0))
    assert torch.equal(still.success_rate(), before) and still.own_record.shape == (N, 0, 2)
    learning = make(own_record=False, latent=None)
    learning.update(*rollouts(0))
    assert not torch.equal(learning.success_rate(), before)
    # Prompts with the same embedding cannot differ, whatever became of one of them.
    twins = make(own_record=False, embeddings=torch.cat([pool(20), pool(20)]))
    twins.update(torch.arange(6), torch.tensor([0, 8, 0, 8, 4, 8]), 8)
    rates = twins.success_rate()
    torch.testing.assert_close(rates[:20], rates[20:], **FLOAT)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_kernel_answers_as_the_networks_do(backend: str, storage: torch.dtype, dtype: torch.dtype) -> None:
    options = {"backend": backend, "storage": storage, "dtype": dtype}
    posterior = trained(options=options)
    assert posterior.embeddings.dtype == storage and posterior.alpha.dtype == dtype
    found = posterior.alpha.clone(), posterior.sample_success_rate(1, 2)
    posterior._decoding._fits = lambda *_: False  # type: ignore[method-assign]
    posterior._forget_answers()
    # Rates are within 1e-5 (tests of the decoding); bfloat16 rounds the kernel's weights by 2**-9.
    tolerance = 2e-4 if storage == torch.float32 else 2e-2
    torch.testing.assert_close(found[0], posterior.alpha, rtol=tolerance, atol=0)
    drawn = posterior.sample_success_rate(1, 2)
    assert drawn.dtype == dtype
    # A draw moves with its shapes; one in some thousand proposals is decided otherwise.
    assert float((found[1] - drawn).abs().median()) < 10 * tolerance


# Draws


def test_a_pool_shares_one_context_in_a_draw() -> None:
    posterior = make(embeddings=pool(1).expand(N, D), latent="default", own_record=False, likelihood="binomial")
    with torch.no_grad():  # c is 1e4: the rate is nearly known once z is, and z has a say
        posterior._fit.program.decoder.offset.fill_(0.5)
    draws = torch.stack([posterior.sample_success_rate(0, step) for step in range(20)])
    # Given z a rate's standard deviation is at most 1/2 / 100; six of them for 800 draws.
    assert float((draws - draws.mean(1, keepdim=True)).abs().max()) < 6 * 0.5 / 100
    assert float(draws.mean(1).std()) > 0.05  # over contexts it is larger by far


def test_draws_are_functions_of_seed_and_step() -> None:
    posterior = trained()
    world = torch.get_rng_state()
    first = posterior.sample_success_rate(1, 2)
    assert torch.equal(first, posterior.sample_success_rate(1, 2))
    assert torch.equal(world, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first, posterior.sample_success_rate(1, 2))
    for other in (posterior.sample_success_rate(1, 3), posterior.sample_success_rate(2, 2)):
        assert not torch.equal(first, other)
    assert bool(((first >= 0) & (first <= 1)).all())


def test_draws_have_the_belief_s_mean() -> None:
    posterior = trained(1, draws=64)
    draws = torch.stack([posterior.sample_success_rate(0, step) for step in range(100)]).double()
    error = draws.std(0) / 10
    # Five standard errors of 100 draws; and of the 64 contexts of the belief, whose spread is part of the draws'.
    limit = 5 * error + 5 * contexts(posterior).std(0) / 8
    assert bool(((draws.mean(0) - posterior.success_rate()).abs() < limit).all())


def test_without_a_context_nothing_depends_on_the_step() -> None:
    posterior = make(latent=None)
    first = posterior.success_rate().clone()
    posterior.advance()
    assert torch.equal(first, posterior.success_rate())
    assert not bool(contexts(posterior).std(0).any())


# Learning


def rates_of(x: Tensor, direction: Tensor) -> Tensor:
    return torch.sigmoid(2.0 * x @ direction)


def train(posterior: DifficultyPosterior, rates: Tensor, first: int, steps: int, among: int) -> None:
    for step in range(first, first + steps):
        g = torch.Generator().manual_seed(step)
        index = torch.randperm(among, generator=g)[:16]
        successes = torch.binomial(torch.full((16,), 8.0), rates[index], generator=g).long()
        posterior.update(index, successes, 8)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.float(), b]))[0, 1])


def test_what_was_never_observed_is_predicted_better_and_better() -> None:
    x, direction = pool(200, 6, seed=5), torch.tensor([1.0, -1.0, 0.5, 0.0, 0.0, 0.0])
    rates, unseen = rates_of(x, direction), slice(100, 200)
    posterior = make(embeddings=x, gradient_steps=4)
    start = posterior.success_rate()[unseen].clone()
    found = []
    for part in range(3):
        train(posterior, rates, 4 * part, 4, among=100)
        found.append(correlation(posterior.success_rate()[unseen], rates[unseen]))
    assert not bool(posterior.visits[unseen].any())
    assert found[-1] > 0.9 and found[-1] > found[0] > correlation(start, rates[unseen])
    assert bool((posterior.success_rate()[unseen] - start).abs().gt(1e-3).any())


def test_a_policy_that_changes_is_followed() -> None:
    """What made prompts easy makes them hard from step 10 on. Whoever trusts the past as much as today lags."""
    x, direction = pool(150, 4, seed=6), torch.tensor([1.0, -1.0, 0.5, 0.0])
    before, after = rates_of(x, direction), rates_of(x, -direction)
    quick, slow = (
        make(embeddings=x, gradient_steps=15, replay=3, recency=recency, own_record=False, latent=None)
        for recency in (0.5, 1.0)
    )
    for posterior in (quick, slow):
        train(posterior, before, 0, 10, among=150)
        assert correlation(posterior.success_rate(), before) > 0.8
        train(posterior, after, 10, 10, among=150)
    assert correlation(quick.success_rate(), after) > 0.8
    assert correlation(quick.success_rate(), after) > correlation(slow.success_rate(), after)


def test_nothing_observed_teaches_nothing() -> None:
    posterior = trained(latent=None)
    before = everything(posterior)
    posterior.advance(elapsed=0.0)
    after = everything(posterior)
    assert int(after.pop("step")) == int(before.pop("step")) + 1
    same(before, after)


def test_a_prompt_that_occurs_twice_counts_once() -> None:
    twice, once = make(), make()
    twice.observe([4, 7], [1, 8], 8)
    twice.observe([4], [3], 4)
    twice.advance()
    once.update([7, 4], [8, 4], [8, 12])
    same(everything(twice), everything(once))


def test_known_rates_go_on_record() -> None:
    posterior = make(gradient_steps=0, latent=None)
    before = posterior.success_rate().clone()
    posterior.warm_start([2, 9, 2], [8, 0, 8], 8)
    assert posterior.own_record[2].tolist() == [[16.0, 0.0]] * 4
    rate = posterior.success_rate()
    assert float(rate[2]) > float(before[2]) and float(rate[9]) < float(before[9])
    others = [row for row in range(N) if row not in (2, 9)]
    assert torch.equal(rate[others], before[others])
    assert not bool(posterior.visits.any()) and posterior.log_evidence == 0.0
    posterior.update(*rollouts(0))
    with pytest.raises(ValueError, match="warm_start must come before"):
        posterior.warm_start([0], [1], 2)


@pytest.mark.parametrize("own_record", [True, False])
def test_the_networks_learn_from_known_rates(own_record: bool) -> None:
    """300 prompts are known, which makes two batches; 60 others are predicted from them, and a resumed run agrees."""
    x = pool(360)
    rates = rates_of(x, torch.tensor([2.0, -1.0, 0.5, 0.0]))
    known = torch.arange(300)
    successes = torch.binomial(torch.full((300,), 8.0), rates[:300], torch.Generator().manual_seed(3)).long()

    def warm() -> DifficultyPosterior:
        model = bp.GenerativeDifficulty(latent=None, gradient_steps=40, own_record=own_record)
        posterior = model.posterior(embeddings=x)
        posterior.warm_start(known, successes, 8)
        return posterior

    posterior, resumed = warm(), bp.GenerativeDifficulty(latent=None, gradient_steps=40, own_record=own_record)
    assert correlation(posterior.predicted_rate()[300:], rates[300:]) > 0.9
    again = resumed.posterior(embeddings=x)
    again.load_state_dict(posterior.state_dict())
    for each in (posterior, again):
        each.update([1, 310], [8, 0], 8)
    same(everything(posterior), everything(again))


def test_evidence_is_that_of_the_beliefs_before_the_step() -> None:
    posterior = trained()
    index, successes, trials = rollouts(9)
    alpha, beta = posterior.alpha[index].double(), posterior.beta[index].double()
    before = posterior.log_count_evidence
    posterior.update(index, successes, trials)
    k, n = successes.double(), torch.tensor(8.0).double()
    law = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1) + torch.lgamma(alpha + k)
    law = law + torch.lgamma(beta + n - k) - torch.lgamma(alpha + beta + n)
    law = law - torch.lgamma(alpha) - torch.lgamma(beta) + torch.lgamma(alpha + beta)
    assert posterior.log_count_evidence - before == pytest.approx(float(law.sum()), rel=1e-6)


# Resuming


@pytest.mark.parametrize(
    "settings",
    [{}, {"own_record": False}, {"latent": None}, {"likelihood": "binomial", "capacity": 2}, {"gradient_steps": 0}],
    ids=str,
)
def test_whoever_resumes_goes_on_bit_for_bit(settings: dict[str, Any]) -> None:
    pyro.get_param_store().clear()
    posterior = trained(**settings)
    posterior.observe([1, 2], [3, 4], 8)  # and has counts that wait
    resumed = make(**settings)
    torch.manual_seed(77)
    world = torch.get_rng_state()
    resumed.load_state_dict(copy.deepcopy(posterior.state_dict()))
    same(everything(posterior), everything(resumed))
    for step in range(3, 5):
        for each in (posterior, resumed):
            each.update(*rollouts(step))
        same(everything(posterior), everything(resumed))
    assert torch.equal(world, torch.get_rng_state())
    assert len(list(pyro.get_param_store().keys())) == 0


def selector(**settings: Any) -> bp.PromptSelector:
    return bp.PromptSelector(make(**settings), InformativeProbability(), batch_size=5, seed=3)


def test_a_selector_resumes_from_disk_bit_for_bit(tmp_path: Path) -> None:
    one, other = selector(), selector()

    def step(each: bp.PromptSelector) -> list[int]:
        index = each.select()
        each.update(index, successes=index % 9, trials=8)
        return index.tolist()

    for _ in range(3):
        step(one)
    one.save(tmp_path / "state")
    other.load(tmp_path / "state")
    pickled = pickle.loads(pickle.dumps(one))
    for _ in range(3):
        assert step(one) == step(other) == step(pickled)
        same(everything(one.posterior), everything(other.posterior))  # type: ignore[arg-type]
        same(everything(one.posterior), everything(pickled.posterior))  # type: ignore[arg-type]


def test_states_that_cannot_be_are_refused_and_change_nothing() -> None:
    posterior = trained()
    state, before = posterior.state_dict(), everything(posterior)

    def put(*path: str, value: Any = None, drop: bool = False) -> dict[str, Any]:
        other = copy.deepcopy(state)
        inner: Any = other
        for name in path[:-1]:
            inner = inner[name]
        inner.pop(path[-1]) if drop else inner.__setitem__(path[-1], value)
        return other

    record = state["tensors"]["record"]
    skip = ("fit", "networks", "decoder.skip")
    cases: list[tuple[Any, str]] = [
        (None, "posterior state must be a dictionary"),
        ({}, "missing entries"),
        (put("fit", drop=True), "missing entries .'fit'"),
        (put("replay", drop=True), "missing entries .'replay'"),
        (put("tensors", drop=True), "missing entries .'tensors'"),
        (put("other", value=1), "unknown entries .'other'"),
        (put("tensors", "record", value=record[:2]), "posterior.tensors.record must be torch.float32 of shape"),
        (put("tensors", "record", value=-record), "posterior.tensors.record must be at least 0"),
        (put("tensors", "record", value=record * torch.nan), "posterior.tensors.record must be finite"),
        (put("fit", value={}), "fit state has missing entries"),
        (put(*skip, value=torch.full((D,), torch.nan)), "fit.networks.decoder.skip must be finite"),
        (put(*skip, value=torch.zeros(D + 1)), "fit.networks.decoder.skip must be torch.float32 of shape"),
        (put("replay", "rows", value=state["replay"]["rows"] + N), "replay holds batches that cannot be"),
        (put("replay", "step", value=state["replay"]["step"] + 7), "replay holds batches that cannot be"),
        (put("step", value=1), "cannot be|more than there have been|has not been"),
        (make(embeddings=pool(seed=1)).state_dict(), "posterior.embeddings"),
        (make(options={"storage": torch.bfloat16}).state_dict(), "posterior.embeddings"),
        (make(N - 1).state_dict(), "posterior.embeddings|posterior.num_prompts"),
        (make(learning_rate=0.5).state_dict(), "posterior.model.learning_rate"),
        (make(options={"dtype": torch.float64}).state_dict(), "posterior.dtype"),
        (bp.SolvingProgress().posterior(N).state_dict(), "missing entries"),
    ]
    for spoilt, message in cases:
        with pytest.raises(bp.CheckpointError, match=message):
            posterior.load_state_dict(spoilt)
        same(before, everything(posterior))


class Moody(nn.Module):
    """A decoder that fails where it is told to."""

    def __init__(self, features: int, latent: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(features))
        self.fails: Exception | None = None

    def forward(self, embeddings: Tensor, z: Tensor) -> Tensor:
        logits = embeddings @ self.weight + z.sum(-1, keepdim=True)
        if self.fails is not None and torch.is_grad_enabled():
            raise self.fails
        return logits


def test_a_step_that_fails_is_tried_again() -> None:
    posterior, untroubled = trained(decoder=Moody), trained(decoder=Moody)
    before = everything(posterior)
    posterior._fit.program.decoder.fails = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        posterior.update(*rollouts(5))
    same(before, everything(posterior))
    posterior.observe(*rollouts(5))
    waiting = everything(posterior)
    with pytest.raises(RuntimeError, match="out of memory"):
        posterior.advance()
    same(waiting, everything(posterior))
    posterior._fit.program.decoder.fails = None
    posterior.advance()
    untroubled.update(*rollouts(5))
    same(everything(posterior), everything(untroubled))


# Odd input


def check_answers(posterior: DifficultyPosterior) -> None:
    for parameter in (posterior.alpha, posterior.beta):
        assert parameter.shape == (posterior.num_prompts,)
        assert bool(torch.isfinite(parameter).all()) and bool((parameter > 0).all())
    for figure in (
        posterior.success_rate(),
        posterior.predicted_rate(),
        posterior.informative_probability(8),
        posterior.expected_variance(),
        posterior.sample_success_rate(0, posterior.step),
    ):
        assert bool(((figure >= 0) & (figure <= 1)).all())
    assert bool(torch.isfinite(posterior.entropy()).all())
    assert math.isfinite(posterior.log_count_evidence) and math.isfinite(posterior.log_evidence)


POOLS: dict[str, Any] = {
    "one prompt": pool(1),
    "one column": pool(N, 1),
    "duplicates": pool(1).expand(N, D),
    "zeros": torch.zeros(N, D),
    "integers": torch.arange(N * D).view(N, D),
    "numpy": pool().double().numpy(),
    "half": pool().half(),
    "tiny": pool() * 1e-30,
    "huge": pool() * 1e30,
    "far off": pool() + 1e4,
    "an outlier": torch.cat([pool(N - 1), torch.full((1, D), 1e6)]),
    "transposed": pool(D, N).T,
}


@pytest.mark.parametrize("name", POOLS)
def test_odd_embeddings(name: str) -> None:
    posterior = make(embeddings=POOLS[name])
    rows = posterior.num_prompts
    for _ in range(3):
        check_answers(posterior)
        index = torch.arange(min(rows, 4))
        posterior.update(index, (index * 3) % 9, 8)
    check_answers(posterior)


@pytest.mark.parametrize("settings", [{}, {"own_record": False, "likelihood": "binomial"}], ids=str)
@pytest.mark.parametrize("trials", [1, 8, 10**6])
@pytest.mark.parametrize("rate", [0.0, 1.0, None])
def test_extreme_counts(settings: dict[str, Any], trials: int, rate: float | None) -> None:
    """The same batch again and again, all wrong, all right, or one of each."""
    posterior = make(**settings, learning_rate=0.1, gradient_steps=3)
    index = torch.arange(4)
    successes = torch.tensor([0, trials, 0, trials]) if rate is None else torch.full((4,), int(rate * trials))
    start = posterior.success_rate()[index].clone()
    for _ in range(4):
        posterior.update(index, successes, trials)
        check_answers(posterior)
    if rate is not None:
        moved = posterior.success_rate()[index] - start
        assert bool((moved * (2 * rate - 1) > 0).all())


@pytest.mark.parametrize(
    ("embeddings", "kind", "message"),
    [
        (torch.tensor([[0.0, 1.0], [2.0, math.nan]]), ValueError, r"embeddings\[1, 1\] = nan must be finite"),
        (torch.tensor([[0.0, -math.inf], [2.0, 1.0]]), ValueError, r"embeddings\[0, 1\] = -inf must be finite"),
        (
            torch.tensor([[0.0, 1.0], [1e300, 1.0]]).double() + torch.tensor([[0.0, 0], [1e300, 0]]).double(),
            ValueError,
            r"\[1, 0\] = inf must be finite",
        ),
        (torch.zeros(5), ValueError, r"embeddings must have shape \(N, D\) with D >= 1; got \(5,\)"),
        (torch.zeros(5, 0), ValueError, r"embeddings must have shape"),
        (torch.zeros(0, 5), ValueError, r"embeddings must have shape"),
        (torch.zeros(2, 2, dtype=torch.bool), TypeError, "embeddings must hold real numbers; got torch.bool"),
        (torch.zeros(2, 2, dtype=torch.complex64), TypeError, "embeddings must hold real numbers"),
        ([["a", "b"]], TypeError, "embeddings must be an array of numbers"),
    ],
)
def test_embeddings_that_cannot_be(embeddings: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make(embeddings=embeddings)


def test_options_that_cannot_be() -> None:
    model = bp.GenerativeDifficulty()
    with pytest.raises(ValueError, match=r"embeddings must have shape \(7, D\)"):
        model.posterior(7, embeddings=pool())
    assert model.posterior(N, embeddings=pool()).num_prompts == N
    with pytest.raises(TypeError, match=r"storage must be torch.float32 or torch.bfloat16; got torch.float16"):
        model.posterior(embeddings=pool(), storage=torch.float16)
    with pytest.raises(TypeError, match=r"dtype must be torch.float32 or torch.float64"):
        model.posterior(embeddings=pool(), dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="embeddings"):
        model.posterior(N)  # type: ignore[call-arg]


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_the_pool_is_the_posterior_s_own() -> None:
    given = pool()
    posterior = make(embeddings=given)
    before = posterior.success_rate().clone()
    given.fill_(9.0)
    posterior._forget_answers()
    assert torch.equal(before, posterior.success_rate())
    mapped = np.asarray(pool().numpy())
    mapped.setflags(write=False)
    assert torch.equal(make(embeddings=mapped).success_rate(), before)


# What a review found


def test_beliefs_come_back_from_a_long_drought() -> None:
    """Where nothing was ever solved, prompts that were never seen are not given up for good."""
    posterior = bp.GenerativeDifficulty(latent=None).posterior(embeddings=pool(60))
    g, start = torch.Generator().manual_seed(0), float(posterior.informative_probability(8)[30:].mean())
    for _ in range(40):
        posterior.update(torch.randperm(30, generator=g)[:12], [0] * 12, 8)
    assert float(posterior.informative_probability(8)[30:].mean()) < 0.5 * start
    for _ in range(40):
        posterior.update(torch.randperm(30, generator=g)[:12], torch.randint(2, 7, (12,), generator=g), 8)
    assert float(posterior.informative_probability(8)[30:].mean()) > start


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_a_trainer_s_modes_stay_outside(mode: Any) -> None:
    plain, within = make(), None
    plain.update(*rollouts(0))
    with mode():
        within = make()
        within.update(*rollouts(0))
        rate = within.success_rate().clone()
    assert torch.equal(rate, plain.success_rate())
    within.update(*rollouts(1))
    plain.update(*rollouts(1))
    same(everything(within), everything(plain))


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def test_another_default_type_changes_nothing() -> None:
    expected, x = trained().success_rate(), pool()
    with default_type(torch.float64):
        model = bp.GenerativeDifficulty(**QUICK)
        posterior = model.posterior(embeddings=x)
        for step in range(3):
            posterior.update(*rollouts(step))
        rate = posterior.success_rate()
    assert rate.dtype == expected.dtype
    # The networks start from float64 draws, which are other ones; only that it works is asked here.
    assert bool(((rate > 0) & (rate < 1)).all())


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("saved", [torch.float32, torch.float64])
@pytest.mark.parametrize("loaded", [torch.float32, torch.float64])
def test_checkpoints_know_no_default_type(saved: torch.dtype, loaded: torch.dtype, steps: int, tmp_path: Path) -> None:
    x = pool()
    with default_type(saved):
        one = bp.PromptSelector(make(embeddings=x), InformativeProbability(), batch_size=5, seed=3)
        for _ in range(steps):
            index = one.select()
            one.update(index, successes=index % 9, trials=8)
        one.save(tmp_path / "state")
        before = everything(one.posterior)  # type: ignore[arg-type]
    with default_type(loaded):
        other = bp.PromptSelector(make(embeddings=x), InformativeProbability(), batch_size=5, seed=3)
        other.load(tmp_path / "state")
        same(everything(other.posterior), before)  # type: ignore[arg-type]
        for each in (one, other):
            each.update(each.select(), successes=[1, 2, 3, 4, 5], trials=8)
        same(everything(one.posterior), everything(other.posterior))  # type: ignore[arg-type]


class Noisy(nn.Module):
    """A decoder that trains with noise, or with the statistics of its batch."""

    def __init__(self, features: int, latent: int, layer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.layer, self.linear = layer(features), nn.Linear(features, 1)
        self.modes: set[bool] = set()

    def forward(self, embeddings: Tensor, z: Tensor) -> Tensor:
        self.modes.add(self.training)
        seen = self.layer(embeddings.reshape(-1, embeddings.shape[-1])).reshape(embeddings.shape)
        return self.linear(seen)[..., 0] + z.sum(-1, keepdim=True)


class Restless(nn.Module):
    """Noise in either mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


@pytest.mark.parametrize("layer", [lambda width: nn.Dropout(0.5), nn.BatchNorm1d, lambda width: Restless()])
def test_networks_learn_and_predict_in_their_own_modes(layer: Callable[[int], nn.Module]) -> None:
    """To ask changes nothing: no answer, no statistic of a batch, and no generator."""
    settings = {"decoder": lambda features, latent: Noisy(features, latent, layer)}
    posterior = make(**settings)
    decoder = posterior._fit.program.decoder
    world = torch.get_rng_state()
    for step in range(2):
        decoder.modes.clear()
        first = everything(posterior), posterior.predicted_rate()
        posterior._forget_answers()
        same(first[0], everything(posterior))
        assert torch.equal(first[1], posterior.predicted_rate())
        assert decoder.modes == {False}
        decoder.modes.clear()
        posterior.update(*rollouts(step))
        assert True in decoder.modes and not decoder.training
    assert torch.equal(world, torch.get_rng_state())
    resumed = make(**settings)
    resumed.load_state_dict(posterior.state_dict())
    for each in (posterior, resumed, copy.deepcopy(posterior)):
        each.update(*rollouts(2))
    same(everything(posterior), everything(resumed))


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_a_trainer_s_autocast_does_not_choose_how_the_encoder_is_worked_out(backend: str) -> None:
    """torch's fused layers round otherwise, and are for evaluation outside of any device's autocast."""
    posterior = trained()
    first = posterior.predicted_rate()
    torch.set_autocast_enabled(backend, True)
    try:
        assert torch.equal(first, posterior.predicted_rate())
    finally:
        torch.set_autocast_enabled(backend, False)


def test_embeddings_that_are_being_learned() -> None:
    weight = nn.Parameter(pool())
    for given in (weight, weight * 1.0):
        posterior, plain = make(embeddings=given), make()
        for step in range(3):
            posterior.update(*rollouts(step))
            plain.update(*rollouts(step))
        assert not posterior.embeddings.requires_grad and weight.grad is None
        same(everything(posterior), everything(plain))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_arrays_as_numpy_has_them() -> None:
    plain, turned = make(embeddings=pool()), pool().numpy()[::-1]
    for given in (turned[::-1], pool().numpy().astype(">f4"), pool().numpy()[:, ::-1][:, ::-1], pool().numpy()[:1]):
        assert torch.equal(make(embeddings=given).embeddings, plain.embeddings[: len(given)])
    assert torch.equal(make(embeddings=turned).embeddings, plain.embeddings.flip(0))
    assert torch.equal(make(embeddings=turned[:1]).embeddings, plain.embeddings[-1:])  # a stride, below 0 and of no use
    plain.update(np.arange(4)[::-1], np.arange(4).astype(">i8"), 8)
    assert plain.visits[:4].tolist() == [1] * 4
    for layout in (pool().to_sparse(), pool().to_sparse_csr()):
        with pytest.raises(TypeError, match=r"embeddings must be a dense array; got layout torch\.sparse"):
            make(embeddings=layout)


def test_what_was_loaded_in_inference_mode_goes_on() -> None:
    posterior, resumed = trained(), make()
    state = posterior.state_dict()
    with torch.inference_mode():
        resumed.load_state_dict(posterior.state_dict())
        posterior.load_state_dict(state)
    for each in (posterior, resumed):
        each.group_size = 4
        for step in range(3, 5):
            each.update(*rollouts(step))
    same(everything(posterior), everything(resumed))


def test_moments_are_there_from_the_first_batch_on() -> None:
    for posterior, moments in ((trained(), {}), (make(), trained()._fit.state()["moments"])):
        before = everything(posterior)
        state = posterior.state_dict()
        state["fit"]["moments"] = moments
        with pytest.raises(bp.CheckpointError, match=r"fit\.moments must be there if a batch was learned from"):
            posterior.load_state_dict(state)
        same(before, everything(posterior))
    for posterior in (trained(gradient_steps=0), make(), trained(learning_rate=0.0)):
        posterior.load_state_dict(posterior.state_dict())


def test_a_prior_of_its_own_learns_with_room_for_one_batch() -> None:
    """What the prior makes of the last batch has gradients, though only the newest is learned from."""
    from bayes_prompt.models.networks import SIZES, TransformerEncoder

    posterior = make(capacity=1, prior=lambda features, latent: TransformerEncoder(features, latent, SIZES["small"]))
    before = posterior._fit.program.prior.pair.weight.detach().clone()
    for step in range(3):
        posterior.update(*rollouts(step))
    moved = (posterior._fit.program.prior.pair.weight.detach() - before)[:, : D + 1]  # embeddings and rates
    assert bool((moved != 0).any())


def test_steps_go_on_past_the_numbers_of_draws() -> None:
    posterior = make()
    state = posterior.state_dict()
    state["step"] = rng.STEP_LIMIT
    first = posterior.success_rate().clone()
    posterior.load_state_dict(state)
    assert torch.equal(posterior.success_rate(), first)  # those of step 0 again


def test_two_threads_learn_as_they_would_alone() -> None:
    alone = [everything(trained(seed=seed)) for seed in (1, 2)]
    found: dict[int, dict[str, Tensor]] = {}

    def work(seed: int) -> None:
        found[seed] = everything(trained(seed=seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, expected in zip((1, 2), alone, strict=True):
        same(found[seed], expected)


def test_a_warm_start_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = make(300, embeddings=pool(300))
    before, learn, calls = everything(posterior), posterior._fit.learn, []

    def second_fails(*arguments: Any) -> float:
        calls.append(arguments)
        if len(calls) == 2:
            raise FloatingPointError("ruined")
        return learn(*arguments)

    monkeypatch.setattr(posterior._fit, "learn", second_fails)
    with pytest.raises(FloatingPointError, match="ruined"):
        posterior.warm_start(torch.arange(300), [4] * 300, 8)
    same(everything(posterior), before)


def test_the_prior_of_the_output_moves_with_the_networks() -> None:
    program = bp.GenerativeDifficulty().program(3).to("meta")
    assert program.output is not None and program.output.loc.device.type == "meta"


@pytest.mark.parametrize("spread", [1e-37, 1e37])
def test_embeddings_that_float32_cannot_scale(spread: float) -> None:
    with pytest.raises(ValueError, match="embeddings must spread by between 1e-36 and 1e"):
        make(embeddings=pool() * spread)
