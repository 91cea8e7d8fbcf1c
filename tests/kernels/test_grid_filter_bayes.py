"""The grid filters against Bayes' rule itself: all paths enumerated, conjugate beliefs, and what must not matter."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction
from math import comb, prod

import pytest
import torch
from torch import Tensor

from bayes_prompt.kernels import backend
from bayes_prompt.kernels.grid_filter import outcome_tables
from bayes_prompt.kernels.progress_filter import UNEXPECTED

BACKENDS = ["reference", "cpu", "triton"]
DOUBLE = {"dtype": torch.float64}
EPS = 2.0**-52


def device_of(name: str) -> str:
    return "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"


@dataclass
class Lazy:
    """A pool as a posterior keeps it: a table for each step in which somebody was observed, multiplied up in time."""

    name: str
    transition: Tensor
    shared: Tensor
    belief: Tensor
    slot: Tensor
    propagators: Tensor
    step: int = 0

    @classmethod
    def start(cls, name: str, prompts: int, initial: Tensor, transition: Tensor, steps: int) -> Lazy:
        place, states = {"device": device_of(name)}, len(initial)
        belief = torch.full((prompts, states), torch.nan, **DOUBLE, **place)
        slot = torch.full((prompts,), -1, dtype=torch.int32, **place)
        tables = torch.full((steps, states, states), torch.nan, **DOUBLE, **place)
        return cls(name, transition.to(**place), initial[None].to(**place), belief, slot, tables)

    def observe(
        self, prompts: list[int], likelihood: Tensor, decay: float = 1.0, prior: Tensor | None = None
    ) -> Tensor:
        """The chances of what was seen; then time moves."""
        index = torch.tensor(prompts, dtype=torch.int64, device=self.belief.device)
        likelihood = likelihood.to(self.belief)
        chance, status = likelihood.new_empty(len(index)), self.slot.new_empty(len(index))
        prior = None if prior is None else prior.to(self.belief)
        self.propagators[self.step] = torch.eye(len(self.transition), **DOUBLE)
        self.kernels.advance(
            *(self.belief, self.slot, self.propagators, self.shared, index, likelihood, self.step),
            *(None, chance, status, decay, prior),
        )
        assert not status.any()
        self.step += 1
        self.propagators[: self.step] = self.propagators[: self.step] @ self.transition
        self.shared = self.shared @ self.transition
        return chance.cpu()

    def settle(self) -> None:
        self.propagators[self.step] = torch.eye(len(self.transition), **DOUBLE)
        self.kernels.settle(self.belief, self.slot, self.propagators, 0, self.step, self.step)
        self.propagators[: self.step] = torch.nan  # nobody asks for them any more
        self.step += 1

    def now(self) -> Tensor:
        out = torch.full_like(self.belief, torch.nan)
        self.kernels.predict(self.belief, self.slot, self.propagators, self.shared, None, out)
        return out.cpu()

    @property
    def kernels(self):  # type: ignore[no-untyped-def]
        return backend.load("grid_filter", self.name)


def fractions(g: torch.Generator, *shape: int) -> list[Fraction]:
    """Probabilities of one distribution, as ratios of small numbers."""
    weights = [Fraction(number) for number in torch.randint(1, 9, shape, generator=g).tolist()]
    return [weight / sum(weights) for weight in weights]


def as_tensor(table: list) -> Tensor:  # type: ignore[type-arg]
    return torch.tensor([[float(x) for x in row] for row in table], **DOUBLE)


@pytest.mark.parametrize("settled", [False, True], ids=["lazy", "settled half way"])
@pytest.mark.parametrize("name", BACKENDS)
def test_beliefs_are_sums_over_all_paths(name: str, settled: bool) -> None:
    """Exact in fractions: P(path) = P(first state) * transitions * likelihoods, for every path of every prompt."""
    g = torch.Generator().manual_seed(5)
    states, steps, prompts = 3, 5, 4
    initial, transition = fractions(g, states), [fractions(g, states) for _ in range(states)]
    seen = torch.rand(steps, prompts, generator=g) < 0.5
    seen[:, 3] = False  # never
    likelihood = [[fractions(g, states) for _ in range(prompts)] for _ in range(steps)]
    lazy = Lazy.start(name, prompts, as_tensor([initial])[0], as_tensor(transition), steps + 2)
    chances: dict[tuple[int, int], float] = {}
    for step in range(steps):
        who = seen[step].nonzero().squeeze(1).tolist()
        rows = as_tensor([likelihood[step][n] for n in who]).reshape(len(who), states)
        chances |= {(step, n): float(c) for n, c in zip(who, lazy.observe(who, rows), strict=True)}
        if settled and step == 2:
            lazy.settle()

    def weight(n: int, path: tuple[int, ...]) -> Fraction:
        moves = prod(transition[i][j] for i, j in itertools.pairwise(path))
        return initial[path[0]] * moves * prod(likelihood[t][n][i] for t, i in enumerate(path[:steps]) if seen[t, n])

    for n in range(prompts):
        paths = {path: weight(n, path) for path in itertools.product(range(states), repeat=steps + 1)}
        total = sum(paths.values())
        exact = [float(sum(w for path, w in paths.items() if path[-1] == k) / total) for k in range(states)]
        # In a step a number is rounded fewer than twelve times, and none is the difference of two.
        bound = 12 * (steps + 1) * EPS
        torch.testing.assert_close(lazy.now()[n], torch.tensor(exact, **DOUBLE), rtol=bound, atol=0)
        assert prod(c for (_, who), c in chances.items() if who == n) == pytest.approx(float(total), rel=bound)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_conjugate_belief_forgets_and_counts_as_the_beta_filter_does(name: str) -> None:
    """Beta(a, b) on a grid, to the power of a decay, times a prior, times a binomial, is a Beta on the same grid."""
    rate = (torch.arange(40, **DOUBLE) + 0.5) / 40

    def beta(a: float, b: float) -> Tensor:
        return ((a - 1) * rate.log() + (b - 1) * (1 - rate).log()).softmax(0)

    a, b, decay, prior = 2.0, 5.0, 0.75, (1.5, 1.25)
    lazy = Lazy.start(name, 2, beta(a, b), torch.eye(40, **DOUBLE), 9)
    for step in range(8):
        successes, trials = step % 5, 4 + step % 3
        logs = successes * rate.log() + (trials - successes) * (1 - rate).log()
        lazy.observe([1], (logs - logs.max()).exp()[None], decay, beta(*prior))
        a = decay * a + (1 - decay) * prior[0] + successes
        b = decay * b + (1 - decay) * prior[1] + trials - successes
        # Logarithms here and there are at most 200 in size, and errors of a step are carried on by a factor of decay.
        torch.testing.assert_close(lazy.now()[1], beta(a, b), rtol=4 * 10 * 200 * EPS, atol=0)
    assert torch.equal(lazy.now()[0], beta(2.0, 5.0).to(torch.float64))


@pytest.mark.parametrize("name", BACKENDS)
def test_what_cannot_be_reconciled_with_the_prior_is_not_forgotten(name: str) -> None:
    half = torch.tensor([0.5, 0.5, 0, 0], **DOUBLE)
    for decay, kept in [(0.5, half), (0.0, half.flip(0))]:
        lazy = Lazy.start(name, 1, half, torch.eye(4, **DOUBLE), 2)
        assert float(lazy.observe([0], torch.ones(1, 4), decay, half.flip(0))) == 1.0
        assert torch.equal(lazy.now()[0], kept)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_score_is_the_expected_utility_now(name: str) -> None:
    lazy = random_pool(name)
    utility = torch.rand(7, **DOUBLE).to(lazy.belief)
    scores = torch.full((12,), torch.nan, **DOUBLE).to(lazy.belief.device)
    tables = lazy.propagators @ utility, lazy.shared @ utility
    lazy.kernels.score(lazy.belief, lazy.slot, *tables, scores)
    # Twice two sums of seven positive terms.
    torch.testing.assert_close(scores.cpu(), lazy.now() @ utility.cpu(), rtol=4 * 8 * EPS, atol=0)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_look_is_worth_the_better_choice_after_each_outcome(name: str) -> None:
    """By Bayes' rule, outcome by outcome, from the belief now."""
    lazy, g = random_pool(name), torch.Generator().manual_seed(3)
    outcomes, threshold = 5, 0.45
    chance = torch.rand(outcomes, 7, generator=g, **DOUBLE)
    chance[2] = 0.0  # an outcome that does not happen
    chance /= chance.sum(0)
    utility = torch.rand(7, generator=g, **DOUBLE)
    now, exact = lazy.now(), torch.zeros(12, **DOUBLE)
    for o in (0, 1, 3, 4):
        probability = now @ chance[o]
        after = now * chance[o] / probability[:, None]
        exact += probability * torch.maximum(after @ utility, torch.tensor(threshold, **DOUBLE))
    pulled = (lazy.propagators[:, None] @ chance.to(lazy.belief)[None, :, :, None]).squeeze(-1)
    worth = (lazy.propagators[:, None] @ (chance * utility).to(lazy.belief)[None, :, :, None]).squeeze(-1)
    values = torch.full((12,), torch.nan, **DOUBLE).to(lazy.belief.device)
    lazy.kernels.look(lazy.belief, lazy.slot, pulled, worth, exact[-1:].to(lazy.belief), threshold, values)
    # At most 1 is added up, in sums over 7 states and 5 outcomes, here and there, and in a difference.
    torch.testing.assert_close(values.cpu(), exact, rtol=0, atol=4 * 12 * EPS)
    assert bool((values.cpu() >= torch.maximum(now @ utility, torch.tensor(threshold)) - 48 * EPS).all())
    assert bool((exact > now @ utility + 1e-4).any()), "some look must matter, or nothing was tested"


