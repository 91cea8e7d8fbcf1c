"""SolvingProgress: fields, tables, description, and the Pyro program as something to sample, draw and infer with."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from itertools import combinations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from bayes_prompt.errors import CannotLower
from bayes_prompt.history import History
from bayes_prompt.models import priors
from bayes_prompt.models.emission import BetaBinomialEmission, Emission, PartitionEmission, PublishedEmission
from bayes_prompt.models.progress import SolvingProgress

TWO_BINS = PartitionEmission([0.0, 0.5, 1.0])
TRIALS = torch.tensor([[8, 0, 4, 8], [8, 8, 4, 0], [2, 0, 2, 8]])


@pytest.fixture(autouse=True)
def own_parameters() -> Iterator[None]:
    """Pyro's parameter store is global; each test has one of its own."""
    with pyro.get_param_store().scope():
        yield


def emission_of(states: int) -> Emission:
    edges = torch.linspace(0, 1, states + 1)
    return PartitionEmission(edges)


def test_defaults_are_the_published_settings() -> None:
    model = SolvingProgress()
    tables = model.lower(torch.float64)
    assert torch.equal(tables.concentration, torch.ones(3, 3, dtype=torch.float64))
    assert torch.equal(tables.initial, torch.full((3,), 1 / 3, dtype=torch.float64))
    assert (tables.decay, tables.learn, tables.num_states) == (0.7, True, 3)
    assert isinstance(tables.emission, PublishedEmission)


def test_models_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SolvingProgress().decay = 0.5  # type: ignore[misc]


def test_a_dirichlet_and_its_concentration_say_the_same() -> None:
    concentration = torch.rand(4, 4, dtype=torch.float64) + 0.1
    start = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    emission = emission_of(4)
    one = SolvingProgress(concentration, start / 10, emission=emission)
    other = SolvingProgress(dist.Dirichlet(concentration), dist.Dirichlet(start), emission=emission)
    assert one.describe() == other.describe()
    for model in (one, other):
        tables = model.lower(torch.float64)
        assert torch.equal(tables.concentration, concentration)
        torch.testing.assert_close(tables.initial, start / 10, rtol=1e-15, atol=0)


def test_initial_follows_the_number_of_states() -> None:
    assert SolvingProgress(priors.uniform(1.0, 5), emission=emission_of(5)).lower().initial.tolist() == pytest.approx(
        [0.2] * 5
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"transition": torch.ones(3)}, r"transition must have concentration of shape \(K, K\), K >= 2; got \(3,\)"),
        ({"transition": torch.ones(2, 3)}, r"transition .* got \(2, 3\)"),
        ({"transition": torch.ones(1, 1)}, r"transition .* got \(1, 1\)"),
        ({"transition": dist.Dirichlet(torch.ones(3))}, r"transition .* got \(3,\)"),
        ({"transition": torch.tensor([[1.0, 1], [1, -2]])}, r"transition\[1, 1\] = -2.0 must be finite and at least 0"),
        ({"transition": torch.tensor([[1.0, math.nan], [1, 2]])}, r"transition\[0, 1\] = nan must be finite"),
        ({"transition": torch.tensor([[1.0, 1], [math.inf, 2]])}, r"transition\[1, 0\] = inf must be finite"),
        ({"transition": torch.tensor([[1.0, 1], [0, 0]])}, r"sum of transition\[1\] = 0.0 must be positive"),
        ({"initial": torch.ones(2) / 2}, r"initial must have shape \(3,\) like transition; got \(2,\)"),
        ({"initial": torch.tensor([0.5, 0.6, -0.1])}, r"initial\[2\] = -0.1.* must be finite and at least 0"),
        ({"initial": torch.tensor([0.5, math.nan, 0.5])}, r"initial\[1\] = nan must be finite"),
        ({"initial": torch.tensor([0.5, 0.2, 0.2])}, r"the sum of initial = 0.9.* must be 1 within 1e-6"),
        ({"initial": dist.Dirichlet(torch.ones(4))}, r"initial must have shape \(3,\) like transition; got \(4,\)"),
        ({"decay": -0.1}, r"decay must lie in \[0, 1\]; got -0.1"),
        ({"decay": 1.1}, r"decay must lie in \[0, 1\]; got 1.1"),
        ({"decay": math.nan}, r"decay must lie in \[0, 1\]; got nan"),
        ({"emission": TWO_BINS}, r"emission must have K = 3 states like transition; PartitionEmission has 2"),
        ({"transition": torch.ones(2, 2)}, r"emission must have K = 2 states like transition; PublishedEmission has 3"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SolvingProgress(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"transition": dist.Gamma(torch.ones(3, 3), 1.0)}, r"transition is a Gamma; a Dirichlet .* \(K, K\)"),
        ({"transition": dist.Dirichlet(torch.ones(3, 3)).to_event(1)}, "transition is a Independent; a Dirichlet"),
        ({"transition": [[1.0, 2.0], [3.0, 4.0]]}, "transition is a list; a Dirichlet"),
        ({"initial": dist.Categorical(torch.ones(3))}, "initial is a Categorical; .* a Dirichlet .* work"),
        ({"emission": dist.Binomial(8, 0.5)}, r"emission is a Binomial; .*PartitionEmission\(edges\)"),
    ],
)
def test_what_has_no_tables_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(CannotLower, match=message):
        SolvingProgress(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", [{"decay": "0.5"}, {"decay": True}, {"learn": 1}])
def test_bad_types_are_named(fields: dict[str, object]) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(fields))} must be"):
        SolvingProgress(**fields)  # type: ignore[arg-type]


