"""The exact pick: every backend against one full sort, and ties against chance."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.stats
import torch
import triton
import triton.language as tl
from torch import Tensor

from bayes_prompt.kernels import backend, rng, rng_triton
from bayes_prompt.kernels.shortlist import Shortlist, note
from bayes_prompt.kernels.top_b import cpu_heap
from bayes_prompt.kernels.top_b import triton as top_b_triton

BACKENDS = ["reference", "cpu", "triton"]
COMPILED = ["cpu", "triton"]
DTYPES = [torch.float32, torch.float64]
LEVEL = 1e-3  # chance that a test of a distribution rejects a right one
SEED, STEP, FIRST = 2**40 + 7, 2**31 + 3, 2**33 + 5  # each beyond 32 signed bits
INF = float("inf")


@pytest.fixture(autouse=True)
def narrow_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several programs even for the small pools that the interpreter can afford."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(top_b_triton, "COUNT_BLOCK", 512)
        monkeypatch.setattr(top_b_triton, "GATHER_BLOCK", 512)


def top_b(
    name: str,
    scores: Tensor,
    allowed: Tensor | None,
    batch: int,
    seed: int = SEED,
    step: int = STEP,
    first: int = FIRST,
) -> list[int]:
    device = "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"
    mask = None if allowed is None else allowed.to(device)
    picked = backend.load("top_b", name).top_b(scores.to(device), mask, batch, seed, step, first)
    assert picked.shape == (batch,)
    assert picked.dtype == torch.int64
    assert picked.device.type == device
    return picked.tolist()


def by_definition(scores: Tensor, allowed: Tensor | None, batch: int) -> list[int]:
    """Python's own sort of (score descending with NaN last, key, row)."""
    keys = rng.tie_keys(SEED, STEP, FIRST + torch.arange(len(scores))).tolist()
    rows = [row for row in range(len(scores)) if allowed is None or allowed[row]]
    values = scores.tolist()
    missing = scores.isnan().tolist()
    rows.sort(key=lambda row: (missing[row], 0.0 if missing[row] else -values[row], keys[row], row))
    return rows[:batch] + [-1] * (batch - len(rows))


