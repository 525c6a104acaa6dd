"""Train a model from a recipe.

Read `run` first: the loop and its folder. `recipe` says what is trained, `module` is the step, `finish` measures the
model that comes out and `card` says what it is.
"""

from mamba_seq.pipelines.train.run import main

__all__ = ["main"]
