"""A small real run of RL with verifiable rewards: tasks, a tiny language model, TRL's GRPO, and a report.

| module | what it has |
|---|---|
| `tasks`, `countdown` | verifiable tasks of graded difficulty, and the safe checker of Countdown |
| `model` | the character-level tokenizer and Llama, and sampling from it |
| `warm_start` | the supervised start that all methods share |
| `experiment` | GRPO once per method of choosing prompts |
| `settings`, `results`, `checks` | what goes into an experiment and comes out of it; checks of the former |
| `report`, `plots` | table, curves, JSON and Parquet of the results |
| `command` | `bayes-prompt demo` |
| `surroundings` | what a run changes in its process and puts back |

`run(methods=("uniform", "dps"), steps=80, seed=0)` does it all and needs the extra `demo`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayes_prompt.testbed.experiment import METHODS, RunResult, Settings, run
    from bayes_prompt.testbed.tasks import Task, make_split, make_tasks

__all__ = ["METHODS", "RunResult", "Settings", "Task", "make_split", "make_tasks", "run"]

_HOME = {name: "tasks" if name in ("Task", "make_split", "make_tasks") else "experiment" for name in __all__}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bayes_prompt.testbed' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"bayes_prompt.testbed.{_HOME[name]}"), name)
    globals()[name] = value
    return value
