"""Declarations learned from rollout histories, and compared on them.

| module | what it holds |
|---|---|
| `evidence` | `log_count_evidence`: how well a declaration predicted a history, with gradients |
| `filters`, `progress`, `grid` | the declarations' filters as functions of their parameters |
| `outcomes`, `quadrature` | the distinct counts of a history; grids as functions of a prior's parameters |
| `program` | what is to be fitted, as Pyro programs |
| `laplace` | the mode of a posterior, and its shape there |
| `fit` | `fit`: SVI, NUTS, or the mode |
| `results` | what was found: a declaration to use as it is, and its parameters with intervals |
| `families` | named families of declarations, with priors of their parameters |
| `predictions` | look by look what any declaration predicted; histories replicated from its own predictions |
| `statistics` | what of a history is compared with replicated ones |
| `compare` | `compare`: evidence, differences and their errors, posterior predictive checks |
| `tables`, `command` | the same for the terminal; `bayes-prompt fit` and `bayes-prompt compare` |

Declarations with forgetting have no generative counterpart: what is maximised then, or sampled from, is the prior times
the probability of each look given the looks before it, a predictive likelihood. Without forgetting, where the filter is
exact inference, that is the likelihood of the declaration's own Pyro program, its latent variables summed out.

Declarations whose prompts learn from each other, `LogitGaussian`, and those of a user have no filter here: their
posterior is fed the history instead, which is slower, and gradients are central differences of what it comes to.
"""
