"""Where results are written: a folder that is tried before the work begins, and files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def writable_folder(path: str | os.PathLike[str], name: str = "out") -> Path:
    """The folder, made where it is missing, after a file in it was written and removed again.

    Raises ValueError, which calls it `name` and says why, when that cannot be done.
    """
    given = os.fspath(path)
    try:
        if not given:
            raise ValueError("the name is empty")
        folder = Path(given)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".trial-") as trial:
            trial.write(b"is there room?")
    except (OSError, ValueError) as error:  # a ValueError for a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{name} must be a folder in which files can be written; got {given!r} ({reason})") from error
    return folder


def writable_file(path: str | os.PathLike[str], name: str) -> None:
    """Try whether `whole` can write there, and make the folder; ValueError, which calls it `name`, where it cannot."""
    try:
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        trial = _scratch(target)
        trial.write_bytes(b"is there room?")
        trial.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{name} cannot be written ({reason})") from error


def default_cache() -> Path:
    """Where warm starts and embeddings are kept: $BAYES_PROMPT_CACHE, else bayes_prompt/ in the user's cache folder."""
    if given := os.environ.get("BAYES_PROMPT_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bayes_prompt"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write under: renamed to `path` when the block ends well, removed when it does not.

    Where `path` is a link, what it leads to is written.
    """
    path = Path(os.path.realpath(path))
    scratch = _scratch(path)
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """New names in a folder reach the disk too; not every system lets a folder be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _scratch(path: Path) -> Path:
    # The numbers of process and thread keep two writers apart, and the ending tells writers the format.
    return path.with_name(f".writing-{os.getpid()}-{threading.get_ident()}-{path.name}")
