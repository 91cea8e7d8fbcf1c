"""What only a GPU can show: the same figures as the reference, and errors that cost no waiting."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

import bayes_prompt as bp

pytestmark = pytest.mark.gpu
N = 5_003
MODELS = {
    "published": bp.SolvingProgress(decay=0.7),
    "own emission": bp.SolvingProgress(emission=bp.PartitionEmission([0.0, 0.2, 0.8, 1.0])),
    "fixed": bp.SolvingProgress(bp.priors.stability(), learn=False),
    "beta": bp.SuccessRate(dist.Beta(1.0, 1.0), decay=0.5, decay_unobserved=True),
    "grid": bp.SuccessRate(bp.priors.logit_normal(0.0, 1.5), drift=bp.LogitRandomWalk(0.3, trend=0.05)),
    "forgetting grid": bp.SuccessRate(dist.Beta(1.0, 1.0), grid=41, decay=0.8),
    "bank": bp.SuccessRate(bp.priors.logit_normal(0.0, 1.5), drift=bp.priors.training(), sharing=bp.EmpiricalBayes()),
    "decays": bp.SuccessRate(dist.Beta(1.0, 1.0), decay=bp.DecayBank()),
    "pooled": bp.SolvingProgress(pooling="pool"),
    "pooled decays": bp.SolvingProgress(decay=bp.DecayBank(), pooling="pool"),
    "kalman": bp.LogitGaussian(),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_device_agrees_with_the_reference(kind: str) -> None:
    exact = MODELS[kind].posterior(N, dtype=torch.float64, backend="reference")
    fast = MODELS[kind].posterior(N, device="cuda")
    assert fast.backend == "triton"
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        index = torch.randint(N, (256,), generator=generator)
        successes = torch.randint(9, (256,), generator=generator)
        exact.update(index, successes, 8)
        fast.update(index.cuda(), successes.cuda(), 8)
    # Twenty steps of some ten roundings of 6e-8, relative to entries that grow to about ten.
    for name, tensor in exact._tensors().items():
        torch.testing.assert_close(fast._tensors()[name].double().cpu(), tensor.double(), rtol=2e-5, atol=2e-5)
    assert fast.log_evidence == pytest.approx(exact.log_evidence, rel=1e-5)


@pytest.mark.parametrize("recipe", ["dps", "kgps", "best"])
def test_a_selector_runs_on_the_device(recipe: str) -> None:
    host, device = (
        getattr(bp.recipes, recipe)(num_prompts=N, batch_size=64, seed=3, device=where) for where in ("cpu", "cuda")
    )
    first = host.select()
    assert torch.equal(first, device.select().cpu())  # all tied: the keys alone decide, and they are bit-equal
    rewards = (torch.rand(64, 8, generator=torch.Generator().manual_seed(2)) < 0.5).float()
    host.update(first, rewards)
    device.update(first.cuda(), rewards.cuda())
    figures = device.metrics()
    for name, value in host.metrics().items():
        assert figures[name] == pytest.approx(value, abs=1e-5), name
    assert device.select().numel() == 64


@pytest.mark.parametrize("recipe", ["best", "gps"])
def test_texts_help_on_the_device_too(recipe: str) -> None:
    """Half of the prompts is solved now and then, half never: of those never seen the features tell."""
    generator = torch.Generator().manual_seed(6)
    solvable = torch.arange(N) % 2 == 0
    features = torch.randn(N, 8, generator=generator) * 0.1 + solvable[:, None]
    selector = getattr(bp.recipes, recipe)(num_prompts=N, batch_size=128, embeddings=features, device="cuda")
    for _ in range(12):
        picked = selector.select()
        assert picked.is_cuda and picked.unique().numel() == 128
        selector.update(picked, (torch.rand(128, 8, generator=generator) < 0.5 * solvable[picked.cpu(), None]).cuda())
    unseen = selector.posterior.visits.cpu() == 0
    informative = selector.posterior.informative_probability(8).cpu()
    assert informative[unseen & solvable].mean() > 0.3 + informative[unseen & ~solvable].mean()


@pytest.mark.parametrize("kind", ["grid", "bank"])
def test_the_device_knows_what_a_look_is_worth(kind: str) -> None:
    groups = torch.arange(N) % 5
    exact = MODELS[kind].posterior(N, groups=groups, dtype=torch.float64, backend="reference")
    fast = MODELS[kind].posterior(N, groups=groups, device="cuda")
    generator = torch.Generator().manual_seed(7)
    for _ in range(70):  # beyond what the propagators hold
        index = torch.randperm(N, generator=generator)[:512]
        successes = torch.randint(9, (512,), generator=generator)
        exact.update(index, successes, 8)
        fast.update(index.cuda(), successes.cuda(), 8)
    # A belief is stored in float32 and has 41 states: a sum's roundings are at most 41 of 6e-8, and prices lie below 1.
    for told, expected in (
        (fast.look_index(8, 16.0), exact.look_index(8, 16.0)),
        (fast.look_gain(8, 0.6), exact.look_gain(8, 0.6)),
        (fast.success_rate(), exact.success_rate()),
        (fast.belief, exact.belief),
    ):
        torch.testing.assert_close(told.double().cpu(), expected, rtol=0, atol=2e-5)


def test_bad_rows_on_the_device_raise_at_the_next_read() -> None:
    posterior = bp.SolvingProgress().posterior(10, device="cuda")
    posterior.observe(torch.tensor([1, 99], device="cuda"), torch.tensor([0, 0], device="cuda"), 8)
    posterior.advance()
    with pytest.raises(IndexError, match=r"index\[1\] = 99"):
        _ = posterior.log_evidence
    assert int(posterior.visits.sum()) == 0


@pytest.mark.parametrize("kind", ["published", "own emission", "fixed"])
def test_a_step_scores_as_asking_does(kind: str) -> None:
    """To the last bit, so that a resumed run picks what the run would have picked."""
    posterior = MODELS[kind].posterior(N, device="cuda")
    posterior.informative_scores(8, 16)
    posterior.update(torch.arange(100, device="cuda"), torch.full((100,), 3, device="cuda"), 8)
    kept, _ = posterior.informative_scores(8, 16)
    assert torch.equal(kept, posterior.informative_probability(8))


def test_a_captured_step_is_the_step() -> None:
    """Replays of a graph learn from what its tensors hold by then, and pick by random keys of their own."""
    captured, plain = (bp.SolvingProgress(decay=0.7).posterior(N, device="cuda") for _ in range(2))
    generator = torch.Generator("cuda").manual_seed(4)
    index = torch.arange(0, N, 20, device="cuda")
    successes = torch.randint(9, index.shape, generator=generator, device="cuda")
    trials, moment = torch.full_like(index, 8), torch.zeros(1, dtype=torch.int64, device="cuda")

    def step() -> torch.Tensor:
        captured.update(index, successes, trials)
        scores, shortlist = captured.informative_scores(8, 64)
        moment.add_(1)
        return bp.acquisition.top_b(scores, 64, seed=1, step=moment, shortlist=shortlist)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
            plain.update(index, successes, trials)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        picked = step()
    for replay in range(5):
        successes.copy_(torch.randint(9, index.shape, generator=generator, device="cuda"))
        graph.replay()
        plain.update(index, successes, trials)
        assert torch.equal(captured.belief, plain.belief)
        scores = captured.informative_probability(8)
        expected = bp.acquisition.top_b(scores, 64, seed=1, step=4 + replay)
        assert torch.equal(picked, expected)


def test_counts_from_the_host_do_not_wait() -> None:
    selector = bp.recipes.dps(num_prompts=N, batch_size=64, device="cuda")
    rows, candidates = list(range(64)), torch.arange(N) % 2 == 0

    def step() -> None:
        selector.select(candidates)
        selector.observe(rows, successes=[3] * 64, trials=8)
        selector.advance()

    for _ in range(2):  # what is done once may wait
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert selector.metrics()["groups"] == 6 * 64


def test_a_selector_on_a_side_stream_picks_the_same() -> None:
    """While the stream that training uses is busy: picks are there before it is done."""
    plain, aside = (bp.recipes.dps(num_prompts=N, batch_size=64, seed=3, device="cuda") for _ in range(2))
    generator = torch.Generator().manual_seed(5)
    rewards = [(torch.rand(64, 8, generator=generator) < 0.5).float().cuda() for _ in range(6)]
    expected = []
    for some in rewards:
        expected.append(plain.select())
        plain.update(expected[-1], some)
    side, trained = torch.cuda.Stream(), torch.cuda.Event()
    for _ in range(2):  # compiled and cached, in a pool of its own
        other = bp.recipes.dps(num_prompts=N, batch_size=64, device="cuda")
        other.update(other.select(), rewards[0])
    torch.cuda.synchronize()
    torch.cuda._sleep(4_000_000_000)  # about two seconds, for what comes takes milliseconds
    trained.record()
    with torch.cuda.stream(side):
        picks = []
        for some in rewards:
            picks.append(aside.select())
            aside.update(picks[-1], some)
        side.synchronize()
    assert not trained.query(), "the side stream waited for the other one"
    torch.cuda.synchronize()
    assert all(torch.equal(pick, other) for pick, other in zip(picks, expected, strict=True))


def test_a_partitions_integrals_are_taken_on_the_device() -> None:
    emission = bp.PartitionEmission([0.0, 0.0, 0.2, 0.8, 1.0])
    successes, trials = torch.tensor([0, 1, 4, 8, 0, 500]), torch.tensor([8, 8, 8, 8, 0, 1000])
    exact = emission.log_likelihood(successes, trials)
    assert torch.allclose(emission.log_likelihood(successes.cuda(), trials.cuda()).cpu(), exact, rtol=1e-11, atol=1e-11)
