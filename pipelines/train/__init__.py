"""Train a model from a recipe: `recipe` (what), `module` (the step), `run` (the loop and its folder), `card` (what is said of it)."""

from mamba_seq.pipelines.train.run import main

__all__ = ["main"]