@pytest.mark.parametrize("horizon", [0.0, 0.5, 12.0])
@pytest.mark.parametrize("name", BACKENDS)
def test_a_price_is_the_best_over_all_sets_of_outcomes(name: str, horizon: float) -> None:
    """By Bayes' rule, set by set, from the belief now; and at that price a prompt brings what it costs."""
    lazy, g = random_pool(name), torch.Generator().manual_seed(4)
    later = torch.linspace(0.05, 0.95, 7, **DOUBLE)  # success rates, of which four rollouts tell
    chance = torch.stack([comb(4, won) * later**won * (1 - later) ** (4 - won) for won in range(5)] + [0 * later])
    utility = 0.4 + 0.2 * torch.rand(7, generator=g, **DOUBLE)
    now = lazy.now()
    first, chances = now @ utility, now @ chance.T
    worths = (now * later) @ chance.T  # chance of an outcome times the worth after it
    sets = torch.tensor(list(itertools.product([0, 1], repeat=6)), **DOUBLE)  # the last one does not happen
    exact, best = ((first[:, None] + horizon * worths @ sets.T) / (1 + horizon * chances @ sets.T)).max(1)

    place = lazy.belief
    tables = outcome_tables(*(each.to(place) for each in (lazy.propagators, utility, chance, later[None])))
    prices = torch.full((12,), torch.nan, **DOUBLE).to(place.device)
    vectors, *others = (each.contiguous() for each in tables)
    lazy.kernels.look_index(lazy.belief, lazy.slot, vectors, *others, exact[-1:].to(place), horizon, prices)
    # Numbers of at most 1, in sums over 7 states and 6 outcomes, here and there; see `tolerance_of_a_price`.
    bound = 4 * 13 * (2 + horizon) * EPS
    torch.testing.assert_close(prices.cpu(), exact, rtol=0, atol=bound)
    left = first - exact + horizon * (worths - exact[:, None] * chances).clamp(min=0).sum(1)
    torch.testing.assert_close(left, torch.zeros(12, **DOUBLE), rtol=0, atol=(1 + horizon) * bound)
    assert bool((prices.cpu() >= first - bound).all())
    goes_on = sets[best, :5].sum(1)
    assert horizon == 0 or bool(((goes_on > 0) & (goes_on < 5)).all()), "looks must matter, or nothing was tested"


