"""Cold start on real text: predicted against recorded success rates of prompts that nobody has rolled out.

    python benchmarks/cold_start.py --data FOLDER --out benchmarks/results --plots docs

Prompts are split at random, by text. Those to learn from come in batches, as from a trainer; each brings a count of
successes drawn from its recorded rate. On the others the shared predictor is compared with ridge regressions, boosted
trees and the length of the text, which learn from the same counts at once. Intervals are of 95% over seeds: of splits,
counts and networks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from scipy.stats import spearmanr
from shared_difficulty import features_of, half_width
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_limits

from bayes_prompt.embedding import SURFACE_FEATURES
from bayes_prompt.models.difficulty import GenerativeDifficulty

UNSEEN = 6_000
TRIALS = 8
BINS = 10
SIZES = (256, 512, 1024, 2048, 4096)
WIDTH = len(SURFACE_FEATURES)
LENGTHS = tuple(SURFACE_FEATURES.index(name) for name in ("characters", "words", "longest_sentence"))
LEAVES = 15  # what boosted trees of a few hundred noisy labels bear
PENALTIES = 10.0 ** np.arange(-1, 3.1, 0.5)  # of ridge, for features of mean squared length 1

Predictor = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def ridge(seen: np.ndarray, rates: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Ridge regression; its penalty is the best of five-fold cross-validation."""
    folds = np.arange(len(seen)) % 5  # rows come in random order
    errors = [
        sum(
            float(
                np.square(
                    Ridge(p).fit(seen[folds != k], rates[folds != k]).predict(seen[folds == k]) - rates[folds == k]
                ).sum()
            )
            for k in range(5)
        )
        for p in PENALTIES
    ]
    return np.asarray(Ridge(PENALTIES[int(np.argmin(errors))]).fit(seen, rates).predict(unseen))


def trees(seen: np.ndarray, rates: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Boosted trees, stopped where a tenth that is held out says so."""
    model = HistGradientBoostingRegressor(
        learning_rate=0.05, max_iter=300, max_leaf_nodes=LEAVES, early_stopping=True, random_state=0
    )
    return np.asarray(model.fit(seen, rates).predict(unseen))


def length(seen: np.ndarray, rates: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """A straight line through the logarithm of the text's length."""
    return np.asarray(Ridge(1e-6).fit(seen, rates).predict(unseen))


# Peers, and which columns they are shown.
PEERS: dict[str, tuple[Predictor, Callable[[np.ndarray], np.ndarray]]] = {
    "ridge": (ridge, lambda x: x[:, :-WIDTH]),
    "ridge, length features": (ridge, lambda x: np.c_[x[:, :-WIDTH], x[:, -WIDTH:][:, LENGTHS]]),
    "ridge, surface features": (ridge, lambda x: x),
    "boosted trees": (trees, lambda x: x),
    "length": (length, lambda x: x[:, -WIDTH:][:, :1]),
}
OURS = "GenerativeDifficulty"
VARIANTS: dict[str, tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray]]] = {
    OURS: ({}, lambda x: x),
    "no z": ({"latent": None}, lambda x: x),
    "binomial": ({"likelihood": "binomial"}, lambda x: x),
    "published (no record, binomial)": ({"likelihood": "binomial", "own_record": False}, lambda x: x),
    "no surface features": ({}, lambda x: x[:, :-WIDTH]),
    "published, no surface features": (
        {"likelihood": "binomial", "own_record": False},
        lambda x: x[:, :-WIDTH],
    ),
}

# What is plotted: name, colour, marker, line.
DRAWN = (
    (OURS, "C0", "o", "-"),
    ("published (no record, binomial)", "C4", "v", "-."),
    ("ridge, surface features", "C2", "s", "--"),
    ("ridge, length features", "C3", "^", "--"),
    ("ridge", "C1", "D", "--"),
    ("boosted trees", "C5", "P", ":"),
    ("length", "grey", "x", ":"),
)


def reliability(predicted: np.ndarray, rates: np.ndarray) -> list[tuple[float, float]]:
    """Mean predicted and mean recorded rate of bins of equal counts."""
    order = np.array_split(np.argsort(predicted, kind="stable"), BINS)
    return [(float(predicted[part].mean()), float(rates[part].mean())) for part in order]


def figures(predicted: np.ndarray, rates: np.ndarray) -> dict[str, Any]:
    """Spearman's correlation, expected calibration error, the mean squared error and the reliability diagram."""
    diagram = reliability(predicted, rates)
    return {
        "spearman": float(spearmanr(predicted, rates)[0]),
        "calibration error": float(np.mean([abs(told - true) for told, true in diagram])),
        "mean squared error": float(np.square(predicted - rates).mean()),
        "diagram": diagram,
    }


