"""Finetune the same start by RL, once per method of choosing prompts, with TRL's GRPO. The only difference is the selector."""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig

from bayes_prompt import recipes
from bayes_prompt.history import History
from bayes_prompt.selector import PromptSelector
from bayes_prompt.testbed.model import MAX_NEW_TOKENS, sample
from bayes_prompt.testbed.tasks import Task, make_split
from bayes_prompt.testbed.warm_start import Policy, WarmStart, default_cache, warm_start
from bayes_prompt.trainers.trl import GRPOTrainer

#: The methods that `run` knows, by the name of their recipe.
METHODS = ("uniform", "dps", "mopps", "history_resampling")
#: Called with (stage, steps done, all steps or None where unknown, a remark).
Progress = Callable[[str, int, int | None, str], None]
WARM_START = "warm start"
