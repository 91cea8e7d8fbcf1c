"""From the root of the repository `kernels` is a folder of ours and the name of a Hugging Face package: theirs wins."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import pytest

# transformers imports `kernels` where its version suits it. Saying that it does makes that happen with any version.
IMPORT_TRAINERS = """
import importlib
from importlib.metadata import PackageNotFoundError, version
import transformers.integrations.hub_kernels as hub
import transformers.utils.import_utils
try:
    version("kernels")
except PackageNotFoundError:
    pass
else:
    transformers.utils.import_utils.is_kernels_available = lambda *versions: True
    importlib.reload(hub)
    import kernels, kernels.layer
    assert kernels.get_kernel is hub.get_kernel_hub and kernels.layer.Mode is hub.Mode
from trl import GRPOTrainer
import kernels
print(kernels.__file__, hasattr(kernels, "get_kernel"))
"""

LOOK = "import kernels; print(kernels.__file__, list(kernels.__path__), getattr(kernels, 'get_kernel', None))"


def test_trainers_import_from_the_root_with_hugging_face_kernels(root: Path, tmp_path: Path) -> None:
    theirs = Path(str(distribution("kernels").locate_file("kernels/__init__.py")))
    (tmp_path / "probe.py").write_text(
        IMPORT_TRAINERS + "import bayes_prompt.kernels.backend as ours; print(ours.__file__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "probe"], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    file, has_get_kernel, ours = done.stdout.split()
    assert (Path(file), has_get_kernel) == (theirs, "True")
    assert Path(ours).parts[-2:] == ("kernels", "backend.py")


def test_trainers_import_from_the_root_without_hugging_face_kernels(
    root: Path, tmp_path: Path, site_packages: Callable[..., Path], fresh_python: Callable[..., str]
) -> None:
    (tmp_path / "probe.py").write_text(IMPORT_TRAINERS)
    file, has_get_kernel = fresh_python("-m", "probe", path=[tmp_path, site_packages("kernels")], cwd=root).split()
    assert (Path(file), has_get_kernel) == (root / "kernels" / "__init__.py", "False")


@pytest.mark.parametrize("root_on_path", ["by the working directory", "twice, by its name"])
def test_hands_over_to_the_package_further_down_the_path(
    root: Path, tmp_path: Path, fresh_python: Callable[..., str], root_on_path: str
) -> None:
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("from kernels.load import get_kernel\n")
    (package / "load.py").write_text("get_kernel = 'theirs'\n")
    path = [tmp_path] if root_on_path == "by the working directory" else [root, root / "tests" / "..", tmp_path]
    cwd = root if root_on_path == "by the working directory" else tmp_path.parent
    assert fresh_python("-c", LOOK, path=path, cwd=cwd).split() == [
        f"{package}/__init__.py",
        f"['{package}']",
        "theirs",
    ]


def test_stays_empty_without_another_package(root: Path, tmp_path: Path, fresh_python: Callable[..., str]) -> None:
    (tmp_path / "kernels").mkdir()  # a plain folder, a namespace package to Python, does not count
    assert fresh_python("-c", LOOK, path=[tmp_path], cwd=root).split() == [f"{root}/kernels/__init__.py", "[]", "None"]


def test_a_broken_package_looks_like_a_missing_one(
    root: Path, tmp_path: Path, fresh_python: Callable[..., str]
) -> None:
    (tmp_path / "kernels.py").write_text("import a_package_that_is_not_installed\n")
    assert fresh_python("-c", LOOK, path=[tmp_path], cwd=root).split() == [f"{root}/kernels/__init__.py", "[]", "None"]
