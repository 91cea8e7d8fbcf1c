"""What we want next: scores over the pool for any posterior, and the exact pick of the best with random ties."""

from bayes_prompt.acquisition.scores import (
    Acquisition,
    EntropyBonus,
    ExpectedVariance,
    HistoryResampling,
    InformativeProbability,
    PartialProbability,
    Uniform,
)
from bayes_prompt.acquisition.select import top_b
from bayes_prompt.acquisition.thompson import TargetSuccessRate, Threshold

__all__ = [
    "Acquisition",
    "EntropyBonus",
    "ExpectedVariance",
    "HistoryResampling",
    "InformativeProbability",
    "PartialProbability",
    "TargetSuccessRate",
    "Threshold",
    "Uniform",
    "top_b",
]