def pool(kind: str, rows: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    if kind == "distinct":
        scores = torch.randn(rows, generator=g, dtype=torch.float64)
    elif kind == "few levels":
        scores = torch.randint(-2, 3, (rows,), generator=g).double()
    elif kind == "all equal":
        scores = torch.full((rows,), 0.25, dtype=torch.float64)
    elif kind == "all NaN":
        scores = torch.full((rows,), torch.nan, dtype=torch.float64)
    elif kind == "ascending":
        scores = torch.arange(rows, dtype=torch.float64)
    elif kind == "descending":
        scores = -torch.arange(rows, dtype=torch.float64)
    else:
        tiny = torch.finfo(dtype).smallest_normal / 4  # subnormal
        special = torch.tensor([torch.nan, INF, -INF, 0.0, -0.0, tiny, -tiny, 1.0, 1.0 + 2.0**-20], dtype=torch.float64)
        scores = special[torch.randint(len(special), (rows,), generator=g)]
    return scores.to(dtype)


KINDS = ["distinct", "few levels", "all equal", "all NaN", "ascending", "descending", "special"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_is_a_sort(kind: str, dtype: torch.dtype) -> None:
    scores = pool(kind, 999, dtype)
    allowed = torch.rand(999, generator=torch.Generator().manual_seed(1)) < 0.5
    for mask in (None, allowed):
        for batch in (0, 1, 100, 999, 1_005):
            assert top_b("reference", scores, mask, batch) == by_definition(scores, mask, batch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 255, 257, 511, 513, 4_001, 32_768])  # blocks have 256
def test_cpu_equals_the_reference(kind: str, dtype: torch.dtype, rows: int) -> None:
    scores = pool(kind, rows, dtype)
    allowed = torch.rand(rows, generator=torch.Generator().manual_seed(1)) < 0.3
    for mask in (None, allowed, torch.zeros(rows, dtype=torch.bool)):
        for batch in {0, 1, min(rows, 64), rows // 2, rows + 3}:
            assert top_b("cpu", scores, mask, batch) == top_b("reference", scores, mask, batch)


# The interpreter takes half a second a pick.
@pytest.mark.parametrize(
    ("kind", "dtype", "rows", "batch", "masked"),
    [(kind, torch.float32, 1_100, 100, True) for kind in KINDS]
    + [(kind, torch.float64, 1_025, 7, False) for kind in ("distinct", "all equal", "special")],
)
def test_triton_equals_the_reference(kind: str, dtype: torch.dtype, rows: int, batch: int, masked: bool) -> None:
    scores = pool(kind, rows, dtype)
    allowed = torch.rand(rows, generator=torch.Generator().manual_seed(1)) < 0.5 if masked else None
    assert top_b("triton", scores, allowed, batch) == top_b("reference", scores, allowed, batch)


@pytest.mark.parametrize(
    ("rows", "batch", "share"),
    [(1, 1, None), (1, 3, None), (600, 600, None), (600, 1, 0.5), (600, 600, 0.5), (600, 30, 0.0), (513, 512, None)],
)
def test_triton_at_the_edges(rows: int, batch: int, share: float | None) -> None:
    scores = pool("few levels", rows, torch.float32)
    allowed = None if share is None else torch.rand(rows, generator=torch.Generator().manual_seed(1)) < share
    assert top_b("triton", scores, allowed, batch) == top_b("reference", scores, allowed, batch)


@pytest.mark.parametrize("name", BACKENDS)
def test_empty_pools_and_batches(name: str) -> None:
    assert top_b(name, torch.empty(0), None, 0) == []
    assert top_b(name, torch.empty(0), torch.empty(0, dtype=torch.bool), 2) == [-1, -1]
    assert top_b(name, torch.ones(5), None, 0) == []


@pytest.mark.parametrize("name", BACKENDS)
def test_scores_order_first(name: str) -> None:
    nan = torch.nan
    scores = torch.tensor([nan, -INF, -1.0, -0.0, 1e-45, 3.0, INF, nan], dtype=torch.float32)
    assert top_b(name, scores, None, 6) == [6, 5, 4, 3, 2, 1]
    assert sorted(top_b(name, scores, None, 8)[6:]) == [0, 7]
    zeros = torch.tensor([0.0, -0.0] * 20)
    assert top_b(name, zeros, None, 40) == top_b(name, torch.ones(40), None, 40)


def test_equal_keys_are_broken_by_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of 32 bits collide too rarely to be met, so all but one bit are taken away."""
    full = rng.tie_keys

    @triton.jit
    def one_bit(seed, step, prompt):
        return prompt & tl.full([1], 1, tl.int64)

    scores = torch.zeros(700)
    expected = [*range(1, 700, 2), *range(0, 700, 2)]  # FIRST is odd, so that odd rows have even prompt numbers
    monkeypatch.setattr(rng, "tie_keys", lambda seed, step, prompts: prompts & 1)
    assert top_b("reference", scores, None, 600) == expected[:600]
    monkeypatch.setattr(rng, "tie_keys", full)
    monkeypatch.setattr(rng_triton, "tie_keys", one_bit)
    if not torch.cuda.is_available():  # a compiled kernel would need to be compiled anew
        for batch in (1, 200, 351, 600):
            assert top_b("triton", scores, None, batch) == expected[:batch]
    nan = np.float32(np.nan)
    for score in (np.float32(0), nan):
        assert cpu_heap.before(score, 5, 1, score, 5, 2)
        assert not cpu_heap.before(score, 5, 2, score, 5, 2)
        assert cpu_heap.before(score, 4, 9, score, 5, 2)
    assert cpu_heap.before(np.float32(-np.inf), 9, 9, nan, 1, 1)
    assert not cpu_heap.before(nan, 1, 1, np.float32(-np.inf), 9, 9)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_pool_in_chunks_gives_what_the_whole_gives(name: str) -> None:
    rows, batch = 600, 50
    scores = pool("few levels", rows, torch.float64)
    whole = top_b(name, scores, None, batch)
    edges = [0, 201, rows]
    best = [
        start + row
        for start, stop in itertools.pairwise(edges)
        for row in top_b(name, scores[start:stop], None, min(batch, stop - start), first=FIRST + start)
    ]
    finalists = torch.zeros(rows, dtype=torch.bool)
    finalists[best] = True
    assert top_b(name, scores, finalists, batch) == whole


def test_the_pick_does_not_depend_on_threads() -> None:
    rows = 3 * (1 << 17) + 5  # of which each of three threads is worth waking
    scores = pool("few levels", rows, torch.float32)
    expected = top_b("reference", scores, None, 300)
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            assert top_b("cpu", scores, None, 300) == expected
        finally:
            torch.set_num_threads(threads)
    with ThreadPoolExecutor(4) as several:
        assert all(picked == expected for picked in several.map(lambda _: top_b("cpu", scores, None, 300), range(8)))


def test_ties_are_broken_evenly() -> None:
    """Over many steps every one of the tied rows is picked equally often, and comes first equally often."""
    rows, batch, steps = 60, 12, 4_000
    scores = torch.full((rows + 3,), 0.5)
    scores[[0, 30, 62]] = torch.tensor([0.1, 0.9, torch.nan])  # one row better, two worse than the tied ones
    tied = np.array([row for row in range(rows + 3) if row not in (0, 30, 62)])
    picked, first = np.zeros(rows + 3), np.zeros(rows + 3)
    for step in range(steps):
        rows_picked = top_b("cpu", scores, None, batch + 1, seed=0, step=step, first=0)
        assert rows_picked[0] == 30
        picked[rows_picked[1:]] += 1
        first[rows_picked[1]] += 1
    assert picked[0] == picked[62] == 0
    # Drawing without replacement, counts have variance steps p (1 - p) and a covariance that makes this a chi-square.
    share = batch / rows
    statistic = ((picked[tied] - steps * share) ** 2).sum() / (steps * share * (1 - share)) * (rows - 1) / rows
    assert scipy.stats.chi2.sf(statistic, rows - 1) > LEVEL / 2
    assert scipy.stats.chisquare(first[tied]).pvalue > LEVEL / 2


@pytest.mark.parametrize("name", BACKENDS)
def test_bad_arguments(name: str) -> None:
    module = backend.load("top_b", name)
    scores = torch.ones(4)
    with pytest.raises(ValueError, match="batch must not be negative, got -1"):
        module.top_b(scores, None, -1, 0, 0, 0)
    with pytest.raises(ValueError, match=r"seed must be in \[0, 2\*\*63\), got -1"):
        module.top_b(scores, None, 1, -1, 0, 0)
    with pytest.raises(TypeError, match="scores must be float32 or float64"):
        module.top_b(scores.half(), None, 1, 0, 0, 0)
    with pytest.raises(ValueError, match=r"scores must have shape \(4,\), got \(2, 2\)"):
        module.top_b(scores.reshape(2, 2), None, 1, 0, 0, 0)
    with pytest.raises(TypeError, match=r"allowed must be torch\.bool, got torch\.float32"):
        module.top_b(scores, scores, 1, 0, 0, 0)
    with pytest.raises(ValueError, match=r"allowed must have shape \(4,\), got \(3,\)"):
        module.top_b(scores, torch.ones(3, dtype=torch.bool), 1, 0, 0, 0)


def plateaus(rows: int, above: int, beside: int, period: int) -> Tensor:
    """Most rows share a score; so many score more, and so many NaN. Every period-th row scores most of all."""
    g = torch.Generator().manual_seed(rows + above)
    scores = torch.full((rows,), 0.25)
    some = torch.randperm(rows, generator=g)
    scores[some[:above]] = 0.5 + torch.rand(above, generator=g)
    scores[some[above : above + beside]] = torch.nan
    scores[some[above + beside : rows // 2]] = 0.125
    if period:
        scores[::period] = 2 + torch.arange(len(scores[::period])) % 3
    return scores


@pytest.mark.parametrize("rows", [300, 2_000, 40_001])
@pytest.mark.parametrize(("above", "beside", "period"), [(60, 0, 0), (11, 50, 0), (0, 9, 0), (30, 3, 39), (30, 3, 1)])
def test_what_a_sample_promises_is_verified(rows: int, above: int, beside: int, period: int) -> None:
    """Wherever the pick ends: above a plateau, on it, below it, and where the sample sees what others are not."""
    scores = plateaus(rows, above, beside, period)
    allowed = torch.rand(rows, generator=torch.Generator().manual_seed(1)) < 0.8
    kept = Shortlist.empty(20, scores)
    for mask in (None, allowed, scores < 0.25, scores.isnan()):
        for batch in (1, 20, 64, 200):
            expected = by_definition(scores, mask, batch)
            assert top_b("cpu", scores, mask, batch) == expected
            for threshold in (-INF, 0.25, 0.26, 1.0, INF):
                kept.threshold.fill_(threshold)
                note(kept, scores)
                kernel = backend.load("top_b", "cpu")
                assert kernel.top_b(scores, mask, batch, SEED, STEP, FIRST, kept).tolist() == expected
                # Another pick of the same scores: the threshold has moved on, and nobody was noted anew.
                others = ~torch.isin(torch.arange(rows), torch.tensor(expected))
                others &= True if mask is None else mask
                again = kernel.top_b(scores, others, batch, SEED, STEP, FIRST, kept).tolist()
                assert again == by_definition(scores, others, batch)


@pytest.mark.parametrize("worst", [-INF, 0.0, torch.finfo(torch.float32).max, INF])
def test_plateaus_at_the_ends_of_the_numbers(worst: float) -> None:
    """Also where numpy raises: the next number after zero is subnormal, and there is none after infinity."""
    rows, batch = 50_000, 64
    for stride, many in ((1, rows // 2), (49, 41), (49, 700)):
        scores = torch.rand(rows, generator=torch.Generator().manual_seed(1)) * (-1 if worst == 0.0 else 1)
        scores[torch.arange(many) * stride] = worst
        kept = Shortlist.empty(batch, scores)
        with np.errstate(all="raise"):
            assert top_b("cpu", scores, None, batch) == by_definition(scores, None, batch)
            for _ in range(2):
                picked = backend.load("top_b", "cpu").top_b(scores, None, batch, SEED, STEP, FIRST, kept)
                assert picked.tolist() == by_definition(scores, None, batch)


@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_a_plateau_is_no_threshold(name: str) -> None:
    """The next score above it is, whether the pick ends above it or on it, so that steps to come are not crowded."""
    device = "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"
    kernel, batch, rows = backend.load("top_b", name), 8, 900
    for above in (3, 8, 20):
        scores = plateaus(rows, above, 5, 0).to(device)
        kept = Shortlist.empty(batch, scores)
        for _ in range(3):
            picked = kernel.top_b(scores, None, batch, SEED, STEP, FIRST, kept)
            assert picked.tolist() == by_definition(scores.cpu(), None, batch)
            assert float(kept.threshold) == float(torch.nextafter(torch.tensor(0.25), torch.tensor(INF)))
            assert float(scores[kept.guide]) == 0.25
            assert int(kept.guide) not in picked.tolist()
            note(kept, scores)
            assert int(kept.count) == above


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["distinct", "few levels", "all equal", "all NaN", "special", "rested"])
@pytest.mark.parametrize("name", BACKENDS)
def test_a_shortlist_never_changes_the_pick(name: str, kind: str, dtype: torch.dtype) -> None:
    """Whatever its threshold: carried over from step to step, of other scores, or none at all."""
    device = "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"
    g = torch.Generator().manual_seed(2)
    kernel, batch, rows = backend.load("top_b", name), 7, 600
    kept = Shortlist.empty(batch, torch.empty(rows, dtype=dtype, device=device))
    settled = 0
    for step in range(8):
        if kind == "rested":  # some rows stand out, all others share a score
            scores = torch.full((rows,), 0.25, dtype=dtype)
            scores[torch.randperm(rows, generator=g)[:40]] += torch.rand(40, generator=g, dtype=dtype)
        else:
            scores = pool(kind, rows, dtype, step)
        allowed = torch.rand(rows, generator=g) < 0.9 if step % 2 else None
        if step == 6:
            kept.threshold.fill_(torch.nan)
        note(kept, scores.to(device))
        listed = kept.rows[: int(kept.count)].cpu()
        enough = int(kept.count) <= len(kept.rows) and (allowed is None or int(allowed[listed].sum()) >= batch)
        settled += enough and int(kept.count) >= batch
        mask = None if allowed is None else allowed.to(device)
        picked = kernel.top_b(scores.to(device), mask, batch, SEED, STEP, FIRST, kept)
        assert picked.tolist() == by_definition(scores, allowed, batch)
    if kind in ("distinct", "rested"):
        assert settled >= 4, "the shortlist was of no use"


@pytest.mark.parametrize("name", BACKENDS)
def test_the_threshold_moves_to_the_wanted_number_of_rows(name: str) -> None:
    device = "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"
    scores = pool("distinct", 500, torch.float32).to(device)
    kept, kernel = Shortlist.empty(10, scores), backend.load("top_b", name)
    kernel.top_b(scores, None, 10, SEED, STEP, FIRST, kept)
    for _ in range(2):  # first by going over all scores, then from the rows it noted
        kernel.top_b(scores, None, 10, SEED, STEP, FIRST, kept)
        assert float(kept.threshold) == float(scores.sort(descending=True).values[kept.wanted - 1])
        note(kept, scores)
    few = torch.zeros(500, dtype=torch.bool, device=device)
    few[:20] = True
    kernel.top_b(scores, few, 20, SEED, STEP, FIRST, kept)
    assert float(kept.threshold) == -INF


@pytest.mark.parametrize("name", BACKENDS)
def test_nobody_is_wanted_of_a_crowded_shortlist(name: str) -> None:
    scores = torch.ones(100, device="cuda" if name == "triton" and torch.cuda.is_available() else "cpu")
    kept = Shortlist.empty(2, scores)
    kept.threshold.fill_(1.0)
    note(kept, scores)
    assert backend.load("top_b", name).top_b(scores, None, 0, SEED, STEP, FIRST, kept).tolist() == []


def test_large_batches_are_sorted_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many rows each is no longer compared with each."""
    scores = pool("few levels", 300, torch.float32).to("cuda" if torch.cuda.is_available() else "cpu")
    picks = []
    for most in (1 << 14, 0):
        monkeypatch.setattr(top_b_triton, "MOST_COMPARED", most)
        kept = Shortlist.empty(20, scores)
        for _ in range(2):
            picks.append(backend.load("top_b", "triton").top_b(scores, None, 20, SEED, STEP, FIRST, kept).tolist())
            note(kept, scores)
        picks.append(kept.threshold.tolist())
    assert picks[:3] == picks[3:]
    assert picks[0] == by_definition(scores.cpu(), None, 20)
