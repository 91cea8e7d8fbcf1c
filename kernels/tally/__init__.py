"""What one step adds to the books of N prompts: visits, evidence, and the record of what was seen and expected.

One pass over the M observations, however many figures there are of them. The three backends share name and signature;
`reference.py` is the definition.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor

from bayes_prompt.kernels.arguments import check_layout

RECORD = ("groups", "rollouts", "informative", "successes", "expected_informative", "expected_successes")
"""The figures of a step, in order: those of the observed groups, and what was expected of the same groups."""


@dataclass(frozen=True)
class Books:
    """What is kept beside the beliefs, changed in place; all on one device.

    visits, solved: (N,) int32, steps in which a prompt was observed, and in which all its rollouts succeeded.
    log_evidence, log_count_evidence: () float64, log probabilities of the emission's own events, and of the counts.
    unexpected, impossible: () int64, observations with that status.
    group_size: () int64, the most trials of a prompt in the last step that had any.
    """

    visits: Tensor
    solved: Tensor
    log_evidence: Tensor
    log_count_evidence: Tensor
    unexpected: Tensor
    impossible: Tensor
    group_size: Tensor


@dataclass(frozen=True)
class Observations:
    """M observed prompts in one step; those that are not counted are the later entries of a prompt, and others' rows.

    index: (M,) int64, ascending. successes, trials: (M,) int64, trials at least 1.
    log_event, correction: (M,) float64, log probability of the emission's own event, and what makes of it that of the
        counts.
    status: (M,) int32, see `kernels.progress_filter`.
    informative, success_rate: (M,) float32 or float64, P(0 < successes < trials) and the success rate of a rollout, as
        they were expected.
    """

    index: Tensor
    successes: Tensor
    trials: Tensor
    log_event: Tensor
    correction: Tensor
    status: Tensor
    informative: Tensor
    success_rate: Tensor


def tensors(of: Books | Observations) -> tuple[Tensor, ...]:
    """The tensors of a dataclass, in order."""
    return tuple(getattr(of, field.name) for field in fields(of))


def check_arguments(seen: Observations, books: Books, record: Tensor) -> None:
    """Check shapes, dtypes, devices and contiguity. Raises TypeError or ValueError that names the argument.

    That `index` ascends is the caller's responsibility.
    """
    entries, prompts = (seen.index.numel(),), (books.visits.numel(),)
    for name in ("index", "successes", "trials"):
        check_layout(f"seen.{name}", getattr(seen, name), entries, books.visits, "int64")
    for name in ("log_event", "correction"):
        check_layout(f"seen.{name}", getattr(seen, name), entries, books.visits, "float64")
    check_layout("seen.status", seen.status, entries, books.visits, "int32")
    check_layout("seen.informative", seen.informative, entries, seen.informative)
    check_layout("seen.success_rate", seen.success_rate, entries, seen.success_rate)
    for name in ("visits", "solved"):
        check_layout(f"books.{name}", getattr(books, name), prompts, books.visits, "int32")
    for name in ("log_evidence", "log_count_evidence"):
        check_layout(f"books.{name}", getattr(books, name), (), books.visits, "float64")
    for name in ("unexpected", "impossible", "group_size"):
        check_layout(f"books.{name}", getattr(books, name), (), books.visits, "int64")
    check_layout("record", record, (len(RECORD),), books.visits, "float64")
