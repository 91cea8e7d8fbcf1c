"""Brute force over all K^T paths, Pyro's exact enumeration and the reference filter agree."""

from __future__ import annotations

import math
from itertools import pairwise, product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, infer_discrete
from scipy.special import roots_legendre
from torch import Tensor

from bayes_prompt.history import History
from bayes_prompt.kernels.progress_filter import reference
from bayes_prompt.models import priors
from bayes_prompt.models.emission import BetaBinomialEmission, Emission, PartitionEmission, PublishedEmission
from bayes_prompt.models.progress import SolvingProgress

STEPS, PROMPTS = 5, 4
TOLERANCE = 1e-10  # the package's promise for float64; a few hundred roundings of numbers below 100 stay far below it


def beta_binomial(alpha: list[float], beta: list[float]) -> BetaBinomialEmission:
    return BetaBinomialEmission(dist.Beta(*(torch.tensor(values, dtype=torch.float64) for values in (alpha, beta))))


EMISSIONS: dict[str, Emission] = {
    "published": PublishedEmission(),
    "beta-2": beta_binomial([0.5, 3.0], [2.0, 0.7]),
    "beta-3": beta_binomial([0.3, 4.0, 20.0], [5.0, 4.0, 0.4]),
    "beta-4": beta_binomial([0.2, 1.0, 3.0, 9.0], [6.0, 2.0, 1.0, 0.1]),
    "partition-2": PartitionEmission([0.0, 0.4, 1.0]),
    "partition-3": PartitionEmission([0.0, 0.2, 0.9, 1.0]),
    "partition-4-atoms": PartitionEmission([0.0, 0.0, 0.5, 1.0, 1.0]),
}


def models() -> dict[str, SolvingProgress]:
    """Every emission with random transitions and a random start, and the awkward starts and zeros."""
    found = {}
    for name, emission in EMISSIONS.items():
        k = emission.num_states
        initial = torch.distributions.Dirichlet(torch.ones(k, dtype=torch.float64)).sample()
        transition = torch.rand(k, k, dtype=torch.float64) + 0.05
        found[name] = SolvingProgress(transition, initial, learn=False, emission=emission)
    found["local, one-hot"] = SolvingProgress(priors.local(), priors.one_hot_initial(0), learn=False)
    certain = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0], [1.0, 0.0, 3.0]])
    found["certain moves"] = SolvingProgress(certain, learn=False, emission=EMISSIONS["beta-3"])
    return found


MODELS = models()
all_models = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())


def rollouts(model: SolvingProgress) -> History:
    """Counts that the model can produce, drawn from it; a third is missing, and one prompt is never seen."""
    trials = torch.randint(2, 9, (STEPS, PROMPTS)) * (torch.rand(STEPS, PROMPTS) > 1 / 3)
    trials[:, -1] = 0
    return History(model.pyro_model(History(None, trials)).successes, trials)


def nothing_in_model(history: History) -> None:
    """The guide of a model whose latent sites are all enumerated."""


def enumerated_evidence(model: SolvingProgress, history: History) -> float:
    return -TraceEnum_ELBO(max_plate_nesting=1).loss(model.pyro_model, nothing_in_model, history)


def last_marginal(model: SolvingProgress, history: History) -> Tensor:
    """P(last state | all counts), (N, K), from Pyro's enumeration."""
    marginals = TraceEnum_ELBO(max_plate_nesting=1).compute_marginals(model.pyro_model, nothing_in_model, history)
    return marginals[f"state_{history.num_steps - 1}"].probs.expand(history.num_prompts, -1)


def before(history: History, step: int) -> History:
    """The history up to `step`, whose own counts are still to come."""
    assert history.successes is not None
    coming = torch.zeros(1, history.num_prompts, dtype=torch.int64)
    return History(*(torch.cat([table[:step], coming]) for table in (history.successes, history.trials)))


