"""GenerativeDifficulty on recorded data: real texts, rates and training histories, kept beside the repository."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

import bayes_prompt as bp
from bayes_prompt.acquisition import InformativeProbability, UncertaintyBonus
from bayes_prompt.embedding import SURFACE_FEATURES, Scaling, WordLlama, embed
from bayes_prompt.models.difficulty import GenerativeDifficulty

pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("wordllama")

TRIALS = 8
UNSEEN = 6_000


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def features_of(texts: list[str]) -> np.ndarray:
    raw = embed(texts, WordLlama(), surface=True)
    return Scaling.of(raw, blocks=(raw.shape[1] - len(SURFACE_FEATURES), len(SURFACE_FEATURES)))(raw)


def test_cold_start_on_real_text(shared: Path) -> None:
    """Rates of prompts that nobody rolled out: ranked and calibrated, after 2 and after 8 batches of 128."""
    table = pq.read_table(shared / "data" / "deepscaler_solve_rates.parquet")
    rates = table["solve_rate"].to_numpy()
    g = np.random.default_rng(0)
    order = g.permutation(len(rates))
    unseen, seen = order[:UNSEEN], order[UNSEEN : UNSEEN + 1024]
    posterior = GenerativeDifficulty().posterior(embeddings=features_of(table["text"].to_pylist()))
    found = {}
    for batch in np.split(seen, 8):
        posterior.update(torch.tensor(batch), torch.tensor(g.binomial(TRIALS, rates[batch])), TRIALS)
        told = posterior.predicted_rate().double().numpy()[unseen]
        found[posterior.step] = told
        assert np.isfinite(told).all()
    for step, least in ((2, 0.28), (8, 0.34)):
        told = found[step]
        spearman = np.corrcoef(rankdata(told), rankdata(rates[unseen]))[0, 1]
        assert spearman >= least, (step, spearman)
        # Ten bins of 600 prompts: sampling adds about .4 / sqrt(600) = .016 to each gap.
        bins = np.array_split(np.argsort(told), 10)
        gaps = [abs(told[rows].mean() - rates[unseen][rows].mean()) for rows in bins]
        assert np.mean(gaps) < 0.05, (step, gaps)


def replayed(successes: np.ndarray, features: np.ndarray, batch: int, seed: int) -> np.ndarray:
    """Share of picks with mixed outcomes at each visit."""
    posterior = GenerativeDifficulty(seed=seed).posterior(embeddings=features)
    score = InformativeProbability(trials=TRIALS) + UncertaintyBonus(0.5)
    selector = bp.PromptSelector(posterior, score, batch_size=batch, seed=seed)
    ratio = []
    for outcome in torch.tensor(successes):
        picked = selector.select()
        ratio.append(float(((outcome[picked] > 0) & (outcome[picked] < TRIALS)).double().mean()))
        selector.update(picked, successes=outcome[picked], trials=TRIALS)
    return np.array(ratio)


def test_texts_help_from_the_first_visits_on(shared: Path) -> None:
    """The first visits of a recorded training run, with the texts of prompts and without, over the same seeds."""
    prompts = pq.read_table(shared / "data" / "one_shot_rlvr_prompts.parquet").to_pydict()
    visits = pq.read_table(shared / "data" / "one_shot_rlvr_histories.parquet").to_pydict()
    ids, often = np.unique(visits["prompt_id"], return_counts=True)
    kept = set(ids[often >= 50].tolist())
    place = {prompt: n for n, prompt in enumerate(p for p in prompts["prompt_id"] if p in kept)}
    successes = np.full((5, len(place)), -1)
    for prompt, visit, right in zip(visits["prompt_id"], visits["visit"], visits["successes"], strict=True):
        if prompt in place and visit < len(successes):
            successes[visit, place[prompt]] = right
    assert (successes >= 0).all()
    texts = [text for prompt, text in zip(prompts["prompt_id"], prompts["text"], strict=True) if prompt in place]
    features, batch = features_of(texts), round(0.1 * len(place))
    nothing = np.zeros((len(place), 1), np.float32)
    gain = [
        replayed(successes, features, batch, seed).mean() - replayed(successes, nothing, batch, seed).mean()
        for seed in range(5)
    ]
    assert np.mean(gain) > 2 * np.std(gain, ddof=1) / np.sqrt(len(gain)), gain
