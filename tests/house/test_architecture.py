"""ARCHITECTURE.md names every file and every method that has to be written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import bayes_prompt as bp
from bayes_prompt.acquisition import Acquisition


@pytest.fixture(scope="module")
def text(root: Path) -> str:
    return (root / "ARCHITECTURE.md").read_text()


def test_the_map_has_every_file(root: Path, text: str) -> None:
    rows = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    of_operations = {"reference.py", "cpu.py", "triton.py"}
    missing = [
        str(file.relative_to(root))
        for folder in ("bayes_prompt", "kernels")
        for file in (root / folder).rglob("*.py")
        if file.name not in {"__init__.py", *of_operations} and "testbed" not in file.parts
        if not re.search(rf"[`/]{file.name}`", rows)
    ]
    assert not missing, "\n".join(missing)


def test_the_testbed_maps_itself(root: Path) -> None:
    from bayes_prompt import testbed

    files = {file.stem for file in (root / "bayes_prompt" / "testbed").glob("*.py")} - {"__init__"}
    assert {name for name in files if f"`{name}`" not in (testbed.__doc__ or "")} == set()


@pytest.mark.parametrize("base", [bp.Posterior, bp.Emission, Acquisition], ids=lambda base: base.__name__)
def test_what_must_be_written_is_named(text: str, base: type) -> None:
    _, _, how = text.partition("## How to add")
    (paragraph,) = [part for part in how.split("\n\n") if f".{base.__name__}`" in part]
    missing = [name for name in base.__abstractmethods__ if not re.search(rf"`{name}[`(]", paragraph)]  # type: ignore[attr-defined]
    assert not missing, missing
