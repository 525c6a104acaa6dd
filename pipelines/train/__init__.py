"""Train a model from a recipe: `recipe` (what), `module` (the step), `run` (the loop and its folder), `card` (what is said of it)."""
