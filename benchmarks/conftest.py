"""What a results file keeps: the commit, the processor, the versions and the quartiles; no host names.

make bench ARGS=--benchmark-json=benchmarks/results/dps_step.json
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch

VERSIONS = ("torch", "triton", "numba", "numpy")
STATISTICS = ("min", "q1", "median", "q3", "max", "rounds")


def pytest_benchmark_update_json(config: object, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    machine = output_json["machine_info"]
    output_json["machine_info"] = {
        "cpu": machine["cpu"].get("brand_raw"),
        "cores": machine["cpu"].get("count"),
        "python": machine["python_version"],
        "torch_threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
    }
    commit = output_json["commit_info"]
    output_json["commit_info"] = {name: commit.get(name) for name in ("id", "time", "dirty")}
    output_json["benchmarks"] = [
        {
            "group": measured["group"],
            "name": measured["name"],
            "params": measured["params"],
            "seconds": {name: measured["stats"][name] for name in STATISTICS},
        }
        for measured in output_json["benchmarks"]
    ]
