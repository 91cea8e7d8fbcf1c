"""Pools of more than 2**31 numbers: every kernel reads and writes the right places, and no other.

Pools of tens of gigabytes lie in sparse files: a page that nobody touches costs nothing. An operation is launched on
the whole pool as anybody would, but works on a few spans of rows only, chosen where 32 bits end. What it does there
must equal, to the last bit, what it does on a small pool that has these rows alone, and the rest of the pool must still
be zero. There is room before and behind, so that an offset that wrapped at 32 bits lands in the file, where it is
found, and not in somebody else's memory.

Triton's interpreter does the arithmetic of a GPU here, with integers made as wide as the compiler makes them.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import mmap
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

import bayes_prompt.kernels
from bayes_prompt.kernels import backend, rng
from bayes_prompt.kernels.difficulty_decoder import Decoder
from bayes_prompt.kernels.progress_filter import Scoring
from bayes_prompt.kernels.shortlist import Shortlist
from bayes_prompt.kernels.tally import Books, Observations

BACKENDS = ["cpu", "triton"]
SPAN = 1024  # rows
LONG = 2**32 + 77  # prompts: row numbers themselves need 64 bits, and the last program is not full
TALL = 2**30 + 77  # prompts: row numbers fit 32 bits, the third state's offsets do not
SEED, STEP, FIRST = 2**40 + 7, 2**31 + 3, 2**33 + 5


class Pool:
    """Tensors whose last dimension are `rows` prompts, of which those in a few spans exist."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.spans = [(start, min(start + SPAN, rows)) for start in (0, 2**30, 2**31, 2**32) if start < rows]
        self.numbers = torch.cat([torch.arange(start, stop) for start, stop in self.spans])
        self.files: list[tuple[int, mmap.mmap, Tensor]] = []

    def place(self, values: Tensor) -> Tensor:
        """A tensor (..., rows) that has `values` (..., existing rows) in its spans and zeros elsewhere."""
        shape = (*values.shape[:-1], self.rows)
        before, size = 2**31, max(math.prod(shape), 2**32)  # signed offsets may wrap to before, unsigned ones to behind
        file = os.memfd_create("pool")
        try:
            os.ftruncate(file, (before + size) * values.element_size())
            memory = mmap.mmap(file, 0)
        except (OSError, ValueError) as error:
            os.close(file)
            pytest.skip(f"no address space for a sparse file of {before + size} numbers: {error}")
        with contextlib.suppress(OSError):  # huge pages would be touched in pieces of 2 MiB, where there are any
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        flat = torch.frombuffer(
            memory, dtype=values.dtype, offset=before * values.element_size(), count=math.prod(shape)
        )
        tensor = flat.view(shape)
        self.files.append((file, memory, tensor))
        for (start, stop), part in zip(self.spans, self.split(values), strict=True):
            tensor[..., start:stop] = part
        return tensor

    def take(self, tensor: Tensor) -> Tensor:
        """What a placed tensor has in its spans, (..., existing rows)."""
        return torch.cat([tensor[..., start:stop] for start, stop in self.spans], dim=-1)

    def split(self, values: Tensor) -> Sequence[Tensor]:
        return values.split([stop - start for start, stop in self.spans], dim=-1)

    def check_that_the_rest_is_zero(self) -> None:
        for file, memory, tensor in self.files:
            size = tensor.element_size()
            base = len(memory) - max(tensor.numel(), 2**32) * size
            ours = [
                (base + (state * self.rows + start) * size, base + (state * self.rows + stop) * size)
                for state in range(tensor.numel() // self.rows)
                for start, stop in self.spans
            ]
            for start, stop in touched(file):
                found = np.frombuffer(memory, np.uint8, stop - start, start).copy()
                for first, last in ours:
                    found[max(first - start, 0) : max(last - start, 0)] = 0
                strays = found.nonzero()[0]
                assert len(strays) == 0, f"element {(start + int(strays[0]) - base) // size} was written"


def touched(file: int) -> Iterator[tuple[int, int]]:
    """The ranges of a sparse file that exist."""
    stop = 0
    while True:
        try:
            start = os.lseek(file, stop, os.SEEK_DATA)
        except OSError:  # no more
            return
        stop = os.lseek(file, start, os.SEEK_HOLE)
        yield start, stop


@pytest.fixture
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    if not hasattr(os, "memfd_create"):
        pytest.skip("there are no anonymous sparse files on this system")
    made = Pool(request.param)
    yield made
    for file, _, _ in made.files:
        os.close(file)


class FewPrograms(interpreter.GridExecutor):
    """Runs the programs that work on a pool's spans, on tensors where they lie."""

    spans: Sequence[tuple[int, int]]

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        programs, *others = self.grid
        block = kwargs.get("BLOCK", 1)
        chosen = range(programs)
        if programs * block > 2**20:  # it goes over the pool, perhaps in several rounds, and not over a step's entries
            starts = (row for start, stop in self.spans for row in range(start, stop, block))
            chosen = sorted({row // block % programs for row in starts})
        self.grid = (len(chosen), *others)
        builder = interpreter.interpreter_builder
        dimensions = (programs, *others, 1, 1)[:3]

        def set_grid_dim(*_: int) -> None:
            builder.grid_dim = dimensions

        def set_grid_idx(x: int, y: int, z: int) -> None:
            builder.grid_idx = (chosen[x], y, z)

        with mock.patch.multiple(builder, set_grid_dim=set_grid_dim, set_grid_idx=set_grid_idx):
            super().__call__(*args, **kwargs)

    def _init_args_hst(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Tensors are not copied; integers have the width that they are annotated with, whatever their value."""
        kinds = inspect.get_annotations(self.fn)
        named = zip(self.arg_names, args, strict=False)  # constants follow by name
        return [wide_integer(arg) if kinds.get(name) == "tl.int64" else arg for name, arg in named], kwargs

    def _restore_args_dev(self, *_: Any) -> None:
        """Nothing was copied."""


def wide_integer(value: int) -> tl.tensor:
    return tl.tensor(interpreter.TensorHandle(np.array([value], np.int64), tl.int64), tl.int64)


def wide_range(*bounds: Any) -> Iterable[Any]:
    """What `range` is in a compiled kernel: its numbers are as wide as its bounds, which are int64 if not constants."""
    runtime = any(isinstance(bound, tl.tensor) for bound in bounds)
    return map(wide_integer, range(*bounds)) if runtime else range(*bounds)


@contextlib.contextmanager
def few_rows(operation: Any, pool: Pool) -> Iterator[None]:
    """Launches within work on the pool's spans alone, whichever the backend of the operation."""

    def over_spans(
        rows: int, task: Callable[[int, int], Any], pieces_a_thread: int = 1, min_rows: int = 1
    ) -> list[Any]:
        assert rows == pool.rows
        return [task(start, stop) for start, stop in pool.spans]

    executor = type("FewPrograms", (FewPrograms,), {"spans": pool.spans})
    # The files of this backend: `cpu_search` beside `cpu`, `triton_rows` beside `triton`.
    files = getattr(operation, "__name__", "nowhere")
    parts = [module for name, module in sys.modules.items() if name.startswith(files)] or [operation]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(interpreter, "GridExecutor", executor))
        for part in parts:
            if hasattr(part, "over_rows"):
                stack.enter_context(mock.patch.object(part, "over_rows", over_spans))
            elif not files.endswith("cpu"):
                stack.enter_context(mock.patch.object(part, "range", wide_range, create=True))
        yield


def load(operation: str, name: str) -> Any:
    if name == "triton" and torch.cuda.is_available():
        pytest.skip("kernels are compiled here, not interpreted")
    return backend.load(operation, name)


@dataclass(frozen=True)
class Case:
    """How to launch one function of an operation.

    arguments: makes keyword arguments for n rows. Tensors (..., n) become tensors of the pool, in which row i of n is
    row `pool.numbers[i]`; whatever the function does to them is compared. So is what it does to other tensors. Three
    names have a meaning: `index` holds numbers of rows; `first_prompt` is the prompt number of row 0, and rows may
    depend on it; the `shortlist` must end up with the rows whose `scores` reach its threshold.
    call: takes the function and the arguments where they are not the function's own.
    """

    operation: str
    function: str
    arguments: Callable[[int], dict[str, Any]]
    rows: Sequence[int] = (LONG,)
    call: Callable[..., None] | None = None

    def __call__(self, operation: Any, arguments: dict[str, Any]) -> None:
        function = getattr(operation, self.function)
        if self.call:
            self.call(function, **arguments)
        else:
            function(**arguments)


def positive(*shape: int) -> Tensor:
    return torch.rand(shape) * 9 + 0.1


def unwritten(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, -7, dtype=dtype)


def shares(states: int, rows: int) -> Tensor:
    belief = positive(states, rows)
    return belief / belief.sum(0)


def some(rows: int) -> Tensor:
    """Every seventh row, in each span another one, and the last."""
    return torch.cat([torch.arange(0, rows - 1, 7), torch.tensor([rows - 1])])


def new_shortlist(threshold: float) -> Shortlist:
    empty = Shortlist.empty(1024, torch.empty(1 << 14))
    empty.threshold.fill_(threshold)
    return empty


def beta_filter(rows: int, **settings: Any) -> dict[str, Any]:
    index = some(rows)
    parameters = dict(zip(("alpha", "beta", "prior_alpha", "prior_beta"), positive(4, rows), strict=True))
    counts = {"successes": index % 5, "trials": index % 5 + index % 3}
    return parameters | {"index": index, "decay": 0.75} | counts | settings


def thompson(rows: int, **tensors: Any) -> dict[str, Any]:
    return tensors | {"seed": SEED, "step": STEP, "first_prompt": FIRST}


def progress_state(rows: int, states: int = 3, learn: bool = True) -> dict[str, Any]:
    return {
        "learned": positive(states, states, rows) if learn else None,
        "posterior": shares(states, rows),
        "scale": torch.tensor([0.5], dtype=torch.float64),
        "prior": positive(states, states, rows),
    }


def progress_step(rows: int, states: int = 3, learn: bool = True) -> dict[str, Any]:
    index = some(rows)
    step = {
        "index": index,
        "likelihood": torch.rand(len(index), states).clamp(0.1),
        "decay": 0.75,
        "expected": unwritten(len(index), states),
        "evidence": unwritten(len(index)),
        "status": unwritten(len(index), dtype=torch.int32),
    }
    return progress_scores(rows, states, learn) | step


def progress_scores(rows: int, states: int = 3, learn: bool = True) -> dict[str, Any]:
    scores = {"utility": torch.linspace(0, 1, states), "scores": unwritten(rows), "shortlist": new_shortlist(0.6)}
    return progress_state(rows, states, learn) | scores


def progress_belief(rows: int, states: int = 3) -> dict[str, Any]:
    return progress_state(rows, states) | {"belief": unwritten(states, rows)}


def tally(rows: int) -> dict[str, Any]:
    index = some(rows)
    counts = {"successes": index % 3, "trials": 1 + index % 3, "status": (index % 4).int()}
    logs = {name: -torch.rand(len(index), dtype=torch.float64) for name in ("log_event", "correction")}
    expected = {name: torch.rand(len(index)) for name in ("informative", "success_rate")}
    books: dict[str, Tensor] = {name: torch.randint(0, 9, (rows,), dtype=torch.int32) for name in ("visits", "solved")}
    books |= {name: torch.zeros((), dtype=torch.float64) for name in ("log_evidence", "log_count_evidence")}
    books |= {name: torch.zeros((), dtype=torch.int64) for name in ("unexpected", "impossible", "group_size")}
    return {"index": index, **counts, **logs, **expected, **books, "record": torch.zeros(6, dtype=torch.float64)}


def tallying(call: Callable[..., None], record: Tensor, **others: Any) -> None:
    seen, books = ({field.name: others[field.name] for field in fields(kind)} for kind in (Observations, Books))
    call(Observations(**seen), Books(**books), record)


def decoder(rows: int, layers: int) -> dict[str, Any]:
    """A row's four features are one complex number, for the harness wants prompts in the last dimension."""
    weights = {"first": torch.randn(20, 4), "skip": torch.randn(4), "last": torch.randn(20)}
    if layers == 2:
        weights |= {"second": torch.randn(30, 20), "second_bias": torch.randn(30), "last": torch.randn(30)}
    draws = {"shifts": torch.randn(2, 20), "offsets": torch.randn(2), "trials": 8}
    outs = {name: unwritten(rows) for name in ("mean", "variance", "informative")}
    packed = torch.randn(4 * rows).view(torch.complex128)
    return {"packed": packed, **weights, **draws, **outs}


def decoding(
    call: Callable[..., None],
    packed: Tensor,
    first: Tensor,
    skip: Tensor,
    last: Tensor,
    second: Tensor | None = None,
    second_bias: Tensor | None = None,
    **others: Any,
) -> None:
    call(packed.view(torch.float32).view(-1, 4), Decoder(first, skip, second, second_bias, last), **others)


def packed(rows: int) -> Tensor:
    """Rows of four numbers, each row one complex number, for the harness wants prompts in the last dimension."""
    return torch.rand(4 * rows).view(torch.complex128)


def grid_filter(rows: int, **others: Any) -> dict[str, Any]:
    """One row in four has never been observed."""
    return {"packed_belief": packed(rows), "slot": torch.arange(rows).int() % 4 - 1} | others


def grid_tables(rows: int, **others: Any) -> dict[str, Any]:
    return grid_filter(rows, propagators=positive(3, 4, 4), shared=positive(1, 4)) | others


def grid_step(rows: int) -> dict[str, Any]:
    index = some(rows)
    outs = {"expected": unwritten(len(index), 4), "chance": unwritten(len(index))}
    outs["status"] = unwritten(len(index), dtype=torch.int32)
    seen = {"index": index, "likelihood": torch.rand(len(index), 4).clamp(0.1), "prior": positive(4)}
    return grid_tables(rows, **seen, **outs, now=2, decay=0.75)


def grid_look(rows: int) -> dict[str, Any]:
    tables = {"chances": positive(3, 5, 4), "worths": positive(3, 5, 4), "shared_values": positive(1)}
    return grid_filter(rows, **tables, threshold=0.9, out=unwritten(rows))


def grid_look_index(rows: int) -> dict[str, Any]:
    tables = {"vectors": positive(3, 4), "chances": positive(3, 5, 4), "worths": positive(3, 5, 4)}
    return grid_filter(rows, **tables, shared_values=positive(1), horizon=9.0, out=unwritten(rows))


def unpacking(call: Callable[..., None], everyone: bool = False, **arguments: Any) -> None:
    for key in [key for key in arguments if key.startswith("packed_")]:
        arguments[key.removeprefix("packed_")] = arguments.pop(key).view(torch.float32).view(-1, 4)
    call(**arguments, **({"index": None} if everyone else {}))


def scoring(call: Callable[..., None], utility: Tensor, scores: Tensor, shortlist: Shortlist, **others: Any) -> None:
    call(**others, scoring=Scoring(utility, scores, shortlist))


# A new kernel takes a line here, and a function above where its arguments are more than a few. What is asked of it: a
# Triton launch names the rows of a program BLOCK, at most SPAN if every row is written, and the programs are the first
# dimension of its grid; a CPU function calls `over_rows`.
CASES = [
    Case("beta_filter", "advance", lambda rows: beta_filter(rows, decay_unobserved=True)),
    Case("beta_filter", "advance", lambda rows: beta_filter(rows, decay_unobserved=False)),
    Case("difficulty_decoder", "decode", lambda rows: decoder(rows, layers=1), (LONG, TALL), decoding),
    Case("difficulty_decoder", "decode", lambda rows: decoder(rows, layers=2), (TALL,), decoding),
    Case("grid_filter", "advance", grid_step, (LONG, TALL), unpacking),
    Case("grid_filter", "look", grid_look, (LONG, TALL), unpacking),
    Case("grid_filter", "look_index", grid_look_index, (LONG, TALL), unpacking),
    Case(
        "grid_filter",
        "predict",
        lambda rows: grid_tables(rows, packed_out=packed(rows), everyone=True),
        (LONG, TALL),
        unpacking,
    ),
    Case(
        "grid_filter",
        "predict",
        lambda rows: grid_tables(rows, index=some(rows), out=unwritten(len(some(rows)), 4)),
        (LONG, TALL),
        unpacking,
    ),
    Case(
        "grid_filter",
        "score",
        lambda rows: grid_filter(rows, vectors=positive(3, 4), shared_scores=positive(1), out=unwritten(rows)),
        (LONG, TALL),
        unpacking,
    ),
    Case(
        "grid_filter",
        "settle",
        lambda rows: grid_filter(rows, propagators=positive(3, 4, 4), first=1, last=3, now=5),
        (LONG, TALL),
        unpacking,
    ),
    Case("progress_filter", "advance", progress_step, (LONG, TALL), scoring),
    Case("progress_filter", "advance", lambda rows: progress_step(rows, learn=False), (TALL,), scoring),
    Case("progress_filter", "advance", lambda rows: progress_step(rows, states=5), (TALL,), scoring),
    Case("progress_filter", "score", progress_scores, (LONG, TALL), scoring),
    Case("progress_filter", "predict", progress_belief, (LONG, TALL)),
    Case("progress_filter", "predict", lambda rows: progress_belief(rows, states=5), (TALL,)),
    Case("tally", "tally", tally, call=tallying),
    Case(
        "thompson",
        "sample_beta",
        lambda rows: thompson(rows, alpha=positive(rows), beta=positive(rows), out=unwritten(rows)),
    ),
    Case(
        "thompson",
        "score_beta",
        lambda rows: thompson(
            rows,
            alpha=positive(rows),
            beta=positive(rows),
            low=0.4,
            high=0.6,
            scores=unwritten(rows),
            shortlist=new_shortlist(-0.05),
        ),
    ),
    Case(
        "thompson",
        "sample_state",
        lambda rows: thompson(rows, belief=shares(3, rows), out=unwritten(rows, dtype=torch.int64)),
        (LONG, TALL),
    ),
    Case(
        "thompson",
        "sample_dirichlet",
        lambda rows: thompson(rows, concentration=positive(2, 3, rows), out=unwritten(2, 3, rows)),
        (TALL,),
    ),
]
WHERE = [(case, rows) for case in CASES for rows in case.rows]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    ("case", "pool"), WHERE, indirect=["pool"], ids=[f"{case.operation}-{case.function}-{rows}" for case, rows in WHERE]
)
def test_offsets(case: Case, pool: Pool, name: str) -> None:
    compare(case, load(case.operation, name), pool)


def compare(case: Case, operation: Any, pool: Pool) -> None:
    """Run a case on the pool and on its existing rows alone."""
    torch.manual_seed(1)
    rows = len(pool.numbers)
    small = case.arguments(rows)
    own = {key for key, value in small.items() if isinstance(value, Tensor) and value.shape[-1:] == (rows,)}
    wide = dict(small)
    for key, value in small.items():
        if isinstance(value, Tensor):
            wide[key] = pool.place(value) if key in own else value.clone()
    if "index" in wide:
        wide["index"] = pool.numbers[wide["index"]]
    with few_rows(operation, pool):
        case(operation, wide)

    shortlist = small.pop("shortlist", None)
    noted = sorted(shortlist.rows[: int(shortlist.count)].tolist()) if shortlist else []
    other = {"shortlist": new_shortlist(float(shortlist.threshold))} if shortlist else {}
    if "first_prompt" in small:
        parts = {key: [part.contiguous() for part in pool.split(small[key])] for key in own}
        for number, (start, _) in enumerate(pool.spans):
            prompts = {"first_prompt": small["first_prompt"] + start}
            case(operation, small | other | prompts | {key: parts[key][number] for key in own})
        small |= {key: torch.cat(parts[key], dim=-1) for key in own}
    else:
        case(operation, small | other)
    for key, value in small.items():
        if isinstance(value, Tensor) and key != "index":
            result = pool.take(wide[key]) if key in own else wide[key]
            torch.testing.assert_close(result, value, rtol=0, atol=0, msg=lambda text, key=key: f"{key}: {text}")
    if shortlist:
        assert noted == pool.numbers[small["scores"] >= shortlist.threshold].tolist()
        assert 0 < len(noted) <= shortlist.rows.numel()
    pool.check_that_the_rest_is_zero()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("pool", [LONG], indirect=True)
def test_the_pick(pool: Pool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of scores of few values, so that keys decide; over all rows, and by way of a shortlist."""
    operation, batch = load("top_b", name), 16
    if name == "triton":
        monkeypatch.setattr(operation, "PROGRAMS", 2**20)  # two rounds or five, not hundreds
    generator = torch.Generator().manual_seed(1)
    scores = torch.randint(1, 64, pool.numbers.shape, generator=generator).float()
    allowed = torch.rand(scores.shape, generator=generator) < 0.9
    keys = rng.tie_keys(SEED, STEP, FIRST + pool.numbers)
    order = np.lexsort((keys, -scores, ~allowed))  # the last one counts first
    best = pool.numbers[torch.from_numpy(order[:batch])].tolist()
    shortlist = Shortlist.empty(batch, scores)
    noted = pool.numbers[scores >= 62]
    assert batch < int(allowed[scores >= 62].sum()) <= len(noted) <= shortlist.rows.numel()
    places = pool.place(scores), pool.place(allowed)
    with few_rows(operation, pool):
        assert operation.top_b(*places, batch, SEED, STEP, FIRST).tolist() == best
        assert operation.top_b(*places, batch, SEED, STEP, FIRST, shortlist).tolist() == best
        shortlist.threshold.fill_(62)
        shortlist.rows[: len(noted)] = noted
        shortlist.count.fill_(len(noted))
        assert operation.top_b(*places, batch, SEED, STEP, FIRST, shortlist).tolist() == best
    pool.check_that_the_rest_is_zero()


@triton.jit
def _copy(  # type: ignore[no-untyped-def]
    source,
    out,
    num_prompts: tl.int64,
    WIDE_ROW: tl.constexpr,
    WIDE_STATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Two states of a pool, with offsets of 64 bits or of 32."""
    program = tl.program_id(0)
    row = (program.to(tl.int64) if WIDE_ROW else program) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_prompts
    stride = num_prompts if WIDE_STATE else num_prompts.to(tl.int32)
    for state in range(3):
        place = state * stride + row
        tl.store(out + place, tl.load(source + place, mask=inside), mask=inside)


@pytest.mark.parametrize(
    ("pool", "wide_row", "wide_state", "right"),
    [
        (LONG, True, True, True),
        (LONG, False, True, False),
        (TALL, True, True, True),
        (TALL, False, True, True),
        (TALL, False, False, False),
    ],
    indirect=["pool"],
)
def test_narrow_offsets_are_caught(pool: Pool, wide_row: bool, wide_state: bool, right: bool) -> None:
    load("beta_filter", "triton")

    def copy(source: Tensor, out: Tensor) -> None:
        rows = source.shape[-1]
        _copy[(triton.cdiv(rows, SPAN),)](source, out, rows, WIDE_ROW=wide_row, WIDE_STATE=wide_state, BLOCK=SPAN)

    case = Case("", "copy", lambda rows: {"source": positive(3, rows), "out": unwritten(3, rows)})
    with contextlib.nullcontext() if right else pytest.raises(AssertionError):
        compare(case, SimpleNamespace(copy=copy), pool)


def test_every_function_of_every_operation_has_a_case() -> None:
    apart = {("top_b", "top_b"), ("diverse_pick", "pick")}  # the latter has numba's and numpy's 64-bit indices alone
    functions = apart | {(case.operation, case.function) for case in CASES}
    for package in pkgutil.iter_modules(bayes_prompt.kernels.__path__):
        if package.ispkg:
            reference = backend.load(package.name, "reference")
            for name, value in inspect.getmembers(reference, inspect.isfunction):
                if value.__module__ == reference.__name__ and not name.startswith("_"):
                    assert (package.name, name) in functions
