"""Whether an implementation does what it is timed for: compared with the float64 reference, in the run that times it.

Sizes are odd, inputs are drawn anew each time; the seed is kept, so that a failure can be repeated.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.bench.cases import GRAPH, OURS, PROGRESS_PEERS, SELECT_PEERS, THOMPSON_PEERS
from bayes_prompt.bench.torch_peers import TorchProgress
from bayes_prompt.bench.workloads import DECAY, TRIALS

SIZES = (1, 17, 1031, 300_007)  # of ours; the last one is spread over threads
PEER_SIZE = 1031
STEPS = 4
_BELIEF = 2e-5  # four steps of some ten float32 roundings, of entries up to about ten
_DRAW = 1e-4  # float32 draws from float64 ones; a draw may differ wholly where rounding flips an accept test,
_FLIPPED = 1e-3  # which this share of the rows may do


class Disagreement(Exception):
    """What differs, and by how much."""


@dataclass(frozen=True)
class Verdict:
    """Whether an implementation of an operation agreed with the reference; detail says where it did not."""

    operation: str
    implementation: str
    passed: bool
    seed: int
    detail: str = ""


def verify(operation: str, implementation: str, device: str, backend: str = "auto", seed: int | None = None) -> Verdict:
    """Compare one implementation, "bayes_prompt" or a peer by its name, with the reference.

    device: "cpu" or "cuda". backend: of our kernels. seed: of the inputs; None for a new one. Whatever is raised on the
    way is a failure too, and its message is kept.
    """
    seed = secrets.randbits(31) if seed is None else seed
    check: Callable[[torch.Generator], None]
    if implementation in (OURS, GRAPH):
        check = lambda generator: _OURS[operation](device, backend, generator)  # noqa: E731
    else:
        check = lambda generator: _PEERS[operation](implementation, device, generator)  # noqa: E731
    try:
        check(torch.Generator().manual_seed(seed))
    except Exception as error:  # a peer may fail in ways of its own, and a failure of any kind withholds its ratio
        first = (str(error).strip().splitlines() or [""])[0]
        detail = first if isinstance(error, Disagreement) else f"{type(error).__name__}: {first}"
        return Verdict(operation, implementation, False, seed, detail)
    return Verdict(operation, implementation, True, seed)


def _ours_filter(device: str, backend: str, generator: torch.Generator) -> None:
    for size in SIZES:
        fast, exact = _pair(bp.SolvingProgress(decay=DECAY), size, device, backend)
        for _ in range(STEPS):
            batch = _observations(size, min(size, 64), generator)
            _update(fast, exact, batch, device)
        _close(f"beliefs of {size} prompts", fast.belief, exact.belief, _BELIEF)
        _close(f"concentrations of {size} prompts", fast.concentration, exact.concentration, _BELIEF)


def _ours_step(device: str, backend: str, generator: torch.Generator) -> None:
    """The picks need not be the reference's, for float32 makes other ties: their exact scores must be the best."""
    for size in SIZES:
        wanted = min(size, 64)
        fast = bp.recipes.dps(num_prompts=size, batch_size=wanted, decay=DECAY, device=device, backend=backend)
        exact = bp.SolvingProgress(decay=DECAY).posterior(size, dtype=torch.float64, backend="reference")
        for _ in range(STEPS):
            picked = fast.select()
            _check_pick(f"the pick from {size} prompts", picked, exact.informative_probability(TRIALS), wanted)
            successes = torch.randint(TRIALS + 1, (wanted,), generator=generator)
            fast.update(picked, successes=successes, trials=TRIALS)
            exact.update(picked, successes, TRIALS)
        beliefs: Any = fast.posterior  # of a model that has one
        _close(f"beliefs of {size} prompts", beliefs.belief, exact.belief, _BELIEF)


def _ours_select(device: str, backend: str, generator: torch.Generator) -> None:
    for size in SIZES:
        distinct = torch.rand(size, generator=generator)
        for scores in (distinct, (distinct * 8).floor(), torch.where(distinct < 0.1, torch.nan, distinct)):
            wanted, step = min(size, 300), int(torch.randint(1000, (), generator=generator))
            exact = bp.acquisition.top_b(scores, wanted, seed=1, step=step, backend="reference")
            fast = bp.acquisition.top_b(scores.to(device), wanted, seed=1, step=step, backend=backend)
            if not torch.equal(fast.cpu(), exact):
                raise Disagreement(f"{int((fast.cpu() != exact).sum())} of {wanted} picks from {size} scores differ")


