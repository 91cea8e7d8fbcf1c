"""Memory: what an object holds, what a call needs beside it, and what is free."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PROCESS = Path("/proc/self")
_LEAVES = (str, bytes, int, float, complex, type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)


@dataclass(frozen=True)
class Held:
    """Bytes in the tensors and arrays that an object holds. state: floating-point. bookkeeping: integers and flags."""

    state: int
    bookkeeping: int

    @classmethod
    def by(cls, thing: object) -> Held:
        """Of everything that can be reached through attributes and containers, each storage counted once."""
        sizes = {True: 0, False: 0}
        for _, floating, size in storages(thing):
            sizes[floating] += size
        return cls(sizes[True], sizes[False])


def storages(thing: object) -> Iterator[tuple[str, bool, int]]:
    """(path, whether floating-point, bytes) of every storage that `thing` holds, under the first path that leads there.

    A tensor of any shape counts as the storage that it is a view of. What a function closes over is not looked at.
    """
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", thing)]
    keep = []  # objects made on the way: an id means something only while its object lives
    while waiting:
        path, value = waiting.pop()
        if value is None or isinstance(value, _LEAVES) or id(value) in seen:
            continue
        seen.add(id(value))
        keep.append(value)
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            if storage.nbytes() and (key := -storage.data_ptr()) not in seen:
                seen.add(key)
                yield path, value.is_floating_point(), storage.nbytes()
        elif isinstance(value, np.ndarray):
            owner: Any = value
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            if (key := -owner.ctypes.data) not in seen:
                seen.add(key)
                yield path, value.dtype.kind == "f", owner.nbytes
        elif isinstance(value, Mapping):
            waiting += [(f"{path}[{name!r}]", item) for name, item in value.items()]
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += [(f"{path}[{place}]", item) for place, item in enumerate(value)]
        else:
            slots = [name for base in type(value).__mro__ for name in getattr(base, "__slots__", ())]
            named = {name: getattr(value, name, None) for name in slots} | getattr(value, "__dict__", {})
            waiting += [(f"{path}.{name}", item) for name, item in named.items()]


def peak_over_rest(call: Callable[[], object], device: str) -> int | None:
    """Bytes by which the memory in use rises, at most, during a call; None where the system does not tell.

    On a CUDA device what torch allocated; else the resident memory of the process, whose high-water mark is set back
    first. Memory that was freed and not given back would hide a rise, so it is given back before.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        rest = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - rest
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    try:
        (_PROCESS / "clear_refs").write_text("5")
        rest = _resident("VmRSS")
        call()
        return max(0, _resident("VmHWM") - rest)
    except OSError:
        return None


def available(device: str) -> int:
    """Bytes that can still be allocated on the device."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    free = _field(Path("/proc/meminfo"), "MemAvailable")
    with contextlib.suppress(OSError, ValueError):  # no limit, or none that is told in this way
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        cached = _field(group / "memory.stat", "inactive_file", unit=1)
        free = min(free, limit - used + cached)
    return free


def _resident(name: str) -> int:
    return _field(_PROCESS / "status", name)


def _field(file: Path, name: str, unit: int = 1024) -> int:
    for line in file.read_text().splitlines():
        if line.replace(":", " ").split()[0] == name:
            return unit * int(line.replace(":", " ").split()[1])
    raise OSError(f"{file.name} has no {name}")
