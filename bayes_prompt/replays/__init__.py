"""Selectors replayed on recorded histories: any way of choosing prompts, judged by what is known to have come out.

| module | what it holds |
|---|---|
| `protocol` | `replay`: what is kept of a history, and one pass through it |
| `methods` | ways of choosing, by the names of recipes with options, or functions of one's own |
| `judging` | how well P(informative) fits what came out; which prompts were neglected |
| `results` | what came out: figures with their errors over seeds, as JSON |
| `tables`, `plots` | the same for the terminal, and as pictures |
| `bars` | progress bars |
| `command` | `bayes-prompt replay` |

A recorded history tells what prompts would have given at each visit, not what training on other prompts would have made
of the model: the policy that was recorded was trained on other picks.
"""