def brute_force(model: SolvingProgress, history: History, prompt: int) -> tuple[float, list[list[float]]]:
    """The log evidence of one prompt's counts, and P(state_t | counts before t) for each t, summing over all paths."""
    tables = model.lower(torch.float64)
    assert history.successes is not None
    k = tables.num_states
    start = tables.initial.tolist()
    move = (tables.concentration / tables.concentration.sum(-1, keepdim=True)).tolist()
    see = tables.emission.log_likelihood(history.successes[:, prompt], history.trials[:, prompt]).exp().tolist()
    evidence, predicted = 0.0, [[0.0] * k for _ in range(STEPS)]
    for path in product(range(k), repeat=STEPS):
        weight = 1.0
        # The tail of a path after step t sums to one, so that a sum over whole paths may stop at the state itself.
        for t, state in enumerate(path):
            weight *= start[state] if t == 0 else move[path[t - 1]][state]
            predicted[t][state] += weight / k ** (STEPS - 1 - t)
            weight *= see[t][state]
        evidence += weight
    return math.log(evidence), [[value / sum(row) for value in row] for row in predicted]


def filtered(model: SolvingProgress, history: History) -> tuple[float, Tensor]:
    """The log evidence of all counts and the beliefs (T, N, K) before each step, from the reference kernel."""
    tables = model.lower(torch.float64)
    assert history.successes is not None
    posterior = -tables.initial[:, None].repeat(1, PROMPTS)
    belief, fixed = torch.empty_like(posterior), torch.ones(1, dtype=torch.float64)
    total, beliefs = 0.0, []
    for successes, trials in zip(history.successes, history.trials, strict=True):
        reference.predict(None, posterior, fixed, tables.concentration, belief)
        beliefs.append(belief.T.clone())
        rows = trials.nonzero()[:, 0]
        log_likelihood = tables.emission.event_log_likelihood(successes[rows], trials[rows])
        scale = log_likelihood.amax(1)
        likelihood = (log_likelihood - scale[:, None]).exp()
        evidence = torch.full((len(rows),), math.nan, dtype=torch.float64)
        status = torch.full((len(rows),), -1, dtype=torch.int32)
        observed = rows, likelihood, 0.7, torch.empty_like(likelihood), evidence, status
        reference.advance(None, posterior, fixed, tables.concentration, *observed)
        assert torch.equal(observed[3], belief.T[rows])
        assert (status == 0).all()
        correction = tables.emission.count_correction(successes[rows], trials[rows])
        total += float((evidence.log() + scale + correction).sum())
    return total, torch.stack(beliefs)


@all_models
def test_evidence_and_beliefs_are_exact(model: SolvingProgress) -> None:
    history = rollouts(model)
    exact = [brute_force(model, history, prompt) for prompt in range(PROMPTS)]
    evidence = sum(value for value, _ in exact)
    beliefs = torch.tensor([rows for _, rows in exact], dtype=torch.float64).transpose(0, 1)  # (T, N, K)

    assert abs(enumerated_evidence(model, history) - evidence) <= TOLERANCE
    enumerated = torch.stack([last_marginal(model, before(history, step)) for step in range(STEPS)])
    torch.testing.assert_close(enumerated, beliefs, rtol=0, atol=TOLERANCE)

    filter_evidence, filter_beliefs = filtered(model, history)
    assert abs(filter_evidence - evidence) <= TOLERANCE
    torch.testing.assert_close(filter_beliefs, beliefs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("steps", [1, 2, 40])
def test_any_number_of_steps(steps: int) -> None:
    """Many more steps than there are names for enumerated dimensions: pyro.markov recycles them."""
    model = MODELS["beta-4"]
    trials = torch.full((steps, 3), 8)
    history = History(model.pyro_model(History(None, trials)).successes, trials)
    assert history.successes is not None
    tables = model.lower(torch.float64)
    move = tables.concentration / tables.concentration.sum(-1, keepdim=True)
    evidence = 0.0
    for prompt in range(3):
        see = tables.emission.log_likelihood(history.successes[:, prompt], history.trials[:, prompt]).exp()
        belief = tables.initial
        for t in range(steps):
            joint = belief * see[t]
            evidence += math.log(joint.sum())
            belief = joint / joint.sum() @ move
    # Every step adds a few roundings of logarithms of order 1.
    assert abs(enumerated_evidence(model, history) - evidence) <= 1e-12 * steps


def test_the_published_states_are_read_off_the_counts() -> None:
    """Where a group was seen its state is certain; infer_discrete draws exactly those states."""
    model = SolvingProgress(learn=False)
    trials = torch.tensor([[8, 4], [0, 4], [8, 0]])
    history = History(torch.tensor([[0, 2], [0, 4], [8, 0]]), trials)
    states = infer_discrete(model.pyro_model, first_available_dim=-2)(history).states
    assert states[trials > 0].tolist() == [0, 1, 2, 2]


def test_gradients_reach_the_declaration() -> None:
    """Evidence as a function of hyperparameters, also beside forbidden moves: what fitting them needs."""
    weight = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def evidence(weight: Tensor) -> Tensor:
        model = SolvingProgress(
            priors.local() * (1 + weight * torch.eye(3).double()), learn=False, emission=EMISSIONS["beta-3"]
        )
        history = History(torch.tensor([[0], [3], [8], [8]]), torch.tensor([[8], [8], [8], [8]]))
        return -TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model.pyro_model, nothing_in_model, history)

    # Pyro looks for NaN in every gradient, and cannot look into the absent ones that gradcheck would also pass.
    assert torch.autograd.gradcheck(evidence, weight, check_undefined_grad=False)


