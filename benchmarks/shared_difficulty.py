"""What sharing difficulty between prompts is worth: selectors replayed on recorded histories, with parts left out.

    python benchmarks/shared_difficulty.py --data FOLDER --out benchmarks/results --plots docs

Picks are made from a recorded history in which the outcome of every prompt at every visit is known, so that any
selector can be asked. What a pick does to learning cannot be seen there: recorded policies were trained on other
picks. Seeds are those of networks, draws and ties; intervals are of 95% over them. Seeds of which a results file in
`--out` tells already are not run again: delete it to measure anew.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pyro.distributions as dist
import scipy.stats
import torch
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.acquisition import Diverse, InformativeProbability, QuadraticUtility, UncertaintyBonus
from bayes_prompt.embedding import SURFACE_FEATURES, Scaling, WordLlama, embed
from bayes_prompt.models.difficulty import GenerativeDifficulty
from bayes_prompt.posteriors.base import Posterior

VISITS = 50  # of the replay protocol, where prompts have been visited at different times
TRIALS = 8
FIRST = 5
SMOOTH = 5
BATCHES = {"one_shot_rlvr": None, "small_grpo": 64}  # prompts in a pick; None: a tenth of the pool


@dataclass(frozen=True)
class History:
    """successes (T, N) of `TRIALS` at every visit. features: (N, D + F), the last F of them counted in the text."""

    name: str
    successes: np.ndarray
    features: np.ndarray
    batch: int

    @classmethod
    def load(cls, folder: Path, name: str) -> History:
        prompts = pyarrow.parquet.read_table(folder / f"{name}_prompts.parquet").to_pydict()
        visits = pyarrow.parquet.read_table(folder / f"{name}_histories.parquet").to_pydict()
        assert set(visits["trials"]) == {TRIALS}
        often = Counter(visits["prompt_id"])
        kept = [row for row, prompt in enumerate(prompts["prompt_id"]) if often[prompt] >= VISITS]
        place = {prompts["prompt_id"][row]: n for n, row in enumerate(kept)}
        steps = min(often[prompt] for prompt in place)
        steps = VISITS if BATCHES[name] is None else steps
        successes = np.full((steps, len(kept)), -1)
        for prompt, visit, right in zip(visits["prompt_id"], visits["visit"], visits["successes"], strict=True):
            if prompt in place and visit < steps:
                successes[visit, place[prompt]] = right
        assert (successes >= 0).all()
        features = features_of([prompts["text"][row] for row in kept])
        return cls(name, successes, features, BATCHES[name] or round(0.1 * len(kept)))


def features_of(texts: Sequence[str]) -> np.ndarray:
    """WordLlama's embeddings and surface features, each scaled as a block."""
    raw = embed(texts, WordLlama(), surface=True)
    return Scaling.of(raw, blocks=(raw.shape[1] - len(SURFACE_FEATURES), len(SURFACE_FEATURES)))(raw)


class OnlyHistory(Diverse):
    """Diverse without dispersion: no distance within the batch counts, only that to earlier batches."""

    def choose(self, scores: Tensor, wanted: int, *, recent: Tensor, begun: int, **more: Any) -> Tensor:
        assert begun == 0 and more["allowed"] is None
        vectors = torch.nn.functional.normalize(self.pool.values.float())
        if len(recent):
            apart = 1 - vectors @ vectors[recent].T
            scores = scores + self.weight * (apart.amin(1) if self.pool.variant == "min" else apart.mean(1))
        return bp.acquisition.top_b(scores, wanted, seed=more["seed"], step=more["step"])


Method = Callable[[History, int], tuple[Posterior, bp.acquisition.Acquisition]]


def shared(
    *,
    score: Any = InformativeProbability(trials=TRIALS),  # noqa: B008 - frozen
    bonus: float = 0.5,
    weight: float = 0.0,
    variant: str = "min",
    batches: int = 2,
    diverse: type[Diverse] = Diverse,
    text: str = "all",
    **model: Any,
) -> Method:
    """GenerativeDifficulty(**model) with `text`, "all", "embedding" or "none", and a pick."""

    def make(history: History, seed: int) -> tuple[Posterior, bp.acquisition.Acquisition]:
        width = history.features.shape[1] - len(SURFACE_FEATURES)
        features = {
            "all": history.features,
            "embedding": history.features[:, :width],
            "none": np.zeros((len(history.features), 1), np.float32),
        }[text]
        acquisition = score + UncertaintyBonus(bonus) if bonus else score
        if weight:
            acquisition = diverse(acquisition, features, weight=weight, batches=batches, variant=variant)
        return GenerativeDifficulty(seed=seed, **model).posterior(embeddings=features), acquisition

    return make


