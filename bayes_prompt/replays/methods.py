"""Ways of choosing prompts that a replay is asked for: recipes by name, or functions of one's own."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from bayes_prompt import recipes
from bayes_prompt.selector import PromptSelector

#: Called with num_prompts, batch_size and seed, by name; gives a selector.
Factory: TypeAlias = Callable[..., PromptSelector]
#: Names of recipes with options, or names of one's own and what they stand for.
Methods: TypeAlias = str | Sequence[str] | Mapping[str, str | Factory]


def known() -> dict[str, Factory]:
    """The recipes, by name."""
    found: dict[str, Factory] = {}
    for name, value in vars(recipes).items():
        if inspect.isfunction(value) and not name.startswith("_"):
            parameters = inspect.signature(value).parameters
            if {"num_prompts", "batch_size", "seed"} <= parameters.keys():
                found[name] = value
    return found


def split(text: str, mark: str) -> list[str]:
    """The parts of a text between marks, without spaces around them; a mark within brackets is none."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == mark and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def factories(methods: Methods, sides: Mapping[str, Any]) -> dict[str, Factory]:
    """The methods by name, in the order given, each a function of num_prompts, batch_size and seed.

    Args:
        methods: see `Methods`. A name is that of a recipe, with options behind colons: "dps:decay=0.5", or
            "gps:optimism=0:diversity=0".
        sides: texts, embeddings, groups or prior_rates of the prompts that are replayed, and num_steps, the number of
            steps; a recipe gets those that it takes, unless an option says otherwise.

    Raises:
        ValueError: no method, one twice, a name that no recipe has, or options that are not written like that.
        TypeError: something else than names and functions.
    """
    if isinstance(methods, str):
        methods = [methods]
    pairs = list(methods.items()) if isinstance(methods, Mapping) else [(each, each) for each in methods]
    if not pairs:
        raise ValueError("methods must name at least one; got none")
    found: dict[str, Factory] = {}
    for name, method in pairs:
        if not isinstance(name, str) or not (isinstance(method, str) or callable(method)):
            raise TypeError(f"methods must be names of recipes, or functions by name; got {name!r}: {method!r}")
        if name in found:
            raise ValueError(f"methods has {name!r} twice")
        found[name] = _recipe(method, sides) if isinstance(method, str) else method
    return found


def _recipe(text: str, sides: Mapping[str, Any]) -> Factory:
    """A recipe with its options, and with what is known of the prompts as far as it asks for it."""
    name, *written = split(text, ":")
    known_ = known()
    if name not in known_:
        raise ValueError(f"method {name!r} is no recipe; choose among {', '.join(known_)}")
    options: dict[str, Any] = {}
    for part in written:
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not option.isidentifier() or not value or option in options:
            raise ValueError(f"options must be written like {name}:decay=0.5, each once; got {text!r}")
        options[option] = _value(value)
    takes = inspect.signature(known_[name]).parameters.keys() | recipes.Options.__optional_keys__
    beside = {side: value for side, value in sides.items() if side in takes}

    def make(**sizes: int) -> PromptSelector:
        return known_[name](**sizes, **beside | options)

    return make


def _value(text: str) -> Any:
    """A number, True, False, None, or else a string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
