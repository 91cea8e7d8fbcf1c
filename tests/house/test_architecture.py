"""ARCHITECTURE.md names every file and every method that has to be written."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import bayes_prompt as bp
from bayes_prompt.acquisition import Acquisition, Objective

SELF_MAPPED = ("testbed/", "embedding/", "replays/", "simulate/", "fitting/")


@pytest.fixture(scope="module")
def text(root: Path) -> str:
    return (root / "ARCHITECTURE.md").read_text()


def test_the_map_has_every_file(root: Path, text: str) -> None:
    named = set()
    for row in (line for line in text.splitlines() if line.startswith("|")):
        folder = ""
        for name in re.findall(r"`([\w/<>]+\.py)`", row.split("|")[1]):
            before, _, file = name.rpartition("/")
            folder = before or folder  # the later names of a row are in the folder of the first
            named.add(f"{folder}/{file}" if folder else file)
    files = {str(path.relative_to(root / "bayes_prompt")) for path in (root / "bayes_prompt").rglob("*.py")}
    files |= {str(path.relative_to(root)) for path in (root / "kernels").rglob("*.py")}
    in_every_operation = {"reference.py", "cpu.py", "triton.py"}
    missing = [
        file
        for file in files - named
        if not file.endswith("__init__.py") and not file.startswith(SELF_MAPPED)
        if not (file.count("/") == 2 and file.split("/")[-1] in in_every_operation)
    ]
    assert not missing, "\n".join(missing)
    assert {name for name in named - files if "<operation>" not in name} == set()


@pytest.mark.parametrize("package", [folder.rstrip("/") for folder in SELF_MAPPED])
def test_some_packages_map_themselves(root: Path, package: str) -> None:
    told = importlib.import_module(f"bayes_prompt.{package}").__doc__ or ""
    files = {file.stem for file in (root / "bayes_prompt" / package).glob("*.py")} - {"__init__"}
    assert {name for name in files if f"`{name}`" not in told and f"`{name}.py`" not in told} == set()


@pytest.mark.parametrize("base", [bp.Posterior, bp.Emission, Acquisition, Objective], ids=lambda base: base.__name__)
def test_what_must_be_written_is_named(text: str, base: type) -> None:
    _, _, how = text.partition("## How to add")
    (paragraph,) = [part for part in how.split("\n\n") if f".{base.__name__}`" in part]
    missing = [name for name in base.__abstractmethods__ if not re.search(rf"`{name}[`(]", paragraph)]  # type: ignore[attr-defined]
    assert not missing, missing
