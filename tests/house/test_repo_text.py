"""What must not stand in the repository's text: places on somebody's machine, package registries, work in progress."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

FORBIDDEN = {
    "absolute path": r"(?<![\w.~-])/(?:work|root|home|Users|tmp|opt|mnt|srv)/\w",
    "registry host": r"\b(?:pypi|pythonhosted|npmjs|debian)\.(?:org|com)\b|\bdownload\.pytorch\.org\b",
    "issue number": r"(?i)\b(?:issue|pull request|session) ?#?\d+|(?<![\w&/#])#\d+\b",
    "unfinished work": r"\b(?:TO[D]O|FIX[M]E|XX[X]|NotImplemented[E]rror)\b|\bx[f]ail\b",
    "merge conflict": r"^(?:<{7}|>{7})",
    "trailing space": r"[ \t]+$",
}
SPARED = {"LICENSE"}


@pytest.fixture(scope="module")
def files(root: Path) -> list[Path]:
    """The files that are in the repository or about to be; in a copy without git, all that git would not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git repository")
    return [root / name for name in listed if name and (root / name).is_file()]


def lines(file: Path) -> Iterator[tuple[int, str]]:
    try:
        yield from enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
    except UnicodeDecodeError:
        return  # a picture or a table


@pytest.mark.parametrize("what", FORBIDDEN)
def test_text(root: Path, files: list[Path], what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    places = [
        f"{file.relative_to(root)}:{number}: {line.strip()[:100]}"
        for file in files
        if file.name not in SPARED
        for number, line in lines(file)
        if pattern.search(line)
    ]
    assert not places, "\n".join(places)


@pytest.mark.parametrize(
    ("what", "bad", "good"),
    [
        ("absolute path", "see /" + "home/me/x", "a/home/x, https://x.org/home/y, /workspace"),
        ("absolute path", "in /" + "tmp/x", "a/tmp/x, /tmpfs"),
        ("registry host", "at pypi" + ".org", "pypi"),
        ("registry host", "at download.pytorch" + ".org/whl", "pytorch.org"),
        ("issue number", "see issue " + "#" + "12", "an issue of 12 prompts"),
        ("issue number", "fixes " + "#" + "12", "&" + "#" + "12; a colour #a12b3c"),
        ("unfinished work", "# TO" + "DO later", "todos"),
    ],
)
def test_the_patterns(what: str, bad: str, good: str) -> None:
    assert re.search(FORBIDDEN[what], bad) and not re.search(FORBIDDEN[what], good)


def test_the_list_of_files_is_the_repository(root: Path, files: list[Path]) -> None:
    assert {root / "pyproject.toml", root / "Makefile", Path(__file__)} <= set(files)
    assert [file for file in files if ".venv" in file.parts or file.suffix in (".pyc", ".so")] == []
