"""The compiled grid filters against the float64 reference: odd sizes, poisoned outputs, bad arguments, threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayes_prompt.kernels import backend
from bayes_prompt.kernels.grid_filter import cpu, look_index_tables, triton
from bayes_prompt.kernels.grid_filter.cpu import LEAST_TOGETHER, TOGETHER
from bayes_prompt.kernels.grid_filter.cpu_product import VECTOR_BYTES
from bayes_prompt.kernels.progress_filter import UNEXPECTED

BACKENDS = ["reference", "cpu", "triton"]
COMPILED = ["cpu", "triton"]
DTYPES = [torch.float32, torch.float64]
GUARD = 64  # sentinels on both sides of every array
SLOTS, SHARED, OUTCOMES = 5, 3, 4
WRITTEN = {
    "predict": {"out"},
    "score": {"out"},
    "look": {"out"},
    "look_index": {"out"},
    "advance": {"belief", "slot", "expected", "chance", "status"},
    "settle": {"belief", "slot"},
}


def tolerance(dtype: torch.dtype, states: int, forget: bool = False) -> float:
    """The relative error that rounding may make of a number, in a sum of positive terms or a quotient of such sums.

    Two sums over K states, one after the other, and once more where a quotient has them, with 16 roundings beside them.
    Forgetting takes powers by way of logarithms to the base 2, of at most 149 (float32) or 1074 in size, rounded four
    times. The reference rounds to float64, so that there both err.
    """
    info = torch.finfo(dtype)
    exponent = {torch.float32: 149, torch.float64: 1074}[dtype]
    roundings = 3 * states + 16 + (3 * exponent if forget else 0)  # 4 ln 2 < 3
    return roundings * info.eps / 2 * (1 if dtype == torch.float32 else 2)


def tolerance_of_a_price(dtype: torch.dtype, states: int, outcomes: int, horizon: float) -> float:
    """The relative error of a `look_index`, whose sums go over states and over outcomes.

    A search ends where a round gains no more than rounding makes, e, on the set of outcomes of that round. What better
    sets there are leave out outcomes that are worth more than the price, so that they gain at most
    e * (1 + sum of P) / (1 + sum of their P), which is not above e * (1 + horizon); and a price itself is off by e.
    """
    return (2 + horizon) * tolerance(dtype, states + outcomes)


def device_of(name: str) -> str:
    return "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"


def distributions(g: torch.Generator, *shape: int) -> Tensor:
    """Of which some numbers are zero, but not all."""
    weights = torch.rand(shape, generator=g, dtype=torch.float64)
    weights = weights.where(torch.rand(shape, generator=g) < 0.9, 0.0)
    weights[..., 0] += 0.01
    return weights / weights.sum(-1, keepdim=True)


def random_state(g: torch.Generator, rows: int, states: int, unseen: float = 0.3) -> dict[str, Any]:
    slot = torch.randint(0, SLOTS, (rows,), generator=g, dtype=torch.int32)
    never = torch.rand(rows, generator=g) < unseen
    slot[never] = -1 - torch.randint(0, SHARED, (int(never.sum()),), generator=g, dtype=torch.int32)
    belief = distributions(g, rows, states)
    belief[never] = torch.nan
    return {"belief": belief, "slot": slot}


def random_arguments(function: str, rows: int, states: int, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Keyword arguments, tensors in float64 where they are not integers; what is only written is poisoned."""
    g = torch.Generator().manual_seed(seed)
    poison = torch.full((rows,), torch.nan, dtype=torch.float64)
    state = random_state(g, rows, states)
    tables = {"propagators": distributions(g, SLOTS, states, states)}
    shared = {"shared": distributions(g, SHARED, states)}
    arguments: dict[str, Any] = {}
    if function == "predict":
        arguments = tables | shared | {"index": None, "out": poison[:, None].repeat(1, states)}
    if function == "score":
        vectors = torch.rand(SLOTS, states, generator=g, dtype=torch.float64)
        arguments = {"vectors": vectors, "shared_scores": vectors[:SHARED, 0].clone(), "out": poison}
    if function == "look":
        chances = distributions(g, SLOTS, states, OUTCOMES).transpose(1, 2).contiguous()
        worths = chances * torch.rand(SLOTS, 1, states, generator=g, dtype=torch.float64)
        arguments = {"chances": chances, "worths": worths, "shared_values": worths[:SHARED, 0, 0].clone()}
        arguments |= {"threshold": 0.5, "out": poison}
    if function == "look_index":
        chances = distributions(g, SLOTS, states, OUTCOMES).transpose(1, 2).contiguous()
        vectors, worth = torch.rand(2, SLOTS, states, generator=g, dtype=torch.float64)
        arguments = {"vectors": vectors, "chances": chances, "worths": chances * worth[:, None]}
        arguments |= {"shared_values": vectors[:SHARED, 0].clone(), "horizon": 3.0, "out": poison}
    if function == "advance":
        picked = (torch.rand(rows, generator=g) < 0.4).nonzero().squeeze(1)
        passed_over = torch.cat([torch.tensor([-1]), picked[::3], torch.tensor([rows])])
        index = torch.cat([picked, passed_over]).sort().values
        likelihood = distributions(g, len(index), states)
        likelihood /= likelihood.max(1, keepdim=True).values
        arguments = tables | shared | {"index": index, "likelihood": likelihood, "now": 7}
        arguments |= {"expected": likelihood * torch.nan, "chance": likelihood[:, 0] * torch.nan}
        arguments |= {"status": torch.full((len(index),), -7, dtype=torch.int32)}
    if function == "settle":
        arguments = tables | {"first": 1, "last": 4, "now": 9}
    return state | arguments | changes


