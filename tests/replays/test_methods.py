"""Methods by name, with options."""

from __future__ import annotations

from typing import Any

import pytest

import bayes_prompt as bp
from bayes_prompt.replays.methods import factories, known, split


def test_every_recipe_is_known() -> None:
    assert {"uniform", "history_resampling", "mopps", "dps", "gps"} <= known().keys()
    assert all(value is getattr(bp.recipes, name) for name, value in known().items())


def test_options_arrive() -> None:
    made = factories(["dps:decay=0.25:entropy_weight=1", "mopps: decay = 1", "uniform"], {})
    assert list(made) == ["dps:decay=0.25:entropy_weight=1", "mopps: decay = 1", "uniform"]
    dps, mopps, _ = (make(num_prompts=6, batch_size=2, seed=1) for make in made.values())
    twin = bp.recipes.dps(num_prompts=6, batch_size=2, seed=1, decay=0.25, entropy_weight=1)
    assert repr(dps.acquisition) == repr(twin.acquisition) != repr(bp.acquisition.PartialProbability())
    assert dps.posterior.state_dict()["model"] == twin.posterior.state_dict()["model"]
    assert mopps.posterior.state_dict()["model"] != dps.posterior.state_dict()["model"]
    assert factories("dps", {}).keys() == {"dps"}


def test_values_are_numbers_flags_or_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[dict[str, Any]] = []

    def recipe(*, num_prompts: int, batch_size: int, seed: int = 0, groups: Any = None, **options: Any) -> None:
        noted.append({"groups": groups, **options})

    monkeypatch.setattr(bp.recipes, "some_recipe", recipe, raising=False)
    text = "some_recipe:a=1:b=0.5:c=True:d=None:e=word:f='1'"
    factories([text], {"groups": [1], "texts": ["x"]})[text](num_prompts=1, batch_size=1, seed=0)
    # It takes groups, and has no use for texts.
    assert noted == [{"groups": [1], "a": 1, "b": 0.5, "c": True, "d": None, "e": "word", "f": "1"}]


def test_options_are_asked_for_in_place_of_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[Any] = []

    def recipe(*, num_prompts: int, batch_size: int, seed: int = 0, num_steps: int | None = None) -> None:
        noted.append(num_steps)

    monkeypatch.setattr(bp.recipes, "some_recipe", recipe, raising=False)
    for made in factories(["some_recipe", "some_recipe:num_steps=None"], {"num_steps": 7}).values():
        made(num_prompts=1, batch_size=1, seed=0)
    assert noted == [7, None]
    bp.recipes.dps(num_prompts=3, batch_size=1)  # has no use for it
    factories("dps", {"num_steps": 7})["dps"](num_prompts=3, batch_size=1, seed=0)


def test_marks_within_brackets_are_of_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a:b=[1, 2]:c={'d': (3, 4)}, e ,f:g=]:h=1,"
    assert split(text, ",") == ["a:b=[1, 2]:c={'d': (3, 4)}", "e", "f:g=]:h=1", ""]
    noted: list[Any] = []
    monkeypatch.setattr(
        bp.recipes, "some", lambda num_prompts, batch_size, seed, **options: noted.append(options), raising=False
    )
    (name, *_) = split(text.replace("a:", "some:"), ",")
    factories([name], {})[name](num_prompts=1, batch_size=1, seed=0)
    assert noted == [{"b": [1, 2], "c": {"d": (3, 4)}}]


def test_functions_by_name() -> None:
    made = factories({"mine": bp.recipes.dps, "slow": "dps:decay=1"}, {})
    assert made["mine"] is bp.recipes.dps
    assert made["slow"](num_prompts=3, batch_size=1, seed=0).num_prompts == 3


@pytest.mark.parametrize(
    ("methods", "error", "message"),
    [
        ([], ValueError, "methods must name at least one"),
        (["dsp"], ValueError, "method 'dsp' is no recipe; choose among uniform, "),
        (["dps", "dps"], ValueError, "methods has 'dps' twice"),
        (["dps:decay"], ValueError, "options must be written like dps:decay=0.5, each once; got 'dps:decay'"),
        (["dps:decay="], ValueError, "options must be written like"),
        (["dps:=1"], ValueError, "options must be written like"),
        (["dps:decay=1:decay=1"], ValueError, "options must be written like"),
        ([3], TypeError, "methods must be names of recipes, or functions by name; got 3: 3"),
        ({"mine": 3}, TypeError, "methods must be names of recipes, or functions by name; got 'mine': 3"),
    ],
)
def test_bad_methods_are_named(methods: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        factories(methods, {})