def test_edges_of_the_accepted_ranges() -> None:
    for decay in (0, 0.0, 1, 1.0):
        assert SolvingProgress(decay=decay).lower().decay == decay
    tables = SolvingProgress(priors.local(), priors.one_hot_initial(2)).lower()
    assert tables.concentration.tolist() == priors.local().tolist()
    assert tables.initial.tolist() == [0.0, 0.0, 1.0]
    nearly = torch.tensor([0.5, 0.25, 0.25 + 9e-7], dtype=torch.float64)
    assert SolvingProgress(initial=nearly).lower(torch.float64).initial.sum().item() == pytest.approx(1.0, abs=1e-15)


def test_lower_casts_from_float64() -> None:
    """One rounding, from the float64 value; a detour through float32 arithmetic would round twice."""
    concentration = torch.rand(3, 3, dtype=torch.float64) + 0.1
    start = torch.rand(3, dtype=torch.float64)
    model = SolvingProgress(concentration, dist.Dirichlet(start))
    tables = model.lower(torch.float32)
    assert tables.concentration.dtype == tables.initial.dtype == torch.float32
    assert torch.equal(tables.concentration, concentration.float())
    mean = start / start.sum()
    assert torch.equal(tables.initial, (mean / mean.sum()).float())
    assert torch.equal(model.lower(torch.float64).concentration, concentration)
    with pytest.raises(TypeError, match=r"dtype must be torch.float32 or torch.float64; got torch.float16"):
        model.lower(torch.float16)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"transition": [[1, 1, 1], [1, 1e-40, 1], [1, 1, 1]]}, r"transition\[1, 1\] is 1e-40"),
        ({"transition": [[1, 1, 1], [1, 1, 1], [1, 1, 1e39]]}, r"transition\[2, 2\] is 1e\+39"),
        ({"transition": [[3e38, 3e38, 1], [1, 1, 1], [1, 1, 1]]}, r"sum of transition\[0\] is 6e\+38"),
        ({"transition": [[1, 1, 1], [1e-20, 1, 1e20], [1, 1, 1]]}, r"mean probability of transition\[1, 0\] is 1e-40"),
        ({"initial": [1e-39, 1, 0]}, r"initial\[0\] is 1e-39"),
    ],
)
def test_what_the_dtype_cannot_hold_is_refused(fields: dict[str, object], message: str) -> None:
    model = SolvingProgress(**{name: torch.tensor(value, dtype=torch.float64) for name, value in fields.items()})
    with pytest.raises(
        CannotLower, match=message + r".* torch.float32 cannot hold: .* dtype=torch.float64 may hold it"
    ):
        model.lower(torch.float32)
    tables = model.lower(torch.float64)
    assert torch.isfinite(tables.concentration / tables.concentration.sum(-1, keepdim=True)).all()