def cast(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        key: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for key, value in arguments.items()
    }


def run(name: str, function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments after a call on guarded copies of them, of which only those to be written may have changed."""
    done, outer = dict(arguments), {}
    for key, value in arguments.items():
        if isinstance(value, Tensor):
            outer[key] = torch.full((value.numel() + 2 * GUARD,), -99, dtype=value.dtype, device=device_of(name))
            done[key] = outer[key][GUARD : GUARD + value.numel()].view(value.shape)
            done[key].copy_(value)
    getattr(backend.load("grid_filter", name), function)(**done)
    for key, whole in outer.items():
        size = arguments[key].numel()
        assert bool((torch.cat([whole[:GUARD], whole[GUARD + size :]]) == -99).all()), f"{key} was written outside"
        done[key] = done[key].cpu()
        if key not in WRITTEN[function]:
            assert same(done[key], arguments[key]), f"{key} was changed"
    return done


def same(one: Tensor, other: Tensor) -> bool:
    """To the last bit; where one is nan the other is."""
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def check(name: str, function: str, arguments: dict[str, Any], dtype: torch.dtype) -> None:
    arguments = cast(arguments, dtype)
    actual, expected = run(name, function, arguments), run("reference", function, arguments)
    states = arguments["belief"].shape[1]
    bound = tolerance(dtype, states, arguments.get("decay", 1.0) < 1.0)
    if function == "look_index":
        bound = tolerance_of_a_price(dtype, states, arguments["chances"].shape[1], arguments["horizon"])
    for key in WRITTEN[function]:
        if expected[key] is not None:
            torch.testing.assert_close(actual[key], expected[key], rtol=bound, atol=0, equal_nan=True, msg=key)


@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f64"])
@pytest.mark.parametrize("function", WRITTEN)
@pytest.mark.parametrize("name", COMPILED)
def test_agrees_with_the_reference(name: str, function: str, dtype: torch.dtype) -> None:
    sizes = [(1, 2), (600, 2), (2, 3), (31, 5), (40, 33), (20, 41), (2, 130)]  # some of several programs
    lanes = VECTOR_BYTES // dtype.itemsize
    largest = [(1, 512)] if dtype == torch.float32 else []
    for rows, states in [*sizes, *largest, (9, lanes - 1), (9, lanes), (9, lanes + 1)]:
        check(name, function, random_arguments(function, rows, states, seed=states), dtype)


@pytest.mark.parametrize("function", WRITTEN)
def test_smaller_programs_agree_too(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are for AMD's GPUs."""
    monkeypatch.setattr(triton, "BYTES", triton.BYTES_ON_ROCM)
    assert triton.configuration(41, 4) == {"K": 41, "WIDTH": 64, "BLOCK": 8}
    assert triton.configuration(41, 4, "step")["BLOCK"] == 4
    check("triton", function, random_arguments(function, 13, 41), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f64"])
@pytest.mark.parametrize("outcomes", [1, 2, 16, 17, 129])
@pytest.mark.parametrize("name", COMPILED)
def test_any_number_of_outcomes(name: str, outcomes: int, dtype: torch.dtype) -> None:
    """A look's sums have a term of either sign for each outcome, so that the error is one of their sizes."""
    g = torch.Generator().manual_seed(outcomes)
    rows, states = 40, 19
    chances = distributions(g, SLOTS, states, outcomes).transpose(1, 2).contiguous()
    worths = chances * torch.randn(SLOTS, 1, states, generator=g, dtype=torch.float64)
    arguments = random_arguments("look", rows, states, chances=chances, worths=worths, threshold=-0.1)
    arguments = cast(arguments, dtype)
    actual, expected = run(name, "look", arguments)["out"], run("reference", "look", arguments)["out"]
    size = float(worths.abs().amax(2).sum(1).max()) + 0.1
    torch.testing.assert_close(actual, expected, rtol=0, atol=3 * size * tolerance(dtype, states))


@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f64"])
@pytest.mark.parametrize("outcomes", [1, 2, 9, 16, 17, 65])
@pytest.mark.parametrize("name", COMPILED)
def test_prices_of_any_number_of_outcomes(name: str, outcomes: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(outcomes)
    rows, states = 18, 19
    chances = distributions(g, SLOTS, states, outcomes).transpose(1, 2).contiguous()
    tables = {"chances": chances, "worths": chances * torch.rand(SLOTS, 1, states, generator=g, dtype=torch.float64)}
    for horizon in (0.7, 16.0):
        check(name, "look_index", random_arguments("look_index", rows, states, horizon=horizon, **tables), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f64"])
@pytest.mark.parametrize("name", BACKENDS)
def test_a_price_without_a_horizon_is_a_score(name: str, dtype: torch.dtype) -> None:
    arguments = cast(random_arguments("look_index", 30, 41, horizon=0.0), dtype)
    asked = {key: arguments[key] for key in ("belief", "slot", "vectors", "out")}
    score = run(name, "score", asked | {"shared_scores": arguments["shared_values"]})["out"]
    found = run(name, "look_index", arguments)["out"]
    torch.testing.assert_close(found, score, rtol=tolerance(dtype, 41), atol=0)


@pytest.mark.parametrize("horizon", [1e35, 1e300])
@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f64"])
@pytest.mark.parametrize("name", BACKENDS)
def test_a_price_for_ever_is_the_worth_of_the_best_outcome(name: str, dtype: torch.dtype, horizon: float) -> None:
    """Far beyond what float32 can hold. What an outcome is worth does not depend on the state here."""
    arguments = random_arguments("look_index", 30, 9, horizon=horizon)
    arguments["chances"].clamp_(min=0.01)
    arguments["worths"] = arguments["chances"] * torch.tensor([0.3, 0.8, 0.1, 0.6], dtype=torch.float64)[:, None]
    found, seen = run(name, "look_index", cast(arguments, dtype))["out"], arguments["slot"] >= 0
    # What is had now is lost in rounding: chances are at least 0.01, and none is near another's worth.
    expected = torch.full_like(found[seen], 0.8)
    torch.testing.assert_close(found[seen], expected, rtol=2 * tolerance(dtype, 9 + OUTCOMES), atol=0)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_price_that_cannot_be_known_is_nan(name: str) -> None:
    """Of one row in the midst of others, and the search ends."""
    arguments = random_arguments("look_index", 30, 9)
    others = run(name, "look_index", arguments)["out"]
    row = int((arguments["slot"] >= 0).nonzero()[3])
    arguments["belief"][row, 2] = torch.nan
    found = run(name, "look_index", arguments)["out"]
    assert found.isnan().nonzero().tolist() == [[row]]
    others[row] = torch.nan
    assert same(found, others)


@pytest.mark.parametrize("own", [False, True], ids=["one prior", "own priors"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f64"])
@pytest.mark.parametrize("name", COMPILED)
def test_forgetting_agrees_with_the_reference(name: str, dtype: torch.dtype, own: bool) -> None:
    g = torch.Generator().manual_seed(1)
    for decay in (0.0, 1e-60, 0.3, 0.999, 1.0):
        arguments = random_arguments("advance", 23, 17, decay=decay)
        arguments["prior"] = distributions(g, *([len(arguments["index"])] if own else []), 17)
        check(name, "advance", arguments, dtype)


@pytest.mark.parametrize("name", COMPILED)
def test_nobody_has_to_ask_for_what_was_expected(name: str) -> None:
    check(name, "advance", random_arguments("advance", 37, 21, expected=None), torch.float32)


@pytest.mark.parametrize("name", BACKENDS)
def test_some_prompts_are_predicted_in_any_order(name: str) -> None:
    everyone = run(name, "predict", random_arguments("predict", 50, 17))["out"]
    index = torch.tensor([49, -1, 3, 3, 0, 50, 2**40, 20])
    out = torch.full((len(index), 17), torch.nan, dtype=torch.float64)
    some = run(name, "predict", random_arguments("predict", 50, 17, index=index, out=out))["out"]
    inside = (index >= 0) & (index < 50)
    torch.testing.assert_close(some[inside], everyone[index[inside]], rtol=tolerance(torch.float64, 17), atol=0)
    assert bool((some[~inside] == 0).all())


@pytest.mark.parametrize("name", BACKENDS)
def test_only_the_first_entry_of_a_prompt_in_the_pool_counts(name: str) -> None:
    arguments = random_arguments("advance", 60, 6)
    done, index = run(name, "advance", arguments), arguments["index"]
    counted = (index >= 0) & (index < 60)
    counted[1:] &= index[1:] != index[:-1]
    for key in ("expected", "chance", "status"):
        assert bool((done[key][~counted] == 0).all())
    only = {key: arguments[key][counted] for key in ("index", "likelihood", "expected", "chance", "status")}
    alone = run(name, "advance", arguments | only)
    assert same(alone["belief"], done["belief"]) and same(alone["slot"], done["slot"])


@pytest.mark.parametrize("name", BACKENDS)
def test_rows_that_are_not_concerned_stay_to_the_last_bit(name: str) -> None:
    arguments = random_arguments("advance", 60, 6)
    done = run(name, "advance", arguments)
    others = torch.ones(60, dtype=torch.bool)
    others[arguments["index"][(arguments["index"] >= 0) & (arguments["index"] < 60)]] = False
    assert same(done["belief"][others], arguments["belief"][others])
    assert same(done["slot"][others], arguments["slot"][others])
    assert bool((done["slot"][~others] == 7).all()) and bool(done["belief"][~others].isfinite().all())
    arguments = random_arguments("settle", 60, 6)
    done = run(name, "settle", arguments)
    behind = (arguments["slot"] >= 1) & (arguments["slot"] < 4)
    assert same(done["belief"][~behind], arguments["belief"][~behind])
    assert bool((done["slot"] == torch.where(behind, 9, arguments["slot"])).all())


@pytest.mark.parametrize("name", BACKENDS)
def test_nobody_and_nothing(name: str) -> None:
    """No prompts, no observations, nobody asked for, no tables where no row has one."""
    for function in WRITTEN:
        run(name, function, random_arguments(function, 0, 4, **({"last": 1} if function == "settle" else {})))
    arguments = random_arguments("advance", 8, 4)
    none = {key: arguments[key][:0] for key in ("index", "likelihood", "expected", "chance", "status")}
    done = run(name, "advance", arguments | none)
    assert same(done["belief"], arguments["belief"]) and same(done["slot"], arguments["slot"])
    arguments = random_arguments("predict", 8, 4)
    nobody = {"index": torch.empty(0, dtype=torch.int64), "out": arguments["out"][:0]}
    assert run(name, "predict", arguments | nobody)["out"].shape == (0, 4)
    unseen = {"slot": torch.full((8,), -2, dtype=torch.int32), "propagators": arguments["propagators"][:0]}
    assert same(run(name, "predict", arguments | unseen)["out"], arguments["shared"][1].expand(8, 4))
    seen = {"slot": arguments["slot"].abs() % SLOTS, "shared": arguments["shared"][:0]}
    assert run(name, "predict", arguments | seen)["out"].shape == (8, 4)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_threshold_may_be_on_the_device(name: str) -> None:
    arguments = random_arguments("look", 20, 7)
    told = run(name, "look", arguments)["out"]
    assert same(run(name, "look", arguments | {"threshold": torch.tensor(0.5, dtype=torch.float64)})["out"], told)


@pytest.mark.parametrize("function", WRITTEN)
@pytest.mark.parametrize("name", COMPILED)
def test_chunks_do_not_matter(name: str, function: str) -> None:
    rows = 61
    arguments = cast(random_arguments(function, rows, 18), torch.float32)
    whole, parts = run(name, function, arguments), []
    for start, stop in [(0, 30), (30, rows)]:
        part = {key: arguments[key][start:stop].clone() for key in ("belief", "slot", "out") if key in arguments}
        if function == "advance":
            part["index"] = arguments["index"] - start  # entries of other chunks fall outside this one
        parts.append(run(name, function, arguments | part))
    for key in WRITTEN[function] & {"belief", "slot", "out"}:
        assert same(torch.cat([part[key] for part in parts]), whole[key]), key


def test_threads_do_not_matter() -> None:
    threads = torch.get_num_threads()
    for function in WRITTEN:
        arguments = cast(random_arguments(function, 120_001, 5), torch.float32)
        try:
            torch.set_num_threads(1)
            alone = run("cpu", function, arguments)
            torch.set_num_threads(3)
            together = run("cpu", function, arguments)
        finally:
            torch.set_num_threads(threads)
        for key in WRITTEN[function]:
            assert same(together[key], alone[key]), (function, key)


@pytest.mark.parametrize("tables", [1, 3, 150])
def test_prices_do_not_hang_on_which_rows_are_taken_together(tables: int) -> None:
    """Pools of one block of rows, of several and a part, of fewer rows than tables, in any order: to the last bit."""
    g = torch.Generator().manual_seed(tables)
    rows = 2 * max(LEAST_TOGETHER, TOGETHER * tables) + 77
    chances = distributions(g, tables, 5, OUTCOMES).transpose(1, 2).contiguous()
    worths = chances * torch.rand(tables, 1, 5, generator=g, dtype=torch.float64)
    slot = torch.randint(0, tables, (rows,), generator=g, dtype=torch.int32)
    slot[torch.rand(rows, generator=g) < 0.3] = -2
    given = {"slot": slot, "vectors": chances[:, 0].clone(), "chances": chances, "worths": worths}
    arguments = random_arguments("look_index", rows, 5, **given)
    arguments = cast(arguments | {"belief": distributions(g, rows, 5)}, torch.float32)
    check("cpu", "look_index", arguments, torch.float32)
    whole = run("cpu", "look_index", arguments)["out"]
    for order in (torch.randperm(rows, generator=g), torch.randperm(rows, generator=g)[:100]):
        part = {key: arguments[key][order] for key in ("belief", "slot", "out")}
        assert same(run("cpu", "look_index", arguments | part)["out"], whole[order])


@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f64"])
@pytest.mark.parametrize("horizon", [0.0, 1e-30, 0.7, 16.0, 2.0**40, 2.0**63, 2.0**65])
def test_the_unit_of_a_price_rounds_nothing(horizon: float, dtype: torch.dtype) -> None:
    """What stands for 1 keeps products of small numbers from being subnormal, and changes nothing else."""
    arguments = cast(random_arguments("look_index", 200, 41, horizon=horizon), dtype)
    state = [arguments[key].numpy() for key in ("belief", "slot")]
    prices = []
    for unit in (1.0, cpu._unit(horizon)):
        tables = look_index_tables(arguments["chances"], arguments["worths"], horizon * unit, 16).flatten(2).numpy()
        others = [(arguments["vectors"] * unit).numpy(), tables, arguments["shared_values"].numpy()]
        prices.append(np.full(200, np.nan, state[0].dtype))
        cpu._look_index(*state, *others, prices[-1], state[0].dtype.type(unit), 0, 200)
    assert np.array_equal(prices[0], prices[1])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 40),
    states=st.integers(1, 70),
    seed=st.integers(0, 2**31),
    function=st.sampled_from(sorted(WRITTEN)),
    dtype=st.sampled_from(DTYPES),
    decay=st.floats(0, 1),
)
def test_any_size_agrees_with_the_reference(
    rows: int, states: int, seed: int, function: str, dtype: torch.dtype, decay: float
) -> None:
    arguments = random_arguments(function, rows, states, seed)
    if function == "advance":
        prior = distributions(torch.Generator().manual_seed(seed + 1), states)
        arguments |= {"decay": decay, "prior": prior}
    check("cpu", function, arguments, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f64"])
@pytest.mark.parametrize("name", BACKENDS)
def test_surprises_restart_from_the_likelihood(name: str, dtype: torch.dtype) -> None:
    """Sums that are not above the smallest normal number are none; what is just above it is."""
    tiny = torch.finfo(dtype).tiny
    arguments = cast(random_arguments("advance", 3, 3), dtype)
    belief = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0]], dtype=dtype)
    likelihood = torch.tensor([[0, 1, 0.5], [tiny, 1, 0], [2 * tiny, 1, 0]], dtype=dtype)
    outs = {"expected": torch.full_like(belief, torch.nan), "chance": torch.ones(3, dtype=dtype)}
    state = {"belief": belief, "slot": torch.zeros(3, dtype=torch.int32)}
    tables = {"propagators": torch.eye(3, dtype=dtype)[None], "index": torch.arange(3), "likelihood": likelihood}
    done = run(name, "advance", arguments | state | tables | outs | {"status": torch.full((3,), -7, dtype=torch.int32)})
    assert done["status"].tolist() == [UNEXPECTED, UNEXPECTED, 0]
    assert done["chance"].tolist() == [0, 0, 2 * tiny]
    expected = torch.tensor([[0, 2 / 3, 1 / 3], [0, 1, 0], [1, 0, 0]], dtype=dtype)
    torch.testing.assert_close(done["belief"], expected, rtol=4 * torch.finfo(dtype).eps, atol=tiny)
    assert same(done["expected"], belief)


@pytest.mark.parametrize("name", BACKENDS)
def test_bad_arguments_are_named_and_change_nothing(name: str) -> None:
    cases: list[tuple[str, type[Exception], str, Any]] = [
        ("score", TypeError, "belief", torch.ones(7, 4, dtype=torch.float16)),
        ("score", ValueError, "belief", torch.ones(7)),
        ("score", ValueError, "belief", torch.ones(7, 0)),
        ("score", ValueError, "belief", torch.ones(7, 8)[:, ::2]),
        ("score", TypeError, "slot", torch.zeros(7, dtype=torch.int64)),
        ("score", ValueError, "slot", torch.zeros(6, dtype=torch.int32)),
        ("score", ValueError, "vectors", torch.ones(SLOTS, 5)),
        ("score", ValueError, "vectors", torch.ones(())),
        ("score", ValueError, "shared_scores", torch.ones(2, 2)),
        ("score", TypeError, "out", torch.ones(7, dtype=torch.float64)),
        ("look", ValueError, "chances", torch.ones(SLOTS, 4)),
        ("look", ValueError, "worths", torch.ones(SLOTS, OUTCOMES + 1, 4)),
        ("look", ValueError, "shared_values", torch.ones(2, 2)),
        ("look", ValueError, "threshold", float("nan")),
        ("look", ValueError, "threshold", torch.ones(1)),
        ("look", ValueError, "out", torch.ones(8)),
        ("look_index", ValueError, "vectors", torch.ones(SLOTS + 1, 4)),
        ("look_index", ValueError, "chances", torch.ones(SLOTS, OUTCOMES, 5)),
        ("look_index", ValueError, "worths", torch.ones(SLOTS, OUTCOMES + 1, 4)),
        ("look_index", TypeError, "worths", torch.ones(SLOTS, OUTCOMES, 4).double()),
        ("look_index", ValueError, "shared_values", torch.ones(2, 2)),
        ("look_index", ValueError, "horizon", -1.0),
        ("look_index", ValueError, "horizon", float("inf")),
        ("look_index", ValueError, "horizon", float("nan")),
        ("look_index", ValueError, "out", torch.ones(8)),
        ("predict", ValueError, "propagators", torch.ones(SLOTS, 4, 3)),
        ("predict", ValueError, "shared", torch.ones(4)),
        ("predict", TypeError, "index", torch.zeros(7, dtype=torch.int32)),
        ("predict", ValueError, "index", torch.zeros(2, 2, dtype=torch.int64)),
        ("predict", ValueError, "out", torch.ones(7, 3)),
        ("advance", ValueError, "index", torch.zeros(2, 2, dtype=torch.int64)),
        ("advance", ValueError, "likelihood", torch.ones(1, 4)),
        ("advance", TypeError, "now", 1.0),
        ("advance", ValueError, "now", -1),
        ("advance", ValueError, "now", 2**31),
        ("advance", ValueError, "expected", torch.ones(1, 4)),
        ("advance", TypeError, "chance", torch.ones(1, dtype=torch.float64)),
        ("advance", TypeError, "status", torch.ones(1)),
        ("advance", ValueError, "decay", 1.5),
        ("advance", ValueError, "decay", float("nan")),
        ("advance", ValueError, "prior", torch.ones(5)),
        ("settle", ValueError, "first", -1),
        ("settle", TypeError, "last", True),
        ("settle", ValueError, "last", SLOTS + 1),
        ("settle", ValueError, "now", -1),
        ("settle", ValueError, "propagators", torch.ones(SLOTS, 4, 4).to("meta")),
    ]
    for function, error, argument, value in cases:
        arguments = cast(random_arguments(function, 7, 4), torch.float32)
        before = {key: value.clone() for key, value in arguments.items() if isinstance(value, Tensor)}
        with pytest.raises(error, match=argument):
            getattr(backend.load("grid_filter", name), function)(**arguments | {argument: value})
        assert all(same(arguments[key], value) for key, value in before.items())
    with pytest.raises(ValueError, match="prior must be given"):
        run(name, "advance", random_arguments("advance", 7, 4, decay=0.5))