def alone(model: Any, score: bp.acquisition.Acquisition) -> Method:
    """A model whose prompts share nothing that is learned."""
    return lambda history, seed: (model.posterior(history.successes.shape[1]), score)


def published(**changed: Any) -> Method:
    """GPS as published: no own record, binomial counts, -(rate - 1/2)^2, a diverse batch."""
    chosen = {"score": QuadraticUtility(), "bonus": 0.0, "weight": 0.01, "variant": "sum"}
    return shared(**{**chosen, "own_record": False, "likelihood": "binomial", **changed})


INFORMATIVE = InformativeProbability(trials=TRIALS)
UNIFORM = dist.Beta(1.0, 1.0)
VARIANTS: dict[str, Method] = {
    "uniform": alone(bp.SuccessRate(UNIFORM, decay=0.5), bp.acquisition.Uniform()),
    "MoPPS": alone(bp.SuccessRate(UNIFORM, decay=0.5), bp.acquisition.TargetSuccessRate(0.5)),
    "DPS": alone(bp.SolvingProgress(decay=0.7), bp.acquisition.PartialProbability()),
    "Beta, decay .8": alone(bp.SuccessRate(UNIFORM, decay=0.8), INFORMATIVE),
    "Beta, decay .8, optimism": alone(bp.SuccessRate(UNIFORM, decay=0.8), INFORMATIVE + UncertaintyBonus(0.5)),
    "ours": shared(),
    "ours, no text": shared(text="none"),
    "ours, no record": shared(own_record=False),
    "ours, no optimism": shared(bonus=0.0),
    "ours, optimism .25": shared(bonus=0.25),
    "ours, optimism 1": shared(bonus=1.0),
    "ours, no text, no optimism": shared(text="none", bonus=0.0),
    "ours, no z": shared(latent=None),
    "ours, binomial": shared(likelihood="binomial"),
    "ours, no surface features": shared(text="embedding"),
    **{
        f"ours, {variant} {weight}": shared(weight=weight, variant=variant)
        for variant in ("min", "sum")
        for weight in (0.01, 0.03, 0.1)
    },
    "published": published(),
    "published, min": published(variant="min"),
    "published, no z": published(latent=None),
    "published, no dispersion": published(diverse=OnlyHistory),
    "published, no distance to history": published(batches=0),
    "published, no diversity": published(weight=0.0),
    "published, weight .1": published(weight=0.1),
    "published, weight .1, no dispersion": published(weight=0.1, diverse=OnlyHistory),
    "published, weight .1, no distance to history": published(weight=0.1, batches=0),
}
PLOTTED = ("ours", "ours, no text", "published", "Beta, decay .8", "DPS", "uniform")


def auc(score: np.ndarray, true: np.ndarray) -> float:
    """The chance that a prompt that came out mixed had the higher score than one that did not."""
    ranks, hits = scipy.stats.rankdata(score), int(true.sum())
    return float((ranks[true].sum() - hits * (hits + 1) / 2) / (hits * (len(true) - hits)))


