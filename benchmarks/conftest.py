"""What every benchmark reports beside its times, and what it does not: no host names."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch


def pytest_benchmark_update_machine_info(config: object, machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)
    machine_info["torch_threads"] = torch.get_num_threads()
    machine_info["versions"] = {
        name: importlib.metadata.version(name) for name in ("torch", "triton", "numba", "numpy")
    }
