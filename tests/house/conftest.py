"""What the tests of the house share: where it stands, and a site folder of which a test knows what is in it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

SitePackages = Callable[..., Path]
FreshPython = Callable[..., str]


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def site_packages(tmp_path_factory: pytest.TempPathFactory) -> SitePackages:
    """Makes a folder that has every installed distribution but bayes_prompt and the ones named."""

    def make(*without: str) -> Path:
        folder = tmp_path_factory.mktemp("site-packages")
        for name in ("purelib", "platlib"):
            for entry in Path(sysconfig.get_paths()[name]).iterdir():
                distribution = entry.name.split("-")[0]
                link = folder / entry.name
                # Files that add to the path (.pth) are left out: an editable install would bring the repository back.
                if distribution in {"bayes_prompt", *without} or "editable" in entry.name or entry.suffix == ".pth":
                    continue
                if not link.is_symlink():
                    link.symlink_to(entry)
        return folder

    return make


@pytest.fixture(scope="session")
def fresh_python() -> FreshPython:
    """Runs a new interpreter whose only site folders are the ones given, and returns what it printed."""

    def run(*arguments: str, path: list[Path], cwd: Path) -> str:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment = {
            **inherited,
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, "-S", *arguments]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
