"""The decayed Beta filter compiled for the CPU (numba): work in proportion to the rows that change."""

from __future__ import annotations

from torch import Tensor

from bayes_prompt.kernels.beta_filter import check_arguments
from bayes_prompt.kernels.threads import compiled, over_rows


def advance(
    alpha: Tensor,
    beta: Tensor,
    prior_alpha: Tensor,
    prior_beta: Tensor,
    index: Tensor,
    successes: Tensor,
    trials: Tensor,
    decay: float,
    decay_unobserved: bool,
) -> None:
    """Advance N Beta beliefs by one step, in place: `reference.advance`, on CPU tensors, in their dtype."""
    check_arguments(alpha, beta, prior_alpha, prior_beta, index, successes, trials, decay)
    if alpha.device.type != "cpu":
        raise ValueError(f"alpha must be on the CPU for this backend, got {alpha.device}")
    a, b = alpha.detach().numpy(), beta.detach().numpy()
    a0, b0 = prior_alpha.detach().numpy(), prior_beta.detach().numpy()
    scalar = a.dtype.type
    keep, rest = scalar(decay), scalar(1.0 - decay)
    if decay_unobserved:
        over_rows(len(a), lambda first, last: _decay(a, b, a0, b0, keep, rest, first, last))
    _count(a, b, a0, b0, index.numpy(), successes.numpy(), trials.numpy(), keep, rest, not decay_unobserved)


@compiled
def _decay(a, b, a0, b0, keep, rest, first, last):  # type: ignore[no-untyped-def]
    for parameter, prior in ((a, a0), (b, b0)):
        row = parameter[first:last]
        if len(prior) == 1:
            base = rest * prior[0]
            for r in range(len(row)):
                row[r] = keep * row[r] + base
        else:
            own = prior[first:last]
            for r in range(len(row)):
                row[r] = keep * row[r] + rest * own[r]


@compiled
def _count(a, b, a0, b0, index, successes, trials, keep, rest, decay):  # type: ignore[no-untyped-def]
    scalar = a.dtype.type
    for m in range(len(index)):
        n = index[m]
        if n < 0 or n >= len(a) or (m > 0 and index[m - 1] == n):
            continue
        if decay:
            a[n] = keep * a[n] + rest * a0[n if len(a0) > 1 else 0]
            b[n] = keep * b[n] + rest * b0[n if len(b0) > 1 else 0]
        a[n] += scalar(successes[m])
        b[n] += scalar(trials[m] - successes[m])
