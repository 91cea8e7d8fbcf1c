"""The replay: selectors pick from a recorded history, and learn from what it says came out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayes_prompt.history import History
from bayes_prompt.posteriors import checks
from bayes_prompt.replays.bars import Progress, Tell, told
from bayes_prompt.replays.judging import Absences, Judge
from bayes_prompt.replays.methods import Factory, Methods, factories
from bayes_prompt.replays.results import Method, ReplayResults, Run
from bayes_prompt.selector import PromptSelector

NEARLY = 0.9  # a pick of this share of what was recorded leaves a method next to no choice
COMMON = 0.9  # share of the prompts that must have a visit for it to be replayed, where prompts count their own visits


def replay(
    history: History,
    methods: Methods,
    *,
    batch_size: int | None = None,
    batch_fraction: float = 0.1,
    seeds: int | Sequence[int] = 5,
    visits: int | None = None,
    min_visits: int | None = None,
    first_visit: int = 5,
    texts: Sequence[str] | None = None,
    embeddings: Tensor | np.ndarray | None = None,
    groups: Sequence[Any] | None = None,
    prior_rates: Sequence[float | None] | Tensor | np.ndarray | None = None,
    progress: Progress = False,
) -> ReplayResults:
    """Ask methods of choosing prompts what they would have picked in a recorded history, and judge them.

    At each visit a method picks, and its picks' recorded counts are what it observes. Before each visit from
    `first_visit` on, its P(informative) of every prompt is judged by what that prompt's count shows. Where a step has
    no record of a prompt (trials 0), the prompt cannot be picked then and is not judged; where fewer prompts than a
    batch have one, the pick is smaller. Steps without any record are left out, with the time they took, and those
    before the first record count for nothing, so that visits may be numbered from 0 or from 1. Mind how such records
    were chosen: if by a method, the replay is confined to what that method looked at; where that is next to all that is
    to be picked, so that methods have no choice, a warning says so. Methods are told of the history's `elapsed`, and
    recipes that ask for `num_steps` how many steps are replayed, as a trainer knows it ("best:num_steps=None": not).

    What is told, and what it means: `bayes_prompt.replays.results.FIGURES`.

    Args:
        history: T steps of N prompts.
        methods: names of recipes, with options behind colons as in "dps:decay=0.5"; or a mapping of names to such names
            or to functions of (num_prompts, batch_size, seed), called by these names, that give a `PromptSelector`.
        batch_size: B, prompts in a pick; None: round(batch_fraction * N), at least 1, of the N that are kept.
        batch_fraction: in (0, 1].
        seeds: so many, from 0 on, or the seeds themselves.
        visits: replay the first so many steps. None: all; or, where every prompt counts its own visits (the history's
            clock is "visit", and the records of each are its first ones without a gap), as many as nine in ten prompts
            have.
        min_visits: keep the prompts that have at least so many records, one of them in a step that is replayed. None:
            as many as are replayed where every prompt counts its own visits, else 1.
        first_visit: at least 0.
        texts, embeddings: N strings, or (N, D) numbers, for the recipes that take them; not both.
        groups: N labels, such as the data set of each prompt, likewise.
        prior_rates: N success rates that were known before training, None or NaN where there is none, for all recipes.
        progress: True shows bars on a terminal; a function is called with (method, visits done, in all).

    Raises:
        ValueError, TypeError: a bad argument; or a method cannot be made, which is told before any replay begins.
    """
    if not isinstance(history, History):
        raise TypeError(f"history must be a History; got {type(history).__name__}")
    if history.successes is None:
        raise ValueError("history.successes is None: there is nothing to replay")
    numbers = _seeds(seeds)
    first_visit = checks.integer("first_visit", first_visit, 0)
    kept, recorded = _kept(history, visits, min_visits)
    num_prompts = recorded.successes.shape[1]
    size = _batch_size(batch_size, batch_fraction, num_prompts)
    _warn_of_no_choice(recorded, size)
    sides = _sides({"texts": texts, "embeddings": embeddings, "groups": groups}, history.num_prompts, kept)
    if prior_rates is not None:
        sides["prior_rates"] = checks.rates("prior_rates", prior_rates, history.num_prompts)[kept]
    sides["num_steps"] = recorded.num_visits  # as a trainer knows it
    made = factories(methods, sides)
    # One selector of each before the work begins, so that a mistake in the last one does not cost the others' time.
    first = {name: _made(name, make, num_prompts, size, numbers[0]) for name, make in made.items()}
    _apart(first)
    found = []
    with told(progress) as tell:
        for name, make in made.items():
            runs: list[Run] = []
            earlier: PromptSelector | None = None
            for done, seed in enumerate(numbers):
                selector = first.pop(name) if name in first else _made(name, make, num_prompts, size, seed)
                if earlier is not None:
                    _apart({f"{name} with seed {numbers[done - 1]}": earlier, f"{name} with seed {seed}": selector})
                earlier = selector
                before = done * recorded.num_visits
                runs.append(_run(recorded, selector, seed, size, first_visit, name, before, len(numbers), tell))
            found.append(Method(name, tuple(runs)))
    return ReplayResults(num_prompts, recorded.num_visits, size, first_visit, tuple(found))


@dataclass(frozen=True)
class _Recorded:
    """What is replayed: successes, trials, and who was seen and informative, each (T, N); and elapsed times, T."""

    successes: Tensor
    trials: Tensor
    seen: np.ndarray
    informative: np.ndarray
    elapsed: list[float]

    @property
    def num_visits(self) -> int:
        return len(self.trials)


def _run(
    recorded: _Recorded,
    selector: PromptSelector,
    seed: int,
    batch_size: int,
    first_visit: int,
    name: str,
    before: int,
    num_seeds: int,
    tell: Tell,
) -> Run:
    """One pass through the history."""
    judge, absences = Judge(), Absences(recorded.trials.shape[1])
    ratio, oracle = [], []
    picking, learning = [], []
    for visit, (seen, informative) in enumerate(zip(recorded.seen, recorded.informative, strict=True)):
        successes, trials = recorded.successes[visit], recorded.trials[visit]
        everyone = bool(seen.all())
        if visit >= first_visit:
            chance = selector.posterior.informative_probability(_group_sizes(trials)).detach().cpu().numpy()
            judge.add(chance[seen], informative[seen])
        wanted = min(batch_size, int(seen.sum()))
        start = perf_counter()
        index = selector.select(None if everyone else torch.from_numpy(seen), wanted).cpu()
        middle = perf_counter()
        selector.update(index, successes=successes[index], trials=trials[index], elapsed=recorded.elapsed[visit])
        learning.append(perf_counter() - middle)
        picking.append(middle - start)
        picked = index.numpy()
        absences.add(picked)
        ratio.append(float(informative[picked].mean()))
        oracle.append(min(wanted, int(informative.sum())) / wanted)
        tell(name, before + visit + 1, recorded.num_visits * num_seeds)
    longest = absences.longest
    return Run(
        seed=seed,
        ratio=tuple(ratio),
        oracle=tuple(oracle),
        log_loss=judge.log_loss,
        brier=judge.brier,
        auc=judge.auc,
        bins=judge.bins,
        coverage=absences.coverage,
        mean_absence=float(longest.mean()),
        longest_absence=int(longest.max()),
        seconds_picking=median(picking),
        seconds_learning=median(learning),
    )


def _group_sizes(trials: Tensor) -> int | Tensor:
    """Rollouts of each prompt (N,), or one number where all that have any have the same; 1 stands for none."""
    low, high = int(trials[trials > 0].min()), int(trials.max())
    return high if low == high else trials.clamp(min=1)


def _kept(history: History, visits: int | None, min_visits: int | None) -> tuple[Tensor, _Recorded]:
    """The rows that are replayed, (N',), and what was recorded of them."""
    assert history.successes is not None
    begin = int((history.trials > 0).any(1).byte().argmax())
    trials, successes = history.trials[begin:].cpu(), history.successes[begin:].cpu()
    seen = trials > 0
    often = seen.sum(0)
    if visits is not None:
        visits = min(checks.integer("visits", visits, 1, history.num_steps), len(trials))
    if min_visits is not None:
        min_visits = checks.integer("min_visits", min_visits, 1)
    own_visits = history.clock == "visit" and not bool((seen[1:] & ~seen[:-1]).any())
    if visits is None:
        visits = len(trials)
        if own_visits:
            visits = min(visits, _common(often) if min_visits is None else min_visits)
    if min_visits is None:
        min_visits = visits if own_visits else 1
    enough = often >= min_visits
    if not bool(enough.any()):
        raise ValueError(f"min_visits = {min_visits} keeps no prompt; the most records of one are {int(often.max())}")
    rows = (enough & seen[:visits].any(0)).nonzero()[:, 0]
    if not len(rows):
        raise ValueError(f"visits = {visits}: the first steps have no record of the prompts that are kept")
    trials, successes = trials[:visits, rows], successes[:visits, rows]
    some = (trials > 0).any(1)
    trials, successes = trials[some], successes[some]
    informative = (successes > 0) & (successes < trials)
    elapsed = [1.0] * len(trials)
    if history.elapsed is not None:
        elapsed = history.elapsed[begin:][:visits][some].tolist()
    return rows, _Recorded(successes, trials, (trials > 0).numpy(), informative.numpy(), elapsed)


def _warn_of_no_choice(recorded: _Recorded, batch_size: int) -> None:
    """A warning where most picks have to be next to all that was recorded, and so are alike whatever the method."""
    share = float((batch_size >= NEARLY * recorded.seen.sum(1)).mean())
    if share > 0.5:
        warnings.warn(
            f"at {share:.0%} of the visits a pick of {batch_size} takes all, or nearly all, of the prompts that have a "
            "record, so that methods hardly differ; pick fewer, or replay a history in which more were rolled out",
            stacklevel=3,
        )


def _common(often: Tensor) -> int:
    """The number of records that `COMMON` of the prompts with any have."""
    some = often[often > 0].sort(descending=True).values
    return int(some[math.ceil(COMMON * len(some)) - 1]) if len(some) else 1


def _batch_size(batch_size: int | None, fraction: float, num_prompts: int) -> int:
    if batch_size is not None:
        return checks.integer("batch_size", batch_size, 1, num_prompts)
    checks.number("batch_fraction", fraction)
    if not 0 < fraction <= 1:
        raise ValueError(f"batch_fraction must lie in (0, 1]; got {fraction}")
    return max(1, round(fraction * num_prompts))


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    if isinstance(seeds, Sequence):
        found = [checks.integer(f"seeds[{place}]", seed, 0, 2**63 - 1) for place, seed in enumerate(seeds)]
    else:
        found = list(range(checks.integer("seeds", seeds, 1)))
    if not found or len(set(found)) < len(found):
        raise ValueError(f"seeds must be distinct, and at least one; got {found}")
    return found


def _sides(given: dict[str, Any], num_prompts: int, kept: Tensor) -> dict[str, Any]:
    """What is known of the prompts, of those that are kept; what was not given is absent."""
    if given["texts"] is not None and given["embeddings"] is not None:
        raise ValueError("give texts or embeddings of the prompts, not both")
    found: dict[str, Any] = {}
    for name in ("texts", "groups"):
        if (values := given[name]) is not None:
            if isinstance(values, str) or not hasattr(values, "__len__"):
                raise TypeError(f"{name} must be a sequence with an entry for each prompt; got {type(values).__name__}")
            if len(values) != num_prompts:
                raise ValueError(f"{name} must have {num_prompts} entries, one for each prompt; got {len(values)}")
            found[name] = [values[row] for row in kept.tolist()]
    if given["embeddings"] is not None:
        found["embeddings"] = checks.embeddings("embeddings", given["embeddings"], num_prompts)[kept]
    return found


def _made(name: str, make: Factory, num_prompts: int, batch_size: int, seed: int) -> PromptSelector:
    """A selector of the method; what is wrong with it names the method."""
    try:
        selector = make(num_prompts=num_prompts, batch_size=batch_size, seed=seed)
    except (ValueError, TypeError) as error:
        raise (TypeError if isinstance(error, TypeError) else ValueError)(f"method {name!r}: {error}") from error
    if not isinstance(selector, PromptSelector) or selector.num_prompts != num_prompts:
        what = f"one of {selector.num_prompts}" if isinstance(selector, PromptSelector) else repr(selector)
        raise TypeError(f"method {name!r} must give a PromptSelector of {num_prompts} prompts; got {what}")
    return selector


def _apart(selectors: dict[str, PromptSelector]) -> None:
    """ValueError where two are one, so that the second would go on from what the first has learned."""
    owner: dict[int, str] = {}
    for name, selector in selectors.items():
        if (other := owner.setdefault(id(selector.posterior), name)) != name:
            raise ValueError(f"methods must give a new PromptSelector each time; {name} and {other} share a posterior")