def _ours_thompson(device: str, backend: str, generator: torch.Generator) -> None:
    import pyro.distributions as dist

    for size in SIZES:
        for shape in (1.0, 0.2):
            model, wanted = bp.SuccessRate(dist.Beta(shape, shape), decay=0.5), min(size, 64)
            fast, exact = _pair(model, size, device, backend)
            for _ in range(STEPS):
                _update(fast, exact, _observations(size, max(1, size // 10), generator), device)
            seed = int(torch.randint(1000, (), generator=generator))
            draws = fast.sample_success_rate(seed, 0)
            apart = (draws.cpu().double() - exact.sample_success_rate(seed, 0)).abs()
            flipped = float((~(apart <= _DRAW)).double().mean())
            if flipped > max(_FLIPPED, 1 / size):
                raise Disagreement(f"{flipped:.1%} of the draws of {size} prompts differ by more than {_DRAW}")
            selector = bp.PromptSelector(fast, bp.acquisition.TargetSuccessRate(0.5), wanted, seed=seed)
            _check_pick(f"the pick from {size} draws", selector.select(), -(draws.cpu() - 0.5).abs(), wanted, 1e-6)


def _peer_progress(name: str, device: str, generator: torch.Generator) -> Any:
    exact = bp.SolvingProgress(decay=DECAY).posterior(PEER_SIZE, dtype=torch.float64, backend="reference")
    peer = PROGRESS_PEERS[name](PEER_SIZE, DECAY, device)
    for _ in range(STEPS):
        index, successes = _distinct(*_observations(PEER_SIZE, 64, generator))
        exact.update(index, successes, TRIALS)
        if isinstance(peer, TorchProgress):
            peer.update(index.to(device), successes.to(device), TRIALS)
        else:
            peer.update(index.numpy(), successes.numpy(), TRIALS)
    _close("beliefs", torch.as_tensor(peer.beliefs()), exact.belief, _BELIEF)
    return peer


def _peer_step(name: str, device: str, generator: torch.Generator) -> None:
    peer = _peer_progress(name, device, generator)
    scores = torch.as_tensor(peer.beliefs())[:, 1].cpu()
    _check_pick("the pick", torch.as_tensor(peer.select(64)).cpu(), scores, 64, 1e-9)


def _peer_select(name: str, device: str, generator: torch.Generator) -> None:
    scores = torch.rand(PEER_SIZE, generator=generator)
    given: Any = scores.numpy() if name.startswith("numpy") else scores.to(device)
    _check_pick("the pick", torch.as_tensor(SELECT_PEERS[name](given, 64)).cpu(), scores, 64, 0.0)


def _peer_thompson(name: str, device: str, generator: torch.Generator) -> None:
    """Other random numbers: the mean of many draws must be that of the Beta, within six standard errors."""
    peer: Any = None
    for alpha, beta in ((1.0, 1.0), (0.2, 0.2), (3.0, 1.5)):
        shape = torch.full((20_000,), 1.0, device=device)
        peer = THOMPSON_PEERS[name](alpha * shape, beta * shape)
        draws = torch.as_tensor(peer.draw()).double().cpu()
        mean = alpha / (alpha + beta)
        error = (mean * (1 - mean) / (alpha + beta + 1) / len(draws)) ** 0.5
        if not abs(float(draws.mean()) - mean) <= 6 * error:
            raise Disagreement(f"the mean of Beta({alpha}, {beta}) draws is {float(draws.mean()):.4f}, not {mean:.4f}")
    picked = torch.as_tensor(peer.select(64))
    if picked.unique().numel() != 64:
        raise Disagreement("the pick has fewer than 64 distinct rows")


_OURS = {"filter": _ours_filter, "select": _ours_select, "thompson": _ours_thompson, "step": _ours_step}
_PEERS = {"filter": _peer_progress, "select": _peer_select, "thompson": _peer_thompson, "step": _peer_step}


def _pair(model: Any, size: int, device: str, backend: str) -> tuple[Any, Any]:
    """The posterior that is timed, and the one that defines what is right, of `size` prompts."""
    fast = model.posterior(size, device=device, backend=backend)
    return fast, model.posterior(size, dtype=torch.float64, backend="reference")


def _observations(size: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows (batch,), some of them twice, and successes of 8."""
    index = torch.randint(size, (batch,), generator=generator)
    return index, torch.randint(TRIALS + 1, (batch,), generator=generator)


def _distinct(index: Tensor, successes: Tensor) -> tuple[Tensor, Tensor]:
    rows = index.unique()
    return rows, successes[: len(rows)]


def _update(fast: Any, exact: Any, batch: tuple[Tensor, Tensor], device: str) -> None:
    index, successes = batch
    exact.update(index, successes, TRIALS)
    fast.update(index.to(device), successes.to(device), TRIALS)


def _close(what: str, given: Tensor, exact: Tensor, tolerance: float) -> None:
    """Relative to the larger of 1 and the exact value; a NaN is never close."""
    apart = (given.cpu().double() - exact.cpu()).abs() / exact.cpu().abs().clamp(min=1)
    if not bool((apart <= tolerance).all()):
        raise Disagreement(f"{what} differ by up to {float(apart.max()):.2g}; {tolerance:.2g} is allowed")


def _check_pick(what: str, picked: Tensor, scores: Tensor, size: int, tolerance: float = _BELIEF) -> None:
    """Distinct rows (size,) whose scores, out of (N,), are the best ones."""
    if picked.shape != (size,) or picked.unique().numel() != size:
        raise Disagreement(f"{what} has not {size} distinct rows")
    taken, best = scores[picked.cpu()].double().sort(descending=True).values, scores.topk(size).values.double()
    if not bool(((taken - best).abs() <= tolerance).all()):
        raise Disagreement(f"{what} has scores up to {float((taken - best).abs().max()):.2g} below the best")
