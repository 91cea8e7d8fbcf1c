"""Recorded training replayed: the published methods give the figures that others measured for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import scipy.stats

from bayes_prompt.history import History
from bayes_prompt.replays.protocol import replay
from bayes_prompt.replays.results import Figure, ReplayResults

SEEDS = 5
# Of an independent implementation, over five seeds of its own. Of the tables, all that is told of P(informative) too.
ONE_SHOT = {
    "uniform": {"effective_sample_ratio": 0.508, "second_half": 0.500, "coverage": 0.995},
    "dps:decay=0.5": {"effective_sample_ratio": 0.862, "second_half": 0.890, "log_loss": 0.719, "auc": 0.62},
    "dps:decay=0.9": {"effective_sample_ratio": 0.825, "second_half": 0.837, "log_loss": 0.705},
    "mopps:decay=0.5": {"effective_sample_ratio": 0.802, "second_half": 0.865, "log_loss": 0.589, "auc": 0.80},
    "mopps:decay=1": {"effective_sample_ratio": 0.820, "second_half": 0.892, "log_loss": 0.605, "auc": 0.80},
}
SMALL_GRPO = {"dps:decay=0.5": 0.458, "dps:decay=0.9": 0.519, "mopps:decay=1": 0.418}
LEVEL = 0.01  # chance that a comparison rejects two figures of the same; a lower one says little with five seeds


def within(figure: Figure, published: float, digits: int) -> bool:
    """Whether two means over five seeds, of which one tells its error, may be of the same: Student's t and rounding."""
    allowed = float(scipy.stats.t.ppf(1 - LEVEL / 2, SEEDS - 1)) * 2**0.5 * figure.error
    return abs(figure.mean - published) <= allowed + 0.5 * 10**-digits


@pytest.fixture(scope="module")
def one_shot(shared: Path) -> ReplayResults:
    """With no more said than the methods: the protocol's 675 prompts, 50 visits, a tenth picked, five seeds."""
    history = History.read(shared / "data" / "one_shot_rlvr_histories.parquet")
    found = replay(history, list(ONE_SHOT))
    assert (found.num_prompts, found.visits, found.batch_size) == (675, 50, 68)
    return found


@pytest.mark.parametrize("name", ONE_SHOT)
def test_one_shot_rlvr(one_shot: ReplayResults, name: str) -> None:
    figures = one_shot[name].figures
    # What has to be shown: within .01.
    assert figures["effective_sample_ratio"].mean == pytest.approx(ONE_SHOT[name]["effective_sample_ratio"], abs=0.01)
    for figure, published in ONE_SHOT[name].items():
        assert within(figures[figure], published, 2 if figure == "auc" else 3), (figure, figures[figure], published)


def test_small_grpo(shared: Path) -> None:
    history = History.read(shared / "data" / "small_grpo_histories.parquet")
    found = replay(history, list(SMALL_GRPO), batch_size=64, seeds=SEEDS)
    assert (found.num_prompts, found.visits) == (1536, 120)
    for name, published in SMALL_GRPO.items():
        figure = found[name].figures["effective_sample_ratio"]
        assert within(figure, published, 3), (name, figure, published)