def one_seed(features: np.ndarray, rates: np.ndarray, batch: int, seed: int, names: Sequence[str]) -> dict[str, Any]:
    """Figures by predictor and number of observed prompts."""
    g = np.random.default_rng(seed)
    order = g.permutation(len(rates))
    unseen, seen = order[:UNSEEN], order[UNSEEN : UNSEEN + SIZES[-1]]
    successes = g.binomial(TRIALS, rates[seen])
    found: dict[str, Any] = {name: {} for name in names}
    for name in names:
        if name in PEERS:
            predictor, columns = PEERS[name]
            x = columns(features)
            for size in SIZES:
                told = predictor(x[seen[:size]], successes[:size] / TRIALS, x[unseen])
                found[name][size] = figures(told, rates[unseen])
            continue
        options, columns = VARIANTS[name]
        posterior = GenerativeDifficulty(seed=seed, **options).posterior(embeddings=columns(features))
        for start in range(0, SIZES[-1], batch):
            part = slice(start, start + batch)
            posterior.update(torch.tensor(seen[part]), torch.tensor(successes[part]), TRIALS)
            if start + batch in SIZES:
                told = posterior.predicted_rate().double().numpy()
                found[name][start + batch] = figures(told[unseen], rates[unseen])
    return found


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures of all seeds side by side; of diagrams the mean."""
    return {
        str(size): {
            **{
                figure: [round(run[size][figure], 5) for run in runs]
                for figure in ("spearman", "calibration error", "mean squared error")
            },
            "diagram": np.mean([run[size]["diagram"] for run in runs], axis=0).round(4).tolist(),
        }
        for size in runs[0]
    }


def shown(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ± {half_width(values):.3f}".replace("0.", ".")


def plot(found: dict[str, Any], path: Path) -> None:
    """Correlation against the number of observed prompts, and reliability diagrams."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    curve, diagram = figure.subplots(1, 2)
    for name, colour, marker, line in DRAWN:
        entries = found["predictors"].get(name)
        if entries:
            sizes, values = [int(size) for size in entries], [entry["spearman"] for entry in entries.values()]
            means, halves = [np.mean(v) for v in values], [half_width(v) for v in values]
            width = 2.2 if name == OURS else 1.2
            style = {"color": colour, "marker": marker, "linestyle": line, "linewidth": width, "markersize": 4}
            curve.errorbar(sizes, means, yerr=halves, capsize=2, label=name, **style)
    curve.set(xscale="log", xlabel="observed prompts, 8 rollouts each", ylabel="Spearman's correlation, unseen prompts")
    curve.set_xticks(SIZES, [f"{size:,}" for size in SIZES], minor=False)
    curve.minorticks_off()
    curve.grid(alpha=0.3)
    curve.legend(fontsize=8, loc="lower right")
    for size, colour in zip(("256", "1024", "4096"), ("C1", "C2", "C0"), strict=True):
        entry = found["predictors"][OURS][size]
        told, true = np.transpose(entry["diagram"])
        error = np.mean(entry["calibration error"])
        label = f"after {int(size):,} prompts: error {error:.3f}"
        diagram.plot(told, true, marker="o", markersize=4, color=colour, label=label)
    diagram.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=0.8)
    diagram.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="predicted success rate", ylabel="recorded success rate", aspect="equal"
    )
    diagram.grid(alpha=0.3)
    diagram.legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=100, format="png", metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of deepscaler_solve_rates.parquet")
    parser.add_argument(
        "--predictors", nargs="*", default=[*VARIANTS, *PEERS], choices=[*VARIANTS, *PEERS], metavar="NAME"
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--plots", type=Path, help="folder of the plot")
    options = parser.parse_args()
    for folder in filter(None, (options.out, options.plots)):
        folder.mkdir(parents=True, exist_ok=True)
    if options.seeds < 2:
        parser.error("--seeds must be at least 2, for an interval")
    torch.set_num_threads(1)
    table = pyarrow.parquet.read_table(options.data / "deepscaler_solve_rates.parquet")
    features, rates = features_of(table["text"].to_pylist()), table["solve_rate"].to_numpy()
    path = options.out / "difficulty-cold_start.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"predictors": {}}
    found |= {"format": "bayes-prompt cold start 1", "prompts": len(rates), "unseen": UNSEEN, "batch": options.batch}
    for name in options.predictors:
        with threadpool_limits(1):
            runs = [one_seed(features, rates, options.batch, seed, [name])[name] for seed in range(options.seeds)]
        found["predictors"][name] = summary(runs)
        path.write_text(json.dumps(found, separators=(",", ":")) + "\n")
        for figure in ("spearman", "calibration error"):
            cells = [shown(entry[figure]) for entry in found["predictors"][name].values()]
            print(f"| {figure} | {name} | {' | '.join(cells)} |", flush=True)
    if options.plots:
        plot(found, options.plots / "difficulty-cold_start.png")


if __name__ == "__main__":
    main()
