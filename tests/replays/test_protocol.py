"""The replay: against a plain loop, on ragged and partial histories, and its arguments."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import bayes_prompt as bp
from bayes_prompt.acquisition import Acquisition
from bayes_prompt.history import History
from bayes_prompt.replays.protocol import replay
from bayes_prompt.replays.results import Run
from bayes_prompt.selector import PromptSelector

G = 4


def history_of(trials: torch.Tensor, seed: int = 0) -> History:
    g = torch.Generator().manual_seed(seed)
    return History(torch.binomial(trials.float(), torch.rand(trials.shape, generator=g), generator=g).long(), trials)


def dense(steps: int, prompts: int, seed: int = 0) -> History:
    return history_of(torch.full((steps, prompts), G), seed)


def rows(history: History) -> tuple[np.ndarray, np.ndarray]:
    assert history.successes is not None
    return history.successes.numpy(), history.trials.numpy()


class Foresight(Acquisition):
    """Knows what comes out: scores (T, N) by visit."""

    def __init__(self, history: History) -> None:
        successes, trials = rows(history)
        self.informative = torch.from_numpy((successes > 0) & (successes < trials)).double()

    def scores(self, posterior: bp.Posterior, seed: int, step: int) -> torch.Tensor:
        return self.informative[posterior.step]

    def __repr__(self) -> str:
        return "Foresight()"


def by_hand(history: History, selector: PromptSelector, batch: int, first_visit: int) -> dict[str, float]:
    """The figures of a history in which every prompt is seen at every visit, by their definitions."""
    successes, trials = rows(history)
    informative = (successes > 0) & (successes < trials)
    ratio, loss, square = [], [], []
    absent, longest = np.zeros(history.num_prompts), np.zeros(history.num_prompts)
    for visit in range(history.num_steps):
        if visit >= first_visit:
            chance = selector.posterior.informative_probability(G).double().numpy()
            right = np.where(informative[visit], chance, 1 - chance)
            loss.append(-np.log(right).mean())
            square.append(((1 - right) ** 2).mean())
        index = selector.select()
        ratio.append(informative[visit][index].mean())
        selector.update(index, successes=successes[visit][index], trials=G)
        absent += 1
        absent[index] = 0
        longest = np.maximum(longest, absent)
    return {
        "effective_sample_ratio": float(np.mean(ratio)),
        "second_half": float(np.mean(ratio[history.num_steps // 2 :])),
        "regret": float(np.minimum(batch, informative.sum(1)).mean() / batch - np.mean(ratio)),
        "log_loss": float(np.mean(loss)),
        "brier": float(np.mean(square)),
        "coverage": float((longest < history.num_steps).mean()),
        "mean_absence": float(longest.mean()),
        "longest_absence": float(longest.max()),
    }


@pytest.mark.parametrize("method", ["dps:decay=0.5", "mopps:decay=1", "uniform", "history_resampling"])
def test_figures_against_a_plain_loop(method: str) -> None:
    history = dense(9, 30)
    (found,) = replay(history, [method], batch_size=7, seeds=[3, 8], first_visit=2).methods
    name, *option = method.split(":")
    options = {"decay": float(option[0].split("=")[1])} if option else {}
    for run in found.runs:
        selector = getattr(bp.recipes, name)(num_prompts=30, batch_size=7, seed=run.seed, **options)
        for figure, value in by_hand(history, selector, 7, 2).items():
            # log(1 - p) is worked out of float32 probabilities in another order.
            assert run.figures()[figure] == pytest.approx(value, rel=1e-6), figure
        assert run.seconds_picking > 0 and run.seconds_learning > 0
    assert [run.seed for run in found.runs] == [3, 8]
    assert found.figures["coverage"].mean == pytest.approx(np.mean([run.coverage for run in found.runs]))


def test_foresight_has_no_regret_and_is_what_the_oracle_is() -> None:
    history = dense(6, 40, seed=4)

    def foresight(num_prompts: int, batch_size: int, seed: int) -> PromptSelector:
        posterior = bp.recipes.uniform(num_prompts=num_prompts, batch_size=1).posterior
        return PromptSelector(posterior, Foresight(history), batch_size, seed)

    # More than are ever informative: then the oracle is short of them, too.
    for batch in (5, 38):
        for run in replay(history, {"it": foresight}, batch_size=batch, seeds=2)["it"].runs:
            assert run.ratio == run.oracle
            assert run.figures()["regret"] == 0
            assert (min(run.oracle) < 1) == (batch == 38)


def test_the_order_of_methods_and_seeds_changes_no_figure() -> None:
    history = dense(8, 20)

    def figures(runs: tuple[Run, ...]) -> list[dict[str, float]]:
        return [{name: value for name, value in run.figures().items() if "seconds" not in name} for run in runs]

    both = replay(history, ["dps", "mopps"], seeds=[0, 1])
    back = replay(history, ["mopps", "dps"], seeds=[1, 0])
    for name in ("dps", "mopps"):
        assert figures(both[name].runs) == figures(back[name].runs)[::-1]


# Which visits and prompts


def test_where_prompts_count_their_own_visits_nine_in_ten_decide() -> None:
    visits = torch.tensor([3, 5, *[6] * 16, 8, 9])  # nine in ten have six or more
    history = replace(history_of(G * (torch.arange(10)[:, None] < visits).long()), clock="visit")
    found = replay(history, "uniform", seeds=1)
    assert (found.visits, found.num_prompts, found.batch_size) == (6, 18, 2)
    assert replay(history, "uniform", seeds=1, visits=5).num_prompts == 19
    assert replay(history, "uniform", seeds=1, min_visits=8).visits == 8
    least = replay(history, "uniform", seeds=1, visits=9, min_visits=4)
    assert (least.visits, least.num_prompts) == (9, 19)


def test_visits_may_be_numbered_from_one() -> None:
    visits = torch.tensor([3, 5, *[6] * 16, 8, 9])
    history = replace(history_of(G * (torch.arange(10)[:, None] < visits).long()), clock="visit")
    assert history.successes is not None
    blank = torch.zeros(1, 20, dtype=torch.int64)
    later = History(torch.cat([blank, history.successes]), torch.cat([blank, history.trials]), clock="visit")
    changes: tuple[dict[str, Any], ...] = ({}, {"visits": 5}, {"min_visits": 8}, {"visits": 9, "min_visits": 4})
    for change in changes:
        ours, theirs = (replay(each, "dps", seeds=1, first_visit=0, **change) for each in (later, history))
        assert (ours.visits, ours.num_prompts) == (theirs.visits, theirs.num_prompts), change
        (one,), (other,) = ours["dps"].runs, theirs["dps"].runs
        assert (one.ratio, one.brier) == (other.ratio, other.brier)
    # All of its steps are one more than the other's.
    whole = (
        replay(later, "dps", seeds=1, visits=11, min_visits=1),
        replay(history, "dps", seeds=1, visits=10, min_visits=1),
    )
    assert whole[0]["dps"].runs[0].ratio == whole[1]["dps"].runs[0].ratio


def test_steps_of_training_are_all_replayed_though_prompts_were_left_out_later_on() -> None:
    trials = torch.full((12, 20), G)
    trials[4:, 10:] = 0  # half of the pool was filtered out
    steps = history_of(trials)
    found = replay(steps, "uniform", batch_size=2, seeds=1)
    assert (found.visits, found.num_prompts) == (12, 20)
    visits = replay(replace(steps, clock="visit"), "uniform", batch_size=2, seeds=1)
    assert (visits.visits, visits.num_prompts) == (4, 20)


def test_the_time_that_steps_took_is_handed_on() -> None:
    trials = torch.full((7, 10), G)
    trials[[0, 3]] = 0  # these are left out, with their times
    times = torch.tensor([9.0, 0.5, 0.0, 9.0, 1.0, 2.0, 0.25], dtype=torch.float64)
    heard: list[float] = []

    class Spy(PromptSelector):
        def update(self, *rest: Any, **counts: Any) -> None:
            heard.append(counts["elapsed"])
            super().update(*rest, **counts)

    def spy(num_prompts: int, batch_size: int, seed: int) -> PromptSelector:
        plain = bp.recipes.kgps(num_prompts=num_prompts, batch_size=batch_size, seed=seed)
        return Spy(plain.posterior, plain.acquisition, batch_size, seed)

    history = history_of(trials)
    replay(replace(history, elapsed=times), {"it": spy}, batch_size=2, seeds=1)
    replay(replace(history, elapsed=times), {"it": spy}, batch_size=2, seeds=1, visits=2)
    replay(history, {"it": spy}, batch_size=2, seeds=1, visits=2)
    assert heard == [0.5, 0.0, 1.0, 2.0, 0.25, 0.5, 0.0, 1.0, 1.0]


def test_recipes_that_ask_are_told_how_many_steps_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def recipe(*, num_prompts: int, batch_size: int, seed: int = 0, num_steps: int | None = None) -> bp.PromptSelector:
        told.append(num_steps)
        return bp.recipes.uniform(num_prompts=num_prompts, batch_size=batch_size, seed=seed)

    monkeypatch.setattr(bp.recipes, "some_recipe", recipe, raising=False)
    history = bp.History(torch.randint(0, 9, (12, 20)), torch.full((12, 20), 8))
    bp.replay(history, ["some_recipe"], batch_size=2, seeds=1)
    bp.replay(history, ["some_recipe", "uniform"], batch_size=2, seeds=1, visits=5)
    assert told == [12, 5]


def test_a_replay_that_leaves_no_choice_warns_once() -> None:
    trials = torch.zeros(8, 30, dtype=torch.int64)
    for step in range(8):
        trials[step, (torch.arange(6) * 5 + step) % 30] = G  # six of thirty, as a method recorded them
    with pytest.warns(UserWarning, match="at 100% of the visits a pick of 6 takes all, or nearly all") as told:
        found = replay(history_of(trials), ["uniform", "dps"], batch_size=6, seeds=2)
    assert len(told) == 1 and told[0].filename == __file__
    assert found["uniform"].ratio == found["dps"].ratio
    trials[:3] = G
    with pytest.warns(UserWarning, match="at 62% of the visits"):
        replay(history_of(trials), "uniform", batch_size=6, seeds=1)
    trials[:4] = G
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replay(history_of(trials), "uniform", batch_size=6, seeds=1)  # half of them only
        replay(history_of(trials), "uniform", batch_size=5, seeds=1)  # a sixth of what was recorded is left out


def test_prompts_without_a_record_in_the_visits_that_are_replayed_are_not_kept() -> None:
    trials = torch.zeros(4, 5, dtype=torch.int64)
    for step, seen in enumerate(([0, 1], [1, 2], [3], [3, 4])):
        trials[step, seen] = G
    history = history_of(trials)
    found = replay(history, "uniform", batch_fraction=1.0, seeds=1, visits=2)
    assert (found.num_prompts, found.batch_size) == (3, 3)
    assert found["uniform"].runs[0].coverage == 1
    with pytest.raises(ValueError, match="visits = 1: the first steps have no record of the prompts that are kept"):
        replay(history_of(trials[:, [0, 3]]), "uniform", seeds=1, visits=1, min_visits=2)


def test_where_prompts_were_seen_now_and_then_all_is_kept() -> None:
    trials = torch.zeros(6, 8, dtype=torch.int64)
    for step, seen in enumerate(([0, 1, 2], [], [3, 4], [0, 5], [1], [2, 3, 6])):
        trials[step, seen] = G
    history = history_of(trials)
    offered: list[set[int]] = []
    learned: list[set[int]] = []

    class Spy(PromptSelector):
        def select(self, candidates: Any = None, batch_size: int | None = None) -> torch.Tensor:
            offered.append(set(candidates.nonzero()[:, 0].tolist()))
            return super().select(candidates, batch_size)

        def update(self, index: Any = None, *rest: Any, **counts: Any) -> None:
            learned.append(set(index.tolist()))
            assert (counts["trials"] == G).all()
            super().update(index, *rest, **counts)

    def spy(num_prompts: int, batch_size: int, seed: int) -> PromptSelector:
        plain = bp.recipes.mopps(num_prompts=num_prompts, batch_size=batch_size, seed=seed)
        return Spy(plain.posterior, plain.acquisition, batch_size, seed)

    found = replay(history, {"spy": spy}, batch_size=2, seeds=1, first_visit=0)
    # The prompt that was never seen is not kept, and the step without records is left out.
    assert (found.num_prompts, found.visits) == (7, 5)
    assert offered == [{0, 1, 2}, {3, 4}, {0, 5}, {1}, {2, 3, 6}]
    assert [len(picked) for picked in learned] == [2, 2, 2, 1, 2]
    assert all(picked <= seen for picked, seen in zip(learned, offered, strict=True))
    (run,) = found["spy"].runs
    successes, of = rows(history)
    informative = (successes > 0) & (successes < of)
    oracle = [min(size, informative[step].sum()) / size for step, size in ((0, 2), (2, 2), (3, 2), (4, 1), (5, 2))]
    assert run.oracle == pytest.approx(oracle)
    assert sum(each.count for each in run.bins) == int((trials > 0).sum())


def test_group_sizes_that_differ_are_judged_each_by_its_own() -> None:
    trials = torch.tensor([[2, 8, 16]] * 2)
    history = history_of(trials)
    (run,) = replay(history, "mopps", batch_size=1, seeds=1, first_visit=0, visits=1)["mopps"].runs
    # Under a uniform rate, mixed has probability 1 - 2 / (n + 1).
    chance = 1 - 2 / (trials[0].double().numpy() + 1)
    successes, of = rows(history)
    mixed = (successes[0] > 0) & (successes[0] < of[0])
    assert run.log_loss == pytest.approx(-np.log(np.where(mixed, chance, 1 - chance)).mean(), rel=1e-6)


def test_visits_before_the_first_are_not_judged() -> None:
    history = dense(6, 10)
    for first, judged in ((0, 6), (4, 2), (6, 0), (99, 0)):
        (run,) = replay(history, "uniform", seeds=1, first_visit=first)["uniform"].runs
        assert sum(each.count for each in run.bins) == 10 * judged
        assert math.isnan(run.log_loss) == (judged == 0)


# What is known beside the history


def test_texts_and_groups_follow_the_prompts_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[Any] = []

    def recipe(*, num_prompts: int, batch_size: int, seed: int, texts: Any, groups: Any, prior_rates: Any) -> Any:
        noted.append((texts, groups, prior_rates.tolist()))
        return bp.recipes.uniform(num_prompts=num_prompts, batch_size=batch_size, seed=seed)

    monkeypatch.setattr(bp.recipes, "some_recipe", recipe, raising=False)
    trials = torch.full((4, 5), G)
    trials[:, [1, 3]] = 0
    texts, rates = np.array(["a", "b", "c", "d", "e"]), [0.0, None, 0.25, 0.75, 1.0]
    replay(history_of(trials), "some_recipe", seeds=1, texts=texts, groups=[5, 6, 7, 8, 9], prior_rates=rates)
    assert noted == [(["a", "c", "e"], [5, 7, 9], [0.0, 0.25, 1.0])]


def test_embeddings_reach_gps() -> None:
    history, features = dense(3, 12), np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    (run,) = replay(history, "gps:diversity=0", batch_size=3, seeds=1, embeddings=features).methods[0].runs
    assert len(run.ratio) == 3
    with pytest.raises(ValueError, match="method 'gps': give texts or embeddings"):
        replay(history, "gps", seeds=1)


# Arguments


def test_progress_is_told() -> None:
    heard: list[tuple[str, int, int]] = []
    replay(dense(3, 10), ["uniform", "dps"], seeds=2, progress=lambda *told: heard.append(told))
    assert heard == [(name, done, 6) for name in ("uniform", "dps") for done in range(1, 7)]
    replay(dense(3, 10), "uniform", seeds=1, progress=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batch_size": 11}, ValueError, r"batch_size must lie in \[1, 10\]; got 11"),
        ({"batch_fraction": 0}, ValueError, r"batch_fraction must lie in \(0, 1\]; got 0"),
        ({"batch_fraction": math.nan}, ValueError, r"batch_fraction must"),
        ({"seeds": 0}, ValueError, "seeds must be at least 1; got 0"),
        ({"seeds": []}, ValueError, "seeds must be distinct, and at least one"),
        ({"seeds": [1, 1]}, ValueError, "seeds must be distinct, and at least one"),
        ({"seeds": [0, -1]}, ValueError, r"seeds\[1\] must lie in"),
        ({"visits": 4}, ValueError, r"visits must lie in \[1, 3\]; got 4"),
        ({"min_visits": 4}, ValueError, "min_visits = 4 keeps no prompt; the most records of one are 3"),
        ({"first_visit": -1}, ValueError, "first_visit must be at least 0; got -1"),
        ({"texts": ["a"]}, ValueError, "texts must have 10 entries, one for each prompt; got 1"),
        ({"groups": "abcdefghij"}, TypeError, "groups must be a sequence"),
        ({"embeddings": np.zeros((3, 2))}, ValueError, r"embeddings must have shape \(10, D\)"),
        ({"texts": ["a"] * 10, "embeddings": np.zeros((10, 2))}, ValueError, "give texts or embeddings"),
        ({"methods": "dps:decay=7"}, ValueError, "method 'dps:decay=7': decay must lie in"),
        ({"methods": "dps:dekay=7"}, TypeError, "method 'dps:dekay=7': recipes have no option 'dekay'"),
        ({"methods": {"mine": lambda **_: 3}}, TypeError, "method 'mine' must give a PromptSelector of 10 prompts"),
        ({"progress": 3}, TypeError, "progress must be a bool or a function; got int"),
        ({"history": 3}, TypeError, "history must be a History; got int"),
        ({"history": History(None, torch.ones(1, 1, dtype=torch.int64))}, ValueError, "there is nothing to replay"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        replay(**{"history": dense(3, 10), "methods": "uniform", "seeds": 1, **change})


def test_a_selector_that_was_used_before_is_refused() -> None:
    kept = bp.recipes.mopps(num_prompts=10, batch_size=1)
    with pytest.raises(ValueError, match="mine with seed 1 and mine with seed 0 share a posterior"):
        replay(dense(3, 10), {"mine": lambda **_: kept}, seeds=2)
    kept, heard = bp.recipes.mopps(num_prompts=10, batch_size=1), []
    twice = {"one": lambda **_: kept, "other": lambda **_: kept}
    with pytest.raises(ValueError, match="other and one share a posterior"):
        replay(dense(3, 10), twice, seeds=1, progress=lambda *told: heard.append(told))
    assert not heard and kept.posterior.step == 0


def test_a_mistake_in_the_last_method_is_told_before_the_first_is_replayed() -> None:
    heard: list[Any] = []
    with pytest.raises(ValueError, match="decay"):
        replay(dense(3, 10), ["uniform", "dps:decay=7"], seeds=1, progress=lambda *told: heard.append(told))
    assert not heard
