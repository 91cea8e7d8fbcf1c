"""Diverse batches through a selector: who may be picked, in which parts, and what the past has to do with it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.acquisition import (
    Acquisition,
    Diverse,
    Diversity,
    EntropyBonus,
    ExpectedVariance,
    InformativeProbability,
    TargetSuccessRate,
    Uniform,
    top_b,
)

N, D, B = 40, 5, 6


def pool(rows: int = N) -> Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Fixed(Acquisition):
    """Scores that do not change, whatever is observed."""

    spread: float = 1.0

    def scores(self, posterior: bp.Posterior, seed: int, step: int) -> Tensor:
        return torch.rand(posterior.num_prompts, generator=torch.Generator().manual_seed(7)) * self.spread


@dataclass(frozen=True)
class Holes(Acquisition):
    """Scores with something that is no number in two rows."""

    value: float

    def scores(self, posterior: bp.Posterior, seed: int, step: int) -> Tensor:
        scores = torch.zeros(posterior.num_prompts)
        scores[[3, 8]] = self.value
        return scores


def selector(
    acquisition: Acquisition | None = None, batch_size: int = B, rows: int = N, **options: Any
) -> bp.PromptSelector:
    posterior = bp.SuccessRate(dist.Beta(1.0, 1.0)).posterior(rows)
    if acquisition is None:
        acquisition = Diverse(Fixed(), pool(rows), weight=1.0)
    return bp.PromptSelector(posterior, acquisition, batch_size=batch_size, seed=4, **options)


def by_hand(
    recent: list[int],
    wanted: int,
    step: int,
    chosen: list[int] | None = None,
    away: list[int] | None = None,
    **options: Any,
) -> list[int]:
    """What `Diversity` itself says of a pick."""
    here = torch.ones(N, dtype=torch.bool)
    here[[*(chosen or []), *(away or [])]] = False
    utility = Fixed().scores(selector().posterior, 0, 0)
    picked = Diversity(pool()).pick(
        utility,
        wanted,
        weight=1.0,
        seed=4,
        step=step,
        history=recent,
        chosen=chosen or [],
        allowed=here,
        whole_batch=B,
    )
    return picked.rows.tolist()


def test_picks_are_those_of_diversity() -> None:
    made = selector()
    first = made.select().tolist()
    assert first == by_hand([], B, 0)
    second = made.select().tolist()
    assert second == by_hand(first, B, 1, away=first)
    third = made.select().tolist()
    assert third == by_hand(first + second, B, 2, away=first + second)
    made.release(first)
    fourth = made.select().tolist()  # two batches are remembered, and the first is not one of them
    assert fourth == by_hand(second + third, B, 3, away=second + third)
    assert fourth != by_hand([], B, 3, away=second + third)  # the past matters


@pytest.mark.parametrize("batches", [0, 1, 2])
def test_so_many_earlier_batches_are_kept_away_from(batches: int) -> None:
    made = selector(Diverse(Fixed(), pool(), weight=1.0, batches=batches), allow_in_flight=True)
    past: list[int] = []
    for step in range(4):
        found = made.select().tolist()
        assert found == by_hand(past[max(0, len(past) - batches * B) :], B, step)
        past += found


def test_picks_are_distinct_and_not_in_flight() -> None:
    made = selector(batch_size=8)
    out = torch.cat([made.select() for _ in range(5)])
    assert sorted(out.tolist()) == list(range(N))  # the whole pool, each once
    with pytest.raises(bp.PromptShortage):
        made.select()
    made.update(out[:8], successes=torch.zeros(8, dtype=torch.int64), trials=8)
    assert sorted(made.select().tolist()) == sorted(out[:8].tolist())


def test_candidates_alone_are_picked() -> None:
    made = selector()
    rows = torch.arange(0, N, 3)
    assert set(made.select(candidates=rows).tolist()) <= set(rows.tolist())
    mask = torch.zeros(N, dtype=torch.bool)
    mask[20:] = True
    assert int(made.select(candidates=mask).min()) >= 20
    with pytest.raises(ValueError, match="batch_size must lie in"):
        made.select(candidates=[1, 2])


@pytest.mark.parametrize("variant", ["min", "sum"])
@pytest.mark.parametrize("parts", [(1,) * B, (2, 4), (4, 1, 1), (3, 3)])
def test_parts_make_the_batch_that_one_pick_would(variant: str, parts: tuple[int, ...]) -> None:
    whole, split = (selector(Diverse(Fixed(), pool(), weight=1.0, variant=variant)) for _ in range(2))
    for _ in range(3):
        together = whole.select().tolist()
        assert [row for part in parts for row in split.select(batch_size=part).tolist()] == together


@pytest.mark.parametrize(("metric", "variant"), list(itertools.product(["cosine", "euclidean"], ["min", "sum"])))
@pytest.mark.parametrize("parts", [(1,) * B, (2, 4), (3, 3)])
def test_parts_do_so_where_gains_tie(metric: str, variant: str, parts: tuple[int, ...]) -> None:
    """Every text is there four times, and no prompt is more useful than another: only keys tell copies apart."""
    copies = pool()[torch.arange(N) % (N // 4)]
    whole, split = (
        selector(Diverse(Uniform(), copies, weight=1.0, metric=metric, variant=variant), on_shortage="reuse")
        for _ in range(2)
    )
    for _ in range(5):
        together = whole.select().tolist()
        assert [row for part in parts for row in split.select(batch_size=part).tolist()] == together


@pytest.mark.parametrize("taken", range(1, B))
@pytest.mark.parametrize("batches", [0, 2])
def test_prompts_handed_out_again_are_beside_the_new_ones(taken: int, batches: int) -> None:
    """A pick of old and new prompts after a resume is the batch that one pick would have given."""
    twins = torch.cat([pool(N // 2), pool(N // 2) * 3])
    one, before, after = (
        selector(Diverse(Uniform(), twins, weight=1.0, batches=batches), allow_in_flight=batches == 2) for _ in range(3)
    )
    first = one.select()
    before.select()
    for made in (one, before):
        made.update(first, successes=[4] * B, trials=8)
    before.select(batch_size=taken)
    after.load_state_dict(before.state_dict(), in_flight="redraw")
    assert after.select().tolist() == one.select().tolist()
    assert after.select().tolist() == one.select().tolist()


def test_prompts_of_several_batches_that_come_again_begin_one() -> None:
    before, after = (selector(batch_size=size) for size in (2, B))
    out = torch.cat([before.select(), before.select()]).tolist()
    after.load_state_dict(before.state_dict(), in_flight="redraw")
    picked = after.select().tolist()
    assert picked == [*out, *by_hand([], B - 4, 2, chosen=out)]
    assert after.select(batch_size=1).tolist() == by_hand(picked, 1, 3, away=picked)


@pytest.mark.parametrize("taken", range(B + 1))
def test_whoever_resumes_in_the_middle_of_a_batch_goes_on_alike(taken: int, tmp_path: Path) -> None:
    one, other = selector(), selector()
    one.select()
    for _ in range(taken):
        one.select(batch_size=1)
    one.save(tmp_path / "state")
    other.load(tmp_path / "state", in_flight="keep")
    for _ in range(B + 2):
        assert one.select(batch_size=1).tolist() == other.select(batch_size=1).tolist()
    assert other.state_dict()["recent"]["index"].tolist() == one.state_dict()["recent"]["index"].tolist()


def test_a_checkpoint_of_another_diversity_is_refused() -> None:
    state = selector().state_dict()
    selector().load_state_dict(state)
    for other in (
        Diverse(Fixed(), pool(), weight=0.5),
        Diverse(Fixed(), pool(), weight=1.0, batches=3),
        Diverse(Fixed(), pool(), weight=1.0, metric="euclidean"),
        Diverse(Fixed(), pool(), weight=1.0, variant="sum"),
        Diverse(Fixed(), -pool() + 1, weight=1.0),
        Diverse(Fixed(0.5), pool(), weight=1.0),
        Fixed(),
    ):
        with pytest.raises(bp.CheckpointError, match="acquisition"):
            selector(other).load_state_dict(state)
    selector(Diverse(Fixed(), Diversity(pool()), weight=1.0)).load_state_dict(state)


@pytest.mark.parametrize("utility", [Fixed(), Uniform(), ExpectedVariance(), TargetSuccessRate(0.4)], ids=repr)
def test_without_weight_the_best_are_picked(utility: Acquisition) -> None:
    made = selector(Diverse(utility, pool(), weight=0.0))
    made.update(torch.arange(N), successes=torch.arange(N) % 9, trials=8)
    for step in range(3):
        scores = utility.scores(made.posterior, 4, step)
        here = torch.ones(N, dtype=torch.bool)
        here[made.in_flight] = False
        assert made.select().tolist() == top_b(scores, B, seed=4, step=step, allowed=here).tolist()


def test_near_copies_are_not_picked_together() -> None:
    twins = torch.cat([pool(N // 2), pool(N // 2) * 3])  # in one direction two by two
    picked = selector(Diverse(Uniform(), twins, weight=1.0), batch_size=N // 2).select()
    assert sorted((picked % (N // 2)).tolist()) == list(range(N // 2))


def test_other_scores_join_the_utility() -> None:
    posterior = bp.SuccessRate(dist.Beta(1.0, 1.0)).posterior(N)
    posterior.update(torch.arange(N), torch.arange(N) % 9, 8)
    both = InformativeProbability(8) + EntropyBonus(0.2)
    made = Diverse(InformativeProbability(8), pool(), weight=0.03, batches=4, metric="euclidean", variant="sum")
    joined = made + EntropyBonus(0.2)
    assert isinstance(joined, Diverse) and joined.pool is made.pool
    assert (joined.weight, joined.batches) == (0.03, 4)
    assert torch.equal(joined.scores(posterior, 0, 0), both.scores(posterior, 0, 0))
    mirrored = made.__radd__(EntropyBonus(0.2))
    assert isinstance(mirrored, Diverse)
    assert torch.equal(mirrored.scores(posterior, 0, 0), joined.scores(posterior, 0, 0))
    with pytest.raises(TypeError):
        made + made  # type: ignore[operator]
    with pytest.raises(TypeError):
        made + 0.5  # type: ignore[operator]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_utilities_must_be_finite_where_someone_may_be_picked(value: float) -> None:
    made = selector(Diverse(Holes(value), pool(), weight=1.0))
    with pytest.raises(ValueError, match=r"utility\[3\] = .* must be finite"):
        made.select()
    assert made.in_flight.numel() == 0 and made.selections == 0
    allowed = [row for row in range(N) if row not in (3, 8)]
    assert len(made.select(candidates=allowed)) == B


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Diverse("best", pool()), TypeError, "utility must be an Acquisition that is not Diverse; got str"),
        (lambda: Diverse(Diverse(Uniform(), pool()), pool()), TypeError, "utility must be .* not Diverse; got Diverse"),
        (lambda: Diverse(Uniform(), pool(), weight=-1.0), ValueError, "weight must lie in .*; got -1.0"),
        (lambda: Diverse(Uniform(), pool(), weight=torch.inf), ValueError, "weight must lie in .*; got inf"),
        (lambda: Diverse(Uniform(), pool(), weight="1"), TypeError, "weight must be a number; got str"),
        (lambda: Diverse(Uniform(), pool(), batches=-1), ValueError, "batches must be at least 0; got -1"),
        (lambda: Diverse(Uniform(), pool(), batches=1.0), TypeError, "batches must be an integer; got float"),
        (lambda: Diverse(Uniform(), pool(), metric="l1"), ValueError, "metric must be one of"),
        (lambda: Diverse(Uniform(), pool(), variant="max"), ValueError, "variant must be one of"),
        (lambda: Diverse(Uniform(), torch.zeros(4)), ValueError, r"embeddings must have shape \(N, D\)"),
        (
            lambda: selector(Diverse(Uniform(), pool(3))).select(),
            ValueError,
            "embeddings are of 3 prompts; the posterior has 40",
        ),
    ],
)
def test_settings_that_cannot_be(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()


def test_a_pick_is_full_where_prompts_of_its_batch_are_all_that_is_left() -> None:
    selector = bp.recipes.gps(num_prompts=4, batch_size=4, embeddings=torch.eye(4), on_shortage="reuse")
    for _ in range(3):
        index = selector.select()
        assert sorted(index.tolist()) == [0, 1, 2, 3]
        selector.observe(index[:1], successes=[4], trials=8)
        selector.advance()
    again = bp.recipes.gps(num_prompts=8, batch_size=4, embeddings=torch.eye(8))
    half = again.select(batch_size=2)
    again.update(half, successes=[4, 4], trials=8)
    assert sorted(again.select(candidates=half, batch_size=2).tolist()) == sorted(half.tolist())


def test_others_come_before_prompts_of_the_same_batch() -> None:
    made = selector()
    half = made.select(batch_size=3).tolist()
    made.update(half, successes=[4] * 3, trials=8)
    others = [row for row in range(N) if row not in half][:2]
    picked = made.select(candidates=[*half, *others], batch_size=3).tolist()
    assert sorted(picked[:2]) == others and picked[2] in half
    assert picked[:2] == by_hand([], 2, 0, chosen=half, away=[row for row in range(N) if row not in others])


def test_the_lowest_score_of_a_pick_is_told() -> None:
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    selector = bp.recipes.gps(num_prompts=50, batch_size=6, embeddings=features, diversity=1.0)
    selector.update(torch.arange(20), successes=torch.arange(20) % 9, trials=8)
    scores = selector.acquisition.scores(selector.posterior, 0, 0)
    index = selector.select()
    assert selector.explain(int(index[0]))["last_pick_cut"] == float(scores[index].min())
