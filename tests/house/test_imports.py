"""Who may import whom. Imports are read from the source, so that those in functions and branches are seen as well."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

# For each part of bayes_prompt, the parts it may import besides itself. The lowest come first; nothing imports upward.
MAY_IMPORT = {
    "kernels": set(),
    "errors": set(),
    "files": set(),
    "transfer": set(),
    "checkpoint": {"errors", "files"},
    "history_files": set(),
    "history_tables": set(),
    "history": {"errors", "checkpoint", "history_files", "history_tables"},
    "history_log": {"files"},
    "history_copies": {"history_files", "history_tables"},
    "command_line": {"files", "history", "history_files"},
    "labels": set(),
    "models": {"errors", "history", "checkpoint"},
    "recent": {"errors", "checkpoint"},
    "posteriors": {"errors", "checkpoint", "history", "kernels", "models", "transfer"},
    "fitting": {
        *("command_line", "errors", "files", "history", "labels", "models", "posteriors"),
        *("kernels.rng", "kernels.tally", "kernels.progress_filter"),
    },
    "embedding": {"files", "posteriors.checks"},
    "acquisition": {"errors", "kernels", "posteriors.base", "posteriors.checks"},
    "identities": {"errors"},
    "in_flight": {"errors", "transfer"},
    "metrics": {"errors", "checkpoint", "posteriors.base", "posteriors.checks"},
    "explanation": {"posteriors.base"},
    "selector_state": {"errors", "checkpoint", "posteriors.checks", "in_flight", "metrics", "recent"},
    "picking": {
        *("errors", "posteriors.base", "posteriors.checks", "acquisition", "kernels.shortlist"),
        *("in_flight", "recent", "transfer"),
    },
    "books": {"posteriors.base", "acquisition", "picking", "in_flight", "metrics", "recent", "transfer"},
    "observing": {"posteriors.base", "posteriors.checks", "books", "identities"},
    "selector": {
        *("checkpoint", "posteriors", "acquisition", "picking", "books", "observing"),
        *("identities", "metrics", "explanation", "selector_state"),
    },
    "recipes": {"errors", "labels", "models", "posteriors", "acquisition", "selector", "embedding"},
    "simulate": {
        "history",
        "kernels.rng",
        "models.checks",
        "models.seeding",
        "posteriors.checks",
        "selector",
        "recipes",
    },
    "recorder": {
        *("files", "history", "history_copies", "history_files", "history_log"),
        *("posteriors.base", "posteriors.checks", "selector"),
    },
    "replays": {"command_line", "files", "history", "posteriors.checks", "selector", "recipes"},
    "trainers": {"errors", "checkpoint", "history", "posteriors.checks", "selector", "recipes"},
    "testbed": {
        "command_line",
        "errors",
        "files",
        "checkpoint",
        "embedding",
        "history",
        "posteriors.checks",
        "models",
        "acquisition",
        "selector",
        "recipes",
        "trainers",
    },
    "bench": {"command_line", "kernels", "posteriors", "models", "acquisition", "selector", "recipes", "files"},
    "cli": {"testbed", "bench", "replays", "fitting"},
}
# The facade: importing names from it is what users do, and what code below it must not do.
FACADE_FOR = {"trainers", "testbed", "bench", "cli"}

# Packages that take long to import, and the modules (loaded when first used) that may import them at their top.
HEAVY = {
    "pyro": ("models.*", "recipes", "simulate", "simulate.*", "fitting.*"),
    "triton": ("kernels.*.triton", "kernels.*.triton_*", "kernels.rng_triton", "kernels.shortlist_triton"),
    "numba": ("kernels.*.cpu", "kernels.*.cpu_product", "kernels.rng_cpu", "kernels.threads", "kernels.instructions"),
    "trl": ("trainers.trl", "testbed.*"),
    "transformers": ("trainers.trl", "testbed.*"),
    "accelerate": ("trainers.trl", "testbed.*"),
    "datasets": ("trainers.trl", "testbed.*"),
    "torchdata": ("trainers.torch",),
    "matplotlib": ("testbed.*",),
    "pyarrow": ("testbed.*",),
    "rich": ("testbed.*",),
}


@dataclass(frozen=True)
class Import:
    """One import statement's target, and where it stands."""

    source: str  # module, as installed
    target: str
    line: int
    function: str | None  # the innermost function around it
    for_types: bool  # under `if TYPE_CHECKING:`

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def modules(root: Path) -> dict[str, Path]:
    """Every module of ours under the name it is installed with."""
    found = {}
    for folder, package in (("bayes_prompt", "bayes_prompt"), ("kernels", "bayes_prompt.kernels")):
        for file in sorted((root / folder).rglob("*.py")):
            parts = file.relative_to(root / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = file
    return found


def imports(name: str, file: Path, known: set[str]) -> Iterator[Import]:
    """The imports in one module; `from package import module` targets the module."""

    def walk(node: ast.AST, function: str | None, for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from walk(child, child.name, for_types)
            elif isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                yield from walk(ast.Module(child.body, []), function, True)
                yield from walk(ast.Module(child.orelse, []), function, for_types)
            elif isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(name, alias.name, child.lineno, function, for_types)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
                    base = ".".join([*package[: len(package) - child.level + 1], *filter(None, [child.module])])
                for alias in child.names:
                    deeper = f"{base}.{alias.name}"
                    yield Import(name, deeper if deeper in known else base, child.lineno, function, for_types)
            else:
                yield from walk(child, function, for_types)

    yield from walk(ast.parse(file.read_text()), None, False)


@pytest.fixture(scope="session")
def found(root: Path) -> list[Import]:
    everything = modules(root)
    return [item for name, file in everything.items() for item in imports(name, file, set(everything))]


def inside(module: str) -> str:
    """`bayes_prompt.models.progress` -> `models.progress`; the facade itself -> ``."""
    return module.partition(".")[2]


def ours(module: str) -> bool:
    return module.split(".")[0] in ("bayes_prompt", "kernels")


def allowed(item: Import) -> bool:
    part = inside(item.source).split(".")[0]
    target = inside(item.target)
    if not part or target.split(".")[0] == part:
        return True
    if not target:
        return part in FACADE_FOR
    if part == "models" and target.split(".")[0] == "posteriors":
        # A model is asked for its posterior; only then, and in its return type, does it know one.
        return item.for_types or item.function == "posterior"
    return any(target == name or target.startswith(name + ".") for name in MAY_IMPORT.get(part, ()))


def test_the_parser_sees_imports_wherever_they_stand(tmp_path: Path) -> None:
    package = tmp_path / "__init__.py"
    package.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from bayes_prompt.posteriors import base\nelse:\n    import torch\n"
        "class A:\n    def posterior(self):\n        from ..posteriors.progress import ProgressPosterior\n"
        "from . import priors\n"
        "try:\n    from .. import selector\nexcept ImportError: ...\n"
    )
    known = {f"bayes_prompt.{name}" for name in ("posteriors.base", "models.priors", "selector")}
    seen = [(i.target, i.function, i.for_types) for i in imports("bayes_prompt.models", package, known)]
    assert seen == [
        ("typing", None, False),
        ("bayes_prompt.posteriors.base", None, True),
        ("torch", None, False),
        ("bayes_prompt.posteriors.progress", "posterior", False),
        ("bayes_prompt.models.priors", None, False),
        ("bayes_prompt.selector", None, False),
    ]


def test_every_part_has_its_place(root: Path) -> None:
    parts = {inside(name).split(".")[0] for name in modules(root)} - {""}
    assert parts - set(MAY_IMPORT) == set(), "say in MAY_IMPORT what the new part may import"


def test_the_rules_themselves_have_a_direction() -> None:
    height = {part: level for level, part in enumerate(MAY_IMPORT)}
    upward = [(a, b) for a, below in MAY_IMPORT.items() for b in below if height[b.split(".")[0]] >= height[a]]
    assert not upward, upward


def test_nothing_imports_upward(found: list[Import]) -> None:
    wrong = [str(item) for item in found if ours(item.target) and not allowed(item)]
    assert not wrong, "\n".join(wrong)


def test_our_kernels_are_never_imported_as_kernels(found: list[Import]) -> None:
    assert [str(item) for item in found if item.target.split(".")[0] == "kernels"] == []


def test_heavy_packages_are_imported_late(found: list[Import]) -> None:
    early = [
        str(item)
        for item in found
        if item.function is None and not item.for_types
        if (places := HEAVY.get(item.target.split(".")[0])) is not None
        if not any(fnmatch(inside(item.source), place) for place in places)
    ]
    assert not early, "\n".join(early)


def test_importing_the_package_loads_nothing_but_itself(tmp_path: Path) -> None:
    code = (
        "import sys; before = set(sys.modules); import bayes_prompt\n"
        "loaded = {name.split('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names\n"
        "print(*sorted(loaded))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["bayes_prompt"]
