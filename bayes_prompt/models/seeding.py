"""torch's global generators, borrowed: what Pyro and networks draw from is seeded, and given back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch

_ONE_AT_A_TIME = RLock()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's global generators of the host and of `device`, seeded; afterwards they are what they were.

    One thread at a time is let in, for Pyro's handlers and these generators belong to the whole process. A thread of
    somebody else that draws from torch's global generators meanwhile changes what is drawn here, and is set back.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(
            torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
        )
    with _ONE_AT_A_TIME:
        before = [generator.get_state() for generator in generators]
        try:
            for generator in generators:
                generator.manual_seed(seed)
            yield
        finally:
            for generator, state in zip(generators, before, strict=True):
                generator.set_state(state)
