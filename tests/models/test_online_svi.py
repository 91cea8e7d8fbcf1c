"""Inference that goes on: it resumes bit for bit, leaves the world as it was, and takes back what fails."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

import bayes_prompt as bp
from bayes_prompt.models.difficulty import Batches
from bayes_prompt.models.online_svi import OnlineSVI
from bayes_prompt.models.seeding import seeded

T, B, D = 2, 5, 3
CPU = torch.device("cpu")


def fit(**settings: Any) -> OnlineSVI:
    return OnlineSVI(bp.GenerativeDifficulty(**settings).program(D))


def batches(seed: int = 0) -> Batches:
    g = torch.Generator().manual_seed(seed)
    trials = torch.full((T, B), 8.0)
    return Batches(
        embeddings=torch.randn(T, B, D, generator=g),
        successes=torch.randint(9, (T, B), generator=g).float(),
        trials=trials,
        record=torch.rand(T, B, 4, 2, generator=g),
        present=torch.ones(T, B, dtype=torch.bool),
        weight=torch.ones(T),
        before=(torch.randn(T, B, D, generator=g), torch.rand(T, B, generator=g), torch.ones(T, B, dtype=torch.bool)),
    )


def same(one: Any, other: Any) -> bool:
    """Nested dictionaries of tensors, to the last bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)


@pytest.mark.parametrize("settings", [{}, {"latent": None}, {"own_record": False, "likelihood": "binomial"}], ids=str)
def test_whoever_resumes_goes_on_alike(settings: dict[str, Any]) -> None:
    one, other = fit(**settings), fit(**settings, seed=9)
    for step in range(3):
        one.learn(lambda: batches(step), 2, seed=step)  # noqa: B023 - called before the next step
    state = copy.deepcopy(one.state())
    other.check(state)
    other.restore(state)
    assert same(other.state(), state)
    for step in range(3, 6):
        losses = [each.learn(lambda: batches(step), 2, seed=step) for each in (one, other)]  # noqa: B023
        assert losses[0] == losses[1]
        assert same(one.state(), other.state())
    assert not same(one.state(), state)
    assert same(other.state(), pickle.loads(pickle.dumps(other)).state())


def test_a_copy_by_pickle_goes_on_alike() -> None:
    one = fit()
    one.learn(batches, 2, seed=0)
    other = pickle.loads(pickle.dumps(one))
    assert one.learn(batches, 2, seed=1) == other.learn(batches, 2, seed=1)
    assert same(one.state(), other.state())


def test_a_state_does_not_follow_what_is_learned_later() -> None:
    made = fit()
    made.learn(batches, 1, seed=0)
    state = made.state()
    before = copy.deepcopy(state)
    made.learn(batches, 1, seed=1)
    assert same(state, before)
    made.restore(state)
    made.learn(batches, 1, seed=1)
    assert same(state, before)  # nor what is learned after it was restored


def test_the_seed_decides_and_nothing_else() -> None:
    states = []
    for world in (1, 2):
        made = fit()
        torch.manual_seed(world)
        made.learn(batches, 2, seed=7)
        states.append(made.state())
    assert same(*states)
    other = fit()
    other.learn(batches, 2, seed=8)
    assert not same(states[0], other.state())


