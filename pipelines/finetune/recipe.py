"""What decides a fine-tuning run, as typed fields: of the built-in recipe, a zoo recipe or a YAML file, and
overrides.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mamba_seq.config import MambaConfig
from mamba_seq.data_prep.labelled import LabelledConfig
from mamba_seq.pipelines.errors import RecipeError
from mamba_seq.pipelines.train.recipe_fields import BaseRecipe, OptimConfig

Tune = Literal["full", "head", "lora"]
TASKS = (
    "sequence-classification",
    "multi-label",
    "sequence-regression",
    "token-classification",
    "token-regression",
    "ctc",
    "language-model",
)


@dataclasses.dataclass(kw_only=True)
class LoraConfig:
    """Low-rank adapters on the blocks' projections (arXiv 2106.09685), merged into the weights at the end."""

    rank: int = 8
    """Rank of the two matrices."""
    alpha: int = 16
    """Their product is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout in front of them."""
    modules: list[str] = dataclasses.field(default_factory=lambda: ["in_proj", "out_proj"])
    """Ends of the names of the linear maps that get them: in_proj, x_proj, dt_proj, out_proj of every block."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"lora has rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}; expected at least 1, "
                "above 0, and 0 "
                "or more, below 1"
            )


@dataclasses.dataclass(kw_only=True)
class FinetuneRecipe(BaseRecipe):
    """A run on labelled sequences. `optim.steps`, `optim.warmup_steps` and `val_every` are made from the epochs."""

    name: str = "finetuned"
    """Name of the model on its card."""
    summary: str = "A model trained on labelled sequences."
    """One sentence for the model's card."""
    data_source: str = "The data that the command was given."
    """Where the data comes from, for the card."""
    data_licence: str = "That of the data."
    """The data's licence or terms, for the card."""
    kind: Literal["finetune"] = "finetune"
    """Tells the recipe from those of `mamba-seq train`."""
    start: str | None = None
    """The saved model that is fine-tuned; None trains `model` from scratch."""
    model: MambaConfig | None = None
    """The backbone, from scratch."""
    pooling: Literal["mean", "last", "max"] | None = None
    """How positions become one vector; None takes the saved model's, or the mean."""
    positions: bool = False
    """Learn a vector for every position: for aligned sequences, such as windows around a site."""
    dropout: float | None = None
    """Dropout of the blocks; None leaves that of the model."""
    task: str | None = None
    """The task; None is chosen by the data."""
    tune: Tune = "full"
    """Train all weights, the head alone, or the head and low-rank adapters."""
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    """Adapters, with tune lora."""
    data_path: str = ""
    """The data."""
    data: LabelledConfig = dataclasses.field(default_factory=LabelledConfig)
    """How the data are read."""
    alphabet: Literal["dna", "rna", "protein", "symbols", "tokens", "numbers"] | None = None
    """What sequences are written in; None looks at them."""
    strand: Literal["both", "forward"] = "forward"
    """Whether the other strand says the same: both trains and predicts on both. Only for DNA and RNA."""
    max_length: int = 65536
    """The longest stretch that is read: of longer sequences a random one in training, the middle one in
    validation; the test and predictions read whole sequences."""
    test_fraction: float = 0.1
    """Part of the examples for the test, where the data name no splits."""
    validation_fraction: float = 0.1
    """Part for validation."""
    split_seed: int | None = None
    """Seed of the splits; None takes `seed`."""
    mutation_fraction: float = 0.0
    """Up to this part of a training sequence's letters is replaced by random ones, anew every time."""
    mask_fraction: float = 0.0
    """Up to this part of a training sequence's letters is hidden: read as the unknown letter, or, of a series, as its
    mean. Unlike a mutation it never says what is wrong."""
    class_weights: bool = False
    """Weigh classes inversely to their numbers."""
    label_smoothing: float = 0.0
    """Part of a class target that is spread over all classes."""
    optim: OptimConfig = dataclasses.field(default_factory=lambda: OptimConfig(lr=1e-3, steps=1, warmup_steps=0))
    """Optimiser."""
    backbone_rate: float = 1.0
    """Learning rate of what is taken from the saved model, embedding and blocks, as a part of the head's, `optim.lr`:
    less keeps more of it."""
    layer_decay: float = 1.0
    """That rate is multiplied by this for every block that stands above (arXiv 1801.06146 divides by 2.6); 1 for one
    rate."""
    epochs: int = 30
    """Most passes over the training examples."""
    warmup_fraction: float = 0.1
    """Part of the steps for the warm-up of the learning rate."""
    patience: int = 8
    """Validations without improvement that end the run; the weights of the best are kept."""
    monitor: Literal["loss", "score"] = "loss"
    """What of validation is to improve: the loss, or, of classes, MCC, and of ctc, the character error rate."""
    ema: float = 0.0
    """Decay of a running average of the weights, which is what is validated and saved; 0 takes the weights."""
    batch_size: int | None = None
    """Sequences in a batch; None chooses by their length and number."""
    batch_tokens: int = 1 << 16
    """Most positions in a batch, padding included, when `batch_size` is None: less takes less memory."""
    val_every: int = 1
    """Epochs between two validations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task is not None and self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}, expected one of {', '.join(TASKS)}")
        for name in ("test_fraction", "validation_fraction"):
            if not 0 < getattr(self, name) < 0.5:
                raise ValueError(f"{name} is {getattr(self, name)}, expected above 0, below 0.5")
        for name in ("mutation_fraction", "mask_fraction", "label_smoothing", "warmup_fraction", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more, below 1")
        for name in ("epochs", "patience", "max_length", "batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("backbone_rate", "layer_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected above 0, at most 1")
            if getattr(self, name) != 1 and (self.start is None or self.tune != "full"):
                raise ValueError(f"{name} is {getattr(self, name)}, and no saved model (-m) is trained in full")
        if self.optim.next_token_weight:
            raise ValueError(f"optim.next_token_weight is {self.optim.next_token_weight}, expected 0 in fine-tuning")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, expected at least 1, or null to choose")


def read_finetune_recipe(path: Path | None, overrides: Sequence[str]) -> tuple[FinetuneRecipe, str]:
    """Read the recipe of a file, or the built-in one, with overrides; return it and the YAML of all its fields.

    Raises:
        RecipeError: For a value out of its range, or another kind of recipe. A field of another name or type ends the
            process with exit code 2, as wrong usage does.
    """
    from jsonargparse import ActionConfigFile, ArgumentParser

    if path is not None and not any(
        line.strip() == "kind: finetune" for line in path.read_text(encoding="utf-8").splitlines()
    ):
        raise RecipeError(f"{path} is a recipe for 'mamba-seq train', expected one with 'kind: finetune'")
    parser = ArgumentParser(
        prog="mamba-seq finetune",
        usage="mamba-seq finetune DATA -m MODEL -o RUN [--FIELD VALUE]...\n"
        "'mamba-seq finetune DATA -m MODEL -o RUN --print_config' shows every field and its value.",
    )
    parser.add_argument("--config", action=ActionConfigFile, help="a YAML file whose fields override the recipe's")
    parser.add_class_arguments(FinetuneRecipe, nested_key=None)
    given = [f"--config={path}"] if path is not None else []
    fields = parser.parse_args([*given, *overrides])
    text: str = parser.dump(fields)
    try:
        made = parser.instantiate(fields)
        recipe = FinetuneRecipe(**{field.name: made[field.name] for field in dataclasses.fields(FinetuneRecipe)})
    except ValueError as error:
        raise RecipeError(f"{path or 'the recipe'} with its overrides is no recipe: {error}") from error
    if (recipe.start is None) == (recipe.model is None):
        raise RecipeError(
            "a run needs a saved model (-m MODEL) or a recipe with a model (--from-scratch RECIPE), one of the two"
        )
    return recipe, text
