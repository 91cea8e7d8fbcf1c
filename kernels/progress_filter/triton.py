"""The solving-progress filter for CUDA and ROCm (and, on CPU tensors, Triton's interpreter): what is launched.

Which observations fall into a program's rows is told by `bounds`, two numbers a program, so that no row reads anything
to learn that it was not observed.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from bayes_prompt.kernels.launch import float64_bits, warps
from bayes_prompt.kernels.progress_filter import Scoring, check_scoring, check_state, check_step
from bayes_prompt.kernels.progress_filter.triton_rows import advance_rows, answer_rows, step_scales

THREADS = 256
RESIDENT_STATES = 4


def advance(
    learned: Tensor | None,
    posterior: Tensor,
    scale: Tensor,
    prior: Tensor,
    index: Tensor,
    likelihood: Tensor,
    decay: float,
    expected: Tensor,
    evidence: Tensor,
    status: Tensor,
    scoring: Scoring | None = None,
) -> None:
    """Advance the filter of N prompts by one step, in place: `reference.advance`, in the dtype of the tensors.

    Nothing waits for the device, and nothing that changes from step to step is kept on the host, so that a step may be
    captured in a graph and replayed.
    """
    check_state(learned, posterior, scale, prior)
    check_step(posterior, index, likelihood, decay, expected, evidence, status)
    if scoring is not None:
        check_scoring(scoring, posterior)
    for out in (expected, evidence, status):
        out.zero_()
    states, prompts = posterior.shape
    if prompts == 0:
        return
    constants = configuration(states, prior.element_size(), learned is not None, prior.ndim == 3)
    blocks = triton.cdiv(prompts, constants["BLOCK"])
    edges = torch.arange(0, (blocks + 1) * constants["BLOCK"], constants["BLOCK"], device=index.device)
    bounds = torch.searchsorted(index, edges)
    scales = torch.empty(4, dtype=torch.float64, device=scale.device)
    with torch.cuda.device_of(posterior):
        step_scales[(1,)](scale, scales, float64_bits(decay), LEARN=constants["LEARN"], num_warps=1)
        advance_rows[(blocks,)](
            posterior if learned is None else learned,  # not read unless LEARN
            posterior,
            scales,
            prior,
            index,
            bounds,
            likelihood,
            expected,
            evidence,
            status,
            *_outputs(scoring, posterior, index),
            prompts,
            **constants,
            **_asked(scoring),
            num_warps=warps(THREADS),
        )


def score(learned: Tensor | None, posterior: Tensor, scale: Tensor, prior: Tensor, scoring: Scoring) -> None:
    """See `reference.score`."""
    check_scoring(scoring, posterior)
    _launch_answer(learned, posterior, scale, prior, posterior, scoring, False)


def predict(learned: Tensor | None, posterior: Tensor, scale: Tensor, prior: Tensor, belief: Tensor) -> None:
    """See `reference.predict`."""
    _launch_answer(learned, posterior, scale, prior, belief, None, True)


def _launch_answer(
    learned: Tensor | None,
    posterior: Tensor,
    scale: Tensor,
    prior: Tensor,
    belief: Tensor,
    scoring: Scoring | None,
    write: bool,
) -> None:
    check_state(learned, posterior, scale, prior)
    states, prompts = posterior.shape
    outputs = _outputs(scoring, posterior, scale)
    if prompts == 0:
        return
    constants = configuration(states, prior.element_size(), learned is not None, prior.ndim == 3)
    del constants["TINY"]
    with torch.cuda.device_of(posterior):
        answer_rows[(triton.cdiv(prompts, constants["BLOCK"]),)](
            posterior if learned is None else learned,
            posterior,
            scale,
            prior,
            belief,
            *outputs,
            prompts,
            **constants,
            **_asked(scoring),
            WRITE=write,
            num_warps=warps(THREADS),
        )


def configuration(states: int, itemsize: int, learn: bool, per_prompt: bool) -> dict[str, Any]:
    """The kernels' constants for K states and numbers of `itemsize` bytes.

    A thread has 4, 2 or 1 rows: as many as fill a 16-byte access, while its share of a belief stays within 32 bytes.
    """
    rows = max(1, min(16 // itemsize, 32 // (states * itemsize)))
    return {
        "K": states,
        "RESIDENT": states <= RESIDENT_STATES,
        "BLOCK": THREADS * rows,
        "LEARN": learn,
        "PRIOR_PER_PROMPT": per_prompt,
        "TINY": torch.finfo(torch.float32 if itemsize == 4 else torch.float64).tiny,
    }


def _outputs(scoring: Scoring | None, posterior: Tensor, integers: Tensor) -> tuple[Any, ...]:
    """Pointers to what is written about the coming belief, and the shortlist's room; any pointer where nobody asks."""
    if scoring is None:
        return posterior, posterior, posterior, integers, integers, 0
    if scoring.shortlist is None:
        return scoring.utility, scoring.scores, posterior, integers, integers, 0
    kept = scoring.shortlist
    return scoring.utility, scoring.scores, kept.threshold, kept.rows, kept.count.zero_(), kept.rows.numel()


def _asked(scoring: Scoring | None) -> dict[str, bool]:
    return {"SCORE": scoring is not None, "NOTE": scoring is not None and scoring.shortlist is not None}


def _types(scalar: str, stored: str, names: tuple[str, ...]) -> dict[str, str]:
    integers = dict.fromkeys(("index", "bounds", "rows", "count"), "*i64")
    integers |= dict.fromkeys(("learned", "posterior"), f"*{stored}")
    others = {"scales": "*fp64", "scale": "*fp64", "status": "*i32", "room": "i64", "num_prompts": "i64"}
    return {name: (integers | others).get(name, f"*{scalar}") for name in names}


def _variant(
    kernel: Any,
    states: int,
    scalar: str,
    learn: bool = True,
    per_prompt: bool = False,
    stored: str | None = None,
    **asked: bool,
) -> tuple[Any, dict[str, str], dict[str, Any], int]:
    itemsize = 4 if scalar == "fp32" else 8
    constants = configuration(states, itemsize, learn, per_prompt) | {"SCORE": True, "NOTE": True} | asked
    if kernel is answer_rows:
        del constants["TINY"]
    names = tuple(name for name in kernel.arg_names if name not in constants)
    return kernel, _types(scalar, stored or scalar, names), constants, THREADS // 32


AHEAD_OF_TIME = [
    _variant(advance_rows, 3, "fp32"),
    _variant(advance_rows, 3, "fp32", NOTE=False),
    _variant(advance_rows, 3, "fp32", per_prompt=True),
    _variant(advance_rows, 3, "fp32", learn=False),
    _variant(advance_rows, 3, "fp32", learn=False, per_prompt=True, SCORE=False, NOTE=False),
    _variant(advance_rows, 3, "fp64", per_prompt=True),
    _variant(advance_rows, 16, "fp32", per_prompt=True),
    _variant(advance_rows, 3, "fp32", stored="bf16"),
    _variant(answer_rows, 3, "fp32", WRITE=False),
    _variant(answer_rows, 16, "fp32", WRITE=True, SCORE=False, NOTE=False),
    (step_scales, {"scale": "*fp64", "scales": "*fp64", "decay_bits": "i64"}, {"LEARN": True}, 1),
]
"""For `kernels.ahead_of_time`: kernel, types of its arguments, constants, number of warps of 32 threads."""
