"""Where results are written: a folder that is tried before the work begins, and files that are whole or not there."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_DAY = 86400.0
_TRIES = 100
_WRITING = ".writing-"


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
        with _scratch(target) as trial:
            trial.write_bytes(b"is there room?")
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
    """A file beside `path` to write to, in place: renamed to `path` when the block ends well, removed when it does not.

    Where `path` is a link, what it leads to is written. What killed writers of this file left behind goes.
    """
    path = Path(os.path.realpath(path))
    remove_leftovers(path)
    with _scratch(path) as scratch:
        yield scratch
        scratch.replace(path)


@dataclass
class Spare:
    """A file as it was, under another name. kept: whether it stays there."""

    path: Path
    name: Path
    kept: bool = False

    def remove(self) -> None:
        """Remove the other name, unless it is kept."""
        if not self.kept:
            self.name.unlink(missing_ok=True)

    def put_back(self) -> None:
        """Rename it back. Where that fails, OSError says under which name it is kept, and the caller sees to it."""
        try:
            self.name.replace(self.path)
        except OSError as error:
            self.kept = True
            name = self.name.with_name(self.name.name.removeprefix(_WRITING))  # not a name of what killed writers left
            with suppress(OSError):
                os.rename(self.name, name)
                self.name = name
            reason = f"{error.strerror or error}; the file as it was is {str(self.name)!r}, and is not put back"
            raise OSError(error.errno, reason, str(self.path)) from error


@contextmanager
def spare(path: Path) -> Iterator[Spare]:
    """Another name of a file, gone when the block ends, to put it back from after `whole` took its place.

    It takes no room, except where the system has no second names: there it is a copy.
    """
    with ExitStack() as stack:
        _lock(stack.enter_context(open(path, "r+b")))
        old = Spare(path, _beside(path))
        stack.callback(old.remove)
        try:
            os.link(path, old.name)
        except OSError:
            old.name = Path(stack.enter_context(closing(_created(path))).name)
            shutil.copy(path, old.name)
            sync(old.name)
        yield old


def remove_leftovers(path: Path) -> None:
    """Remove what `whole` and `spare` of this file left behind in processes that were killed.

    A living process holds a lock of what it writes. Not every network tells other machines of locks: what comes from
    another one goes if nobody has written to it for a day, and so does what earlier versions left, which took no
    locks. Where the system has no locks, all of it stays.
    """
    anywhere, here = _start(path), _start(path, here=True)
    earlier = re.compile(re.escape(_WRITING) + r"\d+-(\d+-)?" + re.escape(path.name))
    with suppress(OSError):
        for name in os.listdir(path.parent):
            if name.startswith(anywhere) or earlier.fullmatch(name):
                with suppress(OSError), open(path.with_name(name), "r+b") as file:  # locks over a network want "+"
                    ours = name.startswith(here)
                    if (ours or time.time() - os.fstat(file.fileno()).st_mtime > _DAY) and _lock(file):
                        path.with_name(name).unlink()


def sync(path: Path) -> None:
    """What was written to a file reaches the disk."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """New names in a folder reach the disk too; not every system lets a folder be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """An empty file beside `path`, locked while the block runs, and then removed if it is there still."""
    with suppress(FileNotFoundError):
        os.lstat(path)  # a name that is too long is told now, not when the work is done
    with closing(_created(path)) as file:
        scratch = Path(file.name)
        try:
            yield scratch
        finally:
            scratch.unlink(missing_ok=True)


def _created(path: Path) -> IO[bytes]:
    """A new file beside `path`, locked; closed where nobody has locks, for there no open file is renamed (Windows)."""
    for _ in range(_TRIES):
        file = _beside(path).open("x+b")
        if fcntl is None:
            file.close()
            return file
        if _lock(file) is not False and os.path.exists(file.name):
            return file
        file.close()  # `remove_leftovers` of another process came between
        Path(file.name).unlink(missing_ok=True)
    raise OSError(f"a new file beside {str(path)!r} could not be locked {_TRIES} times: others always had the lock")


def _lock(file: IO[bytes]) -> bool | None:
    """Lock a file until it is closed; False where somebody else has it locked, None where the system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _beside(path: Path) -> Path:
    """A new name: short, for `path` may have the longest that there is, and with its ending, which tells the format."""
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= 16 else ""
    return path.with_name(f"{_start(path, here=True)}{os.urandom(8).hex()}{suffix}")


def _start(path: Path, here: bool = False) -> str:
    """How such names of this file begin; here: those given on this machine."""
    of, host = (hashlib.sha256(os.fsencode(each)).hexdigest() for each in (path.name, platform.node()))
    return f"{_WRITING}{of[:16]}-" + (f"{host[:8]}-" if here else "")
