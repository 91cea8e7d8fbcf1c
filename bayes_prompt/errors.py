"""The errors of this package that a caller may want to tell apart; each of them is a `ValueError`."""

from __future__ import annotations


class CannotLower(ValueError):
    """A declared distribution has no exact table for the kernels; the message names the field and what would work."""


class CheckpointError(ValueError):
    """A checkpoint is truncated, tampered with, of another version, or belongs to another model or pool."""


class PromptShortage(ValueError):
    """Too few prompts can be picked because the others are still in flight."""
