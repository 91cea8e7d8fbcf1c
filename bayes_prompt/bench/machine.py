"""What the figures depend on: the device and how fast it copies, the versions, the commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

import bayes_prompt as bp
from bayes_prompt.bench.measure import Seconds, seconds_of

PACKAGES = ("torch", "triton", "numba", "numpy")
_COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}  # bytes: more than any cache holds


@dataclass(frozen=True)
class Machine:
    """device: its name. kind: "cpu" or "cuda". cores: that the process may use. threads: torch's. memory: bytes.

    load: the load average of the minute before; other work takes its share where it is above 0.
    """

    device: str
    kind: str
    cores: int
    threads: int
    memory: int
    load: float

    @classmethod
    def here(cls, kind: str) -> Machine:
        """This machine, for work on the CPU or on the CUDA device."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if kind == "cuda":
            properties = torch.cuda.get_device_properties(torch.cuda.current_device())
            name, memory = properties.name, properties.total_memory
        else:
            name, memory = _processor(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(name, kind, cores, torch.get_num_threads(), memory, round(os.getloadavg()[0], 2))


@dataclass(frozen=True)
class Commit:
    """The commit that is checked out. dirty: whether files differ from it, results and docs apart."""

    id: str
    dirty: bool

    @classmethod
    def here(cls) -> Commit | None:
        """That of the checkout which this package lies in; None for an installed package, or without git."""
        root = Path(__file__).resolve().parents[2]
        if not (root / ".git").exists():
            return None
        try:
            identity = _git(root, "rev-parse", "HEAD")
            changed = _git(root, "status", "--porcelain", "--", ".", ":!benchmarks/results", ":!docs")
        except (OSError, subprocess.SubprocessError):
            return None
        return cls(identity, bool(changed))


@dataclass(frozen=True)
class CopyBandwidth:
    """How fast torch copies a tensor that no cache holds. size: bytes of it. Bytes a second, read and written counted.

    threads: one, or all of torch's, whichever was faster.
    """

    size: int
    threads: int
    median: float
    best: float

    @classmethod
    def here(cls, device: str, size: int | None = None, rounds: int = 15) -> CopyBandwidth:
        """Measured now, on "cpu" or "cuda"."""
        size = _COPIED[device] if size is None else size
        source = torch.ones(size // 4, device=device)
        target = torch.empty_like(source)
        found = []
        for threads in {1, torch.get_num_threads()} if device == "cpu" else {torch.get_num_threads()}:
            with _threads(threads):
                times = [seconds_of(lambda: target.copy_(source), device) for _ in range(rounds + 2)][2:]
            taken = Seconds.of(times)
            found.append(cls(size, threads, 2 * size / taken.median, 2 * size / taken.fastest))
        return max(found, key=lambda each: each.best)


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that do the work, as far as they are installed."""
    found = {"python": platform.python_version(), "bayes-prompt": bp.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def _git(root: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
