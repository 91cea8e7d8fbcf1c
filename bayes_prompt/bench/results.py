"""What a run came to, the ratios that its verdicts allow, and both as JSON."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bayes_prompt.bench.cases import COPY, GRAPH, OURS
from bayes_prompt.bench.machine import Commit, CopyBandwidth, Machine, versions
from bayes_prompt.bench.measure import Seconds
from bayes_prompt.bench.memory import Held
from bayes_prompt.bench.verify import Verdict
from bayes_prompt.files import whole

FORMAT = "bayes-prompt bench 1"
_COUNTED = (OURS, GRAPH, COPY)  # whose bytes are known


@dataclass(frozen=True)
class Measurement:
    """One implementation of an operation at one N.

    bytes_moved: what ours reads and writes, by count; of the others what the copy beside them does. share_of_copy: of
    ours and the copy, those bytes in the median time as a share of the machine's best copy bandwidth (above 1 where
    caches hold the state). times_copy: the median over the fastest copy beside it. times_ours: the median over ours.
    Ratios are None where a check failed or where their other half is absent. peak: bytes over the resting state while
    it runs, None where that is not known.
    """

    operation: str
    setting: str
    prompts: int
    implementation: str
    seconds: Seconds
    bytes_moved: int
    peak: int | None
    held: Held
    share_of_copy: float | None = None
    times_copy: float | None = None
    times_ours: float | None = None

    @property
    def group(self) -> tuple[str, str, int]:
        """What is compared with one another."""
        return self.operation, self.setting, self.prompts


@dataclass(frozen=True)
class LeftOut:
    """What was not measured, and why."""

    operation: str
    setting: str
    prompts: int
    implementation: str
    reason: str


@dataclass(frozen=True)
class Results:
    """A whole run. backend: of our kernels. budget: seconds a case. date: in UTC, to the second."""

    machine: Machine
    copy: CopyBandwidth
    backend: str
    budget: float
    commit: Commit | None = field(default_factory=Commit.here)
    versions: dict[str, str] = field(default_factory=versions)
    date: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    verdicts: tuple[Verdict, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def failures(self) -> list[Verdict]:
        """The checks that failed."""
        return [verdict for verdict in self.verdicts if not verdict.passed]

    @property
    def file_name(self) -> str:
        """Of device, versions and commit: another run of the same replaces the file."""
        parts = [self.machine.device, f"{self.machine.threads} threads" if self.machine.kind == "cpu" else ""]
        parts += [f"torch {self.versions.get('torch', '')}"]
        if self.machine.kind == "cuda":
            parts += [f"triton {self.versions.get('triton', '')}"]
        else:
            parts += [f"numba {self.versions.get('numba', '')}"]
        if self.commit is None:
            parts += [f"version {self.versions['bayes-prompt']}"]
        else:
            parts += [self.commit.id[:10], "dirty" if self.commit.dirty else ""]
        return (
            "-".join(filter(None, (re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-") for part in parts))) + ".json"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries; `from_json` reads them."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Results:
        """What `to_json` gave; ValueError for another format."""
        if data.get("format") != FORMAT:
            raise ValueError(f"format must be {FORMAT!r}; got {data.get('format')!r}")
        given = {name: value for name, value in data.items() if name != "format"}
        given["machine"], given["copy"] = Machine(**given["machine"]), CopyBandwidth(**given["copy"])
        given["commit"] = None if given["commit"] is None else Commit(**given["commit"])
        given["verdicts"] = tuple(Verdict(**each) for each in given["verdicts"])
        given["left_out"] = tuple(LeftOut(**each) for each in given["left_out"])
        given["measurements"] = tuple(
            Measurement(**{**each, "seconds": Seconds(**each["seconds"]), "held": Held(**each["held"])})
            for each in given["measurements"]
        )
        return cls(**given)


def compared(
    measurements: Sequence[Measurement], verdicts: Sequence[Verdict], copy: CopyBandwidth
) -> tuple[Measurement, ...]:
    """The measurements with their ratios, worked out within each group.

    No ratio is given to what disagreed with the reference or was not checked, and none to anyone over ours where ours
    did. The copy needs no check.
    """
    passed = {(verdict.operation, verdict.implementation) for verdict in verdicts if verdict.passed}
    passed |= {(each.operation, COPY) for each in measurements}
    by_name = {(*each.group, each.implementation): each for each in measurements}
    found = []
    for each in measurements:
        plain = replace(each, share_of_copy=None, times_copy=None, times_ours=None)
        if (each.operation, each.implementation) in passed:
            beside, ours = by_name.get((*each.group, COPY)), by_name.get((*each.group, OURS))
            trusted = ours is not None and (each.operation, OURS) in passed
            median = each.seconds.median
            plain = replace(
                plain,
                share_of_copy=each.bytes_moved / median / copy.best if each.implementation in _COUNTED else None,
                times_copy=median / beside.seconds.fastest if beside else None,
                times_ours=median / ours.seconds.median if ours and trusted else None,
            )
        found.append(plain)
    return tuple(found)


def write(results: Results, folder: Path) -> Path:
    """Write a run into the folder, whole or not at all, under its own name; returns the path."""
    path = folder / results.file_name
    with whole(path) as scratch:
        scratch.write_text(json.dumps(results.to_json(), indent=1) + "\n")
    return path


def load(folder: Path) -> list[Results]:
    """Every run in the folder, oldest first. JSON of other formats is passed over."""
    files = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    ours = [data for data in files if isinstance(data, dict) and data.get("format") == FORMAT]
    return sorted(map(Results.from_json, ours), key=lambda results: results.date)
