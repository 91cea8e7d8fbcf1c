"""The compiled decoders against the float64 reference, and the reference against the network as one would write it."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayes_prompt.kernels import backend
from bayes_prompt.kernels.difficulty_decoder import MAX_DRAWS, MAX_FEATURES, MAX_HIDDEN, Decoder

BACKENDS = ["reference", "cpu", "triton"]
COMPILED = ["cpu", "triton"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
OUTS = ("mean", "variance", "informative")
GUARD = 64  # sentinels on both sides of the arrays that are written
# A number rounded to the 8 bits of bfloat16 is off by 2**-8 of itself at most, and by twice that in Triton's
# interpreter, which cuts off what is too long.
NARROW = 2.0**-8 if torch.cuda.is_available() else 2.0**-7


def device_of(name: str) -> str:
    return "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def problem(
    rows: int,
    width: int,
    hidden: int,
    outputs: int = 0,
    draws: int = 3,
    *,
    dtype: torch.dtype = torch.float32,
    trials: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments of `decode` without its outputs: logits of a few units. No `outputs`: no second layer."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, kind: torch.dtype | None = None) -> Tensor:
        numbers = torch.randn(shape, generator=g, dtype=torch.float64) / shape[-1] ** 0.5
        return numbers.to(wide(dtype) if kind is None else kind)

    decoder = Decoder(
        normal(hidden, width, kind=dtype),
        normal(width),
        normal(outputs, hidden, kind=dtype) if outputs else None,
        normal(outputs) if outputs else None,
        normal(outputs or hidden),
    )
    features = torch.randn(rows, width, generator=g, dtype=torch.float64).to(dtype)
    offsets = torch.randn(draws, generator=g, dtype=torch.float64).to(wide(dtype))
    return {
        "features": features,
        "decoder": decoder,
        "shifts": normal(draws, hidden) * hidden**0.5,
        "offsets": offsets,
        "trials": trials,
    }


def fixed_logits(logits: list[float], dtype: torch.dtype, trials: int) -> dict[str, Any]:
    """A row whose logit is, exactly, that of each draw."""
    made = problem(1, 3, 4, draws=len(logits), dtype=dtype, trials=trials)
    made["decoder"] = made["decoder"]._replace(skip=torch.zeros(3, dtype=wide(dtype)), last=made["decoder"].last * 0)
    return made | {"offsets": torch.tensor(logits, dtype=wide(dtype))}


def moved(value: Any, device: str) -> Any:
    if isinstance(value, Decoder):
        return Decoder(*(moved(tensor, device) for tensor in value))
    return value.to(device, copy=True) if isinstance(value, Tensor) else value


def same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(), other.nan_to_num())


def run(name: str, made: dict[str, Any], *, informative: bool = True) -> dict[str, Tensor]:
    """What a call on copies of the arguments writes to poisoned outputs, which lie in guarded arrays."""
    arguments = {key: moved(value, device_of(name)) for key, value in made.items()}
    rows = len(made["features"])
    outer = {key: torch.full((rows + 2 * GUARD,), -99.0).to(arguments["offsets"]) for key in OUTS}
    outs: dict[str, Any] = {key: array[GUARD : GUARD + rows] for key, array in outer.items()}
    for array in outs.values():
        array.fill_(torch.nan)
    if not informative:
        outs["informative"] = None
    backend.load("difficulty_decoder", name).decode(**arguments, **outs)
    for key, array in outer.items():
        assert bool((array[:GUARD] == -99).all() & (array[GUARD + rows :] == -99).all()), f"{key} was written outside"
    for key, value in made.items():
        flat = zip(value, arguments[key], strict=True) if isinstance(value, Decoder) else [(value, arguments[key])]
        for before, after in flat:
            assert same(after.cpu(), before) if isinstance(before, Tensor) else after == before, key
    return {key: value.cpu() for key, value in outs.items() if value is not None}


def logit_error(name: str, made: dict[str, Any]) -> Tensor:
    """How far rounding may move each row's logits: (N,), the most of all draws.

    A sum of n products, in whatever order, is off by at most n units of rounding of the sum of their absolute values;
    what one layer is off by, the next one multiplies.
    """
    features, decoder = made["features"].double(), made["decoder"]
    first, last = decoder.first.double(), decoder.last.double()
    unit = torch.finfo(wide(made["features"].dtype)).eps / 2
    terms, size, narrowed = features.shape[1] + first.shape[0], torch.zeros(len(features)), torch.zeros(len(features))
    products, most_products = features @ first.T, features.abs() @ first.abs().T
    linear = features.abs() @ decoder.skip.double().abs()
    for shift, offset in zip(made["shifts"].double(), made["offsets"].double(), strict=True):
        most = most_products + shift.abs()
        if decoder.second is not None:
            second = decoder.second.double().abs()
            narrowed = torch.maximum(narrowed, torch.relu(products + shift) @ second.T @ last.abs())
            most = most @ second.T + decoder.second_bias.double().abs()
        size = torch.maximum(size, most @ last.abs() + linear + offset.abs())
    terms += last.numel() + 8  # biases, and the sums of a logit's parts
    rounded = NARROW * narrowed if name == "triton" and made["features"].dtype == torch.bfloat16 else 0.0
    return 1.01 * terms * unit * size + rounded  # products of small terms fit the hundredth


def compare(name: str, made: dict[str, Any], error: Tensor | None = None) -> None:
    """Agreement within what `logit_error` makes of the functions of a logit, and a few roundings of these.

    The steepest slopes are 1/4 for p and 0.36 for 1 - p^G - (1 - p)^G, whose terms' slopes are G p^G (1 - p) <= 1/e;
    that of the variance is at most twice the mean's. exp and log of a GPU are off by some units.
    """
    actual, expected = run(name, made), run("reference", made)
    error = logit_error(name, made) if error is None else error
    rounding = (len(made["offsets"]) + 16) * torch.finfo(actual["mean"].dtype).eps / 2
    for key, slope in {"mean": 0.25, "variance": 0.5, "informative": 0.37}.items():
        gap = (actual[key].double() - expected[key].double()).abs()
        assert bool((gap <= slope * error + 2 * rounding).all()), (key, float((gap / (slope * error + rounding)).max()))


@pytest.mark.parametrize("second", [False, True], ids=["one", "two"])
def test_the_reference_is_the_network_that_sees_the_context(second: bool) -> None:
    """Whose first layer, and linear path, are of features and context side by side; features of several chunks."""
    g = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64) / shape[-1] ** 0.5

    rows, width, context, hidden, outputs, draws, trials = 20_000, 6, 4, 8, 5, 3, 4
    first, bias = torch.nn.Linear(width + context, hidden).double(), normal(hidden)
    middle, final = (
        torch.nn.Linear(hidden, outputs).double(),
        torch.nn.Linear(outputs if second else hidden, 1).double(),
    )
    linear = normal(width + context)
    x, z = normal(rows, width), normal(draws, context)
    with torch.no_grad():
        first.bias.copy_(bias)
        both = torch.cat([x[:, None].expand(-1, draws, -1), z[None].expand(rows, -1, -1)], dim=-1)
        units = first(both).clamp(min=0)
        if second:
            units = middle(units).clamp(min=0)
        rates = 1 / (1 + torch.exp(-(final(units).squeeze(-1) + both @ linear)))
        decoder = Decoder(
            first.weight[:, :width].contiguous(),
            linear[:width].contiguous(),
            middle.weight if second else None,
            middle.bias if second else None,
            final.weight[0],
        )
        shifts, offsets = bias + z @ first.weight[:, width:].T, final.bias + z @ linear[width:]
        outs = run(
            "reference",
            {"features": x, "decoder": decoder, "shifts": shifts, "offsets": offsets, "trials": trials},
        )
    mixed = 1 - rates**trials - (1 - rates) ** trials
    expected = {"mean": rates.mean(1), "variance": rates.var(1, correction=0), "informative": mixed.mean(1)}
    for key in OUTS:
        torch.testing.assert_close(outs[key], expected[key], rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", COMPILED)
def test_agrees_with_the_reference(name: str, dtype: torch.dtype) -> None:
    shapes = [
        (1, 1, 1, 0, 1),
        (1, 37, 20, 3, 2),
        (7, 129, 64, 0, 8),
        (65, 300, 100, 0, 3),
        (65, 31, 17, 130, 5),
        (1000, 33, 65, 0, 2),
        (127, 256, 256, 256, 2),
    ]
    for number, shape in enumerate(shapes):
        compare(name, problem(*shape, dtype=dtype, trials=(1, 2, 8, 64)[number % 4], seed=number))


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_agrees_with_the_reference_on_whatever_sizes(data: Any) -> None:
    def number(most: int) -> int:
        return data.draw(st.integers(1, most))

    shape = number(200), number(140), number(80), number(70) * data.draw(st.integers(0, 1)), number(10)
    options = {
        "dtype": data.draw(st.sampled_from(DTYPES)),
        "trials": data.draw(st.sampled_from([1, 2, 8, 64, 2**31 - 1])),
    }
    made = problem(*shape, **options, seed=data.draw(st.integers(0, 2**32)))
    for key in ("shifts", "offsets"):  # logits far from zero, on either side
        made[key] *= 10 ** data.draw(st.integers(-2, 2))
    for name in COMPILED:
        compare(name, made)


@pytest.mark.parametrize("name", COMPILED)
def test_hidden_units_that_need_no_rounding_to_bfloat16_get_none(name: str) -> None:
    """Small integers, which 8 bits hold: the second layer is as exact as the first, whatever it multiplies."""
    g = torch.Generator().manual_seed(5)
    made = problem(130, 9, 40, 70, dtype=torch.bfloat16)
    integers = {key: torch.randint(-2, 3, made[key].shape, generator=g) for key in ("features", "shifts")}
    made |= {key: value.to(made[key]) for key, value in integers.items()}
    first = torch.randint(-2, 3, (40, 9), generator=g).bfloat16()
    made["decoder"] = made["decoder"]._replace(first=first)
    hidden = torch.relu(made["features"].float() @ first.float().T + made["shifts"][0])
    assert torch.equal(hidden.bfloat16().float(), hidden) and float(hidden.max()) > 16
    compare(name, made, error=logit_error("cpu", made))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", BACKENDS)
def test_far_logits(name: str, dtype: torch.dtype) -> None:
    """A prompt that is all but solved or hopeless is as informative as the odds say, to relative precision."""
    unit = torch.finfo(wide(dtype)).eps / 2
    for trials in (1, 2, 8, 64):
        for logit in (-1e4, -100.0, -30.0, -9.0, 0.0, 9.0, 30.0, 100.0, 1e4):
            outs = run(name, fixed_logits([logit], dtype, trials))
            with localcontext() as context:
                context.prec = 80
                rare = 1 / (1 + Decimal(abs(logit)).exp())
                rate = float(rare if logit < 0 else 1 - rare)
                informative = float(1 - rare**trials - (1 - rare) ** trials)
            # exp turns a rounding of its argument into a relative one; below the normal numbers it is absolute.
            relative, tiny = (2 * abs(logit) + 32) * unit, torch.finfo(wide(dtype)).tiny
            assert outs["mean"].item() == pytest.approx(rate, rel=relative, abs=tiny)
            assert outs["informative"].item() == pytest.approx(informative, rel=relative, abs=64 * tiny)
            assert outs["variance"].item() == 0.0
            if trials == 1:
                assert outs["informative"].item() == 0.0


@pytest.mark.parametrize("name", BACKENDS)
def test_by_hand(name: str) -> None:
    """Two draws with success rates 1/4 and 3/4, of a network whose units a relu cuts off or lets through."""
    made = {
        "features": torch.tensor([[1.0, 2.0], [-1.0, 0.0]]),
        "decoder": Decoder(torch.tensor([[1.0, 1.0]]), torch.tensor([0.0, -1.0]), None, None, torch.tensor([2.0])),
        "shifts": torch.tensor([[-3.0], [-2.5]]),
        "offsets": torch.log(torch.tensor([1 / 3, 3.0])) + torch.tensor([2.0, 1.0]),
        "trials": 2,
    }
    outs = run(name, made)  # logits of the first row: 2 relu(0) - 2 + ln(1/3) + 2, 2 relu(0.5) - 2 + ln 3 + 1
    torch.testing.assert_close(outs["mean"][0].item(), 0.5, rtol=0, atol=1e-6)
    torch.testing.assert_close(outs["variance"][0].item(), 1 / 16, rtol=0, atol=1e-6)
    torch.testing.assert_close(outs["informative"][0].item(), 3 / 8, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", BACKENDS)
def test_draws_taken_twice_or_in_another_order_change_nothing(name: str) -> None:
    made = problem(70, 20, 30, 40, draws=5)
    outs, rounding = run(name, made), 64 * torch.finfo(torch.float32).eps
    for order in ([4, 1, 0, 3, 2], [0, 1, 2, 3, 4] * 3):
        other = run(name, made | {key: made[key][order] for key in ("shifts", "offsets")})
        for key in OUTS:
            torch.testing.assert_close(other[key], outs[key], rtol=0, atol=rounding)


@pytest.mark.parametrize("name", BACKENDS)
def test_one_draw_of_each_makes_the_average(name: str) -> None:
    """The mean of Thompson draws, which are calls with S = 1 and have no variance, is the mean over all draws."""
    made = problem(70, 20, 30, draws=4)
    whole = run(name, made)
    parts = [run(name, made | {key: made[key][s : s + 1] for key in ("shifts", "offsets")}) for s in range(4)]
    rates = torch.stack([part["mean"] for part in parts])
    assert all(torch.equal(part["variance"], torch.zeros(70)) for part in parts)
    expected = {"mean": rates.mean(0), "variance": rates.var(0, correction=0)}
    expected["informative"] = torch.stack([part["informative"] for part in parts]).mean(0)
    for key in OUTS:
        torch.testing.assert_close(whole[key], expected[key], rtol=0, atol=16 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("name", BACKENDS)
def test_what_is_not_asked_for_changes_nothing(name: str) -> None:
    made = problem(70, 20, 30)
    outs, fewer = run(name, made), run(name, made, informative=False)
    assert fewer.keys() == {"mean", "variance"}
    assert all(torch.equal(fewer[key], outs[key]) for key in fewer)


@pytest.mark.parametrize("outputs", [0, 40], ids=["one", "two"])
@pytest.mark.parametrize("name", BACKENDS)
def test_a_row_depends_on_no_other(name: str, outputs: int) -> None:
    """NaN stays in its own row."""
    made = problem(300, 20, 30, outputs)
    outs = run(name, made)
    bad = torch.zeros(300, dtype=torch.bool)
    bad[[0, 17, 131, 299]] = True
    features = made["features"].clone()
    features[bad, 3] = torch.nan
    poisoned = run(name, made | {"features": features})
    for key in OUTS:
        assert bool(poisoned[key][bad].isnan().all())
        assert torch.equal(poisoned[key][~bad], outs[key][~bad])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("outputs", [0, 40], ids=["one", "two"])
def test_chunks_and_threads_do_not_matter(dtype: torch.dtype, outputs: int) -> None:
    """On the CPU, to the last bit."""
    made = problem(3001, 150, 70, outputs, dtype=dtype)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run("cpu", made)
        torch.set_num_threads(3)
        together = run("cpu", made)
    finally:
        torch.set_num_threads(threads)
    parts = [run("cpu", made | {"features": made["features"][rows]}) for rows in (slice(0, 101), slice(101, None))]
    for key in OUTS:
        assert torch.equal(together[key], alone[key])
        assert torch.equal(torch.cat([part[key] for part in parts]), alone[key])


@pytest.mark.parametrize("name", BACKENDS)
def test_no_rows(name: str) -> None:
    assert all(len(array) == 0 for array in run(name, problem(0, 5, 4, 3)).values())


@pytest.mark.parametrize("name", COMPILED)
def test_the_largest_sizes(name: str) -> None:
    compare(name, problem(3, MAX_FEATURES, MAX_HIDDEN, MAX_HIDDEN, MAX_DRAWS))


@pytest.mark.parametrize("name", BACKENDS)
def test_bad_arguments_are_named_and_change_nothing(name: str) -> None:
    good = problem(7, 5, 4, 3)
    outs = {key: torch.full((7,), -9.0) for key in OUTS}
    decoder = good["decoder"]
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, r"features must have shape", {"features": good["features"][0]}),
        (TypeError, r"features must be", {"features": good["features"].half()}),
        (ValueError, r"features must be contiguous", {"features": torch.ones(5, 7).T}),
        (ValueError, r"features .* columns, got 0", {"features": torch.ones(7, 0)}),
        (TypeError, r"decoder\.first", {"decoder": decoder._replace(first=decoder.first.bfloat16())}),
        (ValueError, r"decoder\.first", {"decoder": decoder._replace(first=decoder.first[:, 1:])}),
        (ValueError, r"decoder\.skip", {"decoder": decoder._replace(skip=decoder.skip[1:])}),
        (ValueError, r"decoder\.second and", {"decoder": decoder._replace(second=None)}),
        (ValueError, r"decoder\.second must", {"decoder": decoder._replace(second=torch.ones(3, 5))}),
        (ValueError, r"decoder\.second_bias", {"decoder": decoder._replace(second_bias=torch.ones(4))}),
        (ValueError, r"decoder\.last", {"decoder": decoder._replace(last=torch.ones(4))}),
        (ValueError, r"decoder\.last", {"decoder": decoder._replace(second=None, second_bias=None)}),
        (ValueError, r"decoder\.first .* 256 rows, got 257", {"decoder": decoder._replace(first=torch.ones(257, 5))}),
        (TypeError, r"shifts", {"shifts": good["shifts"].double()}),
        (ValueError, r"shifts .* 64 rows, got 65", {"shifts": torch.ones(65, 4)}),
        (ValueError, r"shifts .* got 0", {"shifts": torch.ones(0, 4)}),
        (ValueError, r"offsets", {"offsets": good["offsets"][1:]}),
        (ValueError, r"trials .* got 0", {"trials": 0}),
        (TypeError, r"trials", {"trials": 2.0}),
        (TypeError, r"mean", {"mean": torch.ones(7, dtype=torch.float64)}),
        (ValueError, r"variance", {"variance": torch.ones(8)}),
        (ValueError, r"informative", {"informative": torch.ones(7, device="meta")}),
    ]
    for error, message, change in cases:
        with pytest.raises(error, match=message):
            backend.load("difficulty_decoder", name).decode(**(good | outs | change))
        assert all(bool((array == -9).all()) for array in outs.values())
