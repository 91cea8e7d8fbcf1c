"""Declarations: what we believe about how prompts evolve, as frozen objects whose fields are Pyro distributions."""
