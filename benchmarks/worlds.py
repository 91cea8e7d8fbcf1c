"""`recipes.best` against the published methods in every simulated world: effective sample ratios, paired by seed.

python benchmarks/worlds.py [--seeds 10] [--steps 10]
"""

from __future__ import annotations

import argparse
from dataclasses import replace

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
    parser.add_argument("--steps", type=int, help="of each world, where it is not its own number")
    options = parser.parse_args()
    seeds = options.seeds
    heads = ("world", "best", "best published", "best less that", "number of steps untold", "with groups or texts")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name, world in simulate.WORLDS.items():
        world = replace(world, steps=options.steps or world.steps)
        told = [given for given, has in (("groups", world.groups), ("embeddings", world.embeddings)) if has is not None]
        ours = {"best": recipe("best"), "untold": recipe("best", num_steps=None)}
        ours |= {given: recipe("best", given) for given in told}
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
            f"{ratio['untold'].mean():.3f}",
            ", ".join(f"{ratio[given].mean():.3f}" for given in told),
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