def test_tables_of_outcomes_of_several_groups_take_turns() -> None:
    """Slot s is of group s % T: what is to come is weighed for each group on its own."""
    g = torch.Generator().manual_seed(2)
    propagators, worth, chance, later = (
        torch.rand(*shape, generator=g, **DOUBLE) for shape in ((6, 2, 4), (4,), (3, 4), (2, 4))
    )
    vectors, chances, worths = outcome_tables(propagators, worth, chance, later)
    assert vectors.shape == (6, 2) and chances.shape == worths.shape == (6, 3, 2)
    for s, o, j in itertools.product(range(6), range(3), range(2)):
        row = propagators[s, j].tolist()
        sums = [
            sum(r * float(each[k]) for k, r in enumerate(row)) for each in (worth, chance[o], chance[o] * later[s % 2])
        ]
        found = [float(table) for table in (vectors[s, j], chances[s, o, j], worths[s, o, j])]
        assert found == pytest.approx(sums, rel=8 * EPS)


@pytest.mark.parametrize("name", BACKENDS)
def test_settling_changes_no_belief(name: str) -> None:
    lazy = random_pool(name)
    before = lazy.now()
    lazy.settle()
    assert bool(((lazy.slot == lazy.step - 1) | (lazy.slot == -1)).all())
    torch.testing.assert_close(lazy.now(), before, rtol=2 * 8 * EPS, atol=0)


