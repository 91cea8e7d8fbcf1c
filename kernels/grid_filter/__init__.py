"""An exact histogram filter of N prompts over K states that all share their transitions, lazily evaluated.

    predict   the belief now of some prompts, or of all
    score     what the belief now of every prompt is worth, for any worth that is linear in it
    look      what it is worth to look at a prompt before choosing between it and something else
    look_index  the price at which a prompt is worth what it costs, with what a look at it may show
    advance   condition the observed prompts
    settle    carry beliefs forward in time that were left behind, so that few tables are needed

The three backends share names and signatures; `reference.py` is the definition.

What is stored of a prompt is its belief right after it was last observed, and in which step that was, as the number of
a table. For prompts that were observed in the same step have the same way to go: the transitions since then, multiplied
up, are one (K, K) matrix for all of them. A step without an observation of a prompt writes nothing of it, and a linear
question asks the stored belief about its worth pulled back through the matrix.

- `belief`: (N, K), P(state) right after the last observation of each prompt.
- `slot`: (N,) int32. From 0 on, the table that carries this belief to now. A negative one, -1 - r, says that the prompt
  has never been observed and has belief r of those that such prompts share; its row of `belief` is not read.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayes_prompt.kernels.arguments import FLOATS, check_layout

LARGEST_SLOT = 2**31 - 1
LONGEST_HORIZON = 1e30  # beyond it, nothing changes but that float32 overflows


def check_state(belief: Tensor, slot: Tensor) -> None:
    """Check shapes, dtypes, devices and contiguity, not what tensors hold: that would cost a pass over memory.

    That slots have their tables is the caller's responsibility. Raises TypeError or ValueError that names the argument.
    """
    if belief.ndim != 2 or belief.shape[1] == 0:
        raise ValueError(f"belief must have shape (prompts, states), got {tuple(belief.shape)}")
    if belief.dtype not in FLOATS:
        raise TypeError(f"belief must be float32 or float64, got {belief.dtype}")
    check_layout("belief", belief, tuple(belief.shape), belief)
    check_layout("slot", slot, (belief.shape[0],), belief, "int32")


def check_table(name: str, table: Tensor, rest: tuple[int | str, ...], belief: Tensor) -> None:
    """Raises TypeError or ValueError unless `table` is (any, *rest); a name in `rest` stands for any size."""
    wanted = (table.shape[0] if table.ndim else 0, *rest)
    if table.ndim == len(wanted):
        wanted = tuple(have if isinstance(want, str) else want for have, want in zip(table.shape, wanted, strict=True))
    check_layout(name, table, wanted, belief)  # type: ignore[arg-type]


def check_tables(propagators: Tensor, shared: Tensor | None, belief: Tensor) -> None:
    """Raises TypeError or ValueError unless the tables fit the belief (N, K)."""
    states = belief.shape[1]
    check_table("propagators", propagators, (states, states), belief)
    if shared is not None:
        check_table("shared", shared, (states,), belief)


def check_predict(
    belief: Tensor, slot: Tensor, propagators: Tensor, shared: Tensor, index: Tensor | None, out: Tensor
) -> None:
    """Raises TypeError or ValueError unless these are arguments of `predict`."""
    check_state(belief, slot)
    check_tables(propagators, shared, belief)
    rows = belief.shape[0] if index is None else index.numel()
    if index is not None:
        check_layout("index", index, (rows,), belief, "int64")
    check_layout("out", out, (rows, belief.shape[1]), belief)


def check_score(belief: Tensor, slot: Tensor, vectors: Tensor, shared_scores: Tensor, out: Tensor) -> None:
    """Raises TypeError or ValueError unless these are arguments of `score`."""
    check_state(belief, slot)
    check_table("vectors", vectors, (belief.shape[1],), belief)
    check_table("shared_scores", shared_scores, (), belief)
    check_layout("out", out, (belief.shape[0],), belief)


def check_look(
    belief: Tensor,
    slot: Tensor,
    chances: Tensor,
    worths: Tensor,
    shared_values: Tensor,
    threshold: float | Tensor,
    out: Tensor,
) -> None:
    """Raises TypeError or ValueError unless these are arguments of `look`."""
    check_state(belief, slot)
    check_table("chances", chances, ("outcomes", belief.shape[1]), belief)
    check_layout("worths", worths, tuple(chances.shape), belief)
    check_table("shared_values", shared_values, (), belief)
    if isinstance(threshold, Tensor):
        check_layout("threshold", threshold, (), belief)
    elif threshold != threshold:
        raise ValueError("threshold must be a number, got nan")
    check_layout("out", out, (belief.shape[0],), belief)


def check_look_index(
    belief: Tensor,
    slot: Tensor,
    vectors: Tensor,
    chances: Tensor,
    worths: Tensor,
    shared_values: Tensor,
    horizon: float,
    out: Tensor,
) -> None:
    """Raises TypeError or ValueError unless these are arguments of `look_index`."""
    check_state(belief, slot)
    check_table("chances", chances, ("outcomes", belief.shape[1]), belief)
    check_layout("vectors", vectors, (len(chances), belief.shape[1]), belief)
    check_layout("worths", worths, tuple(chances.shape), belief)
    check_table("shared_values", shared_values, (), belief)
    if not 0.0 <= horizon < math.inf:
        raise ValueError(f"horizon must be finite and at least 0, got {horizon}")
    check_layout("out", out, (belief.shape[0],), belief)


def check_advance(
    belief: Tensor,
    slot: Tensor,
    propagators: Tensor,
    shared: Tensor,
    index: Tensor,
    likelihood: Tensor,
    now: int,
    expected: Tensor | None,
    chance: Tensor,
    status: Tensor,
    decay: float,
    prior: Tensor | None,
) -> None:
    """Raises TypeError or ValueError unless these are arguments of `advance`.

    That `index` ascends is the caller's responsibility.
    """
    check_state(belief, slot)
    check_tables(propagators, shared, belief)
    check_slot("now", now)
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay must lie in [0, 1], got {decay}")
    if decay < 1.0 and prior is None:
        raise ValueError(f"prior must be given where something is forgotten (decay {decay}), got None")
    entries, states = index.numel(), belief.shape[1]
    check_layout("index", index, (entries,), belief, "int64")
    check_layout("likelihood", likelihood, (entries, states), belief)
    if expected is not None:
        check_layout("expected", expected, (entries, states), belief)
    check_layout("chance", chance, (entries,), belief)
    check_layout("status", status, (entries,), belief, "int32")
    if prior is not None:
        check_layout("prior", prior, (states,) if prior.ndim == 1 else (entries, states), belief)


def check_settle(belief: Tensor, slot: Tensor, propagators: Tensor, first: int, last: int, now: int) -> None:
    """Raises TypeError or ValueError unless these are arguments of `settle`."""
    check_state(belief, slot)
    check_tables(propagators, None, belief)
    check_slot("first", first)
    check_slot("last", last)
    check_slot("now", now)
    if last > propagators.shape[0]:
        raise ValueError(f"last must be at most the number of propagators, {propagators.shape[0]}, got {last}")


def check_slot(name: str, slot: int) -> None:
    """Raises TypeError or ValueError unless `slot` may be the number of a table."""
    if not isinstance(slot, int) or isinstance(slot, bool):
        raise TypeError(f"{name} must be an int, got {type(slot).__name__}")
    if not 0 <= slot <= LARGEST_SLOT:
        raise ValueError(f"{name} must lie in [0, {LARGEST_SLOT}], got {slot}")


def outcome_tables(propagators: Tensor, worth: Tensor, chance: Tensor, later: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`vectors` (S, L), `chances` and `worths` (S, O, L), what is asked about a look, pulled back through propagators.

    propagators: (S, L, K); beliefs (S, 1, K) give their own answers. worth: (K,) of the states now. chance: (O, K) of
    outcomes. later: (T, K) worth of a state after the look; the table of slot s has row s % T.
    """
    each = propagators.unflatten(0, (-1, len(later)))
    worths = (each @ (later[:, None] * chance).mT).flatten(0, 1)
    return propagators @ worth, (propagators @ chance.T).mT, worths.mT


def look_tables(chances: Tensor, worths: Tensor, threshold: float | Tensor) -> tuple[Tensor, Tensor]:
    """What compiled `look`s are made of: tables (S, O, K) of gains and (S, K) of what there is without a look.

    max(w, t c) = t c + max(w - t c, 0), so that one product for each outcome is enough, and one more.
    """
    kept = chances * threshold
    return worths - kept, kept.sum(1, dtype=torch.float64).to(kept.dtype)


def look_index_tables(chances: Tensor, worths: Tensor, horizon: float, columns: int) -> Tensor:
    """What compiled `look_index`es are made of: (S, K, 2, columns), horizon times worths, and times chances.

    The outcomes stand last, side by side for the sums over states; columns beyond them are zeros, which add nothing.
    """
    tables, outcomes, states = chances.shape
    both = chances.new_zeros(tables, states, 2, columns)
    both[:, :, 0, :outcomes] = worths.transpose(1, 2)
    both[:, :, 1, :outcomes] = chances.transpose(1, 2)
    return both.mul_(min(horizon, LONGEST_HORIZON))
