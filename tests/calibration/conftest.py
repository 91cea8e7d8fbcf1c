"""Makes `sbc`, what the tests of this folder share, importable by its name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("sbc", Path(__file__).with_name("sbc.py"))
assert _spec is not None and _spec.loader is not None
sys.modules["sbc"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["sbc"])