def test_descriptions_identify_the_model() -> None:
    several = [
        SolvingProgress(),
        SolvingProgress(priors.uniform(1.0 + 1e-15)),
        SolvingProgress(priors.progress()),
        SolvingProgress(initial=priors.one_hot_initial(0)),
        SolvingProgress(decay=0.5),
        SolvingProgress(learn=False),
        SolvingProgress(emission=emission_of(3)),
        SolvingProgress(emission=BetaBinomialEmission(dist.Beta(torch.ones(3), torch.ones(3)))),
        SolvingProgress(priors.uniform(1.0, 2), emission=TWO_BINS),
    ]
    texts = [json.dumps(model.describe(), sort_keys=True) for model in several]
    assert all(one != other for one, other in combinations(texts, 2))
    assert texts[0] == json.dumps(SolvingProgress().describe(), sort_keys=True)
    assert all(json.loads(text) == model.describe() for text, model in zip(texts, several, strict=True))


@pytest.mark.parametrize("as_dirichlet", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_keeps_copies(dtype: torch.dtype, as_dirichlet: bool) -> None:
    """What its makers do to their tensors later, or others to its tables, changes neither it nor a posterior."""
    transition, initial = torch.full((3, 3), 2.0, dtype=dtype), torch.tensor([0.5, 0.25, 0.25], dtype=dtype)
    wrap = dist.Dirichlet if as_dirichlet else (lambda values: values)
    model = SolvingProgress(wrap(transition), wrap(initial), learn=False)
    posterior, before = model.posterior(2, dtype=dtype), model.describe()
    tables = model.lower(dtype)
    for values in (transition, initial, tables.concentration, tables.initial):
        values[..., 0] = 50.0
    assert model.describe() == before
    posterior.update([0, 1], [0, 8], 8)
    fresh = model.posterior(2, dtype=dtype)
    fresh.update([0, 1], [0, 8], 8)
    # The rows of a matrix of equal entries are uniform, whatever the state.
    for belief in (posterior.belief, fresh.belief):
        torch.testing.assert_close(belief, torch.full((2, 3), 1 / 3, dtype=dtype))


@pytest.mark.parametrize("as_dirichlet", [False, True])
def test_gradients_reach_the_declaration(as_dirichlet: bool) -> None:
    wrap = dist.Dirichlet if as_dirichlet else (lambda values: values)
    transition = torch.ones(3, 3, dtype=torch.float64, requires_grad=True)
    model = SolvingProgress(wrap(transition), learn=False)
    history = History(torch.tensor([[0], [3]]), torch.tensor([[8], [8]]))
    states = {"state_0": torch.tensor([0]), "state_1": torch.tensor([1])}
    trace = poutine.trace(poutine.condition(model.pyro_model, states)).get_trace(history)
    trace.log_prob_sum().backward()
    # log(c01 / (c00 + c01 + c02)) at ones: 1 - 1/3 for the move that was made, -1/3 for the others of its row.
    expected = torch.tensor([[-1.0, 2.0, -1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64) / 3
    assert transition.grad is not None
    torch.testing.assert_close(transition.grad, expected)


def test_rates_that_the_dtype_cannot_hold_are_refused() -> None:
    rates = dist.Beta(torch.tensor([1.0, 1e39, 3e38], dtype=torch.float64), torch.tensor([1.0, 1.0, 3e38]))
    model = SolvingProgress(emission=BetaBinomialEmission(rates))
    with pytest.raises(CannotLower, match=r"alpha of emission\[1\] is 1e\+39, which torch.float32 cannot hold"):
        model.lower(torch.float32)
    assert model.lower(torch.float64).num_states == 3


def test_posterior_starts_at_the_prior() -> None:
    posterior = SolvingProgress(priors.stability(), priors.one_hot_initial(1)).posterior(5, dtype=torch.float64)
    assert torch.equal(posterior.belief, priors.one_hot_initial(1).expand(5, 3))
    assert torch.equal(posterior.concentration, priors.stability().concentration.expand(5, 3, 3))
    own = torch.rand(5, 3, 3, dtype=torch.float64)
    assert torch.equal(SolvingProgress().posterior(5, dtype=torch.float64, concentration=own).concentration, own)


SEVERAL = {
    "published": SolvingProgress(priors.progress(), learn=False),
    "local": SolvingProgress(priors.local(), priors.one_hot_initial(0), learn=False),
    "learned": SolvingProgress(priors.stability(), dist.Dirichlet(torch.tensor([0.5, 2.0, 1.0]))),
    "two bins": SolvingProgress(torch.tensor([[3.0, 1.0], [0.0, 2.0]]), emission=TWO_BINS),
    "beta": SolvingProgress(
        priors.uniform(0.5, 2),
        emission=BetaBinomialEmission(dist.Beta(torch.tensor([0.5, 6.0]), torch.tensor([4.0, 1.0]))),
    ),
}


@pytest.mark.parametrize("model", SEVERAL.values(), ids=SEVERAL.keys())
def test_prior_predictive_frequencies(model: SolvingProgress) -> None:
    """Counts of many simulated prompts against the marginal law of each of the first two steps.

    Learned transitions are independent of the first state, so the second one has the law initial @ mean transition too.
    """
    prompts, group = 20_000, 5
    trials = torch.full((2, prompts), group)
    trials[:, : prompts // 4] = 0
    simulation = model.pyro_model(History(None, trials))
    assert simulation.successes.dtype == simulation.states.dtype == torch.int64
    assert simulation.successes.shape == simulation.states.shape == trials.shape
    assert (simulation.successes[trials == 0] == 0).all()
    tables = model.lower(torch.float64)
    belief = tables.initial
    law_of_counts = tables.emission.log_likelihood(torch.arange(group + 1), torch.full((group + 1,), group)).exp().T
    for t in range(2):
        observed = simulation.successes[t, prompts // 4 :]
        assert_frequencies(observed, belief @ law_of_counts)
        assert_frequencies(simulation.states[t], belief)
        belief = belief @ (tables.concentration / tables.concentration.sum(-1, keepdim=True))


def assert_frequencies(sample: Tensor, law: Tensor) -> None:
    frequency = torch.bincount(sample, minlength=len(law)).double() / len(sample)
    # Six standard deviations, and a handful of draws where the normal approximation of rare counts is poor.
    bound = 6 * (law * (1 - law) / len(sample)).sqrt() + 8 / len(sample) * (law > 0)
    assert ((frequency - law).abs() <= bound + 1e-12).all()


def test_forbidden_moves_never_happen() -> None:
    trials = torch.zeros(30, 500, dtype=torch.int64)
    states = SolvingProgress(priors.local()).pyro_model(History(None, trials)).states
    assert ((states[1:] - states[:-1]).abs() <= 1).all()
    assert set(states.flatten().tolist()) == {0, 1, 2}
    cycle = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    states = SolvingProgress(cycle).pyro_model(History(None, trials)).states
    assert torch.equal(states[1:], (states[:-1] + 1) % 3)


def test_a_prompt_follows_transitions_of_its_own() -> None:
    steps, prompts = 60, 40
    model = SolvingProgress(priors.uniform(0.05))
    trace = poutine.trace(model.pyro_model).get_trace(History(None, torch.zeros(steps, prompts, dtype=torch.int64)))
    transition = trace.nodes["transition"]["value"]
    assert transition.shape == (prompts, 3, 3)
    assert transition.dtype == torch.float64
    states = torch.stack([trace.nodes[f"state_{t}"]["value"] for t in range(steps)])
    rows = transition[torch.arange(prompts), states[:-1]]
    taken = rows.gather(-1, states[1:, :, None])[..., 0]
    # A move out of a row has the probability sum of squares on average; differences from it are uncorrelated.
    surprise = (taken - rows.square().sum(-1)).flatten()
    assert abs(surprise.mean()) <= 6 * surprise.std() / len(surprise) ** 0.5
    # Rows under such a prior are nearly certain; another prompt's moves would be taken only every third time.
    assert taken.mean() > 0.6


def test_groups_of_one_cannot_be_drawn_from_the_published_emission() -> None:
    model = SolvingProgress(initial=priors.one_hot_initial(1))
    with pytest.raises(ValueError, match="trials must be at least 2 to sample a partial group"):
        model.pyro_model(History(None, torch.ones(1, 2, dtype=torch.int64)))


def edges_and_nodes(model: SolvingProgress, history: History) -> tuple[set[str], set[tuple[str, str]]]:
    lines = [line.strip() for line in pyro.render_model(model.pyro_model, (history,)).source.splitlines()]
    nodes = {line.split(" [")[0] for line in lines if "shape=ellipse" in line}
    edges = {(line.split(" -> ")[0], line.split(" -> ")[1]) for line in lines if " -> " in line}
    return nodes, edges


def test_the_graph_is_the_model() -> None:
    history = History(torch.zeros_like(TRIALS[:2]), TRIALS[:2])
    chain = {("state_0", "state_1"), ("state_0", "successes_0"), ("state_1", "successes_1")}
    states_and_counts = {"state_0", "state_1", "successes_0", "successes_1"}

    nodes, edges = edges_and_nodes(SolvingProgress(), history)
    assert nodes == states_and_counts | {"transition"}
    assert edges == chain | {("transition", "state_1")}

    nodes, edges = edges_and_nodes(SolvingProgress(learn=False), history)
    assert (nodes, edges) == (states_and_counts, chain)

    start = dist.Dirichlet(torch.ones(3))
    nodes, edges = edges_and_nodes(SolvingProgress(torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 1]]), start), history)
    assert nodes == states_and_counts | {"transition_0", "transition_1", "initial"}
    assert edges == chain | {("transition_0", "state_1"), ("transition_1", "state_1"), ("initial", "state_0")}

    nodes, edges = edges_and_nodes(SolvingProgress(emission=emission_of(3)), history)
    assert edges == chain | {("transition", "state_1")}


LEARNED = {
    "published": SolvingProgress(),
    "local": SolvingProgress(priors.local(), dist.Dirichlet(torch.ones(3)), emission=emission_of(3)),
    "beta": SEVERAL["beta"],
}


@pytest.mark.parametrize("model", LEARNED.values(), ids=LEARNED.keys())
def test_inference_runs_in_pyro(model: SolvingProgress) -> None:
    """Variational inference and NUTS over transitions, states summed out exactly."""
    history = History(model.pyro_model(History(None, TRIALS)).successes, TRIALS)
    latent = poutine.block(model.pyro_model, hide_fn=lambda site: site["name"].startswith("state_"))
    guide = AutoNormal(latent)
    svi = SVI(model.pyro_model, guide, pyro.optim.Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=1))
    assert all(math.isfinite(svi.step(history)) for _ in range(3))
    assert all(torch.isfinite(value).all() for value in pyro.get_param_store().values())

    chain = MCMC(NUTS(model.pyro_model, max_plate_nesting=1, max_tree_depth=3), 3, warmup_steps=2, disable_progbar=True)
    chain.run(history)
    samples = chain.get_samples()
    assert samples
    for name, value in samples.items():
        torch.testing.assert_close(value.sum(-1), torch.ones(value.shape[:-1], dtype=torch.float64), msg=name)
        assert (value >= 0).all()