def test_learned_transitions_integrate_to_a_polya_urn() -> None:
    """The evidence with unknown rows, by quadrature over Pyro's enumeration, against urns summed over all paths.

    With whole-numbered pseudo-counts the joint density is a polynomial in each row's probability, of degree at most 2
    (prior) + 4 (moves): Gauss-Legendre with four nodes is exact.
    """
    counts = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    model = SolvingProgress(counts, torch.tensor([0.3, 0.7], dtype=torch.float64), emission=EMISSIONS["beta-2"])
    history = History(torch.tensor([[0], [3], [0], [7], [2]]), torch.tensor([[8], [8], [0], [8], [4]]))
    assert history.successes is not None

    nodes, weights = (torch.from_numpy(table) for table in roots_legendre(4))
    by_quadrature = 0.0
    for (x, wx), (y, wy) in product(list(zip((nodes + 1) / 2, weights / 2, strict=True)), repeat=2):
        transition = torch.stack([torch.stack([x, 1 - x]), torch.stack([y, 1 - y])])[None]
        fixed = pyro.condition(model.pyro_model, {"transition": transition})
        by_quadrature += float(wx * wy) * math.exp(
            -TraceEnum_ELBO(max_plate_nesting=1).loss(fixed, nothing_in_model, history)
        )

    see = model.lower(torch.float64).emission.log_likelihood(history.successes[:, 0], history.trials[:, 0]).exp()
    by_urns = 0.0
    for path in product(range(2), repeat=5):
        weight, urn = [0.3, 0.7][path[0]], counts.clone()
        for source, target in pairwise(path):
            weight *= float(urn[source, target] / urn[source].sum())
            urn[source, target] += 1
        by_urns += weight * math.prod(float(see[t, state]) for t, state in enumerate(path))
    assert by_quadrature == pytest.approx(by_urns, rel=TOLERANCE)


def test_a_guide_is_not_needed_to_trace() -> None:
    """The density of a full assignment is the product of its factors."""
    model = MODELS["beta-2"]
    history = History(torch.tensor([[1], [0], [2]]), torch.tensor([[2], [0], [2]]))
    trace = pyro.poutine.trace(model.pyro_model).get_trace(history)
    states = [int(trace.nodes[f"state_{t}"]["value"]) for t in range(3)]
    tables = model.lower(torch.float64)
    assert history.successes is not None
    move = (tables.concentration / tables.concentration.sum(-1, keepdim=True)).log()
    see = tables.emission.log_likelihood(history.successes[:, 0], history.trials[:, 0])
    expected = tables.initial.log()[states[0]] + move[states[0], states[1]] + move[states[1], states[2]]
    expected = expected + sum(see[t, states[t]] for t in range(3))
    torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=0, atol=1e-12)
