"""Pyro model and guide of `GenerativeDifficulty`: against densities written out by hand, and metamorphic relations."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as flows
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

import bayes_prompt as bp
from bayes_prompt.models.difficulty import LOG_WORTH, SLOPE_SCALE, Batches, DifficultyProgram
from bayes_prompt.models.online_svi import OnlineSVI

T, B, D = 2, 5, 3
# Sums of some hundred float32 terms of at most a few hundred nats: a few units in the last place of the largest.
ROUNDING = {"rtol": 2e-5, "atol": 1e-3}


def some(present: Tensor | None = None, weight: Tensor | None = None, memories: int = 4, seed: int = 0) -> Batches:
    """Two batches of five prompts, of which one is absent."""
    g = torch.Generator().manual_seed(seed)
    if present is None:
        present = torch.ones(T, B, dtype=torch.bool)
        present[1, 3] = False
    trials = torch.randint(1, 9, (T, B), generator=g).float() * present
    earlier = torch.randn(T, B, D, generator=g), torch.rand(T, B, generator=g), torch.rand(T, B, generator=g) < 0.7
    return Batches(
        embeddings=torch.randn(T, B, D, generator=g),
        successes=(trials * torch.rand(T, B, generator=g)).floor(),
        trials=trials,
        record=torch.rand(T, B, memories, 2, generator=g) * 9,
        present=present,
        weight=torch.tensor([1.0, 0.6]) if weight is None else weight,
        before=earlier,
    )


def program(seed: int = 1, **settings: Any) -> DifficultyProgram:
    """A program whose parameters are all moved from where they start, so that none of them is 0."""
    made = bp.GenerativeDifficulty(**settings).program(D)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=g) * 0.1)
    return made


def loss(made: DifficultyProgram, batches: Batches, seed: int = 0) -> Tensor:
    with torch.random.fork_rng(devices=[]), pyro.get_param_store().scope():
        torch.manual_seed(seed)
        value = Trace_ELBO().differentiable_loss(made.model, made.guide, batches)
    assert isinstance(value, Tensor)
    return value


def number(made: DifficultyProgram, batches: Batches) -> float:
    return float(loss(made, batches).detach())


def log_normal(x: Tensor, location: Tensor | float, scale: Tensor | float) -> Tensor:
    scale = torch.as_tensor(scale, dtype=torch.float64)
    return -0.5 * ((x - location) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)


def log_choose(n: Tensor, k: Tensor) -> Tensor:
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


def log_joint_of_counts(made: DifficultyProgram, batches: Batches, z: Tensor) -> Tensor:
    """log p(counts, logits | z), (T,), in float64 and by the page, for contexts (T, Z)."""
    declaration = made.declaration
    logits = made.decoder(batches.embeddings, z).double()
    rate = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    c = (made.log_concentration + (batches.embeddings * made.slope).sum(-1)).double().clamp(*LOG_WORTH).exp()
    if declaration.likelihood == "binomial" and not declaration.own_record:
        c = torch.full_like(c, 1e4)
    alpha, beta = c * rate, c * (1 - rate)
    if declaration.own_record:
        for memory, trust in enumerate(made.log_trust.double().exp()):
            alpha = alpha + trust * batches.record[:, :, memory, 0].double()
            beta = beta + trust * batches.record[:, :, memory, 1].double()
    s, n = batches.successes.double(), batches.trials.double()
    if declaration.likelihood == "binomial":
        mean = alpha / (alpha + beta)
        density = log_choose(n, s) + s * mean.log() + (n - s) * (-mean).log1p()
    else:
        density = log_choose(n, s) + log_beta(alpha + s, beta + n - s) - log_beta(alpha, beta)
    if declaration.output is not None:
        density = density + log_normal(logits, 0.0, 10.0)
    return (density * batches.present).sum(-1)


def log_weights(made: DifficultyProgram) -> Tensor:
    """Priors of all weights, of c (log c about log 2, deviation 1) and of w (about equal shares, deviation 2)."""
    off_c = made.log_concentration.double() - math.log(2.0)
    off_w = (made.log_trust.double() + math.log(max(1, made.log_trust.numel()))) / 2
    slope = (made.slope.double() / SLOPE_SCALE).square().sum()
    return made.decoder.log_prior().double() - 0.5 * (slope + off_c.square() + off_w.square().sum())


@pytest.mark.parametrize("likelihood", ["binomial", "beta_binomial"])
@pytest.mark.parametrize("own_record", [True, False])
@pytest.mark.parametrize("output", [None, dist.Normal(0.0, 10.0)], ids=["flat", "normal"])
def test_without_a_context_the_loss_is_minus_the_log_joint(likelihood: str, own_record: bool, output: Any) -> None:
    made = program(latent=None, likelihood=likelihood, own_record=own_record, output=output)
    batches = some()
    counts = log_joint_of_counts(made, batches, torch.zeros(T, 0))
    expected = -(counts * batches.weight).sum() - log_weights(made)
    torch.testing.assert_close(loss(made, batches).double(), expected, **ROUNDING)


def test_the_sites_with_their_shapes_and_plates() -> None:
    made, batches = program(), some()
    guide = poutine.trace(made.guide).get_trace(batches)
    model = poutine.trace(poutine.replay(made.model, trace=guide)).get_trace(batches)
    sampled = {n for n, s in model.nodes.items() if s["type"] == "sample"}
    assert sampled == {"z", "successes", "output", "weights", "evidence_prior", "batches", "prompts"}
    assert {n for n, s in guide.nodes.items() if s["type"] == "sample"} == {"z", "batches"}
    for trace in (guide, model):
        assert trace.nodes["z"]["value"].shape == (T, 1, made.declaration.latent_width)
        assert [(f.name, f.dim, f.size) for f in trace.nodes["z"]["cond_indep_stack"]] == [("batches", -2, T)]
    for name in ("successes", "output"):
        site = model.nodes[name]
        assert site["is_observed"] and site["value"].shape == (T, B)
        assert {(f.name, f.dim, f.size) for f in site["cond_indep_stack"]} == {("batches", -2, T), ("prompts", -1, B)}
    for name in ("weights", "evidence_prior"):  # not multiplied by the batches
        assert model.nodes[name]["cond_indep_stack"] == ()
    without = poutine.trace(program(latent=None, output=None).model).get_trace(batches)
    assert not {"z", "output"} & set(without.nodes)


@pytest.mark.parametrize("kl_weight", [1.0, 0.3, 0.0, 1e-45])
def test_the_loss_at_a_context_is_the_log_ratio(kl_weight: float) -> None:
    made, batches = program(kl_weight=kl_weight), some()
    guide = poutine.trace(made.guide).get_trace(batches)
    model = poutine.trace(poutine.replay(made.model, trace=guide)).get_trace(batches)
    z = guide.nodes["z"]["value"][:, 0]
    q, p = made.encoder(batches.embeddings, batches.rates, batches.present), made.encoder(*batches.before)
    ratio = [log_normal(z.double(), *(side.double() for side in law)).sum(-1) for law in (p, q)]
    counts = log_joint_of_counts(made, batches, z)
    expected = ((counts + kl_weight * (ratio[0] - ratio[1])) * batches.weight).sum() + log_weights(made)
    found = model.log_prob_sum() - guide.log_prob_sum()
    torch.testing.assert_close(found.double(), expected, **ROUNDING)


def test_the_mean_loss_is_the_elbo_by_quadrature() -> None:
    made, batches = program(latent=dist.Normal(0.0, 1.0).expand([1]).to_event(1)), some()
    with torch.no_grad():
        (mean, scale), (m, s) = (
            made.encoder(batches.embeddings, batches.rates, batches.present),
            made.encoder(*batches.before),
        )
        nodes, mass = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(40))
        at = [log_joint_of_counts(made, batches, mean + scale * float(x)) for x in nodes]
        likelihood = (torch.stack(at) * (mass / mass.sum())[:, None]).sum(0)
        mean, scale, m, s = (x.double()[:, 0] for x in (mean, scale, m, s))
        divergence = (s / scale).log() + (scale.square() + (mean - m).square()) / (2 * s.square()) - 0.5
        expected = float(-((likelihood - divergence) * batches.weight).sum() - log_weights(made))
        losses = torch.stack([loss(made, batches, seed) for seed in range(100)]).double()
    # The mean of 100 draws lies within 5 standard errors but for one in a million choices of seeds.
    assert abs(float(losses.mean()) - expected) < 5 * float(losses.std()) / math.sqrt(100)
    assert float(losses.std()) > 0


def gradients(made: DifficultyProgram, batches: Batches) -> dict[str, Tensor]:
    made.zero_grad()
    loss(made, batches).backward()
    return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


def close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=2e-4 * float(value.abs().max() + 1))


def test_whom_nobody_observed_changes_nothing() -> None:
    """Further columns without prompts, whatever is in them, and other embeddings of those who are absent."""
    made, batches = program(), some()

    def widened(x: Tensor, fill: float) -> Tensor:
        return torch.cat([x, x.new_full((T, 3, *x.shape[2:]), fill)], 1)

    wide = batches._replace(
        embeddings=widened(batches.embeddings, 7.0),
        successes=widened(batches.successes, 0),
        trials=widened(batches.trials, 0),
        record=widened(batches.record, 3.0),
        present=widened(batches.present, False),
        before=tuple(widened(x, f) for x, f in zip(batches.before, (7.0, 0.5, False), strict=True)),
    )
    wide.embeddings[1, 3] = -4.0  # absent
    torch.testing.assert_close(loss(made, wide), loss(made, batches), **ROUNDING)
    close(gradients(made, wide), gradients(made, batches))


def test_the_order_of_prompts_does_not_matter() -> None:
    made, batches = program(), some()
    order = torch.tensor([3, 0, 4, 1, 2])
    mixed = Batches(*(x[:, order] for x in batches[:5]), batches.weight, tuple(x[:, order] for x in batches.before))
    torch.testing.assert_close(loss(made, mixed), loss(made, batches), **ROUNDING)


def test_a_batch_counts_by_its_weight() -> None:
    made = program()
    prior = -float(log_weights(made).detach())
    both = number(made, some(weight=torch.tensor([1.0, 1.0])))
    first, second = (number(made, some(weight=torch.tensor(w))) for w in ([1.0, 0.0], [0.0, 1.0]))
    mixed = number(made, some(weight=torch.tensor([0.5, 3.0])))
    assert both - prior == pytest.approx(first + second - 2 * prior, rel=1e-5)
    assert mixed - prior == pytest.approx(0.5 * (first - prior) + 3 * (second - prior), rel=1e-5)
    alone = number(made, Batches(*(x[:1] for x in some()[:6]), tuple(x[:1] for x in some().before)))
    assert first != pytest.approx(second) and math.isfinite(alone)


class Mean(nn.Module):
    """An encoder that sees the mean rate only."""

    def __init__(self, features: int, latent: int) -> None:
        super().__init__()
        self.out = nn.Linear(1, latent)

    def forward(self, embeddings: Tensor, rates: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        mean = (rates * present).sum(-1, keepdim=True) / present.sum(-1, keepdim=True).clamp_min(1)
        location = self.out(mean)
        return location, torch.ones_like(location)


class Plain(nn.Module):
    """A decoder without a prior."""

    def __init__(self, features: int, latent: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features + latent, 1)

    def forward(self, embeddings: Tensor, z: Tensor) -> Tensor:
        return self.linear(torch.cat([embeddings, z[:, None].expand(-1, embeddings.shape[1], -1)], -1))[..., 0]


@pytest.mark.parametrize(
    "networks",
    [{"encoder": Mean}, {"prior": Mean}, {"decoder": Plain}, {"encoder": Mean, "prior": Mean, "decoder": Plain}],
    ids=lambda networks: "+".join(networks),
)
def test_networks_can_be_replaced(networks: dict[str, Any]) -> None:
    made, batches = program(**networks), some()
    for name, kind in networks.items():
        assert type(getattr(made, name)) is kind
    found = gradients(made, batches)
    for name in networks:  # each is used, and learned
        assert any(key.startswith(f"{name}.") and bool((value != 0).any()) for key, value in found.items()), name
    if "prior" in networks:  # p is that of the prior, q that of the encoder
        p = made.predicted(batches.before).log_prob(torch.zeros(T, 1, 8))
        location, scale = made.prior(*batches.before)
        torch.testing.assert_close(
            p[:, 0].double(), log_normal(torch.zeros(T, 8), location, scale).sum(-1), rtol=1e-5, atol=0
        )
    if "decoder" in networks:
        assert "weights" not in poutine.trace(made.model).get_trace(batches).nodes


def normal(width: int) -> Any:
    return dist.Normal(0.0, 1.0).expand([width]).to_event(1)


def flow(*parts: Any) -> Any:
    return dist.TransformedDistribution(normal(4), list(parts))


LATENTS = {
    "normal": lambda: dist.Normal(torch.tensor([1.0, -1.0]), torch.tensor([0.5, 2.0])).to_event(1),
    "student": lambda: dist.StudentT(4.0).expand([3]).to_event(1),
    "low_rank": lambda: dist.LowRankMultivariateNormal(torch.zeros(4), torch.randn(4, 2), torch.ones(4)),
    "spline": lambda: flow(flows.Spline(4)),
    "coupling": lambda: flow(flows.affine_coupling(4, hidden_dims=[8])),
    "autoregressive": lambda: flow(flows.affine_autoregressive(4, hidden_dims=[8])),
    "composed": lambda: flow(dist.transforms.ComposeTransform([flows.Spline(4), flows.Spline(4)])),
}
LEARNED = {"spline", "coupling", "autoregressive", "composed"}


@pytest.mark.parametrize("name", LATENTS)
def test_the_latent_prior_can_be_swapped(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        law = LATENTS[name]()
    declaration = bp.GenerativeDifficulty(latent=law)
    made, batches = declaration.program(D), some()
    location, scale = made.encoder(*batches.before)
    z = torch.linspace(-1, 1, law.event_shape[0]).expand(T, 1, -1)
    expected = law.log_prob((z[:, 0] - location) / scale) - scale.log().sum(-1)  # a change of variables
    torch.testing.assert_close(made.predicted(batches.before).log_prob(z)[:, 0], expected, rtol=1e-4, atol=1e-4)
    own = {key for key, _ in made.named_parameters() if key.startswith("flow.")}
    assert bool(own) == (name in LEARNED)
    before = {key: value.detach().clone() for key, value in made.named_parameters()}
    theirs = (
        [p.detach().clone() for part in law.transforms for p in part.parameters()]
        if hasattr(law, "transforms") and name != "composed"
        else []
    )
    fit = OnlineSVI(made)
    assert math.isfinite(fit.learn(lambda: batches, 2, seed=0))
    for key in own:
        moved = not torch.equal(before[key], dict(made.named_parameters())[key])
        assert moved or bool((before[key] == 0).all()), key
    if theirs:  # the declaration stays what it was
        assert all(
            torch.equal(a, b)
            for a, b in zip(theirs, (p for part in law.transforms for p in part.parameters()), strict=True)
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent": dist.Normal(0.0, 1.0)}, r"latent has batch shape \(\) and event shape \(\)"),
        ({"latent": dist.Normal(0.0, 1.0).expand([3])}, r"latent has batch shape \(3,\)"),
        ({"latent": dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2)}, r"latent has .* event shape \(3, 2\)"),
        ({"latent": 8}, "latent is a int"),
        ({"latent": dist.LogNormal(0.0, 1.0).expand([2]).to_event(1)}, "latent has .*log density"),
        ({"latent": dist.Uniform(-1.0, 1.0).expand([2]).to_event(1)}, "latent has .*log density"),
        ({"latent": flow(flows.planar(4))}, "latent has no log density"),
        ({"output": dist.Normal(0.0, 1.0).expand([2])}, r"output has batch shape \(2,\)"),
        ({"output": normal(2)}, r"output has .* event shape \(2,\)"),
        ({"output": dist.Beta(1.0, 1.0)}, "output has .*log density"),
        ({"output": "flat"}, "output is a str"),
    ],
)
def test_distributions_that_cannot_be_used(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(bp.CannotLower, match=message):
        bp.GenerativeDifficulty(**settings)


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"size": "huge"}, ValueError, "size must be one of small, base, paper; got 'huge'"),
        ({"likelihood": "poisson"}, ValueError, "likelihood must be one of"),
        ({"encoder": 3}, TypeError, "encoder must make a network"),
        ({"own_record": 1}, TypeError, "own_record must be True or False; got 1"),
        ({"memory": 0.5}, TypeError, "memory must be a sequence of rates; got 0.5"),
        ({"memory": (0.5, 1.5)}, ValueError, r"memory\[1\] must lie in \[0, 1\]; got 1.5"),
        ({"memory": ()}, ValueError, "memory must name at least one rate"),
        ({"recency": -0.1}, ValueError, r"recency must lie in \[0, 1\]"),
        ({"recency": math.nan}, ValueError, r"recency must lie in \[0, 1\]"),
        ({"gradient_steps": -1}, ValueError, "gradient_steps must be at least 0; got -1"),
        ({"replay": 0.5}, TypeError, "replay must be an integer; got float"),
        ({"capacity": 0}, ValueError, "capacity must be at least 1; got 0"),
        ({"draws": 0}, ValueError, "draws must be at least 1; got 0"),
        ({"seed": 2**63}, ValueError, r"seed must lie in \[0, 2\*\*63\)"),
        ({"learning_rate": math.inf}, ValueError, "learning_rate must be finite and at least 0; got inf"),
        ({"kl_weight": -1.0}, ValueError, "kl_weight must be finite and at least 0; got -1.0"),
        ({"kl_weight": "1"}, TypeError, "kl_weight must be a number; got str"),
        ({"latent": "normal"}, ValueError, "latent must be a distribution, 'default' or None; got 'normal'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        bp.GenerativeDifficulty(**settings)


class Wrong(nn.Module):
    """Gives what no one can use: an output with one dimension too many."""

    def __init__(self, features: int, latent: int) -> None:
        super().__init__()
        self.inner = Plain(features, latent)

    def forward(self, embeddings: Tensor, *rest: Tensor) -> Any:
        return self.inner(embeddings, rest[0])[..., None] if len(rest) == 1 else (torch.zeros(3), torch.ones(3))


def test_networks_that_give_something_else_are_named() -> None:
    with pytest.raises(TypeError, match=r"decoder must make an nn.Module from \(D, Z\); got a int"):
        bp.GenerativeDifficulty(decoder=lambda features, latent: 4).program(D)
    for name, shape in (
        ("decoder", r"\(T, B\) = \(2, 5\)"),
        ("encoder", r"\(T, Z\) = \(2, 8\)"),
        ("prior", r"\(T, Z\) = \(2, 8\)"),
    ):
        made = bp.GenerativeDifficulty(**{name: Wrong}).program(D)
        with pytest.raises(ValueError, match=f"{name} must give .*{shape}; got"):
            loss(made, some())


def test_programs_are_functions_of_the_seed() -> None:
    before = torch.get_rng_state()
    one, same, other = (bp.GenerativeDifficulty(seed=seed).program(D).state_dict() for seed in (5, 5, 6))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["decoder.first.weight"], other["decoder.first.weight"])
    with pytest.raises(ValueError, match="features must be at least 1"):
        bp.GenerativeDifficulty().program(0)


def spline(seed: int, count_bins: int = 8) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return flow(flows.Spline(4, count_bins=count_bins))


def test_descriptions_tell_models_apart() -> None:
    """Equal for models that learn alike, and different in whatever changes what they learn; JSON can write all."""
    plain = bp.GenerativeDifficulty()
    assert json.loads(json.dumps(plain.describe())) == plain.describe()
    same: list[dict[str, Any]] = [
        {"size": "small"},
        {"latent": normal(8)},
        {"output": dist.Normal(torch.tensor(0.0), torch.tensor(10.0))},
        {"memory": [0.5, 0.8, 0.95, 1]},
        {"seed": np.int64(0), "draws": np.int32(8), "kl_weight": 1, "recency": np.float64(0.97)},
    ]
    for settings in same:
        assert json.dumps(bp.GenerativeDifficulty(**settings).describe()) == json.dumps(plain.describe()), settings
    different: list[dict[str, Any]] = [
        {"size": "base"},
        {"encoder": Mean},
        {"prior": Mean},
        {"decoder": Plain},
        {"latent": None},
        {"latent": normal(4)},
        {"latent": dist.Normal(0.0, 2.0).expand([8]).to_event(1)},
        {"latent": dist.Laplace(0.0, 1.0).expand([8]).to_event(1)},
        {"latent": spline(0)},
        {"latent": spline(1)},
        {"latent": spline(0, count_bins=4)},
        {"latent": flow(dist.transforms.AffineTransform(1.0, 2.0))},
        {"latent": flow(dist.transforms.AffineTransform(1.0, 3.0))},
        {"output": None},
        {"output": dist.Normal(0.0, 3.0)},
        {"likelihood": "binomial"},
        {"own_record": False},
        {"memory": (0.5, 1.0)},
        {"recency": 1.0},
        {"gradient_steps": 3},
        {"replay": 1},
        {"capacity": 7},
        {"learning_rate": 0.1},
        {"kl_weight": 0.5},
        {"draws": 2},
        {"seed": 1},
    ]
    described = [json.dumps(bp.GenerativeDifficulty(**settings).describe()) for settings in ({}, *different)]
    assert len(set(described)) == len(described)
    assert json.dumps(bp.GenerativeDifficulty(latent=spline(0)).describe()) in described


def test_moving_a_program_moves_what_its_context_is_drawn_from() -> None:
    """The base distribution's numbers are no parameters; a wider type shows, on any machine, that they follow."""
    laws = [
        dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1),
        dist.LowRankMultivariateNormal(torch.zeros(3), torch.ones(3, 1), torch.ones(3)),
        dist.TransformedDistribution(normal(3), [dist.transforms.AffineTransform(torch.zeros(3), torch.ones(3))]),
        dist.TransformedDistribution(normal(3), [flows.Spline(3)]),
    ]
    for law in laws:
        made = bp.GenerativeDifficulty(latent=law).program(D).to(torch.float64)
        assert made.base.sample().dtype == torch.float64
        assert made.base.log_prob(torch.zeros(3, dtype=torch.float64)).dtype == torch.float64
        assert law.sample().dtype == torch.float32  # the declaration stays what it was
