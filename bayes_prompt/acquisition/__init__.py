"""What we want next: scores over the pool for any posterior, and the exact pick of the best with random ties."""

from bayes_prompt.acquisition.allocation import Allocation, RateBeliefs, allocate, expected_accuracy
from bayes_prompt.acquisition.batch import Batch
from bayes_prompt.acquisition.diverse import Diverse
from bayes_prompt.acquisition.diversity import DiversePick, Diversity
from bayes_prompt.acquisition.exploration import (
    KnowledgeGradient,
    LookIndex,
    OfBatch,
    RevisitFloor,
    Survey,
    ThompsonInformative,
    UpperQuantile,
)
from bayes_prompt.acquisition.objectives import AnyCorrect, BestOfN, MajorityVote, Objective
from bayes_prompt.acquisition.scores import (
    Acquisition,
    EntropyBonus,
    ExpectedVariance,
    HistoryResampling,
    InformativeProbability,
    PartialProbability,
    QuadraticUtility,
    UncertaintyBonus,
    Uniform,
)
from bayes_prompt.acquisition.select import top_b
from bayes_prompt.acquisition.thompson import TargetSuccessRate, Threshold

__all__ = [
    "Acquisition",
    "Allocation",
    "AnyCorrect",
    "Batch",
    "BestOfN",
    "Diverse",
    "DiversePick",
    "Diversity",
    "EntropyBonus",
    "ExpectedVariance",
    "HistoryResampling",
    "InformativeProbability",
    "KnowledgeGradient",
    "LookIndex",
    "MajorityVote",
    "Objective",
    "OfBatch",
    "PartialProbability",
    "QuadraticUtility",
    "RateBeliefs",
    "RevisitFloor",
    "Survey",
    "TargetSuccessRate",
    "ThompsonInformative",
    "Threshold",
    "UncertaintyBonus",
    "Uniform",
    "UpperQuantile",
    "allocate",
    "expected_accuracy",
    "top_b",
]
