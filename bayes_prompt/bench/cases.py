"""An operation by one implementation: how it is set up, what is timed, what memory it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.bench.measure import Call
from bayes_prompt.bench.peers import DictOfArrays, NumpyThompson, ProgressPeer, Vectorised, argpartition
from bayes_prompt.bench.torch_peers import TorchProgress, TorchThompson
from bayes_prompt.bench.workloads import BATCH, DECAY, TRIALS, Workload

OURS, GRAPH, COPY = "bayes_prompt", "bayes_prompt CUDA graph", "copy"


@dataclass(frozen=True)
class Ready:
    """What was set up. call: the operation, once. holder: the object whose memory counts."""

    call: Call
    holder: object


@dataclass(frozen=True)
class Case:
    """An operation by one implementation, for any N.

    prepare: sets it up on a workload. bytes_needed: memory a prompt, roughly, with what a call needs for a while.
    seconds_needed: a prompt, roughly and at the least, where large pools are hopeless. calls: in one timing.
    devices: where it can run; `host` says that it works on the host whatever the device is.
    """

    operation: str
    implementation: str
    prepare: Callable[[Workload], Ready]
    bytes_needed: int
    seconds_needed: float = 0.0
    calls: int = 1
    devices: tuple[str, ...] = ("cpu", "cuda")
    host: bool = False

    @property
    def is_peer(self) -> bool:
        """Whether it is neither ours nor the copy, which are measured whatever peers are asked for."""
        return self.implementation not in (OURS, GRAPH, COPY)


def cases(operation: str, device: str) -> list[Case]:
    """All that are known of an operation on "cpu" or "cuda": ours first, then the copy, then the peers."""
    return [case for case in _CASES if case.operation == operation and device in case.devices]


#: Other ways to do the progress filter and the whole step, by the name of the implementation.
PROGRESS_PEERS: dict[str, Callable[[int, float, str], ProgressPeer]] = {
    "dict of arrays": DictOfArrays,
    "numpy float64": Vectorised,
    "torch eager": partial(TorchProgress, compiled=None),
    "torch.compile": partial(TorchProgress, compiled="rest"),
    "torch.compile fused": partial(TorchProgress, compiled="fused"),
}
#: Other ways to draw from the Betas (alpha, beta), each (N,).
THOMPSON_PEERS: dict[str, Callable[[Tensor, Tensor], NumpyThompson | TorchThompson]] = {
    "numpy.random.beta": partial(NumpyThompson, generator=False),
    "numpy Generator.beta": partial(NumpyThompson, generator=True),
    "torch.distributions.Beta": TorchThompson,
}
#: Other ways to pick the best (batch_size,) of scores (N,), given as the library's own array.
SELECT_PEERS: dict[str, Callable[[Any, int], Any]] = {
    "torch.topk": lambda scores, size: scores.topk(size).indices,
    "numpy.argpartition": argpartition,
}
PEERS = (*PROGRESS_PEERS, *THOMPSON_PEERS, *SELECT_PEERS)


def _filter(work: Workload) -> Ready:
    posterior, batches = work.posterior, cycle(work.batches)
    assert posterior is not None
    return Ready(lambda: posterior.update(*next(batches), TRIALS), posterior)


def _select(work: Workload) -> Ready:
    scores, steps = work.scores, iter(range(2**62))
    assert scores is not None
    backend = work.problem.backend
    return Ready(
        lambda: bp.acquisition.top_b(scores, BATCH, seed=0, step=next(steps), backend=backend),
        scores,
    )


def _thompson(work: Workload) -> Ready:
    assert work.selector is not None
    return Ready(work.selector.select, work.selector)


def _step(work: Workload) -> Ready:
    selector, counts = work.selector, cycle([successes.cpu() for _, successes in work.batches])
    assert selector is not None
    picked = selector.select()

    def step() -> None:
        nonlocal picked
        selector.update(picked, successes=next(counts), trials=TRIALS)
        picked = selector.select()

    return Ready(step, selector)


def _graph(work: Workload) -> Ready:
    """The whole step on device tensors, captured once; any prompt may be picked. A replay costs the host one launch."""
    selector, (picked, successes) = work.selector, work.batches[0]
    assert selector is not None
    posterior, trials = selector.posterior, torch.full_like(successes, TRIALS)
    moment = torch.zeros(1, dtype=torch.int64, device=picked.device)  # of the random keys: another one at every replay

    def step() -> None:
        posterior.update(picked, successes, trials)
        # The question that the selector asks too, whose answer is kept as long as nobody asks another one.
        scores, best = selector.acquisition.ranking(posterior, 0, 0, bp.acquisition.Batch(BATCH))
        pick = bp.acquisition.top_b(scores, BATCH, seed=0, step=moment, backend=posterior.backend, shortlist=best)
        picked.copy_(pick)
        moment.add_(1)

    # As torch asks for: a few calls on a side stream first, which also compile and fill caches.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return Ready(graph.replay, (posterior, picked, successes, trials, moment))


def _copy(work: Workload) -> Ready:
    source = torch.ones(work.problem.bytes_copied // 8, device=work.problem.device)
    target = torch.empty_like(source)
    return Ready(lambda: target.copy_(source), (source, target))


def _progress_peer(name: str, whole: bool, work: Workload) -> Ready:
    peer = PROGRESS_PEERS[name](work.problem.prompts, DECAY, work.problem.device)
    peer.start(work.posterior.belief, work.posterior.concentration)  # type: ignore[union-attr]
    batches: Any = work.batches
    if not isinstance(peer, TorchProgress):
        batches = [(index.cpu().numpy(), successes.cpu().numpy()) for index, successes in batches]
    turn = cycle(batches)
    picked = peer.select(BATCH)

    def advance() -> None:
        index, successes = next(turn)
        peer.update(index, successes, TRIALS)

    def step() -> None:
        nonlocal picked
        _, successes = next(turn)
        peer.update(picked, successes, TRIALS)
        picked = peer.select(BATCH)

    return Ready(step if whole else advance, peer)


def _thompson_peer(name: str, work: Workload) -> Ready:
    peer = THOMPSON_PEERS[name](work.posterior.alpha, work.posterior.beta)  # type: ignore[union-attr]
    return Ready(lambda: peer.select(BATCH), peer)


def _select_peer(name: str, work: Workload) -> Ready:
    scores: Any = work.scores
    if name.startswith("numpy"):
        scores = scores.cpu().numpy()
    pick = SELECT_PEERS[name]
    return Ready(lambda: pick(scores, BATCH), scores)


def _all() -> Iterator[Case]:
    # A dictionary has an array header of some 100 bytes for each of three arrays, and three entries; numpy makes whole
    # copies on its way. Its time is that of some ten calls of numpy on small arrays.
    needed = {"dict of arrays": 1000, "numpy float64": 300, "torch eager": 160}
    yield Case("filter", OURS, _filter, 70)
    yield Case("filter", COPY, _copy, 96)
    yield Case("step", OURS, _step, 70)
    yield Case("step", GRAPH, _graph, 10, calls=100, devices=("cuda",))
    yield Case("step", COPY, _copy, 96)
    for name in PROGRESS_PEERS:
        for operation in ("filter", "step"):
            slow, host = (1e-5 if name == "dict of arrays" else 0.0), not name.startswith("torch")
            prepare = partial(_progress_peer, name, operation == "step")
            yield Case(operation, name, prepare, needed.get(name, 100), slow, host=host)
    yield Case("thompson", OURS, _thompson, 40)
    yield Case("thompson", COPY, _copy, 8)
    for name in THOMPSON_PEERS:
        yield Case("thompson", name, partial(_thompson_peer, name), 60, host=name.startswith("numpy"))
    yield Case("select", OURS, _select, 8)
    yield Case("select", COPY, _copy, 4)
    for name in SELECT_PEERS:
        yield Case("select", name, partial(_select_peer, name), 24, host=name.startswith("numpy"))


_CASES = tuple(_all())
