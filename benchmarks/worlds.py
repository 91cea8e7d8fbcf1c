"""`recipes.best` against the published methods in every simulated world: effective sample ratios, paired by seed.

python benchmarks/worlds.py [--seeds 10]
"""

from __future__ import annotations

import argparse

import numpy as np

from bayes_prompt import simulate
from bayes_prompt.simulate import recipe

PUBLISHED = {
    "DPS .5": recipe("dps", decay=0.5),
    "DPS .7": recipe("dps", decay=0.7),
    "DPS .9": recipe("dps", decay=0.9),
    "MoPPS .5": recipe("mopps", decay=0.5),
    "MoPPS 1": recipe("mopps", decay=1.0),
    "KGPS": recipe("kgps"),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    seeds = parser.parse_args().seeds
    heads = ("world", "best", "best published", "best less that", "with groups or texts")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name, world in simulate.WORLDS.items():
        told = [given for given, has in (("groups", world.groups), ("embeddings", world.embeddings)) if has is not None]
        ours = {"best": recipe("best")} | {given: recipe("best", given) for given in told}
        found = simulate.judge({**PUBLISHED, **ours}, worlds={name: world}, seeds=seeds)[name]
        ratio = {
            method: np.array([run.effective_sample_ratio.mean() for run in runs]) for method, runs in found.items()
        }
        rival = max(PUBLISHED, key=lambda method: ratio[method].mean())
        more = ratio["best"] - ratio[rival]
        cells = [
            f"{ratio['best'].mean():.3f}",
            f"{ratio[rival].mean():.3f} ({rival})",
            f"{more.mean():+.3f} ± {more.std(ddof=1) / seeds**0.5:.3f}",
            ", ".join(f"{ratio[given].mean():.3f}" for given in told),
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
