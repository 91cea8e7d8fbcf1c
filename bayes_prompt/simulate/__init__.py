"""Simulated worlds: what is learnt depends on what was selected, so that selectors can be judged without training.

    world = bp.simulate.WORLDS["forgetting"]
    selector = bp.recipes.dps(num_prompts=world.num_prompts, batch_size=world.batch_size, seed=0)
    print(bp.simulate.play(world, selector, seed=0).summary())

A recorded history says what came of prompts under the selection of that time; a policy that trains on others learns
something else. A `World` is a declaration, a Pyro program whose parts may be swapped: how hard prompts are, how a skill
grows with the informative rollouts spent (`Growth`), whom a lesson helps (`Transfer`, `SimilarTransfer`), what is
forgotten (`Forgetting`), how rates wander (`noise`).

| module | what it holds |
|---|---|
| `world` | `World`: the declaration, its Pyro program, and what is true of the policy at one moment |
| `dynamics` | the parts that make a skill grow, spread and decay |
| `run` | `Run`: a world that time passes in, rolled out and trained by whoever picks |
| `play` | a selector in a world, and the figures of it; several of them in several worlds, as a table |
| `worlds` | `WORLDS`: ten by name, for judging a recipe |
"""

from bayes_prompt.simulate.dynamics import Forgetting, Growth, SimilarTransfer, Transfer, lessons
from bayes_prompt.simulate.play import Figures, Method, judge, play, recipe, table
from bayes_prompt.simulate.run import Run
from bayes_prompt.simulate.world import Learner, World
from bayes_prompt.simulate.worlds import WORLDS

__all__ = [
    "WORLDS",
    "Figures",
    "Forgetting",
    "Growth",
    "Learner",
    "Method",
    "Run",
    "SimilarTransfer",
    "Transfer",
    "World",
    "judge",
    "lessons",
    "play",
    "recipe",
    "table",
]
