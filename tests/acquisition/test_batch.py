"""Acquisitions that go by the batch are told of it wherever they stand: alone, in sums, in others, in diverse picks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import bayes_prompt as bp
from bayes_prompt import acquisition as acq

N = 60
EMBEDDINGS = torch.randn(N, 5, generator=torch.Generator().manual_seed(0))
GRADIENT = acq.KnowledgeGradient(20.0, trials=8)


def test_what_is_no_batch_is_named() -> None:
    with pytest.raises(TypeError, match=r"allowed must be a tensor of torch.bool with one dimension; got list"):
        acq.Batch(3, allowed=[True])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"allowed must be .* got torch.float32 \(3,\)"):
        acq.Batch(3, allowed=torch.ones(3))
    with pytest.raises(TypeError, match=r"mates must be a tensor of torch.int64 with one dimension; got NoneType"):
        acq.Batch(3, mates=None)  # type: ignore[arg-type]


def test_a_ranking_that_takes_something_else_is_refused_when_it_is_written() -> None:
    message = r"ranking must take \(self, posterior, seed, step, batch\), of which batch is a Batch; it takes"
    with pytest.raises(TypeError, match=message):

        class Older(acq.OfBatch):
            def ranking(  # type: ignore[override]
                self, posterior: Any, seed: Any, step: Any, batch: Any, allowed: Any = None, mates: Any = None
            ) -> Any:
                return None

    with pytest.raises(TypeError, match=message):

        class Oldest(acq.Acquisition):
            def ranking(self, posterior: Any, seed: int, step: int, batch: int) -> Any:  # type: ignore[override]
                return None

    with pytest.raises(TypeError, match=message):

        class Short(acq.OfBatch):
            def ranking(self, posterior: Any) -> Any:  # type: ignore[override]
                return None

    with pytest.raises(TypeError, match=r"ranking must take .* it takes .*allowed"):

        class Detached(acq.OfBatch):
            @staticmethod
            def ranking(posterior: Any, seed: Any, step: Any, allowed: Any) -> Any:  # type: ignore[override]
                return None


def test_a_ranking_may_call_its_arguments_as_it_likes() -> None:
    class Own(acq.OfBatch):
        def ranking(self, posterior: Any, seed: int, step: int, whole: acq.Batch, verbose: bool = False) -> Any:  # type: ignore[override]
            return posterior.informative_probability(8), None

    class Passing(acq.OfBatch):
        def ranking(self, *told: Any) -> Any:  # type: ignore[override]
            return Own().ranking(*told)

    class Detached(acq.OfBatch):
        @staticmethod
        def ranking(posterior: Any, seed: int, step: int, batch: acq.Batch) -> Any:  # type: ignore[override]
            return Own().ranking(posterior, seed, step, batch)

    class Renamed(acq.OfBatch):
        def ranking(this, posterior: Any, seed: int, step: int, batch: acq.Batch) -> Any:  # type: ignore[override]
            return Own().ranking(posterior, seed, step, batch)

    class OfTheClass(acq.OfBatch):
        @classmethod
        def ranking(cls, posterior: Any, seed: int, step: int, batch: acq.Batch) -> Any:  # type: ignore[override]
            return Own().ranking(posterior, seed, step, batch)

    class Deep(acq.OfBatch):
        def ranking(self, posterior: Any, seed: int, step: int, batch: acq.Batch, *, depth: int = 3) -> Any:  # type: ignore[override]
            return Own().ranking(posterior, seed, step, batch)

    for made in (Own(), Passing(), Detached(), Renamed(), OfTheClass(), Deep()):
        assert len(bp.PromptSelector(posterior(), made, 4).select()) == 4


def posterior() -> bp.Posterior:
    """Success rates of all kinds, each known more or less well."""
    generator = torch.Generator().manual_seed(1)
    trials = torch.randint(1, 9, (N,), generator=generator)
    successes = (torch.rand(N, generator=generator) * (trials + 1)).long()
    made = bp.SuccessRate().posterior(N, dtype=torch.float64)
    made.update(torch.arange(N), successes, trials)
    return made


def by_hand(batch: acq.Batch) -> torch.Tensor:
    """The gradient at the price of the last place, of those who may have it."""
    known = posterior()
    now = known.informative_probability(8)
    may = torch.ones(N, dtype=torch.bool) if batch.allowed is None else batch.allowed.clone()
    may[batch.mates] = True
    price = sorted(now[may].tolist(), reverse=True)[batch.size - 1]
    return now + 20.0 * known.look_gain(8, price)


WITHIN: dict[str, tuple[acq.Acquisition, Callable[[torch.Tensor], torch.Tensor]]] = {
    "alone": (GRADIENT, lambda gradient: gradient),
    "first of a sum": (GRADIENT + acq.EntropyBonus(0.1), lambda gradient: gradient + 0.1 * posterior().entropy()),
    "second of a sum": (acq.EntropyBonus(0.1) + GRADIENT, lambda gradient: gradient + 0.1 * posterior().entropy()),
    "deep in sums": (
        acq.Uniform() + (acq.Uniform() + GRADIENT) + acq.ExpectedVariance(),
        lambda gradient: gradient + posterior().expected_variance(),
    ),
    "two of them": (GRADIENT + GRADIENT, lambda gradient: 2 * gradient),
    "diverse": (acq.Diverse(GRADIENT, EMBEDDINGS), lambda gradient: gradient),
    "a diverse sum": (
        acq.Diverse(acq.Uniform(), EMBEDDINGS) + (GRADIENT + acq.ExpectedVariance()),
        lambda gradient: gradient + posterior().expected_variance(),
    ),
    "a floor": (acq.RevisitFloor(acq.Uniform() + GRADIENT, share=0.0), lambda gradient: gradient),
    "a survey": (acq.Survey(acq.RevisitFloor(GRADIENT + acq.Uniform()), 0.0), lambda gradient: gradient),
}
THIRD = torch.arange(N) % 3 == 0
BEST = posterior().informative_probability(8).masked_fill(THIRD, 0).topk(2).indices  # of the others
BATCHES = {
    "small": acq.Batch(4),
    "large": acq.Batch(40),
    "of candidates": acq.Batch(5, allowed=THIRD),
    "begun": acq.Batch(5, allowed=THIRD, mates=BEST, out=2),
}


@pytest.mark.parametrize("where", WITHIN)
@pytest.mark.parametrize("which", BATCHES)
def test_a_look_is_priced_for_the_batch(where: str, which: str) -> None:
    acquisition, rest = WITHIN[where]
    scores, _ = acquisition.ranking(posterior(), 0, 0, BATCHES[which])
    torch.testing.assert_close(scores, rest(by_hand(BATCHES[which])), rtol=0, atol=1e-12)
    assert acquisition.by_batch


def test_prices_differ_by_batch() -> None:
    """So that the test above tells."""
    prices = [by_hand(batch) for batch in BATCHES.values()]
    assert all(not torch.allclose(a, b) for place, a in enumerate(prices) for b in prices[:place])


@pytest.mark.parametrize("where", WITHIN)
def test_nobody_gets_a_price_for_a_batch_that_was_not_told(where: str) -> None:
    with pytest.raises(TypeError, match=r"KnowledgeGradient\(.*scores prompts for a batch: ask for its ranking"):
        WITHIN[where][0].scores(posterior(), 0, 0)


@dataclass(frozen=True)
class Half(acq.Acquisition):
    """Somebody's own acquisition, which knows scores alone."""

    within: acq.Acquisition

    def scores(self, posterior: bp.Posterior, seed: int, step: int) -> torch.Tensor:
        """Scores (N,)."""
        return self.within.scores(posterior, seed, step) / 2