def replay(history: History, method: Method, seed: int) -> dict[str, Any]:
    """One pass through the history. Log loss and AUC are of P(informative) over the whole pool, before each pick.

    "auc, first" leaves the first pick out, before which nothing was known, and takes the next `FIRST`.
    """
    posterior, acquisition = method(history, seed)
    selector = bp.PromptSelector(posterior, acquisition, batch_size=history.batch, seed=seed)
    informative = (history.successes > 0) & (history.successes < TRIALS)
    ratio, loss, order, useful = [], [], [], np.zeros(len(informative[0]), bool)
    for successes, true in zip(history.successes, informative, strict=True):
        picked = selector.select()
        if not isinstance(acquisition, bp.acquisition.Uniform):
            chance = posterior.informative_probability(TRIALS).double().clamp(1e-4, 1 - 1e-4).numpy()
            loss.append(-np.log(np.where(true, chance, 1 - chance)).mean())
            order.append(auc(chance, true))
        ratio.append(true[picked].mean())
        useful[picked[true[picked]]] = True
        selector.update(picked, successes=torch.tensor(successes)[picked], trials=TRIALS)
    return {
        "ratio": float(np.mean(ratio)),
        "first": float(np.mean(ratio[:FIRST])),
        "second half": float(np.mean(ratio[len(ratio) // 2 :])),
        "log loss": float(np.mean(loss)) if loss else None,
        "auc": float(np.mean(order)) if order else None,
        "auc, first": float(np.mean(order[1 : FIRST + 1])) if order else None,
        "distinct": int(useful.sum()),
        "curve": ratio,
    }


def half_width(values: Sequence[float]) -> float:
    """Half of the 95% interval of a mean (Student's t)."""
    return float(scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)


def measure(history: History, names: Sequence[str], seeds: int, path: Path) -> dict[str, Any]:
    """Replay what `path` does not have yet, write there after each, and give all of it back."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    found |= {"format": "bayes-prompt shared difficulty 1", "history": history.name, "batch": history.batch}
    found |= {"prompts": len(history.features), "visits": len(history.successes), "variants": found.get("variants", {})}
    for name in names:
        entry = found["variants"].get(name, {})
        done = len(entry.get("ratio", []))
        for seed in range(done, seeds):
            run = replay(history, VARIANTS[name], seed)
            curve = run.pop("curve")
            for figure, value in run.items():
                entry.setdefault(figure, []).append(None if value is None else round(value, 5))
            if name in PLOTTED:  # the mean over seeds
                before = np.asarray(entry.get("curve", curve))
                entry["curve"] = (before + (np.asarray(curve) - before) / (seed + 1)).round(5).tolist()
            found["variants"][name] = entry
            path.write_text(json.dumps(found, separators=(",", ":")) + "\n")
        print(f"{history.name} {row(name, entry)}", flush=True)
    return found


def gain_of_texts(found: dict[str, Any]) -> str:
    """By how much the same seeds do better with texts than without."""
    both = [found["variants"].get(name, {}) for name in ("ours", "ours, no text")]
    if not all(both):
        return ""
    lines = []
    for figure, what in (("ratio", "all visits"), ("first", f"the first {FIRST}")):
        gain = [with_text - without for with_text, without in zip(*(entry[figure] for entry in both), strict=True)]
        lines.append(f"gain of texts over {what}: {np.mean(gain):.3f} ± {half_width(gain):.3f}")
    return "\n".join(lines)


def row(name: str, entry: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [name]
    for figure in ("ratio", "first", "second half", "auc", "auc, first", "log loss", "distinct"):
        values = [value for value in entry[figure] if value is not None]
        digits = 0 if figure == "distinct" else 3
        shown = f"{np.mean(values):.{digits}f} ± {half_width(values):.{digits}f}" if values else ""
        cells.append(shown.replace("0.", "."))
    return "| " + " | ".join(cells) + " |"


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Effective sample ratio by visit, means of five visits."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for panel, found in zip(panels, results, strict=True):
        for place, name in enumerate(PLOTTED):
            if name in found["variants"]:
                curve = np.asarray(found["variants"][name]["curve"])
                five = np.array([curve[max(0, t - SMOOTH + 1) : t + 1].mean() for t in range(len(curve))])
                line = "-" if name.startswith("ours") else "--"
                panel.plot(1 + np.arange(len(five)), five, line, label=name, linewidth=2.2 if place == 0 else 1.2)
        title = f"{found['history']}: {found['prompts']:,} prompts, {found['batch']} picked"
        panel.set(title=title, xlabel="visit", ylabel="share of picks with mixed outcomes", ylim=(0, 1))
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=100, format="png", metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the recorded histories")
    parser.add_argument("--histories", nargs="+", choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--plots", type=Path, help="folder of the plot")
    options = parser.parse_args()
    for folder in filter(None, (options.out, options.plots)):
        folder.mkdir(parents=True, exist_ok=True)
    if options.seeds < 2:
        parser.error("--seeds must be at least 2, for an interval")
    torch.set_num_threads(1)
    results = []
    for name in options.histories:
        history = History.load(options.data, name)
        path = options.out / f"difficulty-{name}.json"
        results.append(measure(history, options.variants, options.seeds, path))
        print(gain_of_texts(results[-1]))
    if options.plots:
        plot(results, options.plots / "difficulty-histories.png")


if __name__ == "__main__":
    main()
