"""The shortlist of a DPS posterior: it is carried from step to step, and never changes a pick."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.acquisition import top_b
from bayes_prompt.kernels.shortlist import Shortlist
from bayes_prompt.posteriors import progress

N, B, TRIALS = 700, 8, 8
BACKENDS = ["reference", "cpu", "triton"]


def groups(g: torch.Generator, size: int) -> Tensor:
    return torch.randint(0, TRIALS + 1, (size,), generator=g)


def shortlist(selector: bp.PromptSelector) -> Shortlist:
    standing = selector.posterior._standing  # type: ignore[attr-defined]
    assert standing.scoring.shortlist is not None
    return standing.scoring.shortlist


def step(selector: bp.PromptSelector, g: torch.Generator) -> None:
    """One step, whose pick must be the one without a shortlist."""
    posterior = selector.posterior
    scores, _ = posterior.informative_scores(TRIALS, B)
    expected = top_b(scores.clone(), B, seed=selector.seed, step=selector.selections, backend=posterior.backend)
    picked = selector.select()
    assert picked.tolist() == expected.tolist()
    selector.update(picked, successes=groups(g, B), trials=TRIALS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_threshold_goes_with_scores_that_drift(
    backend: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beliefs of resting prompts go back to the prior: every score falls from step to step, and ties with others."""
    monkeypatch.setattr(progress, "LISTED_FROM", 1)
    posterior = bp.SolvingProgress(decay=0.9).posterior(N, dtype=dtype, backend=backend)
    selector = bp.PromptSelector(posterior, bp.acquisition.PartialProbability(), B, seed=3)
    g = torch.Generator().manual_seed(1)
    for some in torch.randperm(N, generator=g)[:240].split(60):
        posterior.update(some, groups(g, len(some)), TRIALS)
    settled, fell, steps = 0, 0, 12
    for _ in range(steps):
        kept, before = None, -1.0
        if selector.selections:
            kept = shortlist(selector)
            before = float(kept.threshold)
            enough = B <= int(kept.count) <= len(kept.rows)
            settled += enough
        step(selector, g)
        kept = shortlist(selector)
        fell += float(kept.threshold) < before
    assert settled >= steps - 3
    assert fell >= 3, "the scores did not drift, so that nothing was shown"


def test_without_its_guide_the_threshold_stays_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above shows is the guide's doing."""
    monkeypatch.setattr(progress.ProgressPosterior, "_aim", lambda self, elapsed: None)
    with pytest.raises(AssertionError):
        test_the_threshold_goes_with_scores_that_drift("cpu", torch.float32, monkeypatch)


@pytest.mark.parametrize("backend", BACKENDS)
def test_picks_without_a_step_between(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was noted is older than the threshold then: the pick after a start, and after a threshold has jumped."""
    monkeypatch.setattr(progress, "LISTED_FROM", 1)
    g = torch.Generator().manual_seed(5)
    posterior = bp.SolvingProgress().posterior(N, backend=backend)
    selector = bp.PromptSelector(posterior, bp.acquisition.PartialProbability(), B, seed=1)
    selector.update(1 + torch.arange(3 * B), successes=torch.full((3 * B,), 4), trials=TRIALS)
    for _ in range(4):
        picks = []
        for number in range(3):
            free = torch.ones(N, dtype=torch.bool)
            free[selector.in_flight] = False
            scores, _ = posterior.informative_scores(TRIALS, B)
            expected = top_b(scores.clone(), B, allowed=free, seed=1, step=selector.selections, backend=backend)
            picks.append(selector.select())
            assert picks[number].tolist() == expected.tolist()
        index = torch.cat(picks)
        selector.update(index, successes=groups(g, len(index)), trials=TRIALS)


@pytest.mark.parametrize(("own", "learn"), [(False, True), (False, False), (True, True), (True, False)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_guide_scores_what_it_was_said_to(
    backend: str, own: bool, learn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, or rows that tie with it would be missed."""
    monkeypatch.setattr(progress, "LISTED_FROM", 1)
    g = torch.Generator().manual_seed(2)
    priors = {"concentration": torch.rand(N, 3, 3, generator=g) + 0.1} if own else {}
    posterior = bp.SolvingProgress(decay=0.6, learn=learn).posterior(N, backend=backend, **priors)
    for _ in range(3):
        posterior.update(torch.arange(100), groups(g, 100), TRIALS)
    scores, kept = posterior.informative_scores(TRIALS, B)
    assert kept is not None
    for guide in (0, 57, 99, 699):
        kept.guide.fill_(guide)
        kept.threshold.fill_(float(scores[guide]))
        posterior.update(torch.arange(100, 110), groups(g, 10), TRIALS, elapsed=0.5)
        assert float(kept.threshold) == float(scores[guide])  # the scores are those after the step by now
        level = torch.nextafter(scores[guide], torch.tensor(torch.inf))
        kept.threshold.fill_(float(level))
        posterior.advance()
        assert float(kept.threshold) == float(torch.nextafter(scores[guide], torch.tensor(torch.inf)))


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_a_score_that_all_share_is_no_threshold(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all prompts tie, so that more would reach it than there is room for; the few above them are noted."""
    monkeypatch.setattr(progress, "LISTED_FROM", 1)
    selector = bp.recipes.dps(num_prompts=N, batch_size=B, decay=1.0, backend=backend)
    g = torch.Generator().manual_seed(3)
    step(selector, g)
    for _ in range(4):
        assert int(shortlist(selector).count) <= len(shortlist(selector).rows)
        step(selector, g)
    for some in torch.randperm(N, generator=g)[:300].split(20):
        selector.posterior.update(some, groups(g, len(some)), TRIALS)
    settled = 0
    for _ in range(20):
        settled += B <= int(shortlist(selector).count) <= len(shortlist(selector).rows)
        step(selector, g)
    assert settled >= 10
