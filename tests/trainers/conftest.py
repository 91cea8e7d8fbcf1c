from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """`tiny_grpo`, which the programs that tests start import as well."""
    pytest.importorskip("trl")
    spec = importlib.util.spec_from_file_location("tiny_grpo", Path(__file__).with_name("tiny_grpo.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_grpo"] = module
    spec.loader.exec_module(module)
    return module
