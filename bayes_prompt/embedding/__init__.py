"""Vectors of prompts: what an embedder says of a text, and what can be counted in it.

| module | what it holds |
|---|---|
| `embedders.py`, `hashed.py` | the protocol; WordLlama, sentence-transformers, hashed n-grams |
| `pipeline.py`, `cache.py`, `progress.py` | texts to one array: equal ones once, files found by content, a bar |
| `surface.py` | lengths and counts |
| `scaling.py` | both brought to one scale |
| `arrays.py`, `texts.py` | arrays that a user brings; checks of texts |
"""

from bayes_prompt.embedding.arrays import load_array
from bayes_prompt.embedding.embedders import Embedder, SentenceTransformer, WordLlama, default
from bayes_prompt.embedding.hashed import HashedNgrams
from bayes_prompt.embedding.pipeline import embed, features
from bayes_prompt.embedding.scaling import Scaling
from bayes_prompt.embedding.surface import SURFACE_FEATURES, surface_features
from bayes_prompt.files import default_cache

__all__ = [
    "SURFACE_FEATURES",
    "Embedder",
    "HashedNgrams",
    "Scaling",
    "SentenceTransformer",
    "WordLlama",
    "default",
    "default_cache",
    "embed",
    "features",
    "load_array",
    "surface_features",
]