def test_the_world_is_left_as_it_was() -> None:
    pyro.get_param_store().clear()
    pyro.param("of_somebody_else", torch.tensor(1.5))
    pyro.param("difficulty$$$log_concentration", torch.tensor(99.0))  # even under our own name
    torch.manual_seed(3)
    before = torch.get_rng_state()
    made = fit()
    made.learn(batches, 2, seed=0)
    with pytest.raises(ZeroDivisionError):
        made.learn(lambda: 1 // 0, 2, seed=0)  # type: ignore[arg-type, return-value]
    assert torch.equal(torch.get_rng_state(), before)
    store = pyro.get_param_store()
    assert {name: value.item() for name, value in store.items()} == {
        "of_somebody_else": 1.5,
        "difficulty$$$log_concentration": 99.0,
    }
    assert made.program.log_concentration.item() != 99.0
    store.clear()


def test_seeded_gives_the_generator_back_whatever_happens() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(11, CPU):
        first = torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(11, CPU):
        assert torch.equal(first, torch.rand(3))


class Failing(nn.Module):
    """A decoder with a mood, and a buffer that counts how often it was asked."""

    def __init__(self, features: int, latent: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(features))
        self.register_buffer("asked", torch.zeros((), dtype=torch.int64))
        self.mood: Callable[[Tensor], Tensor] = lambda logits: logits

    def forward(self, embeddings: Tensor, z: Tensor) -> Tensor:
        self.asked += 1
        return self.mood(embeddings @ self.weight + z.sum(-1, keepdim=True))


class FailsGoingBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise KeyboardInterrupt


class Steep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.inf


def raising(x: Tensor) -> Tensor:
    raise RuntimeError("no logits today")


MOODS = {
    "forward": (raising, RuntimeError, "no logits today"),
    "backward": (FailsGoingBack.apply, KeyboardInterrupt, None),
    "nan": (lambda x: x * torch.nan, (FloatingPointError, ValueError), None),  # Pyro may see it first
    "infinite": (lambda x: x + torch.inf, FloatingPointError, "the loss of the difficulty model is inf"),
}


@pytest.mark.parametrize("mood", MOODS)
@pytest.mark.parametrize("when", [0, 1])
def test_what_fails_is_taken_back(mood: str, when: int) -> None:
    mend, kind, message = MOODS[mood]
    one, other = fit(decoder=Failing), fit(decoder=Failing)
    for each in (one, other):
        each.learn(batches, 2, seed=0)
    before = copy.deepcopy(one.state())
    calls = []

    def draw() -> Batches:
        calls.append(1)
        if len(calls) > when:
            one.program.decoder.mood = mend
        return batches(1)

    with pytest.raises(kind, match=message):
        one.learn(draw, 2, seed=1)
    assert same(one.state(), before)
    one.program.decoder.mood = lambda logits: logits
    assert one.learn(lambda: batches(1), 2, seed=1) == other.learn(lambda: batches(1), 2, seed=1)  # tried again
    assert same(one.state(), other.state())


def test_parameters_that_the_last_step_blew_up_are_refused() -> None:
    """The loss is worked out before the step, so only the parameters show it."""
    made = fit(decoder=Failing, latent=None)
    before = made.state()
    made.program.decoder.mood = Steep.apply
    with pytest.raises(FloatingPointError, match=r"decoder.weight of the difficulty model is not finite; try a lower"):
        made.learn(batches, 1, seed=0)
    assert same(made.state(), before)


def test_no_steps_change_nothing() -> None:
    made = fit()
    before = made.state()
    made.learn(lambda: 1 // 0, 0, seed=0)  # type: ignore[arg-type, return-value]
    assert same(made.state(), before)


def test_the_encoder_learns_more_slowly() -> None:
    """Adam's first step is the learning rate in every entry that has a gradient well above its epsilon of 1e-8."""
    made = fit(learning_rate=0.02)
    before = {name: value.detach().clone() for name, value in made.program.named_parameters()}
    made.learn(batches, 1, seed=0)
    for name, rate in (("encoder.location.bias", 0.002), ("decoder.skip", 0.02), ("log_concentration", 0.02)):
        moved = (dict(made.program.named_parameters())[name] - before[name]).abs()
        # Rounding of a sum of about 1 in float32, and epsilon over the least gradient.
        torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-3, atol=2e-7)
    restored = fit(learning_rate=0.02)
    restored.restore(made.state())
    rates = {
        name: restored._optimizer.optim_objs[value].param_groups[0]["lr"]
        for name, value in restored.program.named_parameters()
        if value in restored._optimizer.optim_objs
    }
    assert rates["encoder.location.bias"] == pytest.approx(0.002) and rates["decoder.skip"] == pytest.approx(0.02)


def test_losses_fall() -> None:
    made = fit(latent=None)
    losses = [made.learn(batches, 5, seed=step) for step in range(10)]
    assert losses[-1] < losses[0] - 1.0  # nats


def tampered(state: dict[str, Any]) -> dict[str, tuple[dict[str, Any], str]]:
    """Every way to spoil a state, with what the error must name."""

    def put(*path: str, value: Any = None, drop: bool = False) -> dict[str, Any]:
        other = copy.deepcopy(state)
        inner = other
        for name in path[:-1]:
            inner = inner[name]
        if drop:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value
        return other

    skip, moments = ("networks", "decoder.skip"), ("moments", "decoder.skip")
    return {
        "no dictionary": ([], "fit state must be a dictionary"),  # type: ignore[dict-item]
        "no networks": (put("networks", drop=True), "missing entries .'networks'"),
        "no weight": (put(*skip, drop=True), "missing entries .'decoder.skip'"),
        "another weight": (put("networks", "other", value=torch.zeros(1)), "unknown entries .'other'"),
        "shape": (put(*skip, value=torch.zeros(D + 1)), r"fit.networks.decoder.skip must be torch.float32 of shape"),
        "dtype": (put(*skip, value=torch.zeros(D).double()), "fit.networks.decoder.skip must be torch.float32"),
        "no tensor": (put(*skip, value=[0.0] * D), "fit.networks.decoder.skip must be a tensor"),
        "NaN": (put(*skip, value=torch.full((D,), torch.nan)), "fit.networks.decoder.skip must be finite"),
        "infinite": (put(*skip, value=torch.full((D,), torch.inf)), "fit.networks.decoder.skip must be finite"),
        "moments": (put("moments", value=3), "fit.moments must be those"),
        "foreign moments": (put("moments", "other", value={}), "fit.moments must be those"),
        "no step": (put(*moments, "step", drop=True), "fit.moments.decoder.skip state has missing entries .'step'"),
        "moment's shape": (put(*moments, "exp_avg", value=torch.zeros(1)), "fit.moments.decoder.skip.exp_avg must be"),
        "NaN moment": (
            put(*moments, "exp_avg", value=torch.full((D,), torch.nan)),
            "fit.moments.decoder.skip.exp_avg must be finite",
        ),
        "negative square": (
            put(*moments, "exp_avg_sq", value=torch.full((D,), -1.0)),
            "fit.moments.decoder.skip.exp_avg_sq must be at least 0",
        ),
        "negative step": (put(*moments, "step", value=torch.tensor(-1.0)), "decoder.skip.step must be at least 0"),
        "many steps": (put(*moments, "step", value=torch.ones(2)), "fit.moments.decoder.skip.step must be"),
    }


def test_states_that_cannot_be_are_refused() -> None:
    made = fit()
    made.learn(batches, 1, seed=0)
    state = made.state()
    made.check(state)
    for name, (spoilt, message) in tampered(state).items():
        with pytest.raises(bp.CheckpointError, match=message):
            made.check(spoilt)
        assert same(made.state(), state), name
