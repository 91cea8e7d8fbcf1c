"""What an experiment changes in its process, and puts back at the end."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import transformers


@contextmanager
def left_alone() -> Iterator[None]:
    """Random states, the number of threads and transformers' verbosity are afterwards what they were before."""
    with _random_states(), _threads(), _quiet():
        yield


@contextmanager
def _random_states() -> Iterator[None]:
    """The trainer seeds the generators of Python, NumPy and torch."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _threads() -> Iterator[None]:
    """Use the cores that this process may use, at most 8: the matrices are too small for more."""
    before = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(min(8, cores))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' remarks off the terminal; errors still get through."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # TRL and the Trainer still use names that transformers 5.23 is renaming.
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