@pytest.mark.parametrize("name", BACKENDS)
def test_names_of_states_do_not_matter(name: str) -> None:
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    there, here = random_pool(name, order).now(), random_pool(name).now()[:, order]
    # Other orders of summation in three steps of two sums, and of one more.
    torch.testing.assert_close(there, here, rtol=8 * 8 * EPS, atol=0)


@pytest.mark.parametrize("name", BACKENDS)
def test_what_says_nothing_changes_nothing(name: str) -> None:
    lazy, other = random_pool(name), random_pool(name)
    lazy.observe([2, 5, 11], torch.ones(3, 7, **DOUBLE))
    other.observe([], torch.ones(0, 7, **DOUBLE))
    torch.testing.assert_close(lazy.now(), other.now(), rtol=4 * 8 * EPS, atol=0)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_pool_survives_the_impossible(name: str) -> None:
    """A belief that is certain, and an observation that contradicts it."""
    kernels, device = backend.load("grid_filter", name), device_of(name)
    certain = torch.eye(3, **DOUBLE, device=device)
    belief, slot = certain.clone(), torch.zeros(3, dtype=torch.int32, device=device)
    likelihood, index = certain.flip(0).contiguous(), torch.arange(3, device=device)
    chance, status = torch.empty(3, **DOUBLE, device=device), torch.empty(3, dtype=torch.int32, device=device)
    kernels.advance(belief, slot, certain[None], certain[:1], index, likelihood, 1, None, chance, status)
    assert status.tolist() == [UNEXPECTED, 0, UNEXPECTED] and chance.tolist() == [0, 1, 0]
    assert torch.equal(belief, likelihood) and slot.tolist() == [1, 1, 1]


def random_pool(name: str, order: Tensor | None = None) -> Lazy:
    """Twelve prompts after three steps, the last one never observed; of seven states, whose names may be exchanged."""
    g = torch.Generator().manual_seed(11)
    order = torch.arange(7) if order is None else order
    initial, transition = (torch.rand(*shape, generator=g, **DOUBLE) + 0.01 for shape in ((7,), (7, 7)))
    transition /= transition.sum(1, keepdim=True)
    lazy = Lazy.start(name, 12, (initial / initial.sum())[order], transition[order][:, order], 5)
    for who in ([0, 1, 2, 3, 4], [3, 4, 5, 6], [6, 7, 8, 9, 10]):
        lazy.observe(who, (torch.rand(len(who), 7, generator=g, **DOUBLE) ** 4)[:, order])
    lazy.propagators[lazy.step :] = 0.0  # of nobody, but multiplied with
    return lazy
