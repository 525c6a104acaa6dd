"""The model of a run: that of a saved one with a new head, or one from scratch; and which of its weights are
trained.
"""

import dataclasses
import logging

from mamba_seq.config import ModelConfig
from mamba_seq.heads import MODELS, Model
from mamba_seq.pipelines.errors import RecipeError
from mamba_seq.pipelines.finetune.dataset import Dataset
from mamba_seq.pipelines.finetune.lora import add_adapters
from mamba_seq.pipelines.finetune.recipe import FinetuneRecipe

log = logging.getLogger("mamba_seq.finetune")

WHOLE_SEQUENCES = ("sequence-classification", "multi-label", "sequence-regression")


def model_config(recipe: FinetuneRecipe, dataset: Dataset, start: ModelConfig | None) -> ModelConfig:
    """Return the config of the model of a run.

    Raises:
        RecipeError: The recipe asks for what the task cannot have.
    """
    task, reader = dataset.targets.task, dataset.reader
    backbone = start.backbone if start is not None else recipe.model
    assert backbone is not None
    if recipe.dropout is not None:
        backbone = dataclasses.replace(backbone, dropout=recipe.dropout)
    longest = min(recipe.max_length, max(len(each) for each in dataset.inputs))
    whole = task in WHOLE_SEQUENCES
    if recipe.positions and not whole:
        raise RecipeError(f"positions is true, and {task} has an output at every position; leave it false")
    if recipe.positions and longest == recipe.max_length < max(len(each) for each in dataset.inputs):
        raise RecipeError(f"positions is true, and sequences are longer than max_length = {longest}; raise that")
    try:
        return ModelConfig(
            task=task,  # type: ignore[arg-type]
            backbone=backbone,
            vocab_size=reader.vocab_size,
            input_features=reader.input_features,
            alphabet=reader.alphabet,
            codec=dataset.data.codec,
            sample_rate=dataset.data.sample_rate,
            labels=dataset.targets.labels,
            context=longest,
            pooling=recipe.pooling or (start.pooling if start is not None else "mean"),
            embedding=start.embedding if start is not None else "learned",
            tie_embeddings=start.tie_embeddings if start is not None and task == "language-model" else True,
            positions=longest if recipe.positions else None,
            target_mean=dataset.targets.mean,
            target_scale=dataset.targets.scale,
            input_mean=list(reader.input_mean),
            input_scale=list(reader.input_scale),
            strand=recipe.strand if reader.alphabet in ("dna", "rna") else None,
        )
    except ValueError as error:
        raise RecipeError(f"the data and the recipe make no model: {error}") from error


def make_model(recipe: FinetuneRecipe, config: ModelConfig, start: Model | None) -> Model:
    """Build the model, take over what fits of the one it starts from, and freeze what is not trained."""
    model = MODELS[config.task](config)
    if start is not None:
        ours, theirs = model.state_dict(), start.state_dict()
        same_head = start.config.task == config.task and start.config.labels == config.labels
        taken = {
            name: tensor
            for name, tensor in theirs.items()
            if name in ours and ours[name].shape == tensor.shape and (same_head or not name.startswith("head."))
        }
        model.load_state_dict({**ours, **taken})
        new = sorted({name.split(".")[0] for name in ours if name not in taken})
        log.info("started from a %s; new: %s", start.config.task, ", ".join(new) or "nothing")
    if recipe.tune == "full":
        return model
    if start is None:
        raise RecipeError(f"tune is {recipe.tune!r}, and the model is random; name one with -m, or say --tune=full")
    if recipe.tune == "head" and not hasattr(model, "head"):
        raise RecipeError("tune is 'head', and a language model's head is its embedding; say --tune=lora or full")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(("head.", "position."))
    if recipe.tune == "lora":
        add_adapters(model, recipe.lora)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    log.info("%s of %s weights are trained", f"{trained:,}", f"{sum(p.numel() for p in model.parameters()):,}")
    return model
