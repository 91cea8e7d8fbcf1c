"""How fast the package is on this machine: our operations beside other ways to do the same, in one run.

| module | what it has |
|---|---|
| `workloads` | the operations, their settings, and the state and observations that every implementation starts from |
| `peers`, `torch_peers` | the same operations by numpy and dictionaries, and by torch and torch.compile |
| `cases` | an operation by one implementation: how to set it up, what it calls, what memory it needs |
| `measure`, `memory` | alternating repetitions and their quartiles; bytes that are held, peaks, what is free |
| `machine` | the device, the versions, the commit, and how fast the device copies |
| `verify` | whether each implementation agrees with the float64 reference, on fresh random inputs |
| `suite` | runs it all, and leaves out what time or memory does not allow |
| `results` | what came out, with the ratios that it allows, as JSON |
| `tables`, `plots`, `report` | tables for the terminal and the docs, the log-log plot, the generated part of the docs |
| `command` | `bayes-prompt bench` |

`bayes-prompt bench` is `suite.run` from the command line. A time counts only beside a passed check of the same run: if
ours or a peer disagrees with the reference, their ratio is withheld.
"""
