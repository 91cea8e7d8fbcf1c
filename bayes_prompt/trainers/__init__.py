"""Adapters that plug a `PromptSelector` into trainers. Each imports its trainer when it is itself imported, not before.

| module | trainer |
|---|---|
| `bayes_prompt.trainers.trl` | TRL's `GRPOTrainer` |
| `bayes_prompt.trainers.torch` | samplers for PyTorch's `DataLoader` and torchdata's `StatefulDataLoader` |
"""
