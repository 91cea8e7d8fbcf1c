"""Diverse batches: against an oracle in plain Python, and the pruned pick against the one that computes every gain."""

from __future__ import annotations

import itertools
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayes_prompt.acquisition.diversity import DiversePick, Diversity
from bayes_prompt.kernels.diverse_pick import LENGTH
from bayes_prompt.kernels.diverse_pick.cpu_projection import project
from bayes_prompt.kernels.diverse_pick.vectors import fixed_point
from bayes_prompt.kernels.rng import tie_keys

METRICS, VARIANTS = ("cosine", "euclidean"), ("sum", "min")
ALL = list(itertools.product(METRICS, VARIANTS))


def data(rows: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings off the origin, as texts have them, and utilities of 9 values, as groups of 8 have them."""
    g = torch.Generator().manual_seed(seed)
    rates = torch.randint(0, 9, (rows,), generator=g) / 8
    return torch.randn(rows, width, generator=g) + 0.7, -((rates - 0.5) ** 2).double()


def same(a: DiversePick, b: DiversePick) -> None:
    assert a.rows.tolist() == b.rows.tolist()
    assert a.gains.tolist() == b.gains.tolist()  # to the last bit


def both(diversity: Diversity, utility: Tensor, batch: int, **rest: object) -> DiversePick:
    fast = diversity.pick(utility, batch, backend="cpu", seed=5, step=7, **rest)  # type: ignore[arg-type]
    same(fast, diversity.pick(utility, batch, backend="reference", seed=5, step=7, **rest))  # type: ignore[arg-type]
    return fast


@pytest.mark.parametrize(("metric", "variant"), ALL)
def test_every_gain_is_what_the_page_says(metric: str, variant: str) -> None:
    rows, batch, weight = 40, 12, 0.3
    x, utility = data(rows, 5)
    history, chosen = [3, 3, 17], [8, 20]
    picked = both(
        Diversity(x, metric=metric, variant=variant), utility, batch, weight=weight, history=history, chosen=chosen
    )
    y = x.double()
    if metric == "cosine":
        y = y / y.norm(dim=1, keepdim=True)
        distance = 1 - y @ y.T
    else:
        distance = torch.cdist(y, y, compute_mode="donot_use_mm_for_euclid_dist")
        distance = distance / distance.square().mean().sqrt()
    before = list(chosen)
    # Rounding moves a vector by at most sqrt(D) / 2 units of 1 / LENGTH of the longest; a distance by twice that, a
    # cosine by as much, and in "sum" as in "min" what is added to the utility is at most four distances.
    longest = 1.0 if metric == "cosine" else float((y - y.mean(0)).norm(dim=1).max()) * 2
    scale = 1.0 if metric == "cosine" else float(torch.cdist(y, y).square().mean().sqrt())
    tolerance = weight * 4 * 2 * math.sqrt(5) / 2 / LENGTH * longest / scale * 2
    for row, gain in zip(picked.rows.tolist(), picked.gains.tolist(), strict=True):
        to_batch, past = distance[:, before], distance[:, history]
        if variant == "sum":
            part = 2 / (len(chosen) + batch - 1) * to_batch.sum(1) + past.mean(1)
        else:
            part = to_batch.amin(1) + past.amin(1)
        value = utility + weight * part
        value[before] = -torch.inf
        assert gain == pytest.approx(float(value[row]), abs=tolerance)
        assert float(value.max()) <= float(value[row]) + 2 * tolerance
        before.append(row)


@pytest.mark.parametrize("metric", METRICS)
def test_the_gains_of_sums_add_up_to_the_objective(metric: str) -> None:
    x, utility = data(60, 8)
    picked = both(Diversity(x, metric=metric, variant="sum"), utility, 10, weight=0.5)
    v = fixed_point(x, metric)
    pairs = 0.0
    for i, j in itertools.permutations(picked.rows.tolist(), 2):
        squared = int((v.values[i].long() - v.values[j].long()).square().sum())
        pairs += (math.sqrt(squared) if v.root else squared) * v.unit
    objective = float(utility[picked.rows].sum()) + 0.5 * pairs / 9
    assert float(picked.gains.sum()) == pytest.approx(objective, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(ALL),
    st.integers(1, 3000),
    st.sampled_from([1, 2, 3, 16, 33]),
    st.integers(1, 30),
    st.sampled_from([0.0, 1e-3, 0.1, 100.0]),
    st.integers(0, 20),
    st.integers(0, 6),
    st.sampled_from(["distinct", "tied", "equal"]),
    st.sampled_from(["spread", "copies", "one", "zeros"]),
    st.integers(0, 2**32),
)
def test_pruning_changes_nothing(
    kind: tuple[str, str], rows: int, width: int, batch: int, weight: float, past: int, done: int,
    utilities: str, vectors: str, seed: int,
) -> None:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    x, utility = data(rows, width, seed)
    if vectors == "copies":
        x = x[torch.randint(0, max(1, rows // 20), (rows,), generator=g)]
    elif vectors == "one":
        x = x[:1].expand(rows, -1)
    elif vectors == "zeros":
        x[torch.rand(rows, generator=g) < 0.5] = 0
    if utilities != "tied":
        utility = torch.rand(rows, generator=g, dtype=torch.float64) if utilities == "distinct" else torch.zeros(rows)
    allowed = torch.rand(rows, generator=g) < 0.8
    picked = both(
        Diversity(x, metric=kind[0], variant=kind[1]),
        utility,
        min(batch, rows),
        weight=weight,
        history=torch.randint(0, rows, (past,), generator=g),
        chosen=torch.randperm(rows, generator=g)[:done],
        allowed=allowed,
    )
    rest = picked.rows[picked.rows >= 0]
    assert bool(allowed[rest].all())
    assert len(rest.unique()) == len(rest)


@pytest.mark.parametrize(("metric", "variant"), ALL)
def test_one_at_a_time_is_the_same_batch(metric: str, variant: str) -> None:
    x, utility = data(2500, 12)
    diversity = Diversity(x, metric=metric, variant=variant)
    whole = both(diversity, utility, 9, weight=0.1, history=[1, 2, 3])
    drawn: list[int] = []
    gains, evaluated = [], 0
    for _ in range(9):
        one = both(diversity, utility, 1, weight=0.1, history=[1, 2, 3], chosen=drawn, whole_batch=9)
        drawn += one.rows.tolist()
        gains += one.gains.tolist()
        evaluated += one.evaluated
    assert drawn == whole.rows.tolist() and gains == whole.gains.tolist()
    assert evaluated == whole.evaluated  # no draw starts afresh
    assert not diversity._unfinished


@pytest.mark.parametrize(("metric", "variant"), ALL)
def test_a_batch_goes_on_whatever_else_changes(metric: str, variant: str) -> None:
    """`both` compares with the reference, which keeps nothing between calls."""
    x, _ = data(1500, 12)
    diversity, g = Diversity(x, metric=metric, variant=variant), torch.Generator().manual_seed(2)
    history = torch.randint(0, 1500, (5,), generator=g)
    drawn: list[int] = []
    for size in (1, 3, 1, 2, 1, 4):
        utility, allowed = torch.rand(1500, generator=g), torch.rand(1500, generator=g) < 0.3
        weight = float(torch.rand((), generator=g))
        here = {"weight": weight, "allowed": allowed, "whole_batch": 40}
        if size == 2:
            history[2] = 7  # the caller's own array
            diversity = pickle.loads(pickle.dumps(diversity))
        if size == 4:
            both(diversity, utility, 2, history=history, chosen=drawn[::-1], **here)  # another batch
        drawn += both(diversity, utility, size, history=history, chosen=drawn, **here).rows.tolist()


@pytest.mark.parametrize(("metric", "variant"), ALL)
def test_the_order_of_the_pool_does_not_matter(metric: str, variant: str) -> None:
    g = torch.Generator().manual_seed(3)
    x, _ = data(700, 6)
    utility = torch.rand(700, generator=g, dtype=torch.float64)  # no ties, whose keys belong to rows
    order = torch.randperm(700, generator=g)
    first = both(Diversity(x, metric=metric, variant=variant), utility, 20, weight=0.5)
    second = both(Diversity(x[order], metric=metric, variant=variant), utility[order], 20, weight=0.5)
    assert order[second.rows].tolist() == first.rows.tolist()


@pytest.mark.parametrize("metric", METRICS)
def test_powers_of_two_scale_nothing(metric: str) -> None:
    x, utility = data(300, 6)
    same(
        both(Diversity(x, metric=metric), utility, 20, weight=0.1),
        both(Diversity(x * 2.0**40, metric=metric), utility, 20, weight=0.1),
    )


def test_ties_fall_by_their_keys() -> None:
    diversity = Diversity(torch.ones(3000, 4))
    rows = both(diversity, torch.zeros(3000), 50, weight=0.1, first_prompt=11).rows
    keys = tie_keys(5, 7, 11 + torch.arange(3000))
    assert rows.tolist() == keys.argsort(stable=True)[:50].tolist()


def test_no_weight_picks_the_most_useful() -> None:
    x, _ = data(900, 6)
    utility = torch.rand(900, dtype=torch.float64)
    assert both(Diversity(x), utility, 30, weight=0.0).rows.tolist() == utility.argsort(descending=True)[:30].tolist()


def test_least_distances_take_one_of_each_group_of_copies() -> None:
    g = torch.Generator().manual_seed(1)
    group = torch.arange(600) % 12
    x = torch.nn.functional.one_hot(group, 12).double()
    picked = both(Diversity(x, variant="min"), torch.rand(600, generator=g) * 0.01, 12, weight=1.0)
    assert group[picked.rows].sort().values.tolist() == list(range(12))


@pytest.mark.parametrize(("metric", "variant"), ALL)
def test_most_of_the_work_is_spared(metric: str, variant: str) -> None:
    x, utility = data(20_000, 32)
    picked = both(Diversity(x, metric=metric, variant=variant), utility, 40, weight=0.01)
    assert picked.naive == 20_000 * 39
    assert picked.evaluated < picked.naive / 2


@pytest.mark.parametrize("metric", METRICS)
def test_a_product_is_within_its_bound(metric: str) -> None:
    """The inequality that all pruning of sums rests on, in exact arithmetic."""
    x, _ = data(80, 24)
    v = fixed_point(x, metric)
    p = project(v, 5)
    for i, j in itertools.product(range(0, 80, 7), range(0, 80, 11)):
        z, apart = p.split(v.values[j].numpy().astype(np.float64))
        exact = int((v.values[i].long() * v.values[j].long()).sum())
        near = sum(Fraction(float(a)) * Fraction(float(b)) for a, b in zip(p.short[:, i], z, strict=True))
        slack = float(p.rest[i]) * np.linalg.norm(apart) + p.leak * np.linalg.norm(z) + 0.5
        assert abs(float(exact - near)) <= slack


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["tensor", "float64", "half", "memmap", "compiled", ">f4", ">f8", "longdouble"])
def test_what_holds_the_embeddings_does_not_matter(metric: str, kind: str, tmp_path: object) -> None:
    x = data(50, 7)[0].half().float()
    expected = fixed_point(x, metric)
    if kind == "memmap":
        np.save(f"{tmp_path}/x.npy", x.numpy())
        got = fixed_point(np.load(f"{tmp_path}/x.npy", mmap_mode="r"), metric, compiled=True)
    elif kind in (">f4", ">f8", "longdouble"):
        got = fixed_point(x.numpy().astype(kind), metric)
        assert torch.equal(fixed_point(x.numpy().astype(kind), metric, compiled=True).values, got.values)
    else:
        held = {"float64": x.double(), "half": x.half()}.get(kind, x)
        got = fixed_point(held, metric, compiled=kind != "tensor")
    assert torch.equal(got.values, expected.values)
    assert torch.equal(got.squares, expected.squares)
    assert got.squares.tolist() == got.values.long().square().sum(1).tolist()
    assert got.unit == expected.unit


def test_one_row_and_rows_that_run_out() -> None:
    assert both(Diversity(torch.ones(1, 1)), torch.zeros(1), 1, weight=1.0).rows.tolist() == [0]
    picked = both(Diversity(torch.eye(4)), torch.zeros(4), 3, weight=1.0, chosen=[0, 2, 3])
    assert picked.rows.tolist() == [1, -1, -1]
    assert picked.gains.tolist()[1:] == [-math.inf] * 2


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (torch.tensor([[1.0], [math.nan]]), ValueError, r"embeddings\[1\] holds NaN"),
        (torch.tensor([[math.inf], [0.0]]), ValueError, r"embeddings\[0\] holds NaN or an inf"),
        (torch.ones(3), ValueError, r"shape \(N, D\)"),
        (torch.ones(0, 3), ValueError, "N >= 1"),
        (torch.ones(2, 2, dtype=torch.int64), TypeError, "must be floating"),
        ([[1.0]], TypeError, "tensor or an array; got list"),
    ],
)
@pytest.mark.parametrize("metric", METRICS)
def test_bad_embeddings(value: Tensor, error: type[Exception], words: str, metric: str) -> None:
    with pytest.raises(error, match=words):
        Diversity(value, metric=metric)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"utility": torch.tensor([0.0, math.nan, 0.0])}, ValueError, r"utility\[1\] = nan must be finite"),
        ({"utility": torch.zeros(4)}, ValueError, r"utility must be float32 or float64 of shape \(3,\)"),
        ({"utility": np.zeros(3)}, TypeError, r"utility must be a tensor of shape \(3,\); got ndarray"),
        ({"utility": [0.0, 0.0, 0.0]}, TypeError, "utility must be a tensor .*; got list"),
        ({"allowed": np.ones(3, bool)}, TypeError, "allowed must be a tensor .*; got ndarray"),
        ({"allowed": [True] * 3}, TypeError, "allowed must be a tensor .*; got list"),
        ({"batch_size": 4}, ValueError, r"batch_size must lie in \[1, 3\]; got 4"),
        ({"weight": -0.1}, ValueError, r"weight must lie in \[0, 1e\+100\]; got -0.1"),
        ({"weight": math.nan}, ValueError, "weight must lie in .*; got nan"),
        ({"weight": 1.7e308}, ValueError, "weight must lie in .*; got 1.7e"),
        ({"weight": "much"}, TypeError, "weight must be a number"),
        ({"history": [3]}, IndexError, r"history\[0\] = 3"),
        ({"chosen": [1, 1]}, ValueError, "chosen must name a row once; got 1"),
        ({"whole_batch": 1}, ValueError, "whole_batch must be at least 2"),
        ({"allowed": torch.ones(2, dtype=torch.bool)}, ValueError, "allowed must be bool of shape"),
        ({"backend": "triton"}, ValueError, "cannot pick diverse batches"),
    ],
)
def test_bad_arguments(change: dict[str, object], error: type[Exception], words: str) -> None:
    arguments: dict[str, object] = {"utility": torch.zeros(3), "batch_size": 2, "weight": 0.1, "seed": 0, "step": 0}
    with pytest.raises(error, match=words):
        Diversity(torch.eye(3)).pick(**(arguments | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["metric", "variant"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be one of"):
        Diversity(torch.eye(3), **{name: "max"})  # type: ignore[arg-type]


def test_masked_rows_may_hold_anything() -> None:
    utility, allowed = torch.tensor([math.nan, 0.0, 1.0]), torch.tensor([False, True, True])
    assert both(Diversity(torch.eye(3)), utility, 2, weight=0.1, allowed=allowed).rows.tolist() == [2, 1]
