"""What is installed: the list of packages, and the wheel, imported where nothing of the repository can be found."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

SHIPPED = ("pyproject.toml", "README.md", "LICENSE", "bayes_prompt", "kernels")

IMPORT_EVERYTHING = """
import importlib, json, pkgutil, sys
import kernels
assert hasattr(kernels, "get_kernel"), kernels
import bayes_prompt
def failed(name):
    raise
for module in pkgutil.walk_packages(bayes_prompt.__path__, "bayes_prompt.", onerror=failed):
    importlib.import_module(module.name)
for name in bayes_prompt.__all__:
    getattr(bayes_prompt, name)
ours = {name: module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "bayes_prompt"}
print(json.dumps({"ours": ours, "kernels": kernels.__file__}))
"""


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def installed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel, built from a copy of what it is made of, was installed."""
    source, wheels, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "installed"))
    for name in SHIPPED:  # a copy, so that leftovers of earlier builds cannot reach the wheel
        if (root / name).is_dir():
            shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(root / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]
    quick = ["--no-deps", "--no-index"]
    run([*pip, "wheel", *quick, "--no-build-isolation", "--wheel-dir", str(wheels), str(source)])
    (wheel,) = wheels.iterdir()
    run([*pip, "install", *quick, "--no-compile", "--target", str(target), str(wheel)])
    return target


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


def packages(root: Path) -> Iterator[str]:
    """The folders with code of ours, under the names they are installed with."""
    for folder, package in (("bayes_prompt", "bayes_prompt"), ("kernels", "bayes_prompt.kernels")):
        for init in (root / folder).rglob("__init__.py"):
            yield ".".join([package, *init.parent.relative_to(root / folder).parts])


def test_the_list_of_packages_is_the_folders(root: Path, project: dict[str, Any]) -> None:
    listed = project["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(packages(root))


def test_every_folder_with_code_is_a_package(root: Path) -> None:
    folders = {file.parent for name in ("bayes_prompt", "kernels") for file in (root / name).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_wheel_has_every_file(root: Path, installed: Path) -> None:
    def below(folder: Path) -> set[str]:
        files = (file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
        return {str(file.relative_to(folder)) for file in files}

    expected = below(root / "bayes_prompt") | {f"kernels/{name}" for name in below(root / "kernels")}
    assert below(installed / "bayes_prompt") == expected
    assert "py.typed" in expected
    assert not (installed / "kernels").exists()


def test_every_module_of_the_wheel_imports(
    installed: Path, tmp_path: Path, site_packages: Callable[..., Path], fresh_python: Callable[..., str]
) -> None:
    site = site_packages()
    out = fresh_python("-c", IMPORT_EVERYTHING, path=[installed, site], cwd=tmp_path)
    seen = json.loads(out.splitlines()[-1])
    assert Path(seen["kernels"]).is_relative_to(site)
    assert [name for name, file in seen["ours"].items() if not Path(file).is_relative_to(installed)] == []
    assert sorted(seen["ours"].values()) == sorted(map(str, (installed / "bayes_prompt").rglob("*.py")))


def test_an_installed_wheel_works_in_a_clone_too(
    root: Path, installed: Path, site_packages: Callable[..., Path], fresh_python: Callable[..., str]
) -> None:
    """There Python finds the clone's folder first, beside which the kernels lie."""
    code = "import bayes_prompt as bp; print(bp.__file__, bp.recipes.dps(num_prompts=9, batch_size=2).select().numel())"
    out = fresh_python("-c", code, path=[installed, site_packages("kernels")], cwd=root)
    assert out.split() == [str(root / "bayes_prompt" / "__init__.py"), "2"]


def test_what_the_wheel_says_of_itself(installed: Path, project: dict[str, Any]) -> None:
    (folder,) = installed.glob("bayes_prompt-*.dist-info")
    wheel = PathDistribution(folder)
    assert [(script.name, script.value) for script in wheel.entry_points] == [("bayes-prompt", "bayes_prompt.cli:main")]
    assert (installed / "bin" / "bayes-prompt").is_file()
    assert wheel.metadata["License-Expression"] == "Apache-2.0"
    assert "Apache License" in (folder / "licenses" / "LICENSE").read_text()
    assert set(wheel.metadata.get_all("Provides-Extra") or []) == set(project["project"]["optional-dependencies"])


def third_party(file: Path) -> set[str]:
    """Top-level names of the other people's packages that a file imports, wherever the import stands."""
    tree = ast.walk(ast.parse(file.read_text()))
    absolute = [alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names]
    tree = ast.walk(ast.parse(file.read_text()))
    absolute += [node.module or "" for node in tree if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.split(".")[0] for name in absolute} - {*sys.stdlib_module_names, "bayes_prompt"}


def test_what_is_imported_is_declared(root: Path, project: dict[str, Any]) -> None:
    def names(requirements: list[str]) -> set[str]:
        return {match[0] for text in requirements if (match := re.match(r"[\w.-]+", text))} - {"bayes-prompt"}

    extras = project["project"]["optional-dependencies"]
    core = names(project["project"]["dependencies"])
    shipped = core | names(extras["demo"] + extras["trl"] + extras["plot"] + extras["history"])
    shipped |= names(extras["embedding"] + extras["sentence-transformers"])
    optional = shipped | names(extras["dev"])
    undeclared = []
    for file in sorted([*(root / "bayes_prompt").rglob("*.py"), *(root / "kernels").rglob("*.py")]):
        # torchdata is the trainer's own choice: the adapter is used by those who have it.
        declared = optional if "trainers" in file.parts else shipped
        distribution = {"pyro": "pyro-ppl", "sentence_transformers": "sentence-transformers"}
        missing = {distribution.get(name, name) for name in third_party(file)} - declared
        undeclared += [f"{file.relative_to(root)}: {name}" for name in missing]
    assert not undeclared, "\n".join(undeclared)


def test_the_pins_fit_the_requirements(root: Path, project: dict[str, Any]) -> None:
    pinned = {Requirement(line).name: Requirement(line) for line in pins(root)}
    assert all(pin.url is None for pin in pinned.values())
    groups = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]
    for requirement in (Requirement(text) for group in groups for text in group):
        if requirement.name == "bayes-prompt":
            continue
        assert requirement.name in pinned, f"constraints.txt has no version of {requirement.name}"
        for pin in pinned[requirement.name].specifier:
            assert pin.operator != "==" or pin.version in requirement.specifier, f"{pin} of {requirement}"


def pins(root: Path) -> list[str]:
    lines = (root / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]