def test_acquisitions_of_ones_own_are_told_so_too() -> None:
    selector = bp.PromptSelector(posterior(), Half(GRADIENT), 6)
    with pytest.raises(TypeError, match="scores prompts for a batch"):
        selector.select()
    assert len(selector.outings) == selector.selections == 0


@pytest.mark.parametrize("size", [3, 12])
@pytest.mark.parametrize("where", ["first of a sum", "diverse", "a diverse sum"])
def test_a_selector_tells_of_its_batch(where: str, size: int) -> None:
    """Also of one that was begun, and of who is away; what explains a pick goes by the same scores."""
    acquisition, rest = WITHIN[where]
    selector = bp.PromptSelector(posterior(), acquisition, size)
    first = selector.select(batch_size=2)
    away = torch.zeros(N, dtype=torch.bool).index_fill(0, first, True)
    wanted = rest(by_hand(acq.Batch(size, allowed=~away, mates=first, out=2)))
    scores = torch.tensor([selector.explain(prompt)["score"] for prompt in range(N)], dtype=torch.float64)
    torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-12)
    index = selector.select(batch_size=size - 2)
    if where == "first of a sum":
        torch.testing.assert_close(wanted[index], wanted[~away].topk(size - 2).values, rtol=0, atol=1e-12)
    else:
        assert not set(index.tolist()) & set(first.tolist())


def test_sums_without_it_score_as_before() -> None:
    both = acq.InformativeProbability(8) + acq.InformativeProbability(2)
    known = bp.SolvingProgress(emission=bp.PartitionEmission([0.0, 0.3, 0.7, 1.0])).posterior(N)
    known.update(range(N), [row % 9 for row in range(N)], 8)
    wanted = known.informative_probability(8) + known.informative_probability(2)
    assert not both.by_batch
    torch.testing.assert_close(both.ranking(known, 0, 0, acq.Batch(5))[0], wanted)


def test_a_batch_says_what_it_cannot_be() -> None:
    for size, out, message in ((0, 0, "size must"), (3, -1, "out must")):
        with pytest.raises(ValueError, match=message):
            acq.Batch(size, out=out)
    with pytest.raises(TypeError, match="size must"):
        acq.Batch(2.5)  # type: ignore[arg-type]
    assert acq.Batch(3).among(torch.tensor([True, False])).tolist() == [True, False]
    assert acq.Batch(3, torch.tensor([True, True, False])).among(torch.tensor([True, False, True])).tolist() == [
        *(True, False, False)
    ]
